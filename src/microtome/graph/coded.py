"""A network's `.pt2` file without the weights that `weights.safetensors` has anyway, and with them again.

The bytes of a weight are replaced by zeros, which take no room when they are coded, and are put back where they were:
the file is then what it was, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from microtome.entropy.cuts import arrays_in
from microtome.errors import ReadError
from microtome.graph.network import Network
from microtome.graph.packed import pack_weights, unpacked
from microtome.graph.quiet import first_line

NETWORK, WEIGHTS, PLACES = "network.pt2", "weights.safetensors", "network.json"


def apart(network: Network, content: bytes) -> dict[str, bytes]:
    """Return a network as files that repeat nothing.

    Args:
        network: on the CPU.
        content: of its `.pt2` file.

    Returns:
        `weights.safetensors` with one code a byte, `network.pt2` with zeros for the weights of that file, and
        `network.json`, which says where they go.
    """
    weights = pack_weights(network, spread=True).content()
    names = {_bytes(tensor): name for name, tensor in unpacked(weights, Path(WEIGHTS)).items()}
    blank, places = bytearray(content), []
    for start, stop in arrays_in(NETWORK, {NETWORK: content}):
        name = names.get(content[start:stop])
        if name is not None:
            blank[start:stop] = bytes(stop - start)
            places.append([start, name])
    return {WEIGHTS: weights, NETWORK: bytes(blank), PLACES: json.dumps(places, separators=(",", ":")).encode()}


def together(files: Mapping[str, bytes], path: Path) -> bytes:
    """Return the `.pt2` file that `apart` was given.

    Args:
        files: what it returned; there may be others.
        path: where they are from, for errors.

    Raises:
        ReadError: a file is missing, or not what it was.
    """
    try:
        content = bytearray(files[NETWORK])
        weights = unpacked(files[WEIGHTS], path)
        for start, name in json.loads(files[PLACES]):
            value = _bytes(weights[name])
            if any(content[start : start + len(value)]) or start + len(value) > len(content):
                raise ValueError(f"{name} does not fit")
            content[start : start + len(value)] = value
    except (ValueError, KeyError, TypeError) as error:
        raise ReadError(f"{path} holds no whole network ({first_line(error)}).", "Copy it again.") from error
    return bytes(content)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().numpy().tobytes()
