"""A Network in a `.pt2` file, which `torch.export.load` reads too."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from microtome.core.formats import encoding_from_record, encoding_record
from microtome.errors import ModelError, ReadError
from microtome.graph.network import INPUT, OUTPUT, Network
from microtome.graph.program import exported, network_from_export
from microtome.graph.quiet import first_line, quiet
from microtome.graph.scores import Wish

METADATA = "microtome.json"


def save(network: Network, path: Path) -> None:
    """Write a network's graph, its weights and its history."""
    metadata = {
        "inputs": [port.name for port in network.inputs],
        "outputs": [port.name for port in network.outputs],
        "state": sorted(network.state),
        "history": list(network.history),
        "notes": list(network.notes),
        "formats": {name: encoding_record(encoding) for name, encoding in network.formats.items()},
    }
    program = exported(network)
    program._example_inputs = None  # megabytes of zeros
    content = io.BytesIO()  # torch's own file writer aborts the process when the disk is full
    with quiet():
        torch.export.save(program, content, extra_files={METADATA: json.dumps(metadata)})
    path.write_bytes(content.getbuffer())


def load(path: Path, keep: Sequence[str] | Wish | None = None, *, content: bytes | None = None) -> Network:
    """Read a `.pt2` file, ours or anybody's.

    Args:
        path: the file.
        content: what is in it, where that is known; `path` is for errors then.
        keep: names of the outputs to keep, the scores first, or what is known of them; without, all of ours are kept,
            and of anybody else's the scores.

    Raises:
        ReadError: missing, not a `.pt2` file, or truncated.
        CaptureError: its inputs or outputs are no tensors, it has no such output, or several that may be the scores.
        ModelError: our own part of it is broken.
    """

    if content is None and not path.is_file():
        raise ReadError(f"{path} does not exist.", "Give the path of a .pt2 file.")
    extra = {METADATA: ""}
    try:
        with quiet():
            program = torch.export.load(path if content is None else io.BytesIO(content), extra_files=extra)
    except Exception as error:
        raise ReadError(
            f"{path} is not a .pt2 file that torch {torch.__version__} can read ({first_line(error)}).",
            "Save it with torch.export.save, or pass the model as file.py:factory with --weights.",
        ) from error
    if not extra[METADATA]:
        return network_from_export(program, keep=keep)
    try:
        metadata = json.loads(extra[METADATA])
        inputs, outputs = (
            metadata.get("inputs", [INPUT]),
            metadata.get("outputs", [OUTPUT]),
        )  # older files: one each
        network = network_from_export(program, inputs=inputs, outputs=outputs, keep=_of_ours(outputs, keep))
        return replace(
            network,
            state=frozenset(metadata["state"]),
            history=tuple(metadata["history"]),
            notes=tuple(metadata["notes"]),
            formats={n: encoding_from_record(record) for n, record in metadata.get("formats", {}).items()},
        )
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path} holds broken microtome metadata ({first_line(error)}).") from error


def _of_ours(outputs: Sequence[str], keep: Sequence[str] | Wish | None) -> Sequence[str]:
    """Return which outputs of a network that we saved are kept: those that are named, or all."""
    if not isinstance(keep, Wish):
        return keep or outputs
    if keep.scores is None:
        return [*outputs, *(name for name in keep.also if name not in outputs)]
    return [keep.scores, *keep.also]
