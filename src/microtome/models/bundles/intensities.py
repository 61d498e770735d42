"""One after the other, intensity transforms come down to: clip, normalize, scale. Or they do not, and say why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["none", "minmax", "zscore", "zscore_nonzero"]
ROUNDING = 1e-9  # relative: what two ways to calculate the same number may differ by


class NotExpressibleError(Exception):
    """A pipeline has no fields for this chain of transforms."""


@dataclass(frozen=True)
class Values:
    """What has become of the values x of an image with so many channels.

    First x is clipped, to `window` or to `percentiles` of itself; then normalized, as `kind` says, with `minmax` to
    [0, 1], of the window if there is one; then it is multiplied by `gain` and `offset` is added, one per channel.

    Attributes:
        window: in the image's own units.
        percentiles: 0 to 100.
        kind: as the pipeline's `normalize`.
        together: what is measured is measured of all channels at once.
        gain: per channel.
        offset: per channel.
    """

    gain: tuple[float, ...]
    offset: tuple[float, ...]
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    kind: Kind = "none"
    together: bool = False

    @classmethod
    def untouched(cls, channels: int) -> Values:
        """The image's own values."""
        return cls((1.0,) * channels, (0.0,) * channels)

    @property
    def measured(self) -> bool:
        """Whether it depends on the image what a value becomes, or on the values beside it."""
        return self.kind in ("zscore", "zscore_nonzero") or self.percentiles is not None or self._own_range

    @property
    def bends(self) -> bool:
        """Whether it is more than a factor and an offset, so that it matters if this comes before resampling."""
        return self.measured or self.window is not None

    @property
    def _own_range(self) -> bool:
        return self.kind == "minmax" and self.window is None

    def scaled(self, gain: Sequence[float], offset: Sequence[float]) -> Values:
        """The values times a gain and plus an offset, one for all channels or one for each.

        Raises:
            NotExpressibleError: not as many as there are channels, or a gain is not positive.
        """
        count = len(self.gain)
        gains, offsets = (tuple(v) * count if len(v) == 1 else tuple(v) for v in (gain, offset))
        if len(gains) != count or len(offsets) != count:
            raise NotExpressibleError(f"it has {len(gains)} values for {count} channels")
        if min(gains) <= 0:
            raise NotExpressibleError("it turns the values upside down")
        return replace(
            self,
            gain=tuple(a * g for a, g in zip(self.gain, gains, strict=True)),
            offset=tuple(b * g + o for b, g, o in zip(self.offset, gains, offsets, strict=True)),
        )

    def clipped(self, low: float, high: float) -> Values:
        """The values clipped.

        Raises:
            NotExpressibleError: these are not the image's own units, and some may lie outside.
        """
        if self.kind == "minmax":
            ends = [(b, a + b) for a, b in zip(self.gain, self.offset, strict=True)]
            if all(low - _tiny(low, high) <= b and e <= high + _tiny(low, high) for b, e in ends):
                return self
        own = {((low - b) / a, (high - b) / a) for a, b in zip(self.gain, self.offset, strict=True)}
        if self.kind != "none" or self.percentiles or self.window or len(own) > 1 or not low < high:
            raise NotExpressibleError("it clips values that have been normalized before")
        first, last = own.pop()
        return replace(self, window=(_round(first), _round(last)))

    def windowed(self, low: float, high: float) -> Values:
        """The values clipped, and that range mapped to [0, 1].

        Raises:
            NotExpressibleError: as `clipped`.
        """
        cut = self.clipped(low, high)
        if cut is self:
            return self.scaled([1 / (high - low)], [-low / (high - low)])
        fresh = Values.untouched(len(self.gain))
        return replace(cut, gain=fresh.gain, offset=fresh.offset, kind="minmax")

    def back(self, value: float) -> float:
        """What in the image's own units has become this value, of all channels.

        Raises:
            NotExpressibleError: that depends on the image or the channel, or several values have.
        """
        low, high = self.window if self.kind == "minmax" and self.window else (0.0, 1.0)
        own = {low + (value - b) / a * (high - low) for a, b in zip(self.gain, self.offset, strict=True)}
        outside = self.window is not None and not all(self.window[0] <= v < self.window[1] for v in own)
        if self.measured or len(own) > 1 or outside:
            raise NotExpressibleError("what it compares with depends on the image")
        return _round(own.pop())

    def clipped_to_percentiles(self, lower: float, upper: float, *, together: bool) -> Values:
        """The values clipped to percentiles of themselves.

        Raises:
            NotExpressibleError: they have been clipped or normalized in a way that this does not undo.
        """
        self._measurable(together)
        if self.window or self.percentiles:
            raise NotExpressibleError("it takes percentiles of values that have been clipped before")
        return replace(self, percentiles=(lower, upper), together=together)

    def normalized(self, kind: Kind, *, together: bool) -> Values:
        """The values normalized by what is measured of them: all that was a gain and an offset before is gone.

        Raises:
            NotExpressibleError: they have been normalized before in a way that this does not undo.
        """
        together = together and len(self.gain) > 1
        self._measurable(together)
        if kind == "minmax" and self.window:
            raise NotExpressibleError("it takes the range of values that have been clipped before")
        if kind == "zscore_nonzero" and self.kind != "none":
            raise NotExpressibleError("it passes over zeros that other values have become before")
        if kind == "zscore_nonzero" and (any(self.offset) or self.window or self.percentiles):
            raise NotExpressibleError("it passes over zeros that have been other values before")
        if self.percentiles and self.together != together:
            raise NotExpressibleError(
                "it takes channels together where percentiles took each by itself, or the reverse"
            )
        fresh = Values.untouched(len(self.gain))
        return replace(self, gain=fresh.gain, offset=fresh.offset, kind=kind, together=together)

    def fields(self) -> dict[str, Any]:
        """Return these values as fields of a Pipeline.

        Raises:
            NotExpressibleError: there are none that say it.
        """
        plain = set(zip(self.gain, self.offset, strict=True))
        found: dict[str, Any] = {"window": self.window} if self.window else {}
        found |= {"percentiles": self.percentiles} if self.percentiles else {}
        found |= {"together": True} if self.together else {}
        gain, offset = next(iter(plain))
        if self.kind == "minmax" and len(plain) == 1:
            return found | {"normalize": "minmax"} | _range(offset, gain + offset)
        if plain == {(1.0, 0.0)}:
            return found | ({"normalize": self.kind} if self.kind != "none" else {})
        if self.kind == "none":
            return found | self._fixed(0.0, 1.0)
        if self.kind == "minmax" and self.window:
            return found | self._fixed(self.window[0], self.window[1] - self.window[0])
        raise NotExpressibleError("it scales what has been normalized before")

    def _fixed(self, low: float, size: float) -> dict[str, Any]:
        """((x − low) / size) · gain + offset as (x − mean) / std."""
        std = tuple(_round(size / a) for a in self.gain)
        mean = tuple(_round(low - b * s) for b, s in zip(self.offset, std, strict=True))
        return {"normalize": "fixed", "mean": mean, "std": std}

    def _measurable(self, together: bool) -> None:
        """Refuse to measure what an earlier step has changed by more than a gain and an offset."""
        if self.kind == "zscore_nonzero":
            raise NotExpressibleError("it follows a normalization that passes over zeros")
        apart = len(self.gain) > 1 and (len(set(self.gain)) > 1 or len(set(self.offset)) > 1)
        each = self.kind in ("minmax", "zscore") and not self.together and self.window is None and len(self.gain) > 1
        if together and (apart or each):
            raise NotExpressibleError("it takes all channels together that have been normalized one by one before")


def _range(low: float, high: float) -> dict[str, Any]:
    low, high = _round(low), _round(high)
    return {} if (low, high) == (0.0, 1.0) else {"range": (low, high)}


def _round(value: float) -> float:
    """Without the last digits, which are rounding: a division by 1 / 255 is one by 255."""
    return float(f"{value:.12g}") + 0.0


def _tiny(low: float, high: float) -> float:
    return ROUNDING * max(abs(low), abs(high), 1.0)
