"""Every exception that microtome raises on purpose.

    MicrotomeError            one sentence: what was wrong and where; a hint: what to do
    ├── OptionError           an option or a combination of options makes no sense
    ├── ModelError            the network cannot be used
    │   ├── WeightsError      weights missing, of the wrong shape, or not finite
    │   └── CaptureError      torch.export cannot turn the network into a graph
    ├── DataError             images or labels cannot be used
    │   ├── ReadError         a file is missing, truncated or not what its name says
    │   ├── GeometryError     shape, spacing, orientation or slices do not fit together
    │   ├── LabelError        labels are missing or say nothing (one class only)
    │   └── SplitError        no patients left for calibration, tuning or evaluation
    ├── TargetError           the runtime cannot do what was asked
    │   └── MissingExtraError the runtime or reader is not installed
    └── OutputError           the result cannot be written

The command line prints the sentence and the hint, without a traceback, and exits with code 2.
"""

from __future__ import annotations


class MicrotomeError(Exception):
    """Base of all errors that a user can mend."""

    def __init__(self, problem: str, hint: str = "") -> None:
        """Keep the two sentences.

        Args:
            problem: what was wrong, and where (file, layer, option), in one sentence.
            hint: what to do about it, in one sentence; may be empty.
        """
        super().__init__(f"{problem} {hint}".strip())
        self.problem = problem
        self.hint = hint

    def __reduce__(self) -> tuple[type[MicrotomeError], tuple[str, str]]:
        """Pickle by the two sentences."""
        return type(self), (self.problem, self.hint)


class OptionError(MicrotomeError):
    """An option, or a combination of options, makes no sense."""


class ModelError(MicrotomeError):
    """The network cannot be used."""


class WeightsError(ModelError):
    """Weights are missing, of the wrong shape, or not finite."""


class CaptureError(ModelError):
    """`torch.export` cannot turn the network into a graph."""


class DataError(MicrotomeError):
    """Images or labels cannot be used."""


class ReadError(DataError):
    """A file is missing, truncated or not what its name says."""


class GeometryError(DataError):
    """Shape, spacing, orientation or slices do not fit together."""


class LabelError(DataError):
    """Labels are missing or say nothing, such as one class only."""


class SplitError(DataError):
    """No patients are left for calibration, tuning or evaluation."""


class TargetError(MicrotomeError):
    """The runtime cannot do what was asked."""


class MissingExtraError(TargetError):
    """An optional package is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        """Name what needs the package, and the extra that brings it."""
        super().__init__(f"{feature} needs a package that is not installed.", f"Run: pip install 'microtome[{extra}]'")
        self.feature = feature
        self.extra = extra

    def __reduce__(self) -> tuple[type[MicrotomeError], tuple[str, str]]:
        """Pickle by feature and extra."""
        return type(self), (self.feature, self.extra)


class OutputError(MicrotomeError):
    """The result cannot be written: the folder is read-only, full or in use."""
