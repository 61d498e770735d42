"""What a network takes beside the image, declared as data: where it comes from, and how it becomes numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from microtome.errors import OptionError
from microtome.records import read


@dataclass(frozen=True)
class Input:
    """One further input of a network. It is one of three things: numbers, further images, or label maps.

    Attributes:
        columns: columns of the cohort's table, in the order of the numbers (N, K) that the network takes.
        codes: of a column that holds text, which number each text stands for, such as `{"sex": {"F": 0, "M": 1}}`.
        mean: one value per column, subtracted.
        std: one value per column, divided by afterwards.
        images: a column that names image files, or a folder of the cohort whose files are called like the images. They
            lie on the image's grid, and are prepared, cut into windows and mirrored together with it.
        channels: of such an image; None is as many as the image has.
        labels: likewise a column or folder of label maps, such as those of a previous stage.
        one_hot: how label maps become channels of zeros and ones: one for each of these labels; a number n is 1 to n.
        interpolation: of label maps on the way to the network's grid: `nearest` neighbours, or `linear` of each label's
            mask, of which the largest counts (nnU-Net).
        into: `image` puts the channels behind those of the image; None makes them an input of that name.

    Raises:
        OptionError: a value that makes no sense, or in conflict with another one.
    """

    columns: tuple[str, ...] = ()
    codes: Mapping[str, Mapping[str, float]] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    images: str | None = None
    channels: int | None = None
    labels: str | None = None
    one_hot: int | tuple[int, ...] | None = None
    interpolation: Literal["nearest", "linear"] = "nearest"
    into: Literal["image"] | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        sources = [bool(self.columns), self.images is not None, self.labels is not None]
        _require(sum(sources) == 1, "it must have either 'columns', 'images' or 'labels'")
        _require(len(set(self.columns)) == len(self.columns), "'columns' must name different columns")
        for name in ("mean", "std"):
            value = getattr(self, name)
            _require(
                value is None or len(value) == len(self.columns),
                f"'{name}' must have one value per column ({len(self.columns)})",
            )
        _require(self.std is None or min(self.std) > 0, "'std' must be positive")
        unknown = [column for column in self.codes or {} if column not in self.columns]
        _require(not unknown, f"'codes' speak of {', '.join(unknown)}, which is none of its columns")
        _require(
            self.channels is None or (self.images is not None and self.channels > 0), "'channels' go with 'images'"
        )
        _require((self.one_hot is None) == (self.labels is None), "'labels' and 'one_hot' go together")
        chosen = self.one_hot_labels
        _require(
            self.labels is None or (chosen and min(chosen) >= 0 and len(set(chosen)) == len(chosen)),
            "'one_hot' must name different labels, or say how many there are",
        )
        _require(self.into is None or not self.columns, "numbers cannot go into the image")

    @property
    def one_hot_labels(self) -> tuple[int, ...]:
        """The label of each channel that a label map becomes."""
        return tuple(range(1, self.one_hot + 1)) if isinstance(self.one_hot, int) else self.one_hot or ()

    def __str__(self) -> str:
        """Return it in words, such as `age, sex`."""
        if self.columns:
            return f"({', '.join(self.columns)})"
        what = f"images {self.images}" if self.images is not None else f"labels {self.labels}"
        return f"({what}{', behind the image' if self.into else ''})"

    @property
    def spatial(self) -> bool:
        """Whether it has the image's axes of space."""
        return not self.columns

    def channels_beside(self, image: int) -> int:
        """Return how many channels (or numbers) it has beside an image of so many channels."""
        if self.columns:
            return len(self.columns)
        return len(self.one_hot_labels) if self.labels is not None else self.channels or image


def inputs_of(values: Any) -> Any:
    """Return declared inputs, by name, from plain values; whatever else is no table is left as it is, to be refused.

    Raises:
        OptionError: an unknown field, or a value that does not fit.
    """
    if not isinstance(values, Mapping):
        return values
    return {name: _input(name, value) for name, value in values.items()}


def _input(name: str, value: Any) -> Any:
    return read(Input, value, f"Pipeline: inputs.{name}") if isinstance(value, Mapping) else value


def _require(truth: object, problem: str) -> None:
    if not truth:
        raise OptionError(f"{problem}.", "Correct pipeline.json.")
