"""What holds for every number format. A new format adds its lines to WITH_INTEGERS or WITHOUT_INTEGERS."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.core.formats import (
    AdditivePowerOfTwo,
    Affine,
    Binary,
    Codebook,
    Encoded,
    Format,
    Logarithmic,
    MidRise,
    Minifloat,
    PowerOfTwo,
    Ternary,
    encoding_from_record,
    encoding_record,
)

# One of each kind that core.formats has a branch of its own for.
WITH_INTEGERS: tuple[Format, ...] = (
    Affine(1),
    Affine(4),
    Affine(4, narrow=False),
    Affine(4, group=1000),
    Affine(3, search=True),
    Affine(8, rounding="floor"),
    Logarithmic(3),
    MidRise(),
    MidRise(7),
    PowerOfTwo(3),
    AdditivePowerOfTwo(5),
    AdditivePowerOfTwo(6),
    Codebook(8, per_channel=False, integer=True),
    Codebook(4, per_channel=True, integer=True),
    Ternary(threshold="twn", two_scales=False),
    Binary(),
)
WITHOUT_INTEGERS: tuple[Format, ...] = (
    Affine(1, symmetric=False),
    Affine(3, signed=False),
    Affine(4, group=5),
    Affine(4, symmetric=False, group=5),
    Affine(8, symmetric=False, signed=True),
    Affine(8, symmetric=False, clip=(-1, 0.5)),
    Affine(12),
    Affine(16, symmetric=False, rounding="floor"),
    Logarithmic(5),
    Logarithmic(8, base=1.1),
    Logarithmic(8, span=(1e-3, 1e2)),
    Logarithmic(8, span=(1e-3, 1e2), rounding="floor"),
    PowerOfTwo(6),
    Codebook(1, per_channel=True),
    Codebook(4, per_channel=False),
    Ternary(threshold="exact", two_scales=True),
    *(Minifloat(kind) for kind in ("fp16", "bf16", "e4m3fn")),
    Minifloat("e5m2", scaled=True),
)
FORMATS = WITH_INTEGERS + WITHOUT_INTEGERS
BY_CHANNEL = tuple(f for f in FORMATS if not isinstance(f, Codebook) or f.per_channel)
# Every width, with every setting: what hypothesis draws from.
ALL_WIDTHS: tuple[Format, ...] = (
    *FORMATS,
    *(Affine(bits, symmetric=symmetric) for bits in range(1, 17) for symmetric in (True, False)),
    *(Affine(bits, symmetric=symmetric, rounding="floor") for bits in (1, 4, 8, 16) for symmetric in (True, False)),
    *(Logarithmic(bits) for bits in range(2, 7)),
    *(Logarithmic(bits, span=(1e-3, 1e2), rounding=r) for bits in (1, 4, 8, 12) for r in ("nearest", "floor")),
    *(MidRise(bits) for bits in range(2, 8)),
    *(PowerOfTwo(bits) for bits in range(2, 8)),
    *(AdditivePowerOfTwo(bits) for bits in range(2, 9)),
    *(Codebook(bits, per_channel=p, integer=i) for bits in (1, 4, 8) for p in (True, False) for i in (True, False)),
    *(Ternary(threshold=t, two_scales=two) for t in ("exact", "twn") for two in (True, False)),
    *(Minifloat(kind) for kind in ("fp16", "bf16", "e4m3fn", "e5m2")),
    *(Minifloat(kind, scaled=True) for kind in ("e4m3fn", "e5m2")),
)
# Not a number: no tensor that is encoded gives such codes.
NOT_FINITE = {
    "fp16": lambda code: code & 0x7C00 == 0x7C00,
    "bf16": lambda code: code & 0x7F80 == 0x7F80,
    "e4m3fn": lambda code: code & 0x7F == 0x7F,
    "e5m2": lambda code: code & 0x7C == 0x7C,
}

every_format = pytest.mark.parametrize("number_format", FORMATS, ids=repr)
every_axis = pytest.mark.parametrize("axis", [None, 0, 1, -1])


def weight(seed: int = 0, shape: tuple[int, ...] = (3, 4, 5)) -> Tensor:
    """Return random values with a size of their own for each entry of the first two axes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand((*shape[:2], *[1] * (len(shape) - 2)), generator=generator) + 0.1
    return sizes * torch.randn(shape, generator=generator)


def all_codes(encoded: Encoded) -> Tensor:
    """Return every code of the format that stands for a finite value."""
    codes = torch.arange(1 << encoded.format.bits, dtype=torch.int32)
    if isinstance(encoded.format, Minifloat):
        codes = codes[~NOT_FINITE[encoded.format.kind](codes)]
    return codes


@every_format
@pytest.mark.parametrize("axis", [None, 0])
def test_every_value_of_the_grid_comes_back(number_format: Format, axis: int | None):
    fitted = number_format.encode(weight(shape=(3, 8, 9)), axis)
    codes = all_codes(fitted).repeat(3, 1)
    if isinstance(number_format, Affine) and number_format.group is not None:
        codes = codes.repeat(1, -(-72 // codes.shape[1]))[:, :72]  # as many groups as there are scales
    values = Encoded(number_format, codes, fitted.parameters, axis).decode()
    again = fitted.encoding.encode(values)
    assert torch.equal(again.decode(), values)
    for row, code, other in zip(values, codes, again.codes, strict=True):
        if len(row.unique()) == len(row):
            assert torch.equal(code, other)


@every_format
@every_axis
def test_decoded_values_come_back(number_format: Format, axis: int | None):
    fitted = number_format.encode(weight(), axis)
    values = fitted.decode()
    again = number_format.encode(values, axis, fitted.parameters)
    assert torch.equal(again.decode(), values)
    if not isinstance(number_format, Codebook):  # which may hold a value twice
        assert torch.equal(again.codes, fitted.codes)


@given(
    st.sampled_from(ALL_WIDTHS),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=24),
    st.sampled_from([None, 0, 1]),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_encoded_comes_back(number_format: Format, values: list[float], axis: int | None):
    tensor = torch.tensor(values).reshape(1, -1) if axis == 0 else torch.tensor(values).reshape(-1, 1)
    fitted = number_format.encode(tensor, axis)
    decoded = fitted.decode()
    assert bool(torch.isfinite(decoded).all())
    assert 0 <= int(fitted.codes.min()) <= int(fitted.codes.max()) < 1 << number_format.bits
    assert torch.equal(fitted.encoding.encode(decoded).decode(), decoded)


@every_format
@every_axis
def test_shapes_and_types(number_format: Format, axis: int | None):
    encoded = number_format.encode(weight().double(), axis)
    assert (encoded.codes.dtype, encoded.codes.shape) == (torch.int32, (3, 4, 5))
    assert (encoded.decode().dtype, encoded.decode().shape) == (torch.float32, (3, 4, 5))
    assert (encoded.format, encoded.axis) == (number_format, axis)


@pytest.mark.parametrize("number_format", WITH_INTEGERS, ids=repr)
@every_axis
def test_integers_are_exactly_the_values(number_format: Format, axis: int | None):
    encoded = number_format.encode(weight(), axis)
    found = encoded.integers()
    assert found is not None
    integers, scale = found
    assert (integers.dtype, integers.shape) == (torch.int8, encoded.codes.shape)
    assert scale.shape == (() if axis is None else (encoded.codes.shape[axis],))
    shape = [1, 1, 1]
    shape[axis or 0] = -1
    assert torch.equal(integers * scale.reshape(shape), encoded.decode())
    assert int(integers.abs().max()) <= 127


@pytest.mark.parametrize("number_format", WITHOUT_INTEGERS, ids=repr)
@every_axis
def test_where_the_values_are_no_integers_there_are_none(number_format: Format, axis: int | None):
    assert number_format.encode(weight(), axis).integers() is None


@pytest.mark.parametrize(
    ("number_format", "expected"),
    [
        *((Affine(bits), bits <= 8) for bits in range(2, 17)),
        (Affine(8, symmetric=False), False),
        (Affine(4, group=5), False),
        (Affine(4, group=1000), True),
        *((PowerOfTwo(bits), bits <= 4) for bits in range(2, 8)),
        *((AdditivePowerOfTwo(bits), bits <= 6) for bits in range(2, 9)),
        *((MidRise(bits), True) for bits in range(2, 8)),
        (Ternary(), True),
        (Ternary(two_scales=True), False),
        (Binary(), True),
        (Codebook(4), False),
        (Codebook(4, integer=True), True),
        (Codebook(4, integer=True, per_channel=True), True),
        *((Logarithmic(bits), bits <= 4) for bits in range(2, 7)),
        (Logarithmic(4, base=1.5), False),
        (Minifloat("e4m3fn"), False),
    ],
    ids=repr,
)
def test_which_formats_have_integers(number_format: Format, expected: bool):
    assert (number_format.encode(weight(), 0).integers() is not None) == expected


@pytest.mark.parametrize("number_format", BY_CHANNEL, ids=repr)
def test_channels_are_encoded_by_themselves(number_format: Format):
    tensor = weight()
    together = number_format.encode(tensor, 1).decode()
    for channel in range(tensor.shape[1]):
        alone = number_format.encode(tensor[:, channel], None).decode()
        assert torch.equal(together[:, channel], alone)


@every_format
def test_a_tensor_of_zeros(number_format: Format):
    decoded = number_format.encode(torch.zeros(3, 4), 0).decode()
    if isinstance(number_format, Logarithmic) and number_format.span is not None:
        assert bool((decoded == decoded[0, 0]).all())
    else:
        assert float(decoded.abs().max()) < 1e-20  # one bit has no zero, but nearly


@every_format
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(number_format: Format, bad: float):
    with pytest.raises(ValueError, match="finite"):
        number_format.encode(torch.tensor([1.0, bad]))


@every_format
@every_axis
def test_records_are_exact(number_format: Format, axis: int | None):
    encoding = number_format.encode(weight(), axis).encoding
    again = encoding_from_record(json.loads(json.dumps(encoding_record(encoding))))
    assert (again.format, again.axis) == (encoding.format, encoding.axis)
    assert again.parameters.keys() == encoding.parameters.keys()
    for name, value in encoding.parameters.items():
        assert again.parameters[name].dtype == value.dtype
        assert torch.equal(again.parameters[name], value)


@pytest.mark.parametrize(
    "record", [{"type": "Nothing"}, {}, {"type": "Affine", "colour": 3}, {"type": "Affine", "bits": 0}]
)
def test_a_record_of_no_format_is_refused(record: dict[str, object]):
    encoding = encoding_record(Binary().encode(weight(), 0).encoding)
    with pytest.raises(ValueError, match=r"number format|settings|bits"):
        encoding_from_record({**encoding, "format": record})


def test_formats_are_frozen_values_with_names_of_their_own():
    for number_format in ALL_WIDTHS:
        assert dataclasses.is_dataclass(number_format)
        assert hash(number_format) == hash(dataclasses.replace(number_format))
    names = ["int4", "uint8", "int4g32", "log4", "pot4", "apot4", "codebook4", "codebook4i", "ternary", "ternary2"]
    made = [
        Affine(4),
        Affine(8, symmetric=False),
        Affine(4, group=32),
        Logarithmic(),
        PowerOfTwo(),
        AdditivePowerOfTwo(),
    ]
    made += [Codebook(), Codebook(integer=True), Ternary(), Ternary(two_scales=True)]
    assert [m.name for m in made] == names
    assert [m.name for m in (Binary(), Minifloat("bf16"), Minifloat("e5m2"))] == ["binary", "bf16", "fp8_e5m2"]


def test_nothing_is_fitted_where_parameters_are_given():
    parameters = {"scale": torch.tensor(0.5)}
    encoded = Affine(4).encode(torch.tensor([0.2, 0.3, 9.0]), None, parameters)
    assert encoded.decode().tolist() == [0.0, 0.5, 3.5]
