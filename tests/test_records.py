from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from microtome.errors import OptionError
from microtome.records import fits, in_words, nearest, plain, read


@dataclass(frozen=True)
class Inner:
    size: int | None = 3


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["none", "some"] | None = None
    rate: float = 0.5
    loud: bool = False
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[int | tuple[int | None, int], ...] = ()
    names: frozenset[str] = frozenset()
    table: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    inner: Inner | None = None
    word: complex = 0j
    made: int = field(default=7, init=False)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise OptionError(f"rate must not be negative, not {self.rate}.", "Raise it.")


READERS = {complex: complex}
PLAIN = {
    "name": "a",
    "kind": "none",
    "rate": 1,
    "loud": True,
    "pair": [4, 5],
    "many": [1, ["float", 2]],
    "names": ["b", "a"],
    "table": {"x.y": [1, 2]},
    "inner": {"size": "none"},
    "word": "1+2j",
}


def test_plain_values_become_a_dataclass_and_come_back():
    made = read(Outer, PLAIN, "here", READERS)
    assert made == Outer(
        "a", "none", 1, True, (4, 5), (1, (None, 2)), frozenset("ab"), {"x.y": (1, 2)}, Inner(None), 1 + 2j
    )
    back = plain(made, {complex: str})
    assert back["many"] == [1, [None, 2]]
    assert back["names"] == ["a", "b"]
    del back["made"]
    assert read(Outer, back, "here", {complex: lambda text: complex(text.strip("()"))}) == made


def test_values_that_are_no_longer_plain_stay():
    inner = Inner(4)
    made = read(
        Outer, {"name": "a", "inner": inner, "names": frozenset("c"), "word": 2j, "kind": None}, "here", READERS
    )
    assert (made.inner, made.names, made.word, made.kind) == (inner, frozenset("c"), 2j, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "here needs a value for name. It must be text"),
        ({"name": 3}, "here.name must be text, not 3"),
        ({"nome": "a"}, "here has no field 'nome'; the nearest known one is 'name'. Its fields: name, kind"),
        ({"made": 3}, "here has no field 'made'"),
        ({"kind": "all"}, "here.kind must be 'none', 'some' or \"none\", not 'all'"),
        ({"rate": float("inf")}, "here.rate must be number"),
        ({"rate": -1.0}, "here: rate must not be negative"),
        ({"loud": 1}, "here.loud must be true or false, not 1"),
        ({"pair": [1, 2, 3]}, r"here.pair must be a list of whole numbers and numbers, not \[1, 2, 3\]"),
        ({"many": [1, "float"]}, "here.many must be"),
        ({"names": [1]}, "here.names must be a list of texts"),
        ({"table": [1]}, "here.table must be a table"),
        ({"inner": {"sise": 3}}, "here.inner has no field 'sise'; the nearest known one is 'size'"),
        ({"inner": {"size": "big"}}, 'here.inner.size must be whole number or "none"'),
        ({"word": "x"}, "here.word: "),
    ],
)
def test_what_does_not_fit_is_named(values: dict, message: str):
    with pytest.raises(OptionError, match=message):
        read(Outer, values if values in ({}, {"name": 3}, {"nome": "a"}) else {"name": "a", **values}, "here", READERS)


def test_a_bool_is_no_number_and_a_list_no_tuple():
    assert not fits(True, int)
    assert not fits(True, float)
    assert fits(1, float)
    assert not fits([1], tuple[int, ...])
    assert fits((), tuple[int, ...])
    assert not fits((1,), tuple[int, int])
    assert not fits({"a": "b"}, Mapping[str, int])


def test_words():
    assert in_words(int | None) == "whole number or null"
    assert in_words(tuple[float, ...] | None, none='"none"') == 'a list of numbers or "none"'
    assert in_words(Inner) == "a table"
    assert nearest("quantise", ["fold", "quantize"]) == "; the nearest known one is 'quantize'"
    assert nearest("xyz", ["fold"]) == ""
