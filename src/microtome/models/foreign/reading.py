"""ONNX files: read whole, or a sentence on what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from microtome.errors import MissingExtraError, ModelError, ReadError
from microtome.graph.quiet import first_line

OLDEST = 7
AGAIN = "Copy the file again from its source, together with the files of weights that lie beside it."


def read_onnx(path: Path) -> tuple[Any, tuple[Path, ...]]:
    """Return the model of a file with what it keeps in other files, and those files.

    Raises:
        MissingExtraError: onnx is not installed.
        ReadError: missing, truncated, or no ONNX; or a file beside it is missing.
        ModelError: too old.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtraError("Reading ONNX files", "onnxruntime") from error
    if not path.is_file():
        raise ReadError(f"{path} does not exist.", "Give the .onnx file.")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise ReadError(f"{path} is truncated or no ONNX file ({first_line(error)}).", AGAIN) from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise ReadError(f"{path} is truncated or no ONNX file (it has no graph).", AGAIN)
    places = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        for tensor in model.graph.initializer:
            onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # onnx raises several kinds
        raise ReadError(f"{path} cannot be read whole: {first_line(error)}.", AGAIN) from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST:
        raise ModelError(
            f"{path} has opset {opset}; microtome reads {OLDEST} and newer.",
            'Convert it once: python -c "import onnx.version_converter as v, onnx; '
            "onnx.save(v.convert_version(onnx.load('OLD.onnx'), 17), 'NEW.onnx')\"",
        )
    return model, tuple(path.parent / place for place in sorted(places))


def is_onnx(head: bytes) -> bool:
    """Whether a file begins as ONNX does: its version, then who wrote it or its opset or graph."""
    return (
        len(head) > 3 and head[0] == 0x08 and head[1] < 0x20 and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
    )
