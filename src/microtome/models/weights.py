"""Weights from files into modules, without running code that a file may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from microtome.errors import WeightsError
from microtome.graph.capture import check_finite
from microtome.graph.plain import check_float32
from microtome.graph.quiet import first_line
from microtome.models.checkpoints import read, tensors_of
from microtome.models.keys import Matched, match

SHOWN = 3
COUNTER = "num_batches_tracked"  # old checkpoints have none, and evaluation doesn't use it


def load_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.pt`, `.pth`, `.ckpt` or `.safetensors` file; code in the file is not run.

    Raises:
        ReadError: missing, truncated or of another kind.
        WeightsError: the file needs code to be run, holds no state dict, or NaN.
    """
    content = read(path)
    state = tensors_of(content)
    if state is None:
        keys = ", ".join(str(key) for key in list(content)[:5]) if isinstance(content, Mapping) else ""
        raise WeightsError(
            f"{path} holds no state dict but {type(content).__name__}{f' with {keys}' if keys else ''}.",
            "Save the weights with torch.save(model.state_dict(), FILE).",
        )
    check_finite({name: tensor for name, tensor in state.items() if tensor.ndim}, str(path))  # the best loss may be inf
    return state


def apply_state(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> tuple[str, ...]:
    """Load a file's tensors into a module, in place, and return notes.

    The prefix under which the file holds the network is taken off, and what the network has no module for is left out,
    with a note. All else is PyTorch's own `load_state_dict`, with the hooks of the network's modules.

    Raises:
        WeightsError: names, shapes or types differ, and the module is as it was; the error names up to three of each.
    """
    expected = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    found = match(state, expected)
    check_finite({name: value for name, value in found.state.items() if found.belongs(name)}, str(path))
    notes = check_float32(found.state, "the weights file")
    pairs = {name: (value, expected[name]) for name, value in found.state.items() if name in expected}
    shapes = [name for name, (value, own) in pairs.items() if not _same_shape(value, own)]
    types = [name for name, (value, own) in pairs.items() if own.is_floating_point() and not value.is_floating_point()]
    missing = [name for name in expected if name not in found.state]
    unexpected = [name for name in found.state if name not in expected]
    if not shapes and not types:
        missing, unexpected = _loaded(module, found, expected, path)
    foreign = [name for name in unexpected if not missing and not found.belongs(name)]
    unexpected = [name for name in unexpected if name not in foreign]
    parts = [
        _listed("missing in the file", missing, lambda name: _size(expected[name])),
        _listed("unknown to the network", unexpected, lambda name: _size(found.state[name])),
        _listed("of another shape", shapes, lambda n: f"file {_size(pairs[n][0])}, network {_size(pairs[n][1])}"),
        _listed("of another type", types, lambda n: f"file {pairs[n][0].dtype}, network {pairs[n][1].dtype}"),
    ]
    if any(parts):
        raise WeightsError(
            f"The weights in {path} do not fit {type(module).__name__}: {'; '.join(part for part in parts if part)}.",
            "Build the network with the settings that it was trained with.",
        )
    return (*notes, *found.notes, *_left_out([*foreign, *found.outside]))


def _loaded(
    module: nn.Module, found: Matched, expected: Mapping[str, Tensor], path: Path
) -> tuple[list[str], list[str]]:
    """Load, and return which names were missing and which unknown; where they matter, the module is as it was.

    Raises:
        WeightsError: a hook of the network refuses them.
    """
    before = {name: value.clone() for name, value in expected.items() if not is_lazy(value)}
    try:
        result = module.load_state_dict(found.state, strict=False)
    except Exception as error:  # hooks are anybody's code
        module.load_state_dict(before, strict=False)
        raise WeightsError(
            f"The weights in {path} do not fit {type(module).__name__}: {first_line(error)}.",
            "Build the network with the settings that it was trained with.",
        ) from error
    absent = set(getattr(result, "missing_keys", ()))
    places = {_place(value) for name, value in expected.items() if name not in absent and not is_lazy(value)}
    missing = [
        name
        for name, value in expected.items()
        if name in absent and not name.endswith(COUNTER) and (is_lazy(value) or _place(value) not in places)
    ]
    unexpected = [name for name in getattr(result, "unexpected_keys", ()) if not name.endswith(COUNTER)]
    if missing or any(map(found.belongs, unexpected)):
        module.load_state_dict(before, strict=False)
    return missing, unexpected


def _place(value: Tensor) -> tuple[int, tuple[int, ...]]:
    """Where a tensor's values lie: files may hold those that several modules share once."""
    return value.data_ptr(), tuple(value.shape)


def _same_shape(value: Tensor, own: Tensor) -> bool:
    """Whether a tensor of the file can go into one of the network; single numbers once had an axis."""
    return is_lazy(own) or value.shape == own.shape or (own.ndim == 0 and value.shape == (1,))


def _left_out(foreign: Sequence[str]) -> tuple[str, ...]:
    if not foreign:
        return ()
    listed = _listed("", list(foreign), lambda _: "").removeprefix(": ")
    return (f"Left out of the weights file, since the network has no such module: {listed}.",)


def _listed(title: str, keys: list[str], detail: Callable[[str], str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{title}: {', '.join(f'{key} {detail(key)}'.strip() for key in keys[:SHOWN])}{more}"


def _size(value: Tensor) -> str:
    return str(tuple(value.shape))
