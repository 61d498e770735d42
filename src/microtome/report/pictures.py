"""Example cases as WebP data URIs: the image, and the contours of reference, parent and compressed on it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from microtome.types import Array

# One colour per structure. Bright, on grey images far apart also for the colour-blind (after Okabe and Ito 2008).
STRUCTURES = ("#ffb000", "#5cc8ff", "#ff7fbf", "#5ee0a0", "#f2ea5a", "#c9a6ff", "#ff8a5c", "#ffffff")
CHANGED = (1.0, 0.15, 0.3, 0.75)  # RGBA of pixels whose label changed
PIXELS = 420  # longer side of a panel
DPI = 100
TIMES = 10  # differences of two images are shown brighter by
QUALITY = 85  # of the lossy compression, 0 to 100


def structure_color(label: int) -> str:
    """The contour colour of a label (1, 2, …) as hexadecimal; colours repeat after eight."""
    return STRUCTURES[(label - 1) % len(STRUCTURES)]


def panel(
    image: Array, labels: Array | None = None, *, under: Array | None = None, changed: Array | None = None
) -> str:
    """One panel as a WebP data URI: about a fifth of the bytes of a PNG, and no difference that is seen.

    Args:
        image: (H, W) or (H, W, 3), 0 to 1; what is not finite is drawn black.
        labels: (H, W) label map whose structures get solid contours.
        under: (H, W) label map drawn below as a thin white dashed contour, such as the reference.
        changed: (H, W) bool, pixels painted red.
    """
    height, width = image.shape[:2]
    scale = PIXELS / max(height, width)
    size = (max(1.0, width * scale) / DPI, max(1.0, height * scale) / DPI)
    figure = Figure(figsize=size, dpi=DPI)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    shown = np.clip(np.nan_to_num(image.astype(np.float32), posinf=1.0, neginf=0.0), 0.0, 1.0)
    axes.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, interpolation="bicubic", aspect="auto")
    if changed is not None and changed.any():
        paint = np.zeros((height, width, 4), dtype=np.float32)
        paint[changed] = CHANGED
        axes.imshow(paint, interpolation="nearest", aspect="auto")
    if under is not None:
        for label in structures(under):
            _contour(axes, under == label, color="white", linewidth=1.1, linestyle=(0, (3, 2)))
    if labels is not None:
        for label in structures(labels):
            _contour(axes, labels == label, color=structure_color(label), linewidth=1.9)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    stream = io.BytesIO()
    figure.savefig(stream, format="webp", dpi=DPI, pil_kwargs={"quality": QUALITY})
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def structures(labels: Array) -> list[int]:
    """The labels that occur in a map, without background 0."""
    return [int(label) for label in np.unique(labels) if int(label) > 0]


def _contour(axes: object, mask: Array, *, color: str, linewidth: float, linestyle: object = "solid") -> None:
    """The outline of a mask, closed also where it touches the border of the image."""
    padded = np.pad(mask.astype(np.float32), 1)
    rows, columns = np.arange(padded.shape[0]) - 1, np.arange(padded.shape[1]) - 1
    axes.contour(  # type: ignore[attr-defined]  # matplotlib is untyped here
        columns, rows, padded, levels=[0.5], colors=[color], linewidths=[linewidth], linestyles=[linestyle]
    )  # fmt: skip


def example_panels(arrays: Mapping[str, Array]) -> list[dict[str, str]]:
    """The panels of one case, left to right, as {"name", "uri"}; empty without an image."""
    image = arrays.get("image")
    if image is None:
        return []
    reference, parent, compressed = (arrays.get(name) for name in ("reference", "parent", "compressed"))
    panels = [{"name": "Image", "uri": panel(image)}]
    made = {
        name: array
        for name, array in (("Reference", reference), ("Parent", parent), ("Compressed", compressed))
        if array is not None and array.dtype.kind == "f"
    }
    if made:
        panels += [{"name": name, "uri": panel(array)} for name, array in made.items()]
        if parent is not None and compressed is not None:
            change = np.abs(compressed - parent) * TIMES
            panels.append({"name": f"Difference of both, {TIMES} times", "uri": panel(change)})
        return panels
    if reference is not None:
        panels.append({"name": "Reference", "uri": panel(image, reference)})
    if parent is not None:
        panels.append({"name": "Parent", "uri": panel(image, parent, under=reference)})
    if compressed is not None:
        changed = None if parent is None else parent != compressed
        panels.append({"name": "Compressed", "uri": panel(image, compressed, under=reference, changed=changed)})
    return panels
