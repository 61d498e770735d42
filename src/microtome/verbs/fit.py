"""Whether what a network returns is what its task needs: found out before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from microtome.errors import DataError, ModelError

if TYPE_CHECKING:
    from microtome.graph.network import Network
    from microtome.medical.pipeline import Pipeline
    from microtome.tasks.base import Task


def check_heads(network: Network, task: Task, pipeline: Pipeline) -> None:
    """Run a network once on zeros, and let the task look at all of its outputs, where it does so.

    Raises:
        ModelError: they are not what the pipeline describes.
    """
    import torch

    if not task.HEADS:
        return
    with torch.no_grad():
        outputs = {name: value.cpu().numpy() for name, value in network.run(network.blank()).items()}
    try:
        task.heads(outputs, network.shape[1:], pipeline)
    except DataError as error:
        raise ModelError(error.problem, error.hint) from error


def channels_of(network: Network, task: Task) -> int:
    """Run a network once on zeros, and return the number of channels of its output; 0 where these do not count.

    Raises:
        ModelError: the output's axes or sizes are not what the task needs: (N, K, *S) of the input's own size where
            predictions are maps, (N, K) where they are not.
    """
    import torch

    if task.HEADS:
        return 0
    with torch.no_grad():
        shape = tuple(network(network.blank()).shape[1:])
    space = network.shape[1:]
    if shape[1:] == (space if task.MAPS else ()):
        return shape[0]
    what, hint = _map(shape, space, task.NAME) if task.MAPS else _numbers(shape, space, task.NAME)
    raise ModelError(f"the network returns {_axes(shape)} for an image of {_times(space)}: {what}.", hint)


def _map(shape: Sequence[int], space: tuple[int, ...], task: str) -> tuple[str, str]:
    """Say what an output is that is no map (K, *S) of the input's size, and what to do."""
    wanted = f"{task} needs scores of every voxel, (N, K, {', '.join(map(str, space))})"
    if len(shape) == 1:
        what = f"{shape[0]} numbers for the whole image, as a classifier or a regressor gives, but {wanted}"
        return what, "Give a network that segments, or the cohort that belongs to this one."
    if len(shape) == len(space) + 1 and tuple(shape[:-1]) == space:
        return "its channels come last", "Move them behind the batch: return x.movedim(-1, 1)."
    if len(shape) == len(space) + 1:
        return _size(shape[1:], space)
    if len(shape) == len(space) + 2:
        what = f"an axis too many, such as {shape[0]} heads that are stacked; {wanted}"
        return what, "Return one of them, the one of full resolution: x[:, 0]."
    return wanted, "Return the scores with one axis of channels, at the input's size."


def _size(size: Sequence[int], space: tuple[int, ...]) -> tuple[str, str]:
    """Say how far a map is from the input's size, and what to do."""
    if all(n >= m and n % m == 0 for n, m in zip(space, size, strict=True)):
        steps = sorted({n // m for n, m in zip(space, size, strict=True)} - {1})
        what = f"the map is smaller than the image, by {' or '.join(map(str, steps))} along an axis"
    elif all(m >= n for n, m in zip(space, size, strict=True)):
        what = "the map is larger than the image"
    else:
        what = "the map has not the image's size"
        return what, (
            "Pad the convolutions (padding='same'), or choose a size that the network keeps: 'divisible', 'size' or "
            "'patch' in pipeline.json, or --input-shape."
        )
    return what, (
        "Bring the scores to the image's size inside the network: torch.nn.functional.interpolate(x, "
        "image.shape[2:], mode='bilinear'), 'trilinear' for volumes; or return the head of full resolution."
    )


def _numbers(shape: Sequence[int], space: tuple[int, ...], task: str) -> tuple[str, str]:
    """Say what an output is that is not (K,), and what to do."""
    wanted = f"{task} needs numbers for the whole image, (N, K)"
    if all(n == 1 for n in shape[1:]):
        return f"{wanted}", "Take the axes of one away: return x.flatten(1)."
    if len(shape) == len(space) + 1:
        what = f"scores of every place, as a network that segments gives, but {wanted}"
        return what, "Give a network for this cohort, or the cohort that belongs to this one; or pool: x.mean((2, 3))."
    if len(shape) == 2:
        what = f"an axis too many, such as {shape[0]} heads or tokens; {wanted}"
        return what, "Return one of them, or their mean: x[:, 0], x.mean(1)."
    return wanted, "Return one number per class: (N, K)."


def _axes(shape: Sequence[int]) -> str:
    return f"({', '.join(['N', *map(str, shape)])})"


def _times(space: Sequence[int]) -> str:
    return "×".join(map(str, space))
