import pytest
import torch

from microtome.core.formats import AdditivePowerOfTwo, PowerOfTwo
from microtome.core.formats.levels import ScaledLevels, search_scale

BOTH = (
    PowerOfTwo(3),
    PowerOfTwo(4),
    PowerOfTwo(7),
    AdditivePowerOfTwo(3),
    AdditivePowerOfTwo(4),
    AdditivePowerOfTwo(8),
)


SEARCHED = 0.98  # the search tries fewer scales than there are minima


def bell(channels: int = 4) -> torch.Tensor:
    return (
        torch.randn((channels, 300), generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 3, channels)[:, None]
    )


def test_the_levels_of_powers():
    assert PowerOfTwo(2).levels.tolist() == [-1, 0, 1]
    assert PowerOfTwo(3).levels.tolist() == [-4, -2, -1, 0, 1, 2, 4]
    assert PowerOfTwo(4).levels[7:].tolist() == [0, 1, 2, 4, 8, 16, 32, 64]
    assert PowerOfTwo(5).levels[15:17].tolist() == [0, 2**-14]


def test_the_levels_of_sums():
    # 3 bits: {0, 1, 1/2, 1/4}; 4: {0, 1, 1/2, 1/8} + {0, 1/4}; 5: {0, 1, 1/4, 1/16} + {0, 1/2, 1/8, 1/32}
    assert AdditivePowerOfTwo(2).levels.tolist() == [-1, 0, 1]
    assert AdditivePowerOfTwo(3).levels[3:].tolist() == [0, 1, 2, 4]
    assert AdditivePowerOfTwo(4).levels[7:].tolist() == [0, 1, 2, 3, 4, 6, 8, 10]
    paper = sorted(32 * (p + q) for p in (0, 1, 1 / 4, 1 / 16) for q in (0, 1 / 2, 1 / 8, 1 / 32))
    assert AdditivePowerOfTwo(5).levels[15:].tolist() == paper


@pytest.mark.parametrize("bits", range(2, 9))
def test_no_two_codes_are_the_same_sum(bits: int):
    assert AdditivePowerOfTwo(bits).levels.unique().numel() == 2**bits - 1


@pytest.mark.parametrize("number_format", BOTH, ids=repr)
def test_values_are_rounded_to_the_nearest(number_format: ScaledLevels):
    tensor = bell()
    encoded = number_format.encode(tensor, 0)
    table = encoded.parameters["scale"][:, None] * number_format.levels
    nearest = (tensor[:, :, None] - table[:, None]).abs().amin(2)
    assert torch.equal((tensor - encoded.decode()).abs(), nearest)


@pytest.mark.parametrize("number_format", BOTH, ids=repr)
def test_no_scale_among_many_is_better(number_format: ScaledLevels):
    tensor = bell(2)
    found = (tensor - number_format.encode(tensor, 0).decode()).square().sum(1)
    largest = tensor.abs().amax(1) / number_format.levels[-1]
    for share in torch.linspace(0.1, 1.4, 150):
        given = number_format.encode(tensor, 0, {"scale": largest * share})
        error = (tensor - given.decode()).square().sum(1)
        assert bool((error >= SEARCHED * found).all())


@pytest.mark.parametrize("number_format", BOTH, ids=repr)
def test_the_scale_follows_the_values(number_format: ScaledLevels):
    tensor = bell()
    one = search_scale(tensor, number_format.levels)
    assert torch.equal(search_scale(tensor * 4, number_format.levels), one * 4)


def test_sums_lose_less_than_powers():
    tensor = bell()
    for bits in (4, 5, 6):
        errors = [
            (f.encode(tensor, 0).decode() - tensor).square().sum(1)
            for f in (PowerOfTwo(bits), AdditivePowerOfTwo(bits))
        ]
        assert bool((errors[1] < errors[0]).all())


@pytest.mark.parametrize(("kind", "widths"), [(PowerOfTwo, (1, 8)), (AdditivePowerOfTwo, (1, 9))])
def test_other_widths_are_refused(kind: type, widths: tuple[int, ...]):
    for bits in widths:
        with pytest.raises(ValueError, match="bits must be 2 to"):
            kind(bits)
