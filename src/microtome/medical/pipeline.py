"""What happens to an image before the network and to its output afterwards, declared as data.

A `Pipeline` is stored as `pipeline.json` beside the compressed network. `microtome.medical.prepare` carries it out, the
same code for calibration, evaluation and deployment.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from microtome.errors import OptionError
from microtome.records import fits, in_words, nearest

SCHEMA = 1
MOST_REGIONS = 64
Normalize = Literal["none", "unit", "minmax", "zscore", "zscore_nonzero", "fixed"]
Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class Pipeline:
    """Declared pre- and post-processing of one network.

    The steps run in the order of the fields: channels, orientation, crop, resampling, clipping, normalization, padding;
    then the network (on the whole image or by sliding window); then activation and, for segmentation, the way back to
    the image's own grid.

    Attributes:
        task: a key of `tasks.TASKS`, such as `segmentation`; which fields make sense with it, the task says.
        classes: class names in the order of the label numbers; for segmentation the first is the background.
        channels: input channels of the network.
        spatial_dims: 2 for pictures, 3 for volumes.
        grayscale: turn RGB into luminance (ITU-R BT.601). One gray channel is repeated where `channels` asks for more.
        orientation: axis codes of the network's grid, such as `RAS` or `LIA` (volumes with an affine).
        spacing: millimetres per voxel of the network's grid, after orientation (volumes with an affine).
        crop: `foreground` keeps the bounding box of values above `crop_threshold`; outside is background.
        crop_threshold: in the image's own units.
        size: resize the whole (cropped) image to this size; linear, antialiased for pictures.
        window: clip to (low, high), in the image's own units (HU for CT).
        percentiles: clip each channel to these percentiles (0 to 100) of itself.
        normalize: `none`; `unit` divides integers by the largest value of their type (floats stay as they are);
            `minmax` maps the window, or each channel's own range, to [0, 1]; `zscore` gives each channel mean 0 and
            standard deviation 1; `zscore_nonzero` does so for the voxels that are not 0 and leaves the others 0;
            `fixed` is (value / `scale` − `mean`) / `std`.
        mean: one value per channel, for `fixed`.
        std: one value per channel, for `fixed`.
        scale: a divisor before `mean` and `std`, for `fixed`.
        patch: size of the sliding window; None gives the network the whole image.
        overlap: share of the patch by which neighbouring windows overlap at least, in [0, 1).
        mirror: spatial axes of the network's grid along which scores are averaged over both directions, all 2^n ways.
        skip_empty: do not run windows that hold one value only; they count as background, less than any other window.
            The result may differ from that of running them.
        divisible: without `patch` and `size`, zeros are appended to each axis up to a multiple of this.
        activation: what turns the network's output into probabilities; `none` if they are probabilities already.
        threshold: probability above which a sigmoid output (or a single output channel) counts as positive.
        regions: what the channels of a sigmoid network mean where they overlap: the name of each, in the order of the
            channels, and the label numbers that make it up in a reference, such as `{"whole": (1, 2, 3), "core": (2,
            3), "enhancing": (3,)}`. The prediction is a mask for each. None: channels exclude one another, and the
            best one above the threshold counts.
        regions_order: how one label map is written from these masks; later ones win. Either the names of the regions
            in that order, each written as the label that is its own (no later region has it, and the fewest others);
            or, as nnU-Net's `regions_class_order`, the label of each region in the order of `regions`. None: regions
            of more labels come first.
        output_scale: what numbers or images that the network returns are multiplied with, to be in the unit of their
            references: one value, or one for each.
        output_offset: what is added to them then.
        input: name of the network's input that takes the image; None is the only one.
        output: name of the network's output that holds the scores; None is the first.

    Raises:
        OptionError: a value of the wrong type, out of range, or in conflict with another one.
    """

    task: str
    classes: tuple[str, ...]
    channels: int = 1
    spatial_dims: int = 2
    grayscale: bool = False
    orientation: str | None = None
    spacing: tuple[float, ...] | None = None
    crop: Literal["foreground"] | None = None
    crop_threshold: float = 0.0
    size: tuple[int, ...] | None = None
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    normalize: Normalize = "none"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float = 1.0
    patch: tuple[int, ...] | None = None
    overlap: float = 0.5
    mirror: tuple[int, ...] = ()
    skip_empty: bool = False
    divisible: int = 1
    activation: Activation = "softmax"
    threshold: float = 0.5
    regions: Mapping[str, tuple[int, ...]] | None = None
    regions_order: tuple[int, ...] | tuple[str, ...] | None = None
    output_scale: tuple[float, ...] = (1.0,)
    output_offset: tuple[float, ...] = (0.0,)
    input: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense, before any image is read."""
        if isinstance(self.regions, Mapping):
            object.__setattr__(self, "regions", {name: _numbers(labels) for name, labels in self.regions.items()})
        for name, hint in typing.get_type_hints(Pipeline).items():
            value = getattr(self, name)
            _require(fits(value, hint), f"'{name}' must be {in_words(hint)}, not {value!r}")
        _check_geometry(self)
        _check_values(self)
        _check_regions(self)

    @property
    def writing(self) -> tuple[tuple[int, int], ...]:
        """(channel, label) of each region in the order in which one label map is written from them; later ones win."""
        names, labels = list(self.regions or {}), list((self.regions or {}).values())
        order = self.regions_order
        if order and isinstance(order[0], int):
            return tuple((channel, int(label)) for channel, label in enumerate(order))
        channels = sorted(range(len(names)), key=lambda channel: -len(labels[channel]))
        if order:
            channels = [names.index(str(name)) for name in order]
        shared = Counter(label for numbers in labels for label in numbers)
        plan = []
        for place, channel in enumerate(channels):
            later = {label for other in channels[place + 1 :] for label in labels[other]}
            own = sorted(set(labels[channel]) - later, key=lambda label: (shared[label], label))
            plan.append((channel, own[0] if own else 0))
        return tuple(plan)

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """(channels, *spatial) of every array that the network gets, or None where it varies with the image."""
        spatial = self.patch or self.size
        return None if spatial is None else (self.channels, *spatial)

    def to_json(self) -> str:
        """The text of `pipeline.json`, schema 1; fields at their defaults are written as well."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Pipeline:
        """Read the text of a `pipeline.json`.

        Raises:
            OptionError: not JSON, another schema, an unknown or missing field, or a value that does not fit.
        """
        try:
            values: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise OptionError(f"The pipeline is not JSON: {error}.", "Correct pipeline.json.") from error
        _require(isinstance(values, dict), "a pipeline must be a JSON object")
        schema = values.pop("schema", SCHEMA)
        _require(schema == SCHEMA, f"schema {schema!r} is not known to this version of microtome, which reads {SCHEMA}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            _require(key in fields, f"'{key}' is not a field of a pipeline{nearest(key, fields)}")
        for name, field in fields.items():
            _require(name in values or field.default is not dataclasses.MISSING, f"the field '{name}' is missing")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**values)


def describe(pipeline: Pipeline) -> str:
    """The steps of a pipeline on one line, for people."""
    p = pipeline
    steps = [f"{p.spatial_dims}-D", f"{p.channels} channel{'s' * (p.channels > 1)}{' (gray)' if p.grayscale else ''}"]
    steps += [f"orientation {p.orientation}"] if p.orientation else []
    steps += [f"crop to values > {p.crop_threshold:g}"] if p.crop else []
    steps += [f"resample to {_times(p.spacing)} mm"] if p.spacing else []
    steps += [f"resize to {_times(p.size)}"] if p.size else []
    steps += [f"clip to {p.window[0]:g} … {p.window[1]:g}"] if p.window else []
    steps += [f"clip to percentiles {p.percentiles[0]:g} … {p.percentiles[1]:g}"] if p.percentiles else []
    steps += [f"normalize {p.normalize}"] if p.normalize != "none" else []
    steps += [f"windows of {_times(p.patch)}, overlap {p.overlap:g}"] if p.patch else []
    steps += [f"mirrored along axes {', '.join(map(str, p.mirror))}"] if p.mirror else []
    steps += ["windows of one value skipped"] if p.skip_empty else []
    steps += [f"pad to multiples of {p.divisible}"] if p.divisible > 1 and not (p.patch or p.size) else []
    steps += [f"output {p.output}"] if p.output else []
    steps += [p.activation] if p.activation != "none" else []
    steps += [f"overlapping regions {', '.join(p.regions)}"] if p.regions else []
    return ", ".join(steps)


def _check_geometry(p: Pipeline) -> None:
    dims = p.spatial_dims
    _require(dims in (2, 3), f"'spatial_dims' must be 2 or 3, not {dims}")
    for name in ("spacing", "size", "patch"):
        value = getattr(p, name)
        fits = value is None or (len(value) == dims and min(value) > 0)
        _require(fits, f"'{name}' must have {dims} positive values, not {value}")
    _require(dims == 3 or not (p.orientation or p.spacing), "'orientation' and 'spacing' are for volumes only")
    _require(not (p.spacing and p.size), "'spacing' and 'size' exclude one another: both set the size of the grid")
    _require(0 <= p.overlap < 1, f"'overlap' must be at least 0 and below 1, not {p.overlap}")
    different = len(set(p.mirror)) == len(p.mirror) and set(p.mirror) <= set(range(dims))
    _require(different, f"'mirror' must name different axes of 0 to {dims - 1}, not {p.mirror}")
    _require(p.divisible >= 1, f"'divisible' must be at least 1, not {p.divisible}")
    axes = None if p.orientation is None else sorted("RLAPSI".find(code) // 2 for code in p.orientation)
    _require(axes in (None, [0, 1, 2]), f"'orientation' must name three axes, such as RAS, not {p.orientation!r}")


def _check_values(p: Pipeline) -> None:
    distinct = len(set(p.classes)) == len(p.classes) >= 1
    _require(distinct, f"'classes' must hold different names, not {p.classes}")
    _require(p.channels >= 1, f"'channels' must be at least 1, not {p.channels}")
    _require(p.window is None or p.window[0] < p.window[1], f"'window' must rise, not {p.window}")
    rises = p.percentiles is None or 0 <= p.percentiles[0] < p.percentiles[1] <= 100
    _require(rises, f"'percentiles' must rise within 0 to 100, not {p.percentiles}")
    _require(0 < p.threshold < 1, f"'threshold' must lie between 0 and 1, not {p.threshold}")
    _require(p.scale > 0, f"'scale' must be positive, not {p.scale}")
    if p.normalize != "fixed":
        _require(not p.mean and not p.std and p.scale == 1, "'mean', 'std', 'scale' go only with 'normalize': 'fixed'")
        return
    for name in ("mean", "std"):
        value = getattr(p, name)
        fits = value is not None and len(value) == p.channels
        _require(
            fits, f"'{name}' must have one value per channel ({p.channels}) with 'normalize': 'fixed', not {value}"
        )
    _require(p.std is not None and min(p.std) > 0, f"'std' must be positive, not {p.std}")


def _check_regions(p: Pipeline) -> None:
    _require(p.regions is not None or p.regions_order is None, "'regions_order' goes only with 'regions'")
    if p.regions is None:
        return
    _require(p.activation != "softmax", "'regions' overlap, and 'softmax' excludes that: they go with 'sigmoid'")
    top = len(p.classes) - 1
    for name, labels in p.regions.items():
        fits = labels and len(set(labels)) == len(labels) and min(labels) >= 1 and max(labels) <= top
        _require(fits, f"the labels of the region '{name}' must be different numbers of 1 to {top}, not {labels}")
    _require(1 <= len(p.regions) <= MOST_REGIONS, f"'regions' must hold 1 to {MOST_REGIONS}, not {len(p.regions)}")
    names, order = list(p.regions), p.regions_order
    if order is not None:
        numbers = len(order) == len(names) and all(isinstance(label, int) for label in order)
        named = sorted(map(str, order)) == sorted(names)
        _require(
            named or numbers,
            f"'regions_order' must name each of {', '.join(names)} once, or give each a label, not {order}",
        )
    for channel, label in p.writing:
        _require(label != 0, f"every label of the region '{names[channel]}' is overwritten: change 'regions_order'")
        belongs = label in p.regions[names[channel]]
        _require(belongs, f"'regions_order' writes {label} for the region '{names[channel]}', which has no such label")


def _numbers(labels: Any) -> Any:
    """A single label as a tuple; whatever else is no sequence is left as it is, to be refused."""
    if isinstance(labels, int) and not isinstance(labels, bool):
        return (labels,)
    return tuple(labels) if isinstance(labels, list | tuple) else labels


def _require(truth: object, problem: str) -> None:
    if not truth:
        raise OptionError(f"Pipeline: {problem}.", "Correct pipeline.json.")


def _times(values: Sequence[float]) -> str:
    return "×".join(f"{value:g}" for value in values)
