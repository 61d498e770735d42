"""Which operators of a model file stay in float32 when the rest computes in bfloat16."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

SOURCE = "ReduceL2"  # the second moment of `graph.rewriting.norms`; nothing else that we export has it
PRECISE = {"name": "precise", "version": "0"}  # OpenVINO's attribute DisableFP16Compression; its CPU plugin obeys it


def keep_statistics_precise(path: Path) -> None:
    """Mark, in an .xml file, what becomes of a norm's statistics as long as these are one number per channel.

    The variance is the difference of two moments. In bfloat16 a channel whose mean is five times its deviation would
    lose its variance: 16 dB of signal to noise where the runtime's own norm has 33 dB.
    """
    tree = ET.parse(path)
    root = tree.getroot()
    layers = {layer.get("id", ""): layer for layer in root.iterfind("layers/layer")}
    readers: dict[str, list[str]] = {}
    inputs: dict[str, list[str]] = {}
    for edge in root.iterfind("edges/edge"):
        begin, end = edge.get("from-layer", ""), edge.get("to-layer", "")
        readers.setdefault(begin, []).append(end)
        inputs.setdefault(end, []).append(begin)
    moments = {identifier for identifier, layer in layers.items() if layer.get("type") == SOURCE}
    if not moments:
        return
    images = {image for moment in moments for image in inputs.get(moment, ())}
    means = {r for image in images for r in readers[image] if layers[r].get("type") == "ReduceMean"}
    # Not the reductions: they add up in float32 anyway, and would have the whole image converted first.
    for identifier in _reached({r for moment in moments | means for r in readers[moment]}, readers, layers):
        layer = layers[identifier]
        info = layer.find("rt_info")
        if info is None:
            info = ET.Element("rt_info")
            layer.insert(1 if layer.find("data") is not None else 0, info)
        ET.SubElement(info, "attribute", PRECISE)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _reached(starts: set[str], readers: Mapping[str, list[str]], layers: Mapping[str, ET.Element]) -> set[str]:
    """Return the layers behind some, up to those whose output has space."""
    found, waiting = set[str](), list(starts)
    while waiting:
        identifier = waiting.pop()
        layer = layers[identifier]
        if identifier in found or layer.get("type") in ("Const", "Result") or _has_space(layer):
            continue
        found.add(identifier)
        waiting.extend(readers.get(identifier, ()))
    return found


def _has_space(layer: ET.Element) -> bool:
    """Whether an output is larger than one number per batch and channel."""
    sizes = [[int(d.text or "-1") for d in port.iterfind("dim")] for port in layer.iterfind("output/port")]
    return any(len(size) > 2 and any(n != 1 for n in size[2:]) for size in sizes)
