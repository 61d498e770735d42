"""How operators of ONNX are carried out in PyTorch: one table, from the operator to what does it."""

from __future__ import annotations

from microtome.models.foreign.operators import (
    attention,
    elementwise,
    layers,
    pooling,
    quantized,
    reducing,
    resizing,
    shapes,
)

TABLE = {
    **attention.TABLE,
    **elementwise.TABLE,
    **layers.TABLE,
    **pooling.TABLE,
    **quantized.TABLE,
    **reducing.TABLE,
    **resizing.TABLE,
    **shapes.TABLE,
}
