"""Number formats for tensors: each a frozen value that encodes real numbers as short codes and decodes them.

`format.encode(tensor, axis)` finds the parameters (scales, codebooks) and returns an `Encoded`; its `decode()` gives
real values, its `integers()` the same as 8-bit integers times a scale where that is exact.
"""

from microtome.core.formats.additive import AdditivePowerOfTwo
from microtome.core.formats.affine import Affine, affine_encoding
from microtome.core.formats.base import Encoded, Encoding, Format
from microtome.core.formats.binary import Binary
from microtome.core.formats.codebook import Codebook
from microtome.core.formats.logarithmic import Logarithmic
from microtome.core.formats.mid_rise import MidRise
from microtome.core.formats.minifloat import Minifloat
from microtome.core.formats.power_of_two import PowerOfTwo
from microtome.core.formats.record import (
    encoding_from_record,
    encoding_record,
    format_from_record,
    format_of,
    format_record,
)
from microtome.core.formats.ternary import Ternary

__all__ = [
    "AdditivePowerOfTwo",
    "Affine",
    "Binary",
    "Codebook",
    "Encoded",
    "Encoding",
    "Format",
    "Logarithmic",
    "MidRise",
    "Minifloat",
    "PowerOfTwo",
    "Ternary",
    "affine_encoding",
    "encoding_from_record",
    "encoding_record",
    "format_from_record",
    "format_of",
    "format_record",
]
