"""Which of a network's outputs holds the scores: told, or the only one that can; never the first of several."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from microtome.errors import CaptureError
from microtome.graph.network import OUTPUT
from microtome.graph.outputs import SCORES, first_scores, is_decided, sizes
from microtome.types import FREE

# The last part of an output's name: what scores are called, and what is there for training only.
SCORES_NAMES = frozenset({
    "out", "output", "logit", "logits", "score", "scores", "pred", "preds", "prediction", "predictions", "seg",
    "segs", "segmentation", "mask", "masks", "map", "prob", "probs", "probability", "probabilities", "label", "labels",
    "class", "classes", "cls", "classification", "diagnosis", "final", "main", "y",
})  # fmt: skip
TRAINING_NAMES = re.compile(r"(^|[._])(aux\w*|loss\w*|deep[_ ]sup\w*|ds_?\d+|side_?\d+|intermediate\w*)($|\.)")
UNNAMED = re.compile(rf"{OUTPUT}(_\d+)?")
TRAINING = "for training only"
COARSER = "of lower resolution, for training only"


@dataclass(frozen=True)
class Wish:
    """What is known of the outputs that are wanted.

    Attributes:
        scores: name of the one with the scores; None has it found.
        also: names of others that are kept behind it.
        maps: whether the task needs scores of every voxel, (N, K, *S), or numbers for the image, (N, K); None is
            unknown.
        channels: how many channels the scores may have; empty is unknown.
    """

    scores: str | None = None
    also: tuple[str, ...] = ()
    maps: bool | None = None
    channels: frozenset[int] = frozenset()


def chosen(
    found: Mapping[str, Node], wish: Wish, image: Node, keep: Sequence[str] | None = None
) -> tuple[dict[str, Node], tuple[str, ...]]:
    """Return the outputs to keep, the scores first, and a note on what is left out unasked.

    Scores are what the wish names. Otherwise, of the real numbers that no argmax has chosen, what is called `aux` and
    the like is left out; then what does not fit the task; then, of maps of equal channels, all but those of the
    highest resolution (deep supervision). If several are left, one alone of which has a well-known name, it is that.

    Args:
        found: all outputs that are tensors, by name.
        wish: what is known.
        image: the input.
        keep: names of all to keep instead, in order.

    Raises:
        CaptureError: there is no such output, none that can be scores, or several that can.
    """
    if not found:
        raise CaptureError("the network returns no tensor.", SCORES)
    if keep is not None:
        wish = Wish(keep[0] if keep else "", tuple(keep[1:]))
    names = [*([] if wish.scores is None else [wish.scores]), *wish.also]
    unknown = [name for name in names if name not in found]
    if unknown:
        what = f"the network has no output {unknown[0]!r}" if unknown[0] else "no output of the network is to be kept"
        raise CaptureError(f"{what}.", f"It has {', '.join(found)}.")
    if wish.scores is not None:
        first_scores({wish.scores: found[wish.scores]})
        return {name: found[name] for name in names}, ()
    others = {name: node for name, node in found.items() if name not in wish.also}
    first, why = _found(others, wish, image)
    left = [f"{name} ({why[name]})" if name in why else name for name in others if name != first]
    note = f"The network has {len(found)} outputs: the scores are taken from '{first}'; left out: {', '.join(left)}."
    return {name: found[name] for name in (first, *wish.also)}, (note,) if left else ()


@dataclass
class _Choice:
    """The candidates that are left, and why others are not."""

    left: dict[str, Node]
    why: dict[str, str] = field(default_factory=dict)

    def drop(self, which: Callable[[str, Node], bool], why: str) -> None:
        """Leave some out, if any other is left."""
        gone = [name for name, node in self.left.items() if which(name, node)]
        if len(gone) < len(self.left):
            self.why |= dict.fromkeys(gone, why)
            self.left = {name: node for name, node in self.left.items() if name not in gone}


def _found(found: Mapping[str, Node], wish: Wish, image: Node) -> tuple[str, dict[str, str]]:
    """Return the name of the scores, and why others are none."""
    first_scores(found)
    batch, _, *space = sizes(image)
    choice = _Choice(dict(found))
    choice.drop(lambda _, node: not node.meta["val"].dtype.is_floating_point or is_decided(node), "decided already")
    choice.drop(lambda _, node: sizes(node)[:1] != [batch], "nothing of single images")
    choice.drop(lambda _, node: node.op == "placeholder", "an input")
    choice.drop(lambda _, node: len(sizes(node)) > 2 and not _is_map(node, space), "neither numbers nor a map")
    choice.drop(lambda name, _: TRAINING_NAMES.search(name.lower()) is not None, TRAINING)
    if wish.maps is not None:
        what = "no scores of every voxel" if wish.maps else "no numbers of the whole image"
        choice.drop(lambda _, node: _is_map(node, space) != wish.maps, what)
    if wish.channels:
        choice.drop(lambda _, node: len(sizes(node)) > 1 and sizes(node)[1] not in wish.channels, "of other channels")
    _drop_coarser(choice, space)
    unnamed = all(UNNAMED.fullmatch(name) for name in found)
    known = [name for name in choice.left if name.rpartition(".")[2].lower() in SCORES_NAMES and not unnamed]
    if len(known) == 1:
        choice.drop(lambda name, _: name != known[0], "of a less usual name")
    if len(choice.left) == 1:
        return next(iter(choice.left)), choice.why
    several = [f"'{name}' {_axes(node)}" for name, node in choice.left.items()]
    *before, last = several
    raise CaptureError(
        f"the network has {len(several)} outputs that may be the scores: {', '.join(before)} and {last}.",
        f'Say which: --output {next(iter(choice.left))}, or "output": "{next(iter(choice.left))}" in pipeline.json.',
    )


def _is_map(node: Node, space: Sequence[int]) -> bool:
    """Whether an output is (N, K, *S), or (N, *S) of the image's own size."""
    shape = sizes(node)
    return len(shape) == len(space) + 2 or (len(space) > 0 and shape[1:] == list(space))


def _drop_coarser(choice: _Choice, space: Sequence[int]) -> None:
    """Of maps with equally many channels, leave out those that are coarser than another: deep supervision."""
    finest: dict[int, int] = {}
    for node in choice.left.values():
        shape = sizes(node)
        if len(shape) == len(space) + 2:
            finest[shape[1]] = max(finest.get(shape[1], 0), _volume(shape[2:]))
    choice.drop(
        lambda _, node: len(sizes(node)) == len(space) + 2 and _volume(sizes(node)[2:]) < finest[sizes(node)[1]],
        COARSER,
    )


def _volume(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= max(n, 1)
    return size


def _axes(node: Node) -> str:
    return f"({', '.join(['N', *('?' if n == FREE else str(n) for n in sizes(node)[1:])])})"
