"""What makes no sense in a `Pipeline`, said before any image is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.errors import OptionError

if TYPE_CHECKING:
    from microtome.medical.pipeline import Pipeline

MOST_REGIONS = 64


def check(pipeline: Pipeline) -> None:
    """Refuse values out of range, or in conflict with one another; their types are right.

    Raises:
        OptionError: what is wrong.
    """
    _axes(pipeline)
    _grid(pipeline)
    _windows(pipeline)
    _intensities(pipeline)
    _fixed(pipeline)
    _regions(pipeline)
    _cleanup(pipeline)
    _ports(pipeline)


def require(truth: object, problem: str) -> None:
    """Raise OptionError unless it is true."""
    if not truth:
        raise OptionError(f"Pipeline: {problem}.", "Correct pipeline.json.")


def _axes(p: Pipeline) -> None:
    dims = p.spatial_dims
    require(dims in (2, 3), f"'spatial_dims' must be 2 or 3, not {dims}")
    require(dims == 3 or not (p.orientation or p.spacing), "'orientation' and 'spacing' are for volumes only")
    axes = None if p.orientation is None else sorted("RLAPSI".find(code) // 2 for code in p.orientation)
    require(axes in (None, [0, 1, 2]), f"'orientation' must name three axes, such as RAS, not {p.orientation!r}")
    order = None if p.transpose is None else sorted(p.transpose)
    require(
        order in (None, list(range(dims))), f"'transpose' must name each axis of 0 to {dims - 1}, not {p.transpose}"
    )
    require(not (p.orientation and p.transpose), "'orientation' and 'transpose' exclude one another")
    require(p.slices is None or dims == 3, "'slices' are those of volumes: 'spatial_dims' must be 3")
    odd = p.slices is None or (p.slices >= 1 and p.slices % 2 == 1)
    require(odd, f"'slices' must be an odd number, the slice and as many on either side, not {p.slices}")
    require(p.channels >= 1, f"'channels' must be at least 1, not {p.channels}")


def _grid(p: Pipeline) -> None:
    for name, dims in (("spacing", p.spatial_dims), ("size", p.network_dims), ("patch", p.network_dims)):
        value = getattr(p, name)
        fits = value is None or (len(value) == dims and all(n is None or n > 0 for n in value))
        require(fits, f"'{name}' must have {dims} positive values, not {value}")
    require(not (p.spacing and p.size), "'spacing' and 'size' exclude one another: both set the size of the grid")
    require(p.crop_margin >= 0, f"'crop_margin' must not be negative, but is {p.crop_margin}")
    require(p.coarse is None or p.coarse >= 1, f"'coarse' is a ratio of at least 1, not {p.coarse}")
    centres = p.align == "centres"
    require(not centres or (p.spacing and p.coarse is None), "'align': 'centres' goes with 'spacing', without 'coarse'")
    area = "area" in (p.interpolation, p.score_interpolation)
    require(not (centres and area), "'area' and 'align': 'centres' exclude one another")
    require(p.coarse is None or p.spacing, "'coarse' goes with 'spacing'")
    linear = not p.antialias or p.interpolation == "linear"
    require(linear, f"'antialias' goes with linear interpolation, not {p.interpolation}")


def _windows(p: Pipeline) -> None:
    first = 1 if p.slices else 0
    require(0 <= p.overlap < 1, f"'overlap' must be at least 0 and below 1, not {p.overlap}")
    require(p.sigma > 0, f"'sigma' must be positive, not {p.sigma}")
    different = len(set(p.mirror)) == len(p.mirror) and set(p.mirror) <= set(range(first, p.spatial_dims))
    require(different, f"'mirror' must name different axes of {first} to {p.spatial_dims - 1}, not {p.mirror}")
    require(p.divisible >= 1, f"'divisible' must be at least 1, not {p.divisible}")


def _intensities(p: Pipeline) -> None:
    distinct = len(set(p.classes)) == len(p.classes) >= 1
    require(distinct, f"'classes' must hold different names, not {p.classes}")
    for name, found in (("normalize", p.kinds), ("window", p.windows)):
        require(len(found) == p.channels, f"'{name}' must have one entry per channel ({p.channels}), not {len(found)}")
    require(all(pair is None or pair[0] < pair[1] for pair in p.windows), f"'window' must rise, not {p.window}")
    rises = p.percentiles is None or 0 <= p.percentiles[0] < p.percentiles[1] <= 100
    require(rises, f"'percentiles' must rise within 0 to 100, not {p.percentiles}")
    require(p.range[0] < p.range[1], f"'range' must rise, not {p.range}")
    require(p.range == (0, 1) or "minmax" in p.kinds, "'range' goes only with 'normalize': 'minmax'")
    require(not p.together or len(set(p.kinds)) == 1, "'together' takes all channels alike: name one 'normalize'")
    require(0 < p.threshold < 1, f"'threshold' must lie between 0 and 1, not {p.threshold}")
    require(p.scale > 0, f"'scale' must be positive, not {p.scale}")


def _fixed(p: Pipeline) -> None:
    if "fixed" not in p.kinds:
        require(not p.mean and not p.std and p.scale == 1, "'mean', 'std', 'scale' go only with 'normalize': 'fixed'")
        return
    for name in ("mean", "std"):
        value = getattr(p, name)
        fits = value is not None and len(value) == p.channels
        require(fits, f"'{name}' must have one value per channel ({p.channels}) with 'normalize': 'fixed', not {value}")
    require(p.std is not None and min(p.std) > 0, f"'std' must be positive, not {p.std}")


def _regions(p: Pipeline) -> None:
    require(p.regions is not None or p.regions_order is None, "'regions_order' goes only with 'regions'")
    if p.regions is None:
        return
    require(p.activation != "softmax", "'regions' overlap, and 'softmax' excludes that: they go with 'sigmoid'")
    top = len(p.classes) - 1
    for name, labels in p.regions.items():
        fits = labels and len(set(labels)) == len(labels) and min(labels) >= 1 and max(labels) <= top
        require(fits, f"the labels of the region '{name}' must be different numbers of 1 to {top}, not {labels}")
    require(1 <= len(p.regions) <= MOST_REGIONS, f"'regions' must hold 1 to {MOST_REGIONS}, not {len(p.regions)}")
    names, order = list(p.regions), p.regions_order
    if order is not None:
        numbers = len(order) == len(names) and all(isinstance(label, int) for label in order)
        named = sorted(map(str, order)) == sorted(names)
        require(
            named or numbers,
            f"'regions_order' must name each of {', '.join(names)} once, or give each a label, not {order}",
        )
    for channel, label in p.writing:
        require(label != 0, f"every label of the region '{names[channel]}' is overwritten: change 'regions_order'")
        belongs = label in p.regions[names[channel]]
        require(belongs, f"'regions_order' writes {label} for the region '{names[channel]}', which has no such label")


def _cleanup(p: Pipeline) -> None:
    top = len(p.classes) - 1 if p.regions is None else len(p.regions)
    for step in p.cleanup:
        fits = all(1 <= label <= top for label in step.labels)
        require(fits, f"the labels of '{step.step}' in 'cleanup' must be numbers of 1 to {top}, not {step.labels}")


def _ports(p: Pipeline) -> None:
    names = [p.output, *p.keep] if p.output else list(p.keep)
    require(len(set(names)) == len(names), f"'output' and 'keep' must name different outputs, not {', '.join(names)}")
    for name, one in (p.inputs or {}).items():
        require(name != p.input, f"'inputs' declares '{name}', which 'input' says takes the image")
        slices = one.spatial and (p.slices or 1) > 1
        require(not slices, f"inputs.{name} has axes of space, which does not go with 'slices' above 1")
        apart = isinstance(p.normalize, tuple) or p.window != p.windows[0] or "fixed" in p.kinds
        alike = one.images is None or one.channels_beside(p.channels) == p.channels
        require(alike or not apart, f"inputs.{name} needs as many channels as the image, each of which is told apart")
