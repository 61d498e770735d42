from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from microtome.errors import DataError, OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.structure.norms import norms
from microtome.graph.watching.observe import Unquantized
from microtome.methods.base import Context
from microtome.methods.finetune import Finetune
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.methods.replace_norms import ReplaceNorms
from networks import captured, images, randomize, sqnr_db, told

# Sums over a few hundred values in float32, in another order.
ROUNDING = 1e-5


def one(norm: nn.Module) -> Network:
    return capture(
        randomize(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(6, 2, 1))), (3, 8, 8)
    )


def batches(count: int = 3) -> list[Tensor]:
    return [(1 + k) * x for k, x in enumerate(images((3, 8, 8), count))]  # of unequal contrast


def seen(network: Network, x: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return what the only norm reads and makes, (C, n)."""
    read: list[Tensor] = []
    made: list[Tensor] = []
    (norm,) = norms(network)
    end = norm.node if norm.blend is None else norm.blend.node

    def look(node: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
        if node is norm.node:
            read.append(norm.rows(arguments[0]))
        if node is end:
            made.append(norm.rows(value).detach())

    run = Unquantized(network, {norm.node, end}, look)
    for batch in x:
        run(batch)
    return torch.cat(read, 1), torch.cat(made, 1)


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(6), nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(2, 6), nn.GroupNorm(1, 6)]
)
def test_of_a_single_image_nothing_is_lost_and_all_of_it_folds(norm: nn.Module):
    network, image = one(norm), batches(1)[0][:1]
    replaced = ReplaceNorms().run(network, Context([image]))
    assert torch.allclose(replaced(image), network(image), atol=ROUNDING)
    folded = FoldBatchNorm().run(replaced)
    assert [kind(n) for n in folded.graph_module.graph.nodes if n.op == "call_function"] == ["conv", "relu", "conv"]
    assert torch.allclose(folded(image), network(image), atol=ROUNDING)
    assert max(replaced.history[-1]["replaced_norms"].values()) < 1e-6


def test_of_several_images_the_line_is_that_of_least_squares():
    network = one(nn.GroupNorm(2, 6))
    x, y = seen(network, batches())
    lines = [np.polyfit(a.double(), b.double(), 1) for a, b in zip(x, y, strict=True)]
    expected = torch.stack([float(k) * row + float(c) for (k, c), row in zip(lines, x, strict=True)])
    replaced = ReplaceNorms().run(network, Context(batches()))
    (layer,) = [node for node in replaced.graph_module.graph.nodes if kind(node) == "batch_norm"]
    found: list[Tensor] = []
    run = Unquantized(replaced, {layer}, lambda n, a, v: found.append(v.movedim(1, 0).flatten(1)))
    for batch in batches():
        run(batch)
    assert torch.allclose(torch.cat(found, 1), expected, atol=ROUNDING)
    error = float((expected - y).square().sum() / (y - y.mean(1, keepdim=True)).square().sum())
    assert 0.01 < error < 0.9
    (told_error,) = replaced.history[-1]["replaced_norms"].values()
    assert abs(told_error - error) < ROUNDING


def test_the_statistics_of_the_batch_norm_are_those_of_what_it_reads():
    network = one(nn.InstanceNorm2d(6, affine=True))
    x, _ = seen(network, batches())
    replaced = ReplaceNorms().run(network, Context(batches()))
    (norm,) = [node for node in replaced.graph_module.graph.nodes if kind(node) == "batch_norm"]
    mean, variance = (replaced.tensor(str(argument.target)) for argument in norm.args[3:5])
    assert torch.allclose(mean, x.mean(1), atol=ROUNDING)
    assert torch.allclose(variance, x.var(1, correction=0), atol=ROUNDING)


def test_layer_norms_over_features_leave_nothing_behind():
    network = captured("transformer")
    context = Context(images(network.shape))
    replaced = ReplaceNorms().run(network, context)
    assert {"layer_norm", "mul"} & {kind(node) for node in replaced.graph_module.graph.nodes} == set()
    assert replaced.parameters < network.parameters
    assert sqnr_db(network(images(network.shape)[0]), replaced(images(network.shape)[0])) > 5  # it is the same network
    others = ReplaceNorms(kinds=frozenset({"instance", "group"})).run(network, context)
    assert len(norms(others)) == 2


def test_a_blend_holds_its_shares_and_goes_step_by_step_to_the_same_line():
    network = one(nn.InstanceNorm2d(6, affine=True))
    context, x = Context(batches()), batches()[1]
    half = ReplaceNorms(mix=0.5).run(network, context)
    at_once = ReplaceNorms().run(network, context)
    before, straight, mixed = (
        seen(half, [x])[1],
        ReplaceNorms().run(half, context),
        ReplaceNorms(mix=0.2).run(half, context),
    )
    assert before.shape == (6, 128)
    assert norms(mixed)[0].blend.share == 0.2  # type: ignore[union-attr]
    assert torch.allclose(straight(x), at_once(x), atol=ROUNDING)  # nothing was trained in between
    assert torch.allclose(ReplaceNorms().run(mixed, context)(x), at_once(x), atol=ROUNDING)
    # between the norm's own output and the line's
    network_, half_, line_ = (seen_behind(n, x) for n in (network, half, at_once))
    assert torch.allclose(half_, (network_ + line_) / 2, atol=ROUNDING)


def seen_behind(network: Network, x: Tensor) -> Tensor:
    """Return what the ReLU reads."""
    found: list[Tensor] = []
    (relu,) = [node for node in network.graph_module.graph.nodes if kind(node) == "relu"]
    Unquantized(network, {relu}, lambda n, a, v: found.append(a[0]))(x)
    return found[0]


def test_behind_training_the_line_is_that_of_the_blend():
    network = one(nn.InstanceNorm2d(6, affine=True))
    half = ReplaceNorms(mix=0.5).run(network, Context(batches()))
    half.tensor("1.weight").mul_(torch.tensor([2.0, -1.0, 0.5, 1.0, 3.0, 0.0]))  # as training would
    x, y = seen(half, batches())
    lines = [np.polyfit(a.double(), b.double(), 1) for a, b in zip(x, y, strict=True)]
    expected = torch.stack([float(k) * row + float(c) for (k, c), row in zip(lines, x, strict=True)])
    found = torch.cat(
        [seen_behind(ReplaceNorms().run(half, Context(batches())), b).movedim(1, 0).flatten(1) for b in batches()], 1
    )
    assert torch.allclose(found, expected, atol=ROUNDING)


def test_a_blend_that_holds_less_stays_as_it_is():
    network = one(nn.GroupNorm(2, 6))
    little = ReplaceNorms(mix=0.1).run(network, Context(batches()))
    assert ReplaceNorms(mix=0.5).run(little, Context(batches())).fingerprint() == little.fingerprint()


class Several(nn.Module):
    """Norms over images of 8×8, 8×8 and 4×4."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.one = nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True)
        self.middle, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True)
        self.down, self.last = nn.Conv2d(4, 4, 2, stride=2), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.other(self.middle(torch.relu(self.one(self.enter(x))))))
        return self.last(self.down(x))


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (ReplaceNorms(), set()),
        (ReplaceNorms(skip=frozenset({"other"})), {"other"}),
        (ReplaceNorms(keep_first=1), {"one"}),
        (ReplaceNorms(kinds=frozenset({"instance"}), keep_first=1), {"one", "last"}),
        (ReplaceNorms(kinds=frozenset({"group"})), {"one", "other"}),
        (ReplaceNorms(most_error=1e-9), {"one", "other", "last"}),
    ],
)
def test_who_stays_is_chosen(method: ReplaceNorms, left: set[str]):
    network = capture(randomize(Several()), (3, 8, 8))
    replaced = method.run(network, Context(batches()))
    assert {norm.name for norm in norms(replaced)} == left
    assert set(replaced.history[-1]["kept_norms"]) == left


def test_a_share_takes_those_that_lose_least():
    network = capture(randomize(Several()), (3, 8, 8))
    errors = ReplaceNorms().run(network, Context(batches())).history[-1]["replaced_norms"]
    values = {"one": 64, "other": 64, "last": 16}
    for share in (0.1, 0.12, 0.45, 0.5, 0.6, 0.95):
        gone, room = set(), share * 144
        for name in sorted(errors, key=errors.__getitem__):
            if values[name] <= room:
                gone.add(name)
                room -= values[name]
        replaced = ReplaceNorms(share=share).run(network, Context(batches()))
        assert set(replaced.history[-1]["replaced_norms"]) == gone


@pytest.mark.parametrize("mixes", [(0.0,), (0.5, 0.0)])
def test_training_brings_some_of_it_back(mixes: tuple[float, ...]):
    network = captured("residual3d")
    given = images(network.shape, 6)
    context = Context(given, training=given * 20, teacher=network, loss=lambda s, t, _: (s - t).square().mean())
    x = torch.cat(given)
    lost = sqnr_db(network(x), ReplaceNorms().run(network, context)(x))
    trained = network
    for mix in mixes:
        trained = ReplaceNorms(mix=mix).run(trained, context)
        trained = Finetune(steps=60, rate=0.02, check_every=60, norms="fixed").run(trained, context)
    assert norms(trained) == ()
    assert sqnr_db(network(x), trained(x)) > lost + 1


def test_int8_runs_behind_it():
    network = captured("residual3d")
    context = told(images(network.shape))
    small = FoldBatchNorm().run(ReplaceNorms().run(network, context))
    assert norms(small) == ()
    quantized = Quantize().run(small, context)
    x = images(network.shape)[0]
    assert sqnr_db(small(x), quantized(x)) > 20


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mix": 1.0}, "below 1"),
        ({"share": 0.0}, "share lies"),
        ({"keep_first": -1}, "negative"),
        ({"most_error": 0.0}, "negative"),
    ],
)
def test_what_is_no_share_is_refused(fields: dict[str, float], why: str):
    with pytest.raises(OptionError, match=why):
        ReplaceNorms(**fields)  # type: ignore[arg-type]


def test_refusals_say_why():
    network = captured("residual3d")
    with pytest.raises(OptionError, match=r"the network has no norm 'first\.2'; the nearest known one is 'first\.1'"):
        ReplaceNorms(skip=frozenset({"first.2"})).run(network, Context(images(network.shape)))
    with pytest.raises(DataError, match="no calibration images"):
        ReplaceNorms().run(network, Context([]))
    with pytest.raises(DataError, match=r"makes first\.1 NaN"):
        ReplaceNorms().run(network, Context([torch.full((1, *network.shape), torch.nan)]))
