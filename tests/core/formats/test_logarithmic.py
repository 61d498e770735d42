import pytest
import torch

from microtome.core.formats import Logarithmic


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_the_textbook_case(rounding: str):
    # r = 100 in [1, 1000] at 8 bits: 2/3 of the way, 170 of 255
    encoded = Logarithmic(8, span=(1, 1000), rounding=rounding).encode(
        torch.tensor([100.0, 1.0, 1000.0, 1e-9, 5e7, -3.0])
    )
    assert encoded.codes.tolist() == [170, 0, 255, 0, 255, 0]
    assert encoded.decode().tolist()[:3] == pytest.approx([100, 1, 1000], rel=1e-7)


def test_ranges_are_rounded_in_the_logarithm():
    tensor = torch.linspace(1.5, 990, 4001)
    place = tensor.double().log() / torch.tensor(1000.0).double().log() * 63
    for rounding, expected in (("nearest", place.round()), ("floor", place.floor())):
        codes = Logarithmic(6, span=(1, 1000), rounding=rounding).encode(tensor).codes
        assert torch.equal(codes.double(), expected)


def test_weights_by_hand():
    # levels ±8, ±4, ±2 and 0; boundaries at 4 * sqrt(2) = 5.66, 2.83 and 1.41
    encoded = Logarithmic(3).encode(torch.tensor([8.0, 5.7, 5.6, 2.9, 2.8, 1.42, 1.41, 0.0, -1.41, -1.42, -6.0]))
    assert encoded.decode().tolist() == [8, 8, 4, 4, 2, 2, 0, 0, 0, -2, -8]


def test_another_base():
    encoded = Logarithmic(3, base=10.0).encode(torch.tensor([100.0, 32.0, 31.0, 0.32, 0.31]))
    assert encoded.decode().tolist() == [100, 100, 10, 1, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "bits must be 2 to 8"),
        ({"bits": 9}, "bits must be 2 to 8"),
        ({"base": 1.0}, "base 1.0"),
        ({"bits": 8}, "too large for 8 bits"),
        ({"bits": 8, "base": float("nan")}, "base nan"),
        ({"rounding": "floor"}, "positive ranges"),
        ({"rounding": "up"}, "nearest or floor"),
        ({"span": (0.0, 1.0)}, "positive range"),
        ({"span": (2.0, 1.0)}, "positive range"),
        ({"span": (1.0, 2.0), "bits": 13}, "bits must be 1 to 12"),
    ],
)
def test_settings_without_levels_are_refused(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Logarithmic(**settings)
