"""The same image in several roles: found by content, taken out of all but evaluation, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from microtome.errors import DataError, SplitError
from microtome.medical.cohort import Cohort
from microtome.medical.fingerprint import ALIKE, alike, fingerprint
from microtome.medical.formats.table import count_of
from microtome.progress import Progress, Silent
from microtome.types import Array, Case

BLOCK = 512  # looks that are compared with all others at a time
AS_IF = "might be, by their looks, copies (of another size or encoding) of"
READ = 16 << 30  # bytes of the files of cases beside evaluation and tuning; of more, files are compared and no voxels


@dataclass(frozen=True)
class Known:
    """By what the image of a case is known again: hashes of its files and of its voxels, and its look; whose it is."""

    hashes: frozenset[str]
    patient: str
    voxels: str | None = None
    look: Array | None = None


@dataclass(frozen=True)
class Same:
    """What a comparison found.

    Attributes:
        counts: what stands in `result.json` under `counts.same_images`: evaluated images that are `in_train`,
            `in_tuning`, `repeated`, there with an `other_label`, or `like_…` others; and what was `taken_out_of_…`.
        notes: what a reader should know.
        warnings: what nobody may overlook.
        voxels: case → hash of its voxels, where they were read.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    voxels: Mapping[str, str] = field(default_factory=dict)

    def and_also(self, other: Same) -> Same:
        """Both findings; where both know the voxels of a case, the other's are taken."""
        return Same(
            {**self.counts, **other.counts},
            (*self.notes, *other.notes),
            (*self.warnings, *other.warnings),
            {**self.voxels, **other.voxels},
        )


class Images:
    """The images of a cohort, each looked at once. Of each less than a kilobyte is kept."""

    def __init__(self, cohort: Cohort, cases: Sequence[Case], progress: Progress | None = None) -> None:
        """Look at the images of some cases.

        Args:
            cohort: where they belong.
            cases: to look at.
            progress: told of each.
        """
        big = sum(_bytes(case) for case in cases if case.role == "train") > READ
        ordered = sorted(cases, key=lambda case: (case.index is None, case.index or 0))  # files of many are read once
        tracked = (progress or Silent()).track(ordered, "compare images", len(ordered))
        self._known = {case.id: _known(cohort, case, voxels=not (big and case.role == "train")) for case in tracked}
        self.files_only = big

    def of(self, cases: Iterable[Case]) -> list[Known]:
        """What is known of some cases."""
        return [self._known[case.id] for case in cases]

    @property
    def voxels(self) -> dict[str, str]:
        """Hash of the voxels of each case."""
        return {case: known.voxels for case, known in self._known.items() if known.voxels is not None}


def _bytes(case: Case) -> int:
    if case.index is not None:
        return 0
    return sum(file.stat().st_size for file in case.image if file.is_file())


def _known(cohort: Cohort, case: Case, *, voxels: bool) -> Known:
    hashes = {cohort.sha256(case.without_reference())}
    if not voxels:
        return Known(frozenset(hashes), case.patient)
    try:
        found = fingerprint(cohort.image(case))
    except DataError:  # what is wrong with it is told when it is used
        return Known(frozenset(hashes), case.patient)
    return Known(frozenset({*hashes, found.voxels}), case.patient, found.voxels, found.look)


def separated(cohort: Cohort, progress: Progress | None = None) -> tuple[Cohort, Same, Images]:
    """Take images of evaluation out of tuning and train, and those of tuning out of train.

    Returns:
        The cohort without them, what was found, and the images.

    Raises:
        SplitError: nothing is left to calibrate on.
    """
    images = Images(cohort, cohort.cases, progress)
    evaluated, tuned, trained = (images.of(cases) for cases in (cohort.evaluation, cohort.tuning, cohort.train))
    in_evaluation, in_tuning, in_train = (_hashes(known) for known in (evaluated, tuned, trained))
    from_tuning = _having(cohort.tuning, tuned, in_evaluation)
    from_train = _having(cohort.train, trained, in_evaluation | in_tuning)
    kept = replace(cohort, cases=tuple(case for case in cohort.cases if case.id not in from_tuning | from_train))
    if cohort.train and not kept.train:
        raise SplitError(
            f"every image that {cohort.path} has for training is also one for tuning or evaluation.",
            "Give other images for training, or another cohort.",
        )
    counts = {
        "in_train": len(_having(cohort.evaluation, evaluated, in_train)),
        "in_tuning": len(_having(cohort.evaluation, evaluated, in_tuning)),
        "repeated": _repeats(evaluated),
        "other_label": _other_labels(cohort, images),
        "like_train": _like(evaluated, images.of(kept.train)),
        "like_tuning": _like(evaluated, images.of(kept.tuning)),
        "like_another": _like_another(evaluated),
        "taken_out_of_tuning": len(from_tuning),
        "taken_out_of_train": len(from_train),
    }
    notes: tuple[str, ...] = ()
    if images.files_only:
        notes = ("The training images are very large: their files were compared with the others', not their voxels.",)
    return kept, Same(counts, notes, _warnings(counts, len(evaluated)), images.voxels), images


def without(cohort: Cohort, used: Cohort, images: Images, progress: Progress | None = None) -> tuple[Cohort, Same]:
    """Take images that are evaluated or tuned on out of another cohort, which is for calibration.

    Args:
        cohort: to calibrate on.
        used: what is evaluated and tuned on.
        images: its images.
        progress: told of each image.

    Raises:
        SplitError: nothing is left to calibrate on.
    """
    others = Images(cohort, cohort.cases, progress)
    evaluated = images.of(used.evaluation)
    out = _having(cohort.cases, others.of(cohort.cases), _hashes([*evaluated, *images.of(used.tuning)]))
    kept = replace(cohort, cases=tuple(case for case in cohort.cases if case.id not in out))
    if not kept.cases:
        raise SplitError("every image to calibrate on is evaluated or tuned on, too.", "Calibrate on other images.")
    like, warnings = _like(evaluated, others.of(kept.cases)), []
    if out:
        total = count_of(len(cohort.cases), "image")
        warnings.append(f"{len(out):,} of the {total} to calibrate on are evaluated or tuned on too: taken out.")
    if like:
        warnings.append(f"{count_of(like, 'evaluated image')} {AS_IF} one to calibrate on.")
    counts = {"taken_out_of_calibration": len(out), "like_calibration": like}
    return kept, Same(counts, (), tuple(warnings), others.voxels)


def repeated(cohort: Cohort, images: Images) -> Same:
    """Count the images of evaluation that are there more than once."""
    evaluated = images.of(cohort.evaluation)
    counts = {"repeated": _repeats(evaluated), "like_another": _like_another(evaluated)}
    return Same(counts, (), _warnings(counts, len(evaluated)), images.voxels)


def _hashes(known: Iterable[Known]) -> frozenset[str]:
    return frozenset(one for image in known for one in image.hashes)


def _having(cases: Sequence[Case], known: Sequence[Known], hashes: frozenset[str]) -> frozenset[str]:
    """The names of the cases whose image has one of the hashes."""
    return frozenset(case.id for case, one in zip(cases, known, strict=True) if one.hashes & hashes)


def _repeats(known: Sequence[Known]) -> int:
    """How many images have been there before."""
    seen: set[str] = set()
    found = 0
    for one in known:
        found += bool(one.hashes & seen)
        seen |= one.hashes
    return found


def _other_labels(cohort: Cohort, images: Images) -> int:
    """How many images of evaluation have another label elsewhere in the cohort."""
    labels: dict[str, set[object]] = {}
    for case, one in zip(cohort.cases, images.of(cohort.cases), strict=True):
        for each in one.hashes:
            labels.setdefault(each, set()).add(case.label)
    return sum(any(len(labels[each]) > 1 for each in one.hashes) for one in images.of(cohort.evaluation))


def _like(known: Sequence[Known], others: Sequence[Known]) -> int:
    """How many images look like one of the others, though they are not the same."""
    return sum(_near(known, others, earlier=False))


def _like_another(known: Sequence[Known]) -> int:
    """How many images look like one before them of another patient, though they are not the same."""
    return sum(_near(known, known, earlier=True))


def _near(known: Sequence[Known], others: Sequence[Known], *, earlier: bool) -> Iterator[bool]:
    for size in {one.look.size for one in others if one.look is not None}:
        ours, theirs = (
            [(k, one, one.look) for k, one in enumerate(some) if one.look is not None and one.look.size == size]
            for some in (known, others)
        )
        looks = np.stack([look for _, _, look in theirs])
        for first in range(0, len(ours), BLOCK):
            block = ours[first : first + BLOCK]
            found = alike(np.stack([look for _, _, look in block]), looks) >= ALIKE
            for (k, one, _), row in zip(block, found, strict=True):
                hits = (theirs[int(place)] for place in np.flatnonzero(row))
                yield any(
                    (not earlier or (j < k and other.patient != one.patient)) and not other.hashes & one.hashes
                    for j, other, _ in hits
                )


def _warnings(counts: Mapping[str, int], evaluated: int) -> tuple[str, ...]:
    found, total = Counter(counts), f"of the {count_of(evaluated, 'evaluated image')}"
    lines = []
    if found["in_train"] or found["in_tuning"]:
        lines.append(
            f"{found['in_train']:,} {total} are also among those for training, {found['in_tuning']:,} among those for "
            "tuning: the copies there were taken out. If the parent was trained on them, its accuracy here is too good."
        )
    if found["repeated"]:
        lines.append(f"{found['repeated']:,} {total} are repeats of others: they are no evidence of their own.")
    if found["other_label"]:
        lines.append(f"{found['other_label']:,} {total} are there with another label, too.")
    like = (("like_train", "one for training"), ("like_tuning", "one for tuning"), ("like_another", "another one"))
    told = [f"{found[name]:,} {AS_IF} {what}" for name, what in like if found[name]]
    if told:
        lines.append(f"{'; '.join(told)} ({total}). Nothing was taken out for that.")
    return tuple(lines)
