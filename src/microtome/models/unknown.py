"""What a file is that is no model: told by its content, with the way in."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from microtome.errors import ReadError

ONNX_WAY = "Export it as ONNX, and give that: {way}."
CODE = "Give the code that builds it, and the file as weights: file.py:factory --weights {path}"
# How files begin, what they are, and the way in.
BEGINNINGS = (
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file", "If Keras wrote it, name it .h5 and give it; else it holds no network."),
    (b"GGUF", "is a GGUF file, as of language models", "microtome compresses networks of images."),
    (b"\x93NUMPY", "is a NumPy array", "Give the network; arrays are images here."),
    (b"\x1f\x8b", "is packed with gzip", "Unpack it first: gunzip FILE."),
    (b"BZh", "is packed with bzip2", "Unpack it first: bunzip2 FILE."),
    (b"\xfd7zXZ\x00", "is packed with xz", "Unpack it first: unxz FILE."),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive", "Unpack it first."),
    (b"ftrt", "is a TensorRT engine, built for one GPU", "Give what it was built from: the ONNX file."),
    (b"ptrt", "is a TensorRT engine, built for one GPU", "Give what it was built from: the ONNX file."),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the model", "Fetch it: git lfs pull."),
    (b"<!doctype html", "is a web page, not the model", "Download the file itself: perhaps the page asks to log in."),
    (b"<html", "is a web page, not the model", "Download the file itself: perhaps the page asks to log in."),
)
# By what stands in archives: a member's ending, what that is, and the way in.
MEMBERS = (
    ("serialized_exported_program.json", "is an exported program of an older PyTorch", "Name it .pt2 and give it."),
    ("models/model.json", "is an exported program", "Name it .pt2 and give it."),
    ("data.pkl", "", ""),  # torch.save: see below
    (".npy", "is a NumPy archive (.npz)", "Give the network; arrays are images here."),
    (".mlmodel", "is a Core ML package", "Give what it was converted from: PyTorch code or ONNX."),
)
NAMES = {
    ".mlmodel": ("is a Core ML model", "Give what it was converted from: PyTorch code or ONNX."),
    ".engine": ("is a TensorRT engine, built for one GPU", "Give what it was built from: the ONNX file."),
    ".plan": ("is a TensorRT engine, built for one GPU", "Give what it was built from: the ONNX file."),
    ".trt": ("is a TensorRT engine, built for one GPU", "Give what it was built from: the ONNX file."),
    ".pb": ("is a frozen TensorFlow graph", ONNX_WAY.format(way="python -m tf2onnx.convert --graphdef FILE")),
    ".pdmodel": ("is a PaddlePaddle model", ONNX_WAY.format(way="paddle2onnx")),
    ".caffemodel": ("holds Caffe weights", "Convert it to ONNX first."),
    ".mnn": ("is an MNN model", "Give what it was converted from: ONNX."),
    ".pte": ("is an ExecuTorch program", "Give what it was exported from: PyTorch code or a .pt2 file."),
    ".ptl": ("is TorchScript for mobile phones", "Give the .pt file that it was made from."),
}


def unknown_source(path: Path, forms: str) -> ReadError:
    """Return the error for what no source takes.

    Args:
        path: what was given.
        forms: what models look like.
    """
    if path.is_dir():
        return _folder(path, forms)
    if not path.exists():
        return ReadError(f"{path} is neither a file nor a folder nor module:factory.", forms)
    if path.suffix == ".py":
        return ReadError(f"{path} does not say what builds the network.", f"Name the function: {path}:factory.")
    try:
        found = _file(path)
    except OSError as error:
        return ReadError(f"{path} cannot be read ({error.strerror}).", "Copy it again.")
    if found is None:
        return ReadError(f"{path} is no model that microtome reads.", forms)
    return ReadError(f"{path} {found[0]}.", found[1])


def _folder(path: Path, forms: str) -> ReadError:
    names = [child.name for child in path.iterdir()]
    if "Manifest.json" in names and path.suffix == ".mlpackage":
        return ReadError(f"{path} is a Core ML package.", "Give what it was converted from: PyTorch code or ONNX.")
    single = sorted(n for n in names if re.search(r"\.(onnx|pt2|keras|tflite)$", n))
    if single:
        return ReadError(f"The folder {path} is no model, but holds {', '.join(single[:3])}.", "Give that file.")
    if "pytorch_model.bin" in names or "model.safetensors" in names:
        return ReadError(
            f"The folder {path} holds weights of Hugging Face's, but no network.",
            "Give the code that builds it, and the file as weights: file.py:factory --weights FILE",
        )
    return ReadError(f"The folder {path} is no model.", forms)


def _file(path: Path) -> tuple[str, str] | None:
    """Return what a file is, and the way in; None if nothing tells."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        return "is empty", "Copy it again from its source."
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for begin, what, way in BEGINNINGS:
        if text.lower().startswith(begin.lower()):
            return what, way
    if re.match(rb"<\?xml.*?<net\b[^>]*\blayers?\b|<\?xml[^>]*>\s*<net\b", text, re.DOTALL) or text.startswith(b"<net"):
        return "is an OpenVINO model", "Give what it was converted from: the ONNX file or the PyTorch code."
    if head[257:262] == b"ustar":
        return "is a tar archive", "Unpack it first: tar -xf FILE."
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 0 < header < 1 << 31:
        return "holds weights but no network (safetensors)", CODE.format(path=path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _pickled(path, head)
    if text.startswith(b"{"):
        return _json(path)
    if path.suffix in NAMES:
        return NAMES[path.suffix]
    if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        return "holds weights but no network", CODE.format(path=path)
    return None


def _archive(path: Path) -> tuple[str, str] | None:
    try:
        archive = zipfile.ZipFile(path)
        names = archive.namelist()
    except (zipfile.BadZipFile, ValueError):
        return "is a truncated archive", "Copy it again from its source."
    for ending, what, way in MEMBERS:
        member = next((name for name in names if name.endswith(ending)), None)
        if member is not None and what:
            return what, way
        if member is not None:
            with archive.open(member) as file:
                return _pickled(path, file.read(1 << 16))
    listed = _models(names)
    return ("is a ZIP archive" + (f" with {listed}" if listed else "")), "Unpack it first, and give what is in it."


def _models(names: Sequence[str]) -> str:
    return ", ".join(n for n in names if re.search(r"\.(onnx|pt|pth|pt2|keras|tflite|safetensors)$", n))[:200]


def _pickled(path: Path, content: bytes) -> tuple[str, str]:
    """Tell a whole module from weights by the classes that a pickle names; nothing is run."""
    classes = set(re.findall(rb"c([\w.]+)\n(\w+)\n", content)) | {
        (m, n) for m, n in re.findall(rb"\x8c.([\w.]+)\x94\x8c.(\w+)\x94\x93", content, re.DOTALL)
    }
    own = sorted(
        f"{module.decode()}.{name.decode()}"
        for module, name in classes
        if not module.startswith((b"torch._utils", b"torch.storage", b"collections", b"numpy", b"torch._tensor"))
        and module != b"torch"
        and b"builtin" not in module
    )
    if own:
        return (
            f"is a whole module, pickled ({own[0]}), which is code; it is not run",
            "Give the code that builds it, and its weights (torch.save(model.state_dict(), FILE)): "
            "file.py:factory --weights FILE",
        )
    return "holds weights but no network", CODE.format(path=path)


def _json(path: Path) -> tuple[str, str] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    if "modelTopology" in content:
        return "is a TensorFlow.js model", ONNX_WAY.format(way="python -m tf2onnx.convert --tfjs FILE")
    if "weight_map" in content:
        return "is the index of weights in several files", "Give the code that builds the network, and its weights."
    return None
