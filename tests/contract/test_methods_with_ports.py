"""What holds for every method on a network with two inputs and two outputs, both of them learned from one trunk."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from contract.test_methods import STEPS, WITH_PRODUCTS
from microtome.graph import pt2
from microtome.graph.capture import capture
from microtome.graph.choosing.sensitivity import measure
from microtome.graph.network import Network
from microtome.methods.base import Context
from microtome.methods.finetune import Finetune
from microtome.methods.quantize import Quantize
from networks import randomize, sqnr_db

SHAPES = {"image": (1, 8, 8), "numbers": (3,)}
KEPT = ("mask", "label")
# Rounding to 4 bits leaves more than this, another output next to nothing.
ROUNDED_DB = 8.0
LESS = {"prune", "sparsify", "merge_channels"}  # a tiny random network misses what is taken out of it
EXACT = {"fold", "equalize", "smooth", "even_layernorm"}  # of these the results are the same function
EXACT_DB = 60.0

every_method = pytest.mark.parametrize("method", STEPS)


class TwoHeads(nn.Module):
    """An image and numbers in; a map of scores and two numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.mix = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(3, 4)
        self.deep, self.mask, self.label = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1), nn.Linear(4, 2)

    def forward(self, image: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        seen = torch.relu(self.norm(self.enter(image))) + self.mix(numbers)[:, :, None, None]
        deep = torch.relu(self.deep(seen))
        return {"label": self.label(deep.mean((2, 3))), "mask": self.mask(deep)}


@functools.cache
def two_heads() -> Network:
    return capture(randomize(TwoHeads()).eval(), SHAPES, keep=KEPT)


@functools.cache
def given(count: int = 3, seed: int = 0) -> tuple[dict[str, Tensor], ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        {name: 3 * torch.rand((2, *shape), generator=generator) - 1.5 for name, shape in SHAPES.items()}
        for _ in range(count)
    )


@functools.cache
def result_of(method: str) -> Network:
    network, context = two_heads(), Context(given(), training=given(), capabilities=WITH_PRODUCTS)
    for step in (*STEPS[method][1], STEPS[method][0]):
        network = step.run(network, context)
    return network


@every_method
def test_both_outputs_are_what_they_were_but_for_rounding(method: str) -> None:
    result, x = result_of(method), given(1, seed=3)[0]
    assert (result.inputs, result.outputs) == (two_heads().inputs, two_heads().outputs)
    with torch.no_grad():
        expected, actual = two_heads().run(x), result.run(x)
        assert torch.equal(result(x), actual["mask"])
    assert all(bool(torch.isfinite(actual[name]).all()) for name in KEPT)
    for name in KEPT if method not in LESS else ():
        assert sqnr_db(expected[name], actual[name]) > (EXACT_DB if method in EXACT else ROUNDED_DB), name
    assert not torch.equal(actual["mask"], result.run({**x, "numbers": x["numbers"] + 1})["mask"])


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in ("quantize", "finetune") else pytest.mark.slow) for m in STEPS]
)
def test_the_file_keeps_both(method: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    result, x = result_of(method), given(1, seed=3)[0]
    pt2.save(result, tmp_path / "a.pt2")
    loaded = pt2.load(tmp_path / "a.pt2")
    for name, value in result.run(x).items():
        assert torch.equal(loaded.run(x)[name], value), name


def test_training_for_the_first_output_draws_the_others_to_the_teacher() -> None:
    def loss(student: Tensor, teacher: Tensor, _: Tensor | None) -> Tensor:
        return (student - 2 * teacher).square().mean()  # the trunk would move if nothing held it

    start = Quantize(weight_bits=3).run(two_heads(), Context(given(), capabilities=WITH_PRODUCTS))
    context = Context(given(), training=given(), teacher=two_heads(), loss=loss, capabilities=WITH_PRODUCTS)
    trained, x = Finetune(steps=60, check_every=60).run(start, context), given(1, seed=3)[0]
    with torch.no_grad():
        wanted, before, after = (network.run(x)["label"] for network in (two_heads(), start, trained))
    assert sqnr_db(wanted, after) > sqnr_db(wanted, before) + 3  # 1 dB less where nothing draws them


def test_widths_are_not_chosen_for_layers_that_the_scores_do_not_show() -> None:
    rows = measure(two_heads(), WITH_PRODUCTS, given(), widths=[(4, 8)])
    assert [row.layer for row in rows] == ["enter", "mix", "deep", "mask"]
