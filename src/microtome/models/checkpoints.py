"""What a weights file is, told by its content and not by its name, and what it holds, without running code in it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microtome.errors import MissingExtraError, ReadError, WeightsError
from microtome.graph.quiet import first_line, quiet

# Where training frameworks keep the state dict (Lightning, MONAI, nnU-Net and many scripts), in the order of asking.
CONTAINERS = (
    *("state_dict", "model_state_dict", "network_weights", "model_state", "model", "net", "network", "module"),
    *("net_state_dict", "network_state_dict", "weights", "params", "ema", "ema_state_dict", "state_dict_ema"),
    *("model_ema", "ema_model", "params_ema", "teacher", "student"),
)
CONVERT = (
    "If you trust the file, convert it once, in the folder of the code that it needs; that runs the code "
    "(weights_only=False): python -c \"from microtome.models.convert import convert; convert('OLD', 'NEW.pt')\""
)
AGAIN = "Copy the file again from its source; weights are .pt, .pth, .ckpt or .safetensors files."
PYTORCH, SAFETENSORS = "pytorch", "safetensors"
# How other files begin, what they are, and what to do.
SIGNATURES = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes", "Give weights of the PyTorch network."),
    (b"GGUF", "a GGUF file", "Give weights of the PyTorch network."),
    (b"\x93NUMPY", "a NumPy array", "Save the weights with torch.save(model.state_dict(), FILE)."),
    (b"\x1f\x8b", "packed with gzip", "Unpack it first: gunzip FILE."),
    (b"BZh", "packed with bzip2", "Unpack it first: bunzip2 FILE."),
    (b"\xfd7zXZ\x00", "packed with xz", "Unpack it first: unxz FILE."),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard", "Unpack it first: unzstd FILE."),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it first."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
    (b"version https://git-lfs", "a pointer of Git LFS, not the weights", "Fetch them: git lfs pull."),
    (b"<?xml", "an XML file, such as OpenVINO's", "Give weights of the PyTorch network."),
    (b"<", "a web page, not the weights", "Download the file itself: perhaps the page asks to log in or to confirm."),
)
MEMBERS = (
    ("constants.pkl", "is a TorchScript archive, which is code; only plain tensors are loaded.", CONVERT),
    (".npy", "is a NumPy archive (.npz).", "Save the weights with torch.save(model.state_dict(), FILE)."),
    ("model.json", "is an exported program (.pt2).", "Give it as the model, without --weights."),
    ("serialized_exported_program.json", "is an exported program (.pt2).", "Give it as the model, without --weights."),
)


def read(path: Path) -> Any:
    """Return what a weights file holds; code in it is not run.

    Raises:
        ReadError: missing, truncated, or of another kind; the error says which.
        WeightsError: the file needs code to be run.
        MissingExtraError: safetensors is not installed.
    """
    if path.is_dir():
        raise ReadError(f"{path} is a folder.", "Give the file in it that holds the weights, as --weights FILE.")
    if not path.is_file():
        raise ReadError(f"The weights file {path} does not exist.", "Give the file as --weights FILE.")
    try:
        return _safetensors(path) if kind_of(path) == SAFETENSORS else _pickled(path)
    except OSError as error:
        raise ReadError(f"{path} cannot be read ({error.strerror or first_line(error)}).") from error


def kind_of(path: Path) -> str:
    """Return PYTORCH or SAFETENSORS by a file's content; by its name where that says nothing.

    Raises:
        ReadError: it is something else; the error says what.
        WeightsError: it is a TorchScript archive.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        _refuse_members(path)
        return PYTORCH
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    found = next((rest for begin, *rest in SIGNATURES if text.lower().startswith(begin.lower())), None)
    if head[257:262] == b"ustar":
        found = ["a tar archive", "Unpack it first: tar -xf FILE."]
    if head[4:8] == b"TFL3":
        found = ["a TensorFlow Lite file", "Give weights of the PyTorch network."]
    if text.startswith(b'{"') and b"weight_map" in path.read_bytes():
        found = ["the index of weights in several files", "Join them: load each, and save one state dict."]
    if _is_onnx(head):
        found = ["an ONNX file", "Give weights of the PyTorch network."]
    if found is not None:
        raise ReadError(f"{path} holds no PyTorch weights: it is {found[0]}.", found[1])
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 0 < header < 1 << 31:
        return SAFETENSORS
    return SAFETENSORS if path.suffix == ".safetensors" and not head.startswith(b"\x80") else PYTORCH


def tensors_of(content: Any) -> dict[str, Tensor] | None:
    """Return the state dict of whatever a checkpoint holds: of a module, in a container, or in a list; None if none.

    Where no container is known by its name, all tensors in nested dicts count, their keys joined by dots.
    """
    if isinstance(content, nn.Module):
        return _plain(content.state_dict())
    if isinstance(content, list | tuple):
        return next((found for part in content if (found := tensors_of(part)) is not None), None)
    if not isinstance(content, Mapping):  # such as an average of weights beside a module
        inner = getattr(content, "module", None)
        return tensors_of(inner) if isinstance(inner, nn.Module) else None
    for key in CONTAINERS:
        if (found := tensors_of(content.get(key))) is not None:
            return found
    return _plain(content)


def _plain(content: Mapping[Any, Any], before: str = "") -> dict[str, Tensor] | None:
    """Return the tensors in nested dicts, by their keys with dots between them; None if there are none."""
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        name = f"{before}{key}"
        if isinstance(value, Tensor):
            found[name] = value.detach()
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            found[name] = torch.from_numpy(value.copy())
        elif isinstance(value, Mapping) and "optim" not in str(key).lower():
            found |= _plain(value, f"{name}.") or {}
        elif isinstance(value, nn.Module):
            found |= _plain(value.state_dict(), f"{name}.") or {}
    return found or None


def _pickled(path: Path) -> Any:
    """Unpickle with torch's restricted reader."""
    try:
        # By a handle, not by the name: by that, torch takes some files for safetensors.
        with quiet(), torch.serialization.safe_globals(_numbers()), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch.load raises many kinds
        text = str(error)
        words = ("Unsupported global", "Unsupported class", *(("Unsupported operand",) if _is_pickle(path) else ()))
        if any(word in text for word in words):
            raise WeightsError(
                f"{path} holds pickled Python objects, which is code; only plain tensors are loaded.", CONVERT
            ) from error
        reason = "it is empty" if not path.stat().st_size else _reason(error)
        raise ReadError(f"{path} is truncated or no PyTorch checkpoint ({reason}).", AGAIN) from error


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as pickles do, and ends so: what torch's restricted reader does not know may be in it."""
    content = path.read_bytes()
    return content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and content[-1:] == b"."


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
    except (SafetensorError, ValueError, KeyError) as error:
        raise ReadError(f"{path} is truncated or no safetensors file ({first_line(error)}).", AGAIN) from error


def _numbers() -> list[Any]:
    """NumPy scalars, which many training scripts leave in checkpoints (best Dice, learning rate); they are no code."""
    kinds = [np.float32, np.float64, np.int32, np.int64, np.bool_]
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    names = [(scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in kinds)]


def _refuse_members(path: Path) -> None:
    """Refuse ZIP archives that hold something else than a checkpoint; broken ones are left to torch's reader."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, ValueError):
        return
    for ending, what, hint in MEMBERS:
        if any(name.endswith(ending) for name in names):
            raise (WeightsError if hint is CONVERT else ReadError)(f"{path} {what}", hint)
    if not any(name.endswith("data.pkl") for name in names):
        raise ReadError(
            f"{path} holds no PyTorch weights: it is a ZIP archive of {len(names)} files.",
            "Unpack it first: unzip FILE.",
        )


def _is_onnx(head: bytes) -> bool:
    """Whether a file begins as ONNX's protobuf does: its version, then the producer's name or another field."""
    return (
        len(head) > 4 and head[0] == 0x08 and 2 < head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
    )
