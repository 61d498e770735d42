"""Zeros around an image as a convolution's own padding, where one side has more of them than the other."""

from __future__ import annotations

from typing import Any

import numpy as np

BY_VALUE = frozenset({"FakeQuantize", "Convert", "Subtract", "Multiply"})


def join_padding(model: Any) -> None:
    """Let the convolutions of a model pad for themselves. Edits in place.

    PyTorch's convolutions pad both sides alike, so that a network has the rest as an operator, before its quantizer;
    OpenVINO joins the two only where nothing stands between, and moves a whole image otherwise. What stands between has
    to leave a zero zero.
    """
    for pad in [node for node in model.get_ordered_ops() if node.get_type_name() == "Pad"]:
        widths = [_constant(pad.input_value(place)) for place in (1, 2)]
        convolutions = _behind(pad)
        if any(width is None for width in widths) or not convolutions or not _pads_space_with_zeros(pad, *widths):
            continue
        before, after = ([int(size) for size in width[2:]] for width in widths if width is not None)
        pad.output(0).replace(pad.input_value(0))
        for convolution in convolutions:
            _pad(convolution, before, after)
    model.validate_nodes_and_infer_types()


def _pads_space_with_zeros(pad: Any, before: Any, after: Any) -> bool:
    value = _constant(pad.input_value(3)) if pad.get_input_size() > 3 else np.zeros(1)
    space = not before[:2].any() and not after[:2].any() and min(before.min(), after.min()) >= 0
    return pad.get_attributes()["pad_mode"] == "constant" and value is not None and not value.any() and bool(space)


def _behind(pad: Any) -> list[Any]:
    """Return the convolutions that read a padded value, and nothing but they; empty if a zero would become another."""
    found: list[Any] = []
    waiting = [(pad, 0.0)]
    while waiting:
        node, zero = waiting.pop()
        for target in node.output(0).get_target_inputs():
            reader = target.get_node()
            kind, first = reader.get_type_name(), target.get_index() == 0
            if kind == "Convolution" and first and zero == 0 and reader.get_attributes()["auto_pad"] == "explicit":
                found.append(reader)
            elif kind in BY_VALUE and first and (value := _of(reader, zero)) is not None:
                waiting.append((reader, value))
            else:
                return []
    return found


def _of(node: Any, zero: float) -> float | None:
    """Return what an operator makes of a value; None if it is not the same everywhere."""
    others = [_constant(node.input_value(place)) for place in range(1, node.get_input_size())]
    if any(other is None or other.size != 1 for other in others):
        return None
    numbers = [float(other.item()) for other in others if other is not None]
    kind = node.get_type_name()
    if kind == "FakeQuantize":
        low, high, out_low, out_high = numbers
        steps = node.get_attributes()["levels"] - 1
        step = round((min(max(zero, low), high) - low) / (high - low) * steps)
        return float(out_low + step * (out_high - out_low) / steps)
    if kind == "Convert":
        return zero
    return zero - numbers[0] if kind == "Subtract" else zero * numbers[0]


def _constant(output: Any) -> Any:
    """Return the value of a constant, perhaps one that is converted, or None."""
    node = output.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node.get_data() if node.get_type_name() == "Constant" else None


def _pad(convolution: Any, before: list[int], after: list[int]) -> None:
    """Put in place of a convolution the one that pads more."""
    from openvino import opset1

    more = opset1.convolution(
        convolution.input_value(0),
        convolution.input_value(1),
        convolution.get_strides(),
        [x + y for x, y in zip(convolution.get_pads_begin(), before, strict=True)],
        [x + y for x, y in zip(convolution.get_pads_end(), after, strict=True)],
        convolution.get_dilations(),
    )
    more.set_friendly_name(convolution.get_friendly_name())
    convolution.output(0).replace(more.output(0))
