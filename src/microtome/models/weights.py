"""Weights from files into modules, without running code that a file may hold."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from microtome.errors import MissingExtraError, ReadError, WeightsError
from microtome.graph.capture import check_finite
from microtome.graph.quiet import first_line, quiet

# Where training frameworks keep the state dict (Lightning, MONAI, nnU-Net and many scripts).
CONTAINERS = ("state_dict", "model_state_dict", "network_weights", "model", "net", "network")
# What wrappers put before the keys: DataParallel, Lightning, torch.compile.
PREFIXES = ("module.", "model.", "network.", "net.", "_orig_mod.")
SHOWN = 3
CONVERT = (
    "If you trust the file, convert it once: python -c \"import torch; x = torch.load('OLD', weights_only=False); "
    "torch.save(x.state_dict() if hasattr(x, 'state_dict') else x['state_dict'], 'NEW.pt')\""
)


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a `.pt`, `.pth`, `.ckpt` or `.safetensors` file; code in the file is not run.

    Raises:
        ReadError: missing, truncated or of another kind.
        WeightsError: the file needs code to be run, holds no state dict, or NaN.
    """
    if not path.is_file():
        raise ReadError(f"The weights file {path} does not exist.", "Give the file as --weights FILE.")
    content = _safetensors(path) if path.suffix == ".safetensors" else _checkpoint(path)
    state = _state_dict(content)
    if state is None:
        keys = ", ".join(str(key) for key in list(content)[:5]) if isinstance(content, Mapping) else ""
        raise WeightsError(
            f"{path} holds no state dict but {type(content).__name__}{f' with {keys}' if keys else ''}.",
            "Save the weights with torch.save(model.state_dict(), FILE).",
        )
    check_finite(state, str(path))
    return state


def apply_state(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict into a module, in place; prefixes that wrappers left are taken off if all keys fit then.

    Raises:
        WeightsError: keys or shapes differ; the error names up to three of each kind.
    """
    expected = module.state_dict()
    state = next((s for s in _stripped(state) if not any(_differences(expected, s))), state)
    missing, unexpected, mismatched = _differences(expected, state)
    parts = [
        _listed("missing in the file", missing, lambda key: str(tuple(expected[key].shape))),
        _listed("unknown to the network", unexpected, lambda key: str(tuple(state[key].shape))),
        _listed(
            "of another shape",
            mismatched,
            lambda key: f"file {tuple(state[key].shape)}, network {tuple(expected[key].shape)}",
        ),
    ]
    if missing or unexpected or mismatched:
        raise WeightsError(
            f"The weights in {path} do not fit {type(module).__name__}: {'; '.join(p for p in parts if p)}.",
            "Build the network with the settings that it was trained with.",
        )
    module.load_state_dict(state, strict=False)


def _checkpoint(path: Path) -> Any:
    """Unpickle with torch's restricted reader."""
    try:
        with quiet(), torch.serialization.safe_globals(_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ReadError(f"{path} cannot be read ({error.strerror or first_line(error)}).") from error
    except Exception as error:  # torch.load raises many kinds
        text = str(error)
        if "Unsupported global" in text or "Unsupported class" in text or "TorchScript" in text:
            what = "is a TorchScript archive" if "TorchScript" in text else "holds pickled Python objects"
            raise WeightsError(f"{path} {what}, which is code; only plain tensors are loaded.", CONVERT) from error
        if isinstance(error, pickle.UnpicklingError | RuntimeError | EOFError | ValueError | KeyError):
            raise ReadError(
                f"{path} is truncated or no PyTorch checkpoint ({_reason(error)}).",
                "Copy the file again from its source; weights are .pt, .pth or .safetensors files.",
            ) from error
        raise


def _reason(error: BaseException) -> str:
    text = first_line(error)
    return "its pickle is broken" if "Weights only load failed" in text else text


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtraError("Reading .safetensors files", "torch") from error
    try:
        return load_file(path)  # type: ignore[no-any-return]
    except (SafetensorError, OSError, ValueError) as error:
        raise ReadError(
            f"{path} is truncated or no safetensors file ({first_line(error)}).", "Copy the file again from its source."
        ) from error


def _numbers() -> list[Any]:
    """NumPy scalars, which many training scripts leave in checkpoints (best Dice, learning rate); they are no code."""
    kinds = [np.float32, np.float64, np.int32, np.int64, np.bool_]
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    names = [(scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in kinds)]


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """Find the state dict in what a file holds."""
    if not isinstance(content, Mapping):
        return None
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping):
            return _state_dict(content[key])
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return tensors or None


def _stripped(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the state as it is, and with each prefix that all its keys share taken off, one after the other."""
    current = dict(state)
    while current:
        yield current
        shared = next((p for p in PREFIXES if all(key.startswith(p) for key in current)), None)
        if shared is None:
            return
        current = {key.removeprefix(shared): value for key, value in current.items()}


def _differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Return the keys that are missing, unexpected, and of another shape."""
    # Old checkpoints have no batch counters; evaluation doesn't use them.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shared = [key for key in state if key in expected and not is_lazy(expected[key])]
    return missing, unexpected, [key for key in shared if state[key].shape != expected[key].shape]


def _listed(title: str, keys: list[str], detail: Any) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{title}: {', '.join(f'{key} {detail(key)}' for key in keys[:SHOWN])}{more}"
