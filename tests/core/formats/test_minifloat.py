import pytest
import torch

from microtome.core.formats import Minifloat


def e4m3fn(code: int) -> float:
    """Value of a bit pattern, from the format's definition: bias 7, three bits of mantissa, subnormals."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    magnitude = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -magnitude if sign else magnitude


def e5m2(code: int) -> float:
    """The same with bias 15 and two bits of mantissa."""
    sign, exponent, mantissa = code >> 7, code >> 2 & 31, code & 3
    magnitude = mantissa * 2.0**-16 if exponent == 0 else (4 + mantissa) * 2.0 ** (exponent - 17)
    return -magnitude if sign else magnitude


@pytest.mark.parametrize(("kind", "value", "last"), [("e4m3fn", e4m3fn, 0x7E), ("e5m2", e5m2, 0x7B)])
def test_the_values_of_8_bits(kind: str, value, last: int):
    codes = [*range(last + 1), *range(0x80, 0x80 + last + 1)]
    values = torch.tensor([value(code) for code in codes])
    encoded = Minifloat(kind).encode(values)
    assert encoded.codes.tolist() == codes
    assert torch.equal(encoded.decode(), values)


@pytest.mark.parametrize(("kind", "value", "last"), [("e4m3fn", e4m3fn, 0x7E), ("e5m2", e5m2, 0x7B)])
def test_what_lies_between_goes_to_the_nearest(kind: str, value, last: int):
    grid = torch.tensor([value(code) for code in range(last + 1)], dtype=torch.float64)
    tensor = (
        torch.rand(2000, generator=torch.Generator().manual_seed(0)).mul(20).sub(14).exp2().clamp(max=float(grid[-1]))
    )
    decoded = Minifloat(kind).encode(tensor).decode().double()
    assert torch.equal((decoded - tensor).abs(), (grid - tensor[:, None]).abs().amin(1))


@pytest.mark.parametrize(("kind", "largest"), [("fp16", 65504), ("e4m3fn", 448), ("e5m2", 57344)])
def test_large_values_saturate(kind: str, largest: float):
    assert Minifloat(kind).encode(torch.tensor([1e30, -1e30])).decode().tolist() == [largest, -largest]


def test_16_bits_are_torchs():
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Minifloat("fp16").encode(tensor).decode(), tensor.half().float())
    assert torch.equal(Minifloat("bf16").encode(tensor).decode(), tensor.bfloat16().float())


def test_a_scale_puts_the_largest_at_the_largest():
    tensor = torch.tensor([[1e-4, 3e-4], [5.0, -9000.0]])
    encoded = Minifloat("e4m3fn", scaled=True).encode(tensor, 0)
    assert torch.allclose(encoded.parameters["scale"], torch.tensor([3e-4 / 448, 9000 / 448]))
    assert torch.allclose(encoded.decode(), tensor, rtol=2**-4)


def test_other_kinds_are_refused():
    with pytest.raises(ValueError, match="no such format"):
        Minifloat("fp4")
    with pytest.raises(ValueError, match="needs no scale"):
        Minifloat("fp16", scaled=True)
