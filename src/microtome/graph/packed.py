"""Weights at their real size: a `.safetensors` file that holds codes of 1 to 16 bits without a gap.

Runtimes have kernels for 8 bits at the least and store narrower weights in bytes. This file holds them at the width
that they were given. Every tensor that the graph reads is in it once: quantized or encoded weights as `NAME` (uint8,
packed codes) and `NAME@PARAMETER`, all else as it is, in float32. The header's entry `microtome` (JSON) says of each
packed tensor its shape, its bits, its format (a place in `formats`) and its axis. Version 1 packs codes without a gap;
version 2, which `entropy` makes small instead, has a code of up to 8 bits in a byte, and a wider one in an int32.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.formats import Encoded, affine_encoding, format_from_record, format_record
from microtome.core.packing import pack, unpack
from microtome.errors import MissingExtraError, OutputError, ReadError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.quantizers import qparams_of
from microtome.graph.quiet import first_line

HEADER = "microtome"
VERSION, SPREAD = 1, 2  # of the file: codes without a gap, or one by one


@dataclass(frozen=True)
class Packed:
    """What the file holds.

    Attributes:
        tensors: by name, as `safetensors` stores them.
        header: JSON-ready: version, formats, and what the packed tensors are.
    """

    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any]

    def content(self) -> bytes:
        """Return the file's bytes.

        Raises:
            MissingExtraError: safetensors is not installed.
        """
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise MissingExtraError("packed weights", "torch") from error
        content: bytes = save(dict(self.tensors), {HEADER: json.dumps(self.header, separators=(",", ":"))})
        return content


def pack_weights(network: Network, *, spread: bool = False) -> Packed:
    """Pack each weight at the bits of its Encoding, or else of its quantizer; the rest is float32.

    A constant that is read on several grids, or in float by one reader and rounded by another, stays in float32. With
    `spread` codes stand one by one.
    """
    tensors: dict[str, Tensor] = {}
    formats: list[dict[str, Any]] = []
    entries: dict[str, Any] = {}
    known: dict[tuple[object, ...], str] = {}  # one codebook for several weights is stored once
    for name, value in _contents(network):
        if isinstance(value, Tensor):
            tensors[name] = (value.float() if value.is_floating_point() else value).cpu().clone().contiguous()
            continue
        record = format_record(value.format)
        if record not in formats:
            formats.append(record)
        keys = {}
        for parameter, tensor in value.parameters.items():
            key = known.setdefault(_digest(tensor), f"{name}@{parameter}")
            tensors[key] = tensor.cpu().clone().contiguous()
            keys[parameter] = key
        tensors[name] = _one_by_one(value) if spread else pack(value.codes, value.format.bits).cpu()
        entries[name] = {
            "shape": list(value.codes.shape),
            "bits": value.format.bits,
            "format": formats.index(record),
            "axis": value.axis,
            "parameters": keys,
        }
    return Packed(tensors, {"version": SPREAD if spread else VERSION, "formats": formats, "tensors": entries})


def save_packed(network: Network, path: Path) -> None:
    """Write the packed weights.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_bytes(pack_weights(network).content())
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({first_line(error)}).") from error


def load_packed(path: Path) -> dict[str, Tensor]:
    """Read a packed file: the tensors that the graph computes with, by attribute name, weights decoded to float32.

    Raises:
        ReadError: the file is missing, truncated, or not a packed one.
    """
    if not path.is_file():
        raise ReadError(f"{path} does not exist.", "Give the path of a weights.safetensors file.")
    return unpacked(path.read_bytes(), path)


def unpacked(content: bytes, path: Path) -> dict[str, Tensor]:
    """Return what `load_packed` does, of a file's content; `path` is for errors. Raises as it does."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise MissingExtraError("packed weights", "torch") from error
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][HEADER])
        stored = load(content)
        if header["version"] not in (VERSION, SPREAD):
            raise ValueError(f"version {header['version']}")
        entries = header["tensors"]
        parameters = {key for entry in entries.values() for key in entry["parameters"].values()}
        result = {name: tensor for name, tensor in stored.items() if name not in parameters}
        for name, entry in entries.items():
            result[name] = _decoded(stored, name, entry, header["formats"], header["version"])
    except (SafetensorError, struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ReadError(
            f"{path} does not hold packed weights of microtome ({first_line(error)}).", "Copy the file again."
        ) from error
    return result


def as_packed(network: Network) -> Network:
    """Return the network with each weight as its readers see it: on its grid. It computes the same.

    What is packed is then all that there is of the weights.
    """
    network = network.copy()
    for name, value in list(_contents(network)):
        if isinstance(value, Encoded):
            decoded = value.decode()
            edit.set_constant(network.graph_module, name, decoded, weight=network.is_weight(name))
            for node in network.graph_module.graph.find_nodes(op="get_attr"):
                if node.target == name:
                    node.meta["val"] = decoded
    return network


def packed_bytes(network: Network) -> int:
    """Return the size of the packed file."""
    return len(pack_weights(network).content())


def theoretical_bytes(network: Network) -> int:
    """Return what the codes, their parameters and all other tensors take by themselves, without names and shapes."""
    return sum(tensor.nbytes for tensor in pack_weights(network).tensors.values())


def _contents(network: Network) -> Iterator[tuple[str, Tensor | Encoded]]:
    """Yield what the graph reads, grids of quantizers left out: weights as codes, all else as it is."""
    readers: dict[str, set[tuple[Node, int | None]]] = {}
    for node in network.graph_module.graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(str(node.target), set()).update((user, _position(user, node)) for user in node.users)
    for name, tensor in network.constants().items():
        users = readers[name]
        if users and all(kind(user) == "quantizer" and position != 0 for user, position in users):
            continue
        yield name, _encoded(network, name, tensor, [user for user, _ in users]) or tensor


def _encoded(network: Network, name: str, tensor: Tensor, users: list[Node]) -> Encoded | None:
    """Return a constant as codes that decode to exactly what its readers see; None if there are none."""
    quantizers = [user for user in users if kind(user) == "quantizer"]
    value = tensor
    if quantizers:
        seen = [_output(network, node) for node in quantizers]
        if len(quantizers) < len(users):
            seen.append(tensor)
        value = seen[0]
        if not all(torch.equal(value, other) for other in seen):
            return None
    if not bool(torch.isfinite(value).all()):
        return None
    encodings = [affine_encoding(qparams_of(network, node)) for node in quantizers[:1]]
    if name in network.formats:
        encodings.insert(0, network.formats[name])
    for encoding in encodings:
        encoded = encoding.encode(value)
        if torch.equal(encoded.decode(), value):
            return encoded
    return None


def _output(network: Network, quantizer: Node) -> Tensor:
    """Return what a quantizer on a constant gives, by its own kernel."""
    args = torch.fx.map_arg(quantizer.args, lambda node: network.tensor(str(node.target)))
    result: Tensor = quantizer.target(*args)  # type: ignore[operator]
    return result


def _position(user: Node, node: Node) -> int | None:
    return next((position for position, value in enumerate(user.args) if value is node), None)


def _digest(tensor: Tensor) -> tuple[object, ...]:
    content = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return str(tensor.dtype), tuple(tensor.shape), content


def _one_by_one(value: Encoded) -> Tensor:
    codes = value.codes.cpu().contiguous()
    return codes.to(torch.uint8) if value.format.bits <= 8 else codes.to(torch.int32)


def _decoded(
    stored: Mapping[str, Tensor], name: str, entry: Mapping[str, Any], formats: list[Any], version: int
) -> Tensor:
    number_format = format_from_record(formats[entry["format"]])
    shape = tuple(entry["shape"])
    codes = stored[name].to(torch.int32)
    if version == VERSION:
        codes = unpack(stored[name], number_format.bits, math.prod(shape)).reshape(shape)
    elif tuple(codes.shape) != shape:
        raise ValueError(f"{name} has another shape")
    parameters = {parameter: stored[key] for parameter, key in entry["parameters"].items()}
    return Encoded(number_format, codes, parameters, entry["axis"]).decode()
