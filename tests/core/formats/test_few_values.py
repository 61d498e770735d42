"""Ternary and binary weights."""

import itertools

import pytest
import torch

from microtome.core.formats import Binary, Ternary


def rows(channels: int = 5, count: int = 40) -> torch.Tensor:
    return (
        torch.randn((channels, count), generator=torch.Generator().manual_seed(0))
        + torch.linspace(-1, 1, channels)[:, None]
    )


def test_twn_by_hand():
    # mean|w| = 1, threshold 0.7: 0.6 goes to 0; scale (0.8 + 2 + 1.4) / 3
    encoded = Ternary(threshold="twn").encode(torch.tensor([[0.8, -2.0, 0.6, -1.4, 0.2]]), 0)
    assert encoded.parameters["scale"].tolist() == pytest.approx([1.4])
    assert encoded.codes.tolist() == [[2, 0, 1, 0, 1]]


def test_twn_keeps_what_is_above_the_threshold_even_if_zero_is_nearer():
    # mean|w| = 1.5, threshold 1.05; scale (1.1 + 6) / 2 = 3.55, half of which is above 1.1
    encoded = Ternary(threshold="twn").encode(torch.tensor([1.1, 6.0, 0.3, 0.05, 0.05]))
    assert encoded.codes.tolist() == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_exact_is_the_least_error_of_all_choices(seed: int):
    tensor = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    error = float((Ternary().encode(tensor).decode() - tensor).square().sum())
    every = []
    for chosen in itertools.product((-1.0, 0.0, 1.0), repeat=7):
        signs = torch.tensor(chosen, dtype=torch.float64)
        scale = (signs * tensor).sum() / signs.square().sum().clamp(min=1)
        every.append(float((scale * signs - tensor).square().sum()))
    assert error == pytest.approx(min(every), rel=1e-5)


def test_exact_never_loses_to_twn_and_two_scales_never_to_one():
    tensor = rows()
    twn, exact, two = (
        (f.encode(tensor, 0).decode() - tensor).square().sum(1)
        for f in (Ternary(threshold="twn"), Ternary(), Ternary(two_scales=True))
    )
    assert bool((exact <= twn * (1 + 1e-6)).all())
    assert bool((two <= exact * (1 + 1e-6)).all())
    assert float(two.sum()) < 0.95 * float(exact.sum())


def test_two_scales_by_hand():
    encoded = Ternary(two_scales=True).encode(torch.tensor([3.0, 1.0, 0.1, -5.0, -7.0, -0.2]))
    assert encoded.decode().tolist() == [3.0, 0.0, 0.0, -6.0, -6.0, 0.0]


def test_binary_by_hand():
    encoded = Binary().encode(torch.tensor([[1.0, -2.0, 0.0], [-0.5, 0.5, 0.5]]), 0)
    assert encoded.decode().tolist() == [[1.0, -1.0, 1.0], [-0.5, 0.5, 0.5]]
    assert encoded.codes.tolist() == [[1, 0, 1], [0, 1, 1]]


def test_no_binary_scale_is_better():
    tensor = rows()
    encoded = Binary().encode(tensor, 0)
    found = (encoded.decode() - tensor).square().sum(1)
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = Binary().encode(tensor, 0, {"scale": encoded.parameters["scale"] * factor})
        assert bool(((other.decode() - tensor).square().sum(1) > found).all())


def test_another_threshold_is_refused():
    with pytest.raises(ValueError, match="exact or twn"):
        Ternary(threshold="half")
