"""One set of weights for many networks that are cut out of a parent: trained together, searched, then cut out alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from microtome.graph import edit
from microtome.graph.learning.space import Choice, Space
from microtome.graph.learning.trainable import Trainable
from microtome.graph.learning.training_norms import TrainedNorm, has_batch_norms
from microtome.graph.network import Batch, Network
from microtome.graph.structure.resolution import at_resolution


class Supernet(nn.Module):
    """The widest network of a space in training, and narrower ones that share its weights.

    Source: the sandwich rule and in-place distillation of Yu and Huang, "Universally Slimmable Networks and Improved
    Training Techniques", ICCV 2019, section 3: in each step the widest network, the narrowest, and some between learn;
    the widest from its teacher, the others from the widest.

    Attributes:
        full: the widest network; its weights are everybody's.
        answers: what the narrower networks of the last step said, in training mode.
    """

    def __init__(self, space: Space, pool: Sequence[Choice], *, norms: bool) -> None:
        """Prepare to train.

        Args:
            space: of the networks.
            pool: the narrower networks that are trained, the narrowest first; at least one.
            norms: whether batches normalise, see `Trainable`.
        """
        super().__init__()
        self.full = Trainable(space.parent, norms=norms)
        self.module = self.full.module
        self._narrow = [_Narrow(space, choice, norms=norms) for choice in pool]
        self._chosen: Sequence[int] = ()
        self.answers: list[Tensor] = []

    def choose(self, step: int, samples: int, seed: int) -> None:
        """Draw the networks of a step: the narrowest, and so many others; the same for the same step and seed."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        others = torch.randperm(len(self._narrow) - 1, generator=generator)[:samples] + 1
        self._chosen = (0, *others.tolist())

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the widest network and return its output; in training mode run the others of the step too."""
        self.answers = []
        if self.training:
            weights = dict(self.module.named_parameters())
            self.answers = [self._narrow[place](weights, inputs) for place in self._chosen]
        output = self.module(*inputs)
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


class _Narrow:
    """A network whose weights are parts of another's."""

    def __init__(self, space: Space, choice: Choice, *, norms: bool) -> None:
        coded = space.parent.copy()
        shapes = {}
        for name in coded.constants():
            if coded.is_weight(name):  # each weight becomes the list of its own positions, and is then cut
                shapes[name] = coded.tensor(name).shape
                places = torch.arange(shapes[name].numel(), dtype=torch.float64).reshape(shapes[name])
                edit.set_constant(coded.graph_module, name, places)
        cut = space.cut(replace(choice, resolution=1.0), coded)
        left = shapes.keys() & cut.constants().keys()  # weights of blocks that are taken out are not among them
        self._index = {name: _axes(cut.tensor(name).long(), shapes[name]) for name in sorted(left)}
        for name in sorted(left):
            edit.set_constant(cut.graph_module, name, torch.zeros_like(cut.tensor(name), dtype=torch.float32))
        self.module = Trainable(at_resolution(cut, choice.resolution), norms=norms).module.train()

    def __call__(self, weights: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """Run it with parts of the weights; gradients reach them."""
        own = {}
        for name, index in self._index.items():
            value = weights[name]
            for axis, kept in index.items():
                value = value.index_select(axis, kept)
            own[name] = value
        output: Any = functional_call(self.module, own, inputs)
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def _axes(places: Tensor, shape: torch.Size) -> dict[int, Tensor]:
    """Return which indices stay on each axis that was cut, from the positions that stay."""
    found = {}
    for axis, size in enumerate(shape):
        if places.shape[axis] != size:
            stride = shape[axis + 1 :].numel()
            along = places.movedim(axis, 0).reshape(places.shape[axis], -1)[:, 0]
            found[axis] = along // stride % size
    return found


@torch.no_grad()
def with_own_statistics(network: Network, batches: Iterable[Batch]) -> Network:
    """Return a network whose batch norms have the statistics of batches, averaged over all of them (N, C, *S).

    Weights that were trained for several networks need that (Yu et al., ICLR 2019, section 3.3). Without batch norms in
    the graph it is the network itself.
    """
    if not has_batch_norms(network.graph_module):
        return network
    student = Trainable(network, norms=True)
    student.module.train()
    norms = [module for module in student.module.modules() if isinstance(module, TrainedNorm)]
    for seen, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (seen + 1)
        student(batch)
    student.module.eval()
    return student.freeze()
