import pytest
import torch

from microtome.core.formats import Affine, Binary, MidRise, Ternary


def rows(channels: int = 4, count: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((channels, count), generator=generator) * torch.logspace(-2, 2, channels)[:, None]


def lost(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (made - wanted).double().square().sum(1)


def test_four_values_by_hand():
    # Steps of 2: the values are -3, -1, 1 and 3, and 0 counts as positive.
    encoded = MidRise().encode(torch.tensor([[3.0, -1.0, 1.0, -3.0]]), 0)
    assert encoded.parameters["scale"].tolist() == [1.0]
    assert encoded.codes.tolist() == [[3, 1, 2, 0]]
    again = encoded.encoding.encode(torch.tensor([[0.0, -0.1, 1.9, 2.1]]))
    assert again.decode().tolist() == [[1.0, -1.0, 1.0, 3.0]]
    assert again.integers()[0].tolist() == [[1, -1, 1, 3]]


def test_levels_are_the_odd_integers():
    assert MidRise(3).levels.tolist() == [-7, -5, -3, -1, 1, 3, 5, 7]
    assert float(MidRise(7).levels.max()) == 127


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_scale_on_a_fine_raster_is_better(bits: int):
    tensor = rows()
    encoded = MidRise(bits).encode(tensor, 0)
    found = lost(encoded.decode(), tensor)
    for factor in torch.linspace(0.3, 3, 300).tolist():
        other = MidRise(bits).encode(tensor, 0, {"scale": encoded.parameters["scale"] * factor})
        assert bool((found <= lost(other.decode(), tensor) * 1.01).all())  # the search tries fewer scales


def test_of_normal_weights_it_keeps_what_max_found():
    # Max, "Quantizing for minimum distortion", IRE 1960, table II: four equal steps of a unit normal, error 0.1188.
    tensor = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(20000) + 0.5) / 20000)[None]
    encoded = MidRise().encode(tensor, 0)
    assert float(lost(encoded.decode(), tensor) / tensor.numel()) == pytest.approx(0.1188, abs=2e-4)
    assert float(2 * encoded.parameters["scale"]) == pytest.approx(0.9957, rel=0.01)


def test_it_loses_less_than_all_other_grids_of_two_bits():
    tensor = rows()
    mine = lost(MidRise().encode(tensor, 0).decode(), tensor)
    for other in (Affine(2, search=True), Affine(2, narrow=False, search=True), Ternary(), Binary()):
        assert bool((mine < 0.9 * lost(other.encode(tensor, 0).decode(), tensor)).all())


def test_other_widths_are_refused():
    for bits in (1, 8):
        with pytest.raises(ValueError, match="2 to 7"):
            MidRise(bits)
