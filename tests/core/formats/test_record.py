import pytest

from microtome.core.formats import (
    AdditivePowerOfTwo,
    Affine,
    Binary,
    Codebook,
    Format,
    Logarithmic,
    MidRise,
    Minifloat,
    PowerOfTwo,
    Ternary,
    format_of,
    format_record,
)
from microtome.core.formats.record import EXAMPLES

NAMED: dict[str, Format] = {
    "int4": Affine(4),
    "uint8": Affine(8, symmetric=False),
    "int4g32": Affine(4, group=32),
    "codebook4": Codebook(4),
    "codebook3i": Codebook(3, integer=True),
    "codebook4z": Codebook(4, zero=True),
    "codebook5iz": Codebook(5, integer=True, zero=True),
    "pot4": PowerOfTwo(4),
    "apot5": AdditivePowerOfTwo(5),
    "log4": Logarithmic(4),
    "midrise2": MidRise(),
    "midrise5": MidRise(5),
    "ternary": Ternary(),
    "ternary2": Ternary(two_scales=True),
    "binary": Binary(),
    "fp8_e4m3fn": Minifloat("e4m3fn", scaled=True),
    "fp8_e5m2": Minifloat("e5m2", scaled=True),
    "fp16": Minifloat("fp16"),
    "bf16": Minifloat("bf16"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_name_decodes_itself(name: str):
    assert format_of(name) == NAMED[name]
    assert format_of(name).name == name


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_names(name: str):
    assert format_of(name).name == name


@pytest.mark.parametrize("name", NAMED)
def test_a_record_says_more_than_a_name(name: str):
    assert format_of(format_record(NAMED[name])) == NAMED[name]
    assert format_of({"type": "Minifloat", "kind": "e4m3fn"}) == Minifloat("e4m3fn")


@pytest.mark.parametrize(
    ("value", "message"),
    [("pot", "no number format is called 'pot'; such are codebook4i"), ("pot9", "2 to 7"), ({"type": "Pot"}, "'Pot'")],
)
def test_what_is_no_format_is_refused(value: object, message: str):
    with pytest.raises(ValueError, match=message):
        format_of(value)
