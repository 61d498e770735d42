"""Encodings as JSON, and back to the bit."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.core.formats.additive import AdditivePowerOfTwo
from microtome.core.formats.affine import Affine
from microtome.core.formats.base import Encoding, Format
from microtome.core.formats.binary import Binary
from microtome.core.formats.codebook import Codebook
from microtome.core.formats.logarithmic import Logarithmic
from microtome.core.formats.mid_rise import MidRise
from microtome.core.formats.minifloat import Minifloat
from microtome.core.formats.power_of_two import PowerOfTwo
from microtome.core.formats.ternary import Ternary

KINDS: dict[str, type[Format]] = {
    kind.__name__: kind
    for kind in (Affine, AdditivePowerOfTwo, Binary, Codebook, Logarithmic, MidRise, Minifloat, PowerOfTwo, Ternary)
}
# Parameters are stored as what they are; nothing else comes up.
DTYPES: dict[str, type[np.generic]] = {"float32": np.float32, "int8": np.int8, "uint8": np.uint8, "int32": np.int32}


def format_record(number_format: Format) -> dict[str, Any]:
    """Return a format as JSON-ready values: its class and the settings that are not the default."""
    record: dict[str, Any] = {"type": type(number_format).__name__}
    for setting in fields(number_format):  # type: ignore[arg-type]
        value = getattr(number_format, setting.name)
        if setting.init and value != setting.default:
            record[setting.name] = list(value) if isinstance(value, tuple) else value
    return record


# Names that decode themselves. A name says nothing of some settings: floats of 8 bits then have a scale per channel.
NAMES: tuple[tuple[str, Callable[..., Format]], ...] = (
    (r"(u?)int(\d+)(?:g(\d+))?", lambda u, bits, group: Affine(int(bits), not u, group=group and int(group))),
    (r"codebook(\d+)(i?)(z?)", lambda bits, i, z: Codebook(int(bits), integer=bool(i), zero=bool(z))),
    (r"pot(\d+)", lambda bits: PowerOfTwo(int(bits))),
    (r"apot(\d+)", lambda bits: AdditivePowerOfTwo(int(bits))),
    (r"log(\d+)", lambda bits: Logarithmic(int(bits))),
    (r"midrise(\d+)", lambda bits: MidRise(int(bits))),
    (r"ternary(2?)", lambda two: Ternary(two_scales=bool(two))),
    (r"binary", Binary),
    (r"fp8_(e4m3fn|e5m2)", lambda kind: Minifloat(kind, scaled=True)),
    (r"(fp16|bf16)", Minifloat),
)
EXAMPLES = (
    *("codebook4i", "pot4", "apot4", "log4", "midrise2", "ternary", "binary"),
    *("fp8_e4m3fn", "fp16", "bf16", "int4g32"),
)


def format_of(value: str | Mapping[str, Any]) -> Format:
    """Return the format that a name such as `pot4`, or a record, stands for.

    Raises:
        ValueError: it stands for none.
    """
    if isinstance(value, Mapping):
        return format_from_record(value)
    for pattern, make in NAMES:
        found = re.fullmatch(pattern, str(value))
        if found:
            return make(*found.groups())
    raise ValueError(f"no number format is called {value!r}; such are {', '.join(EXAMPLES)}")


def format_from_record(record: Mapping[str, Any]) -> Format:
    """Return the format that a record stands for.

    Raises:
        ValueError: it stands for none.
    """
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    kind = settings.pop("type", None)
    if kind not in KINDS:
        raise ValueError(f"no number format is called {kind!r}")
    try:
        return KINDS[kind](**settings)
    except TypeError as error:
        raise ValueError(f"{kind} has other settings than {sorted(settings)}") from error


def encoding_record(encoding: Encoding) -> dict[str, Any]:
    """Return an encoding as JSON-ready values; tensors in base64."""
    return {
        "format": format_record(encoding.format),
        "axis": encoding.axis,
        "parameters": {name: _tensor_record(value) for name, value in encoding.parameters.items()},
    }


def encoding_from_record(record: Mapping[str, Any]) -> Encoding:
    """Return the encoding that a record stands for.

    Raises:
        KeyError: a part is missing.
        ValueError: a part is not what it should be.
    """
    parameters = {name: _tensor_from_record(value) for name, value in record["parameters"].items()}
    return Encoding(format_from_record(record["format"]), parameters, record["axis"])


def _tensor_record(tensor: Tensor) -> dict[str, Any]:
    array = tensor.detach().cpu().contiguous().numpy()
    data = base64.b64encode(array.tobytes()).decode("ascii")
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


def _tensor_from_record(record: Mapping[str, Any]) -> Tensor:
    array = np.frombuffer(base64.b64decode(record["data"]), DTYPES[record["dtype"]])
    return torch.from_numpy(array.copy()).reshape(record["shape"])
