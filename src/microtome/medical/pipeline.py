"""What happens to an image before the network and to its output afterwards, declared as data.

A `Pipeline` is stored as `pipeline.json` beside the compressed network. `microtome.medical.prepare` carries it out, the
same code for calibration, evaluation and deployment.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from microtome.errors import OptionError
from microtome.medical.cleanup import Cleanup
from microtome.medical.declared_inputs import Input, inputs_of
from microtome.medical.detector import Detector
from microtome.medical.sound import check, require
from microtome.records import fits, in_words, native, nearest, plain

SCHEMA = 1
Normalize = Literal["none", "unit", "minmax", "zscore", "zscore_nonzero", "zscore_masked", "fixed"]
Interpolation = Literal["nearest", "linear", "cubic", "area"]
Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class Pipeline:
    """Declared pre- and post-processing of one network.

    The steps run in the order of the fields: channels, orientation, crop, resampling, clipping, normalization, padding;
    then the network (on the whole image, by sliding window, or slice by slice); then activation and, for segmentation,
    the way back to the image's own grid. All that is said of axes is said of the network's grid: the axes in the order
    that `orientation` or `transpose` gives them.

    Attributes:
        task: a key of `tasks.TASKS`, such as `segmentation`; which fields make sense with it, the task says.
        classes: class names in the order of the label numbers; for segmentation the first is the background.
        channels: input channels of the network.
        spatial_dims: 2 for pictures, 3 for volumes.
        grayscale: turn RGB into luminance (ITU-R BT.601). One gray channel is repeated where `channels` asks for more.
        orientation: axis codes of the network's grid, such as `RAS` or `LIA` (volumes with an affine).
        transpose: instead of an orientation, the axes as they are stored, in this order: `(1, 0)` is a picture's width
            before its height. Nothing is flipped, whatever the image's affine says.
        spacing: millimetres per voxel of the network's grid (volumes with an affine); null leaves an axis its own.
        crop: `foreground` keeps the bounding box of values above `crop_threshold`, `nonzero` that of values that are
            not 0, in any channel; outside is background.
        crop_threshold: in the image's own units.
        crop_margin: voxels that the box is wider on each side, as far as the image goes.
        size: resize the whole (cropped) image to this size.
        align: with `spacing`: the two grids share their outer `borders`, as in nnU-Net; or the `centres` of their first
            voxels, as in MONAI, where spacings that differ by 0.001 mm at most count as the same.
        interpolation: of the image: `nearest`, `linear`, `cubic` (splines of order 3, cut to the image's range), or
            `area` (the mean of all voxels that a new one reaches into, as torch's adaptive pooling).
        antialias: average over what shrinks (with linear interpolation); null does so for pictures.
        coarse: where the largest spacing is more than so many times the smallest, in the image or else in the network's
            grid, its axis is resampled by nearest neighbour and each slice by itself (3 in nnU-Net).
        normalize_first: clip and normalize before resampling, not after.
        window: clip to (low, high), in the image's own units (HU for CT); or one such pair, or null, per channel.
        percentiles: clip each channel to these percentiles (0 to 100) of itself.
        normalize: `none`; `unit` divides integers by the largest value of their type (floats stay as they are);
            `minmax` maps the window, or each channel's own range, to `range`; `zscore` gives each channel mean 0 and
            standard deviation 1; `zscore_nonzero` does so for the voxels that are not 0 and leaves the others 0;
            `zscore_masked` does so within the voxels that are not 0 in any channel and the holes among them, and leaves
            the others as they are; `fixed` is (value / `scale` − `mean`) / `std`. Or one of these per channel.
        together: take percentiles, ranges, means and standard deviations of all channels at once.
        range: what `minmax` maps to.
        mean: one value per channel, for `fixed`.
        std: one value per channel, for `fixed`.
        scale: a divisor before `mean` and `std`, for `fixed`.
        slices: a 2-D network on volumes: along the first axis, each slice with its neighbours, so many in all, as
            channels (slice by slice, and in each the image's channels; beyond the border the last slice is repeated).
            `patch` and `size` then have two values; 1 is slice by slice.
        patch: size of the sliding window; null gives the network the whole image.
        overlap: share of the patch by which neighbouring windows overlap at least, in [0, 1).
        placement: windows stand `even`ly spaced, as in nnU-Net, or `stepwise`, the last one moved to the border, as in
            MONAI.
        blending: scores of windows that overlap are averaged with `gaussian` weights, with `gaussian_voxel` ones, which
            peak on the voxel behind the middle of an even size (nnU-Net), or `constant` ones.
        sigma: of these weights, as a share of the patch.
        mirror: spatial axes of the network's grid along which scores are averaged over both directions, all 2^n ways.
        skip_empty: do not run windows that hold one value only; they count as background, less than any other window.
            The result may differ from that of running them.
        divisible: without `patch` and `size`, zeros are appended to each axis up to a multiple of this.
        padding: where these zeros are: at the `end` of each axis, or half of them on `both` sides.
        activation: what turns the network's output into probabilities; `none` if they are probabilities already.
        threshold: probability above which a sigmoid output (or a single output channel) counts as positive.
        regions: what the channels of a sigmoid network mean where they overlap: the name of each, in the order of the
            channels, and the label numbers that make it up in a reference, such as `{"whole": (1, 2, 3), "core": (2,
            3), "enhancing": (3,)}`. The prediction is a mask for each. None: channels exclude one another, and the
            best one above the threshold counts.
        score_interpolation: of the scores on the way back to the image's own grid.
        decide: where labels are chosen: on the `image`'s own grid, or on that of the `network`; then the labels are
            brought back by nearest neighbour.
        cleanup: what is done to the label map at the end, on the image's own grid, in this order: see
            `medical.cleanup`.
        regions_order: how one label map is written from these masks; later ones win. Either the names of the regions
            in that order, each written as the label that is its own (no later region has it, and the fewest others);
            or, as nnU-Net's `regions_class_order`, the label of each region in the order of `regions`. None: regions
            of more labels come first.
        undo_normalize: an image that the network makes is in the unit of the normalized one: what was done to a channel
            of the image is undone for that of the output (of one channel, for all), before `output_scale`.
        output_scale: what numbers or images that the network returns are multiplied with, to be in the unit of their
            references: one value, or one for each.
        output_offset: what is added to them then.
        detector: how raw heads become boxes: see `medical.detector`.
        input: name of the network's input that takes the image; None is the only one that 'inputs' does not name.
        inputs: what the network takes beside the image, by name, and where it comes from: see `declared_inputs.Input`.
        output: name of the network's output that holds the scores; None is the only one that can.
        keep: names of further outputs that are kept: those that the task reads too, or that another pipeline reads.

    Raises:
        OptionError: a value of the wrong type, out of range, or in conflict with another one.
    """

    task: str
    classes: tuple[str, ...]
    channels: int = 1
    spatial_dims: int = 2
    grayscale: bool = False
    orientation: str | None = None
    transpose: tuple[int, ...] | None = None
    spacing: tuple[float | None, ...] | None = None
    crop: Literal["foreground", "nonzero"] | None = None
    crop_threshold: float = 0.0
    crop_margin: int = 0
    size: tuple[int, ...] | None = None
    align: Literal["borders", "centres"] = "borders"
    interpolation: Interpolation = "linear"
    antialias: bool | None = None
    coarse: float | None = None
    normalize_first: bool = False
    window: tuple[float, float] | tuple[tuple[float, float] | None, ...] | None = None
    percentiles: tuple[float, float] | None = None
    normalize: Normalize | tuple[Normalize, ...] = "none"
    together: bool = False
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float = 1.0
    slices: int | None = None
    patch: tuple[int, ...] | None = None
    overlap: float = 0.5
    placement: Literal["even", "stepwise"] = "even"
    blending: Literal["gaussian", "gaussian_voxel", "constant"] = "gaussian"
    sigma: float = 0.125
    mirror: tuple[int, ...] = ()
    skip_empty: bool = False
    divisible: int = 1
    padding: Literal["end", "both"] = "end"
    activation: Activation = "softmax"
    threshold: float = 0.5
    regions: Mapping[str, tuple[int, ...]] | None = None
    regions_order: tuple[int, ...] | tuple[str, ...] | None = None
    score_interpolation: Interpolation = "linear"
    decide: Literal["image", "network"] = "image"
    cleanup: tuple[Cleanup, ...] = ()
    undo_normalize: bool = False
    output_scale: tuple[float, ...] = (1.0,)
    output_offset: tuple[float, ...] = (0.0,)
    detector: Detector | None = None
    input: str | None = None
    inputs: Mapping[str, Input] | None = None
    output: str | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what makes no sense, before any image is read."""
        if isinstance(self.regions, Mapping):
            object.__setattr__(self, "regions", {name: _numbers(labels) for name, labels in self.regions.items()})
        object.__setattr__(self, "inputs", inputs_of(self.inputs))
        for name, hint in typing.get_type_hints(Pipeline).items():
            value = getattr(self, name)
            require(fits(value, hint), f"'{name}' must be {in_words(hint)}, not {value!r}")
        check(self)

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
    def image_channels(self) -> int:
        """Channels of the image, with what is put behind the image's own."""
        beside = [one.channels_beside(self.channels) for one in (self.inputs or {}).values() if one.into is not None]
        return self.channels + sum(beside)

    @property
    def apart(self) -> tuple[tuple[str, int, bool], ...]:
        """Of each input beside the image's: its name, its channels or numbers, and whether it has axes of space."""
        named = [(name, one) for name, one in (self.inputs or {}).items() if one.into is None]
        return tuple((name, one.channels_beside(self.channels), one.spatial) for name, one in named)

    @property
    def kinds(self) -> tuple[Normalize, ...]:
        """How each channel is normalized."""
        return (self.normalize,) * self.channels if isinstance(self.normalize, str) else self.normalize

    @property
    def windows(self) -> tuple[tuple[float, float] | None, ...]:
        """What each channel is clipped to."""
        window: Any = self.window
        several = window is not None and not isinstance(window[0], int | float)
        return tuple(window) if several else (window,) * self.channels

    @property
    def network_dims(self) -> int:
        """Spatial axes of what the network takes: 2 where it takes a volume's slices."""
        return 2 if self.slices else self.spatial_dims

    @property
    def network_channels(self) -> int:
        """Channels of the input that takes the image."""
        return self.image_channels * (self.slices or 1)

    @property
    def tile(self) -> tuple[int, ...] | None:
        """The patch as a block of the image's grid: one slice deep where the network takes slices."""
        return None if self.patch is None else (*(1,) * bool(self.slices), *self.patch)

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """(channels, *spatial) of every image that the network gets, or None where it varies with the image."""
        spatial = self.patch or self.size
        return None if spatial is None else (self.network_channels, *spatial)

    def to_json(self) -> str:
        """The text of `pipeline.json`, schema 1; fields at their defaults are written as well."""
        return json.dumps({"schema": SCHEMA, **plain(self)}, indent=2) + "\n"

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
        require(isinstance(values, dict), "a pipeline must be a JSON object")
        schema = values.pop("schema", SCHEMA)
        require(schema == SCHEMA, f"schema {schema!r} is not known to this version of microtome, which reads {SCHEMA}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            require(key in fields, f"'{key}' is not a field of a pipeline{nearest(key, fields)}")
        for name, field in fields.items():
            require(name in values or field.default is not dataclasses.MISSING, f"the field '{name}' is missing")
        hints = typing.get_type_hints(cls)
        return cls(**{name: _native(value, hints[name], f"pipeline.json: {name}") for name, value in values.items()})


def with_fields(pipeline: Pipeline, values: Mapping[str, Any]) -> Pipeline:
    """Return a pipeline with other values of some fields, as its file would have them.

    Raises:
        OptionError: there is no such field, or a value does not fit.
    """
    if not values:
        return pipeline
    return Pipeline.from_json(json.dumps(json.loads(pipeline.to_json()) | dict(values)))


def _native(value: Any, hint: Any, where: str) -> Any:
    """A list as a tuple and a table as its record; whatever does not fit is left as it is, to be refused."""
    if not isinstance(value, list | dict):
        return value
    made = native(value, hint, where)
    return tuple(made) if isinstance(made, list) else made


def _numbers(labels: Any) -> Any:
    """A single label as a tuple; whatever else is no sequence is left as it is, to be refused."""
    if isinstance(labels, int) and not isinstance(labels, bool):
        return (labels,)
    return tuple(labels) if isinstance(labels, list | tuple) else labels
