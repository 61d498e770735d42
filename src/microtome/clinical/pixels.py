"""Images that a network makes, against reference images: PSNR, SSIM and NRMSE of a case, and of many cases.

A metric sees one channel of both images, float (*S) of two or three axes, and takes the range of values from the
reference, its largest minus its smallest. A reference of one value has no range: PSNR and SSIM are undefined, NaN, and
the case is left out of their means. Where both images are the same, PSNR is 100 dB, since infinity has no mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import correlate1d

from microtome.clinical.cases import CaseScores, flatten, patients_of
from microtome.clinical.doubts import Doubt, disagreement
from microtome.clinical.empty import UNDEFINED
from microtome.clinical.guard import guarded, listed
from microtome.clinical.noninferiority import chosen_margin
from microtome.clinical.replicated import Parts, segmentation_parts
from microtome.clinical.statistics import RESAMPLES, bootstrap_mean
from microtome.clinical.summary import Json, common_parts, require_cases, verdict_of
from microtome.errors import GeometryError
from microtome.metrics import Metric
from microtome.types import Array

MOST_DB = 100.0
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian weights (Wang et al., IEEE TIP 2004)
K1, K2 = 0.01, 0.03
# Two images have the same value in a voxel if it differs by no more than that share of the parent's range.
ALIKE = 0.05


def psnr(predicted: Array, reference: Array) -> float:
    """Peak signal to noise ratio in dB, 10·log₁₀(range² / MSE), at most 100.

    Raises:
        GeometryError: the shapes differ.
    """
    predicted, reference, spread = _checked(predicted, reference)
    if spread == 0:
        return UNDEFINED
    error = float(np.mean(np.square(predicted - reference)))
    return MOST_DB if error == 0 else min(MOST_DB, 10 * math.log10(spread**2 / error))


def nrmse(predicted: Array, reference: Array) -> float:
    """Root mean squared error over the root mean square of the reference: ‖p − r‖ / ‖r‖; NaN where the reference is 0.

    Raises:
        GeometryError: the shapes differ.
    """
    predicted, reference, _ = _checked(predicted, reference)
    size = float(np.sqrt(np.mean(np.square(reference))))
    return UNDEFINED if size == 0 else float(np.sqrt(np.mean(np.square(predicted - reference)))) / size


def ssim(predicted: Array, reference: Array) -> float:
    """Structural similarity, the mean over all places where the Gaussian window lies within the image.

    Wang et al., IEEE Transactions on Image Processing 2004: windows of 11 voxels a side with σ = 1.5 (of the largest
    odd number that fits, where the image is smaller), k₁ = 0.01, k₂ = 0.03.

    Raises:
        GeometryError: the shapes differ.
    """
    predicted, reference, spread = _checked(predicted, reference)
    if spread == 0:
        return UNDEFINED
    first, second = (_blurred(values) for values in (predicted, reference))
    squares, others, products = (_blurred(values) for values in (predicted**2, reference**2, predicted * reference))
    c1, c2 = (K1 * spread) ** 2, (K2 * spread) ** 2
    contrast = (2 * (products - first * second) + c2) / (squares - first**2 + others - second**2 + c2)
    return float(np.mean((2 * first * second + c1) / (first**2 + second**2 + c1) * contrast))


FUNCTIONS = {"psnr": psnr, "ssim": ssim, "nrmse": nrmse}


def score_images(
    predicted: Array, reference: Array, names: Sequence[str], *, metrics: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """Every metric of each channel of one case: `{"psnr": {channel: …}, …}`.

    Args:
        predicted: (C, *S).
        reference: likewise.
        names: of the channels.
        metrics: those wanted; None is all.

    Raises:
        GeometryError: the shapes differ.
    """
    wanted = FUNCTIONS if metrics is None else {name: FUNCTIONS[name] for name in metrics}
    if predicted.shape != reference.shape:
        raise _differ(predicted, reference)
    pairs = list(zip(names, predicted, reference, strict=True))
    return {metric: {name: compute(ours, theirs) for name, ours, theirs in pairs} for metric, compute in wanted.items()}


def of_one_value(reference: Array, names: Sequence[str]) -> dict[str, float]:
    """NRMSE of the best image of one value, for each channel: what any network must be better than."""
    return {name: nrmse(np.full(one.shape, one.mean()), one) for name, one in zip(names, reference, strict=True)}


def same_values(parent: Array, compressed: Array) -> float:
    """Share of voxels (C, *S) that differ by no more than 5 % of the parent's range, channel by channel."""
    shares = [
        float(np.mean(np.abs(after - before) <= ALIKE * (float(before.max()) - float(before.min()))))
        for before, after in zip(parent, compressed, strict=True)
    ]
    return float(np.mean(shares))


def summarise_images(
    cases: Sequence[CaseScores],
    *,
    metric: str = "psnr",
    margin: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    own: Mapping[str, Metric] | None = None,
) -> Json:
    """The parts of `result.json` that follow from scored images.

    Args:
        cases: the evaluation cases, their scores as `score_images` gives them, `trivial` as `of_one_value` does.
        metric: what the verdict rests on, such as `psnr` (the mean over channels) or `ssim/NAME`.
        margin: the acceptable loss; None takes the metric's default.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Returns:
        As `summary.summarise_segmentation`; `counts.constant_reference` counts references of one value.

    Raises:
        DataError: no cases.
        LabelError: the metric was not measured in any.
        OptionError: metric or margin make no sense.
    """
    chosen_margin(metric, margin, own)
    require_cases(cases)
    scored = [case for case in cases if case.parent]
    measured = list(dict.fromkeys(name for case in scored for name in case.parent))
    channels = list(dict.fromkeys(name for case in scored for name in case.parent[measured[0]]))
    keys = [f"{name}{end}" for name in measured for end in ("", *(f"/{channel}" for channel in channels))]

    def measure(chosen: Sequence[CaseScores]) -> Parts:
        return segmentation_parts([case for case in chosen if case.parent], keys, [], resamples, seed)

    whole = measure(cases)
    shares = np.array([case.agreement for case in cases])
    agreement = bootstrap_mean(shares, patients_of(cases), resamples=resamples, seed=seed)
    verdict = verdict_of(whole, metric, margin, own)
    result = common_parts(cases, whole, agreement, verdict, measure)
    doubts, remarks = _doubts(scored, channels, seed)
    result["verdict"] = guarded(
        verdict,
        whole["difference"],
        doubts=[*doubts, *disagreement(agreement, "voxels")],
        remarks=remarks,
        own=own,
    )
    result["operating_point"] = None
    result["counts"]["empty_reference"] = {}
    result["counts"]["constant_reference"] = {name: sum(name in case.empty for case in scored) for name in channels}
    result["cases"] = [
        {
            "case": case.case,
            "patient": case.patient,
            "subgroups": dict(case.subgroups),
            "parent": _json(flatten(case.parent)),
            "compressed": _json(flatten(case.compressed)),
            "agreement": case.agreement,
        }
        for case in cases
    ]
    return result


def _checked(predicted: Array, reference: Array) -> tuple[Array, Array, float]:
    """Both as float64, and the range of the reference."""
    ours, theirs = np.asarray(predicted, np.float64), np.asarray(reference, np.float64)
    if ours.shape != theirs.shape:
        raise _differ(ours, theirs)
    return ours, theirs, float(theirs.max() - theirs.min())


def _differ(predicted: Array, reference: Array) -> GeometryError:
    return GeometryError(
        f"The predicted image has the shape {predicted.shape}, its reference {reference.shape}.",
        "Both must have the same grid and the same channels.",
    )


def _blurred(values: Array) -> Array:
    """Means under the Gaussian window, where it lies within the image."""
    for axis, size in enumerate(values.shape):
        width = min(WINDOW, size - (size + 1) % 2)
        places = np.arange(width) - (width - 1) / 2
        weights = np.exp(-0.5 * (places / SIGMA) ** 2)
        blurred = correlate1d(values, weights / weights.sum(), axis=axis, mode="nearest")
        inside: list[slice] = [slice(None)] * values.ndim
        inside[axis] = slice(width // 2, size - width // 2)
        values = blurred[tuple(inside)]
    return values


def _doubts(cases: Sequence[CaseScores], channels: Sequence[str], seed: int) -> tuple[list[Doubt], list[str]]:
    """What forbids "non-inferior", and what is to be said beside it."""
    if not cases:
        return [], []
    constant = [name for name in channels if all(name in case.empty for case in cases)]
    remarks = [f"All references of {listed(constant)} have one value only."] if constant else []
    if len(constant) == len(channels):
        return [Doubt("reference", "All references are images of one value: there is nothing to be right about.")], []
    if "nrmse" not in cases[0].parent:  # where one metric alone is asked for
        return [], remarks
    gains = {
        name: np.array([case.trivial.get(name, math.nan) - case.parent["nrmse"][name] for case in cases])
        for name in channels
        if name not in constant
    }
    patients = patients_of(cases)
    weak = []
    for name, values in gains.items():
        found = bootstrap_mean(values, patients, seed=seed)
        low = found.value if found.low is None else found.low
        if low is not None and low <= 0:
            weak.append(name)
    if len(weak) == len(gains):
        sentence = (
            "The parent itself is no better than an image of one value: look at the intensities that it returns "
            "('output_scale' and 'output_offset' of pipeline.json)."
        )
        return [Doubt("parent", sentence)], remarks
    return [], [*remarks, *([f"The parent itself is no better than one value in {listed(weak)}."] if weak else [])]


def _json(flat: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in flat.items()}
