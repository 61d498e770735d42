import math

import pytest
import torch

from microtome.core.affine import fake_quantize
from microtome.core.formats import Affine, affine_encoding
from microtome.core.range_search import weight_qparams
from microtome.types import QType


def test_the_textbook_case():
    # r = 0.75 in [0, 1] at 8 bits: 0.75 * 255 = 191.25
    encoded = Affine(8, symmetric=False, rounding="floor", clip=(0, 1)).encode(torch.tensor([0.75, 0.7499, 1.0, 2.0]))
    assert encoded.codes.tolist() == [191, 191, 255, 255]
    assert float(encoded.decode()[0]) == pytest.approx(191 / 255, abs=1e-7)
    assert 0.749 <= float(encoded.decode()[0]) < 0.75


@pytest.mark.parametrize("bits", range(2, 17))
def test_the_symmetric_scale(bits: int):
    encoded = Affine(bits).encode(torch.tensor([0.3, -1.5, 0.2]))
    assert float(encoded.parameters["scale"]) == pytest.approx(1.5 / (2 ** (bits - 1) - 1), rel=1e-6)
    assert "zero_point" not in encoded.parameters


@pytest.mark.parametrize("bits", range(1, 17))
def test_the_asymmetric_zero_point(bits: int):
    encoded = Affine(bits, symmetric=False).encode(torch.tensor([-0.7, 1.3]))
    scale = 2.0 / (2**bits - 1)
    assert float(encoded.parameters["scale"]) == pytest.approx(scale, rel=1e-6)
    assert int(encoded.parameters["zero_point"]) == round(0.7 / scale)


def test_floor_takes_the_value_below():
    tensor = torch.linspace(-1, 1, 1001)
    encoded = Affine(5, symmetric=False, rounding="floor").encode(tensor)
    scale = float(encoded.parameters["scale"])
    below = tensor - encoded.decode()
    inside = (encoded.codes > 0) & (encoded.codes < 31)
    assert bool((below[inside] >= 0).all())
    assert bool((below[inside] < scale * (1 + 1e-6)).all())


def test_groups_have_scales_of_their_own():
    tensor = torch.tensor([[1.0, -7.0, 0.7, 0.1, 70.0], [0.0, 0.0, 14.0, 7.0, 3.5]])
    encoded = Affine(4, group=2).encode(tensor, 0)
    assert torch.allclose(encoded.parameters["scale"], torch.tensor([[1.0, 0.1, 10.0], [1.0, 2.0, 0.5]]))
    assert encoded.decode()[0, :2].tolist() == [1.0, -7.0]
    assert float(encoded.decode()[0, 4]) == pytest.approx(70)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_group_of_everything_is_no_group(axis: int | None):
    tensor = torch.randn((4, 3, 5), generator=torch.Generator().manual_seed(0))
    for symmetric in (True, False):
        whole = Affine(4, symmetric=symmetric).encode(tensor, axis)
        assert torch.equal(Affine(4, symmetric=symmetric, group=60).encode(tensor, axis).decode(), whole.decode())


def test_smaller_groups_lose_less():
    tensor = torch.randn((8, 256), generator=torch.Generator().manual_seed(0))
    errors = [float((Affine(4, group=g).encode(tensor, 0).decode() - tensor).square().mean()) for g in (8, 64, 256)]
    assert errors == sorted(errors)


def test_search_loses_less():
    tensor = torch.randn((8, 256), generator=torch.Generator().manual_seed(0))
    plain, searched = (Affine(3, search=s).encode(tensor, 0).decode() - tensor for s in (False, True))
    assert bool((searched.square().sum(1) <= plain.square().sum(1)).all())
    assert float(searched.square().sum()) < 0.8 * float(plain.square().sum())


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_quantizers_grid_gives_what_the_quantizer_gives(bits: int, symmetric: bool, signed: bool, axis: int | None):
    tensor = torch.randn((4, 3, 5), generator=torch.Generator().manual_seed(0)) + 0.3
    grid = weight_qparams(tensor, QType(bits, signed, symmetric, narrow=bits > 2, axis=axis))
    assert torch.equal(affine_encoding(grid).encode(tensor).decode(), fake_quantize(tensor, grid))


def test_zero_points_are_stored_small():
    tensor = torch.tensor([-1.0, 2.0])
    assert Affine(8, symmetric=False).encode(tensor).parameters["zero_point"].dtype == torch.uint8
    assert Affine(8, symmetric=False, signed=True).encode(tensor).parameters["zero_point"].dtype == torch.int8
    assert Affine(9, symmetric=False).encode(tensor).parameters["zero_point"].dtype == torch.int32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 0}, "bits must be 1 to 16"),
        ({"bits": 17}, "bits must be 1 to 16"),
        ({"group": 0}, "at least one value"),
        ({"rounding": "up"}, "nearest or floor"),
        ({"clip": (1.0, 0.0)}, "not a range"),
        ({"clip": (0.0, math.inf)}, "not a range"),
    ],
)
def test_settings_without_a_grid_are_refused(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Affine(**settings).encode(torch.ones(2))
