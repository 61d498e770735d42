import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest

from microtome import recipes
from microtome.core.formats import Codebook, Minifloat
from microtome.errors import OptionError
from microtome.graph.network import Network
from microtome.methods import METHODS
from microtome.methods.base import EMPTY, Context, Method, Phase
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.encode import EncodeWeights
from microtome.methods.finetune import Finetune
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.recipes.files import assignments, load, names
from microtome.recipes.reader import holds
from networks import captured, images, told


@dataclass(frozen=True)
class Theirs(Method):
    """A method of another package."""

    strength: float = 0.5
    names: tuple[str, ...] = ()
    seed: int = 0

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[frozenset[str]] = frozenset({"theirs"})

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        return self.done(network, {"found": self.strength})


def file(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", names())
def test_every_recipe_reads_and_describes_itself(name: str):
    chosen = recipes.read(name)
    assert chosen.name == name
    assert 20 < len(chosen.description) < 110
    described = chosen.describe()
    assert json.loads(json.dumps(described)) == described
    assert recipes.from_history(name, described).methods == chosen.methods


def test_every_method_is_in_some_recipe():
    tables = [table for name in names() for table in load(name).tables]
    used = {inner["method"] for table in tables for inner in (table, *table.get("methods", ()))}
    assert used == set(METHODS)


def test_the_chain_of_int8():
    assert recipes.read("int8").methods == (FoldBatchNorm(), Quantize(end_bits=8), CorrectBias())
    assert recipes.read("f32").methods == ()


def test_a_file_of_ones_own(tmp_path: Path):
    path = file(
        tmp_path,
        """
        description = "mine"
        [[method]]
        method = "fold"
        [[method]]
        method = "quantize"
        skip = ["b", "a"]
        activation_bits = "float"
        layer_bits = { "c.d" = [4, 8], e = [3, "float"] }
        [method.budget]
        bits = 4
        widths = [8, [4, 4]]
        [[method]]
        method = "encode"
        format = { type = "Codebook", bits = 3, per_channel = true }
        layer_formats = { head = "fp8_e4m3fn" }
        """,
    )
    chosen = recipes.read(path)
    assert (chosen.name, chosen.description) == ("mine", "mine")
    quantize, encode = chosen.methods[1:]
    assert isinstance(quantize, Quantize)
    assert (quantize.skip, quantize.activation_bits) == (frozenset({"a", "b"}), None)
    assert quantize.layer_bits == {"c.d": (4, 8), "e": (3, None)}
    assert quantize.budget is not None
    assert (quantize.budget.bits, quantize.budget.widths) == (4, (8, (4, 4)))
    assert encode == EncodeWeights(
        Codebook(3, per_channel=True), layer_formats={"head": Minifloat("e4m3fn", scaled=True)}
    )
    assert recipes.from_history("mine", json.loads(json.dumps(chosen.describe()))).methods == chosen.methods


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("descripion = 'a'", "mine.toml has no 'descripion'; the nearest known one is 'description'"),
        ("description = 3", "mine.toml: the description must be text, not 3"),
        ("coded = 1", "mine.toml: coded must be true or false, not 1"),
        ("[[method]]\nname = 'fold'", r"mine.toml: each \[\[method\]\] needs a name"),
        ("method = 'fold'", r"mine.toml: each \[\[method\]\] needs a name"),
        ("[[method", "mine.toml is not TOML"),
        (
            "[[method]]\nmethod = 'quantise'",
            "mine.toml: there is no method 'quantise'; the nearest known one is 'quant",
        ),
        ("[[method]]\nmethod = 'fold'\nbits = 3", r"mine.toml: fold has no field 'bits'\. Its fields: none"),
        ("[[method]]\nmethod = 'encode'", "mine.toml: encode needs a value for format. It must be a Format"),
        ("[[method]]\nmethod = 'encode'\nformat = 'pot9'", "mine.toml: encode.format: bits must be 2 to 7, not 9"),
        (
            "[[method]]\nmethod = 'encode'\nformat = 'potato'",
            "no number format is called 'potato'; such are codebook4i",
        ),
        ("[[method]]\nmethod = 'nobody.there:Method'", "nobody.there:Method cannot be imported"),
        ("[[method]]\nmethod = 'pathlib:Path'", "pathlib:Path is no method"),
        ("[[method]]\nmethod = 'correct_bias'", "the recipe mine cannot run CorrectBias: it needs"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(OptionError, match=message):
        recipes.read(file(tmp_path, text))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "quantize.weight_bit",
            4,
            "int8.toml: quantize has no field 'weight_bit'; the nearest known one is 'weight_bits'",
        ),
        (
            "quantize.weight_bits",
            "four",
            "int8.toml: quantize.weight_bits must be whole number or \"none\", not 'four'",
        ),
        ("quantize.weight_bits", True, "must be whole number"),
        ("quantize.weight_bits", 1, "int8.toml: quantize: weights have no affine grid of 1 bits"),
        ("quantize.observer", "median", "quantize.observer must be 'minmax', 'moving_average'"),
        ("quantize.percentile", 50.0, "quantize: percentile must lie above 50"),
        ("quantize.percentile", float("nan"), "quantize.percentile must be number"),
        ("quantize.skip", "a", "quantize.skip must be a list of texts, not 'a'"),
        ("quantize.layer_bits", {"a": [4, 8, 8]}, "quantize.layer_bits must be a table"),
        ("quantize.budget.bitz", 3, "quantize.budget has no field 'bitz'; the nearest known one is 'bits'"),
        ("quantize.budget.kind", "bytes", "quantize.budget: a budget is an average width, or"),
        ("quantize.fallback", 3, 'quantize.fallback must be a table or "none"'),
        (
            "quantise.weight_bits",
            4,
            "has nothing that is called 'quantise.weight_bits'; the nearest known one is 'quantize'",
        ),
        ("quantize#2.weight_bits", 4, "has nothing that is called 'quantize#2.weight_bits'"),
        ("weight_bits", 4, "has nothing that is called 'weight_bits'"),
        ("finetune.steps", 4, "Write METHOD.FIELD; its methods: fold, quantize, correct_bias"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(key: str, value: object, message: str):
    with pytest.raises(OptionError, match=message):
        recipes.read("int8", {key: value})


def test_settings_go_over_the_file_and_shorthands_between():
    there = {"quantize.weight_bits": 4, "dynamic.weight_bits": 4, "quantize.observer": "kl"}
    quantize = recipes.read("minmax", {"quantize.weight_bits": 3}, where_there=there).methods[1]
    assert isinstance(quantize, Quantize)
    assert (quantize.weight_bits, quantize.observer, quantize.search_weights) == (3, "kl", False)
    plain = recipes.read("minmax").methods[1]
    assert (plain.weight_bits, plain.observer) == (8, "minmax")


def test_none_is_written_out():
    for word in ("none", None):
        assert recipes.read("int8", {"quantize.end_bits": word}).methods[1].end_bits is None
    assert recipes.read("int8", {"quantize.weight_bits": "float"}).methods[1].weight_bits is None
    assert recipes.read("mixed", {"quantize.budget": "none"}).methods[1].budget is None


def test_the_second_method_of_a_name_is_set_by_its_number(tmp_path: Path):
    one = '[[method]]\nmethod = "finetune"\n'
    path = file(tmp_path, f"{one}{one}steps = 7\n")
    assert [m.steps for m in recipes.read(path, {"finetune#2.steps": 9, "finetune.rate": 0.5}).methods] == [1000, 9]
    assert [m.steps for m in recipes.read(path, {"finetune.steps": 9, "finetune#1.steps": 3}).methods] == [3, 9]
    assert {m.rate for m in recipes.read(path, {"finetune.rate": 0.5}).methods} == {0.5}


def test_the_seed_goes_to_those_that_draw_unless_something_else_says_it(tmp_path: Path):
    assert recipes.read("qat", seed=7).methods[-1] == Finetune(seed=7)
    assert recipes.read("qat", {"finetune.seed": 3}, seed=7).methods[-1] == Finetune(seed=3)
    said = file(tmp_path, '[[method]]\nmethod = "finetune"\nseed = 5\n')
    assert recipes.read(said, seed=7).methods == (Finetune(seed=5),)
    assert "seed" not in {field.name for field in fields(recipes.read("int8", seed=7).methods[1])}


def test_a_recipe_holds_what_it_names():
    assert holds("int8", "quantize.anything")
    assert not holds("int8", "finetune.steps")


def test_a_recipe_that_is_not_there_names_the_nearest():
    with pytest.raises(OptionError, match="no recipe 'int9'; the nearest known one is 'int8'") as error:
        recipes.read("int9")
    assert "mine.toml" in error.value.hint


def test_a_method_of_another_package_is_found_when_it_is_named(tmp_path: Path):
    name = f"{__name__}:Theirs"
    path = file(tmp_path, f'[[method]]\nmethod = "{name}"\nstrength = 2\n[[method]]\nmethod = "fold"\n')
    chosen = recipes.read(path, {f"{name}.names": ["a"]}, seed=4)
    assert chosen.methods == (Theirs(2, ("a",), 4), FoldBatchNorm())
    network = captured("shared2d")
    result = recipes.run(chosen, network, told(images(network.shape)), checkpoints=tmp_path)
    assert result.state == {"theirs", "folded"}
    assert result.history[0] | {"seconds": 0} == {
        "method": name, "strength": 2, "names": ["a"], "seed": 4, "found": 2, "seconds": 0
    }  # fmt: skip
    assert recipes.from_history("mine", result.history).methods == chosen.methods
    assert (tmp_path / "0-Theirs.pt2").is_file()


def test_texts_are_read_as_toml_and_bare_words_as_texts():
    texts = ["a.b=4", "a.c = 0.5", "a.d=mse", "a.e=[1, 2]", "a.f=true", 'a.g="x y"', "a.h=pot4", "a.i=a=b"]
    values = {"a.b": 4, "a.c": 0.5, "a.d": "mse", "a.e": [1, 2], "a.f": True, "a.g": "x y", "a.h": "pot4", "a.i": "a=b"}
    assert assignments(texts) == values
    with pytest.raises(OptionError, match="'quantize' sets nothing"):
        assignments(["quantize"])
