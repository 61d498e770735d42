"""Phantom brain slices: made-up anatomy with exact reference labels, for the demo and for tests.

The slices imitate axial FLAIR images: dark fluid, gray matter a little brighter than white matter, bright lesions. All
shapes are signed distances, in units of half the image's width, so that edges are soft over one pixel (partial
volume). Nothing here comes from a patient, and a network that does well on phantoms says nothing about patients.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from microtome.errors import OptionError, OutputError
from microtome.types import Array

CLASSES = ("background", "brain tissue", "ventricles", "lesion")
SLICES = 2  # per made-up patient
TRAIN, TUNING = 0.4, 0.1  # shares of the patients; the others are for evaluation
SEEDS_PER_COHORT = 100_000
SMALLEST = 64  # pixels; below, ventricles and small lesions fall between the pixels

SEMI_AXES = (0.74, 0.90)  # of the head, left-right and front-back, in half image widths
RADIUS = float(np.sqrt(SEMI_AXES[0] * SEMI_AXES[1]))  # turns relative radii into distances
SKULL, FLUID, BRAIN = 0.945, 0.885, 0.85  # outer borders of the layers under the scalp, relative to the head
LESIONS = (0.25, 0.3, 0.2, 0.15, 0.1)  # probability of 0, 1, … lesions
# Brightness of air, scalp, skull, fluid, white matter, gray matter.
FLAIR = {"air": 0.0, "scalp": 0.66, "skull": 0.05, "fluid": 0.1, "white": 0.4, "gray": 0.52}


@dataclass(frozen=True)
class Scanner:
    """A made-up scanner: Rician noise (standard deviation), contrast about the mean, and blur (pixels, Gaussian)."""

    noise: float
    contrast: float
    blur: float


SCANNERS = {"A": Scanner(noise=0.02, contrast=1.0, blur=0.55), "B": Scanner(noise=0.04, contrast=0.85, blur=0.75)}


def make_case(seed: int, size: int = 192, *, slice_number: int = 0) -> tuple[Array, Array, dict[str, str]]:
    """Make one slice and its reference labels.

    Anatomy and scanner follow from `seed`; the level within the head, lesions and noise from `slice_number` too. The
    same arguments always give the same slice.

    Args:
        seed: the made-up patient, 0 or more.
        size: pixels along each axis.
        slice_number: 0 or more; slices of one patient resemble one another.

    Returns:
        image: uint8 (size, size); the first row is the front of the head.
        mask: uint8 (size, size), indices into `CLASSES`. About one case in four has no lesion.
        attributes: `scanner` is "A" or "B"; B has more noise and blur and less contrast.

    Raises:
        OptionError: a negative seed or slice number, or fewer than 64 pixels.
    """
    if seed < 0 or slice_number < 0 or size < SMALLEST:
        raise OptionError(
            f"A phantom cannot have seed {seed}, slice number {slice_number} and size {size}.",
            f"Use a seed and a slice number of at least 0 and a size of at least {SMALLEST}.",
        )
    patient = np.random.default_rng([seed, 0])
    slice_ = np.random.default_rng([seed, 1 + slice_number])
    scanner = "AB"[int(patient.integers(2))]
    level = float(patient.uniform(-0.6, 0.6)) + 0.4 * (slice_number % SLICES)
    x, y = _head_grid(size, patient, slice_)
    pixel = 2 / size / 0.95  # one pixel in the head's own units: the grid is scaled by about that
    depth = _cortex_depth(x, y, patient)
    ventricle = _cover(_ventricles(x, y, level, patient), pixel)
    brain = _cover(-depth, pixel)
    white = _cover(_thickness(x, y, patient) - depth, pixel) * (1 - _cover(_nuclei(x, y, level), pixel))
    lesion, brightness = _lesions(x, y, white * (1 - ventricle) > 0.9, pixel, slice_)

    signal = _shells(x, y, pixel)
    signal = _blend(signal, FLAIR["gray"] + (FLAIR["white"] - FLAIR["gray"]) * white, brain)
    signal = _blend(signal, brightness, lesion * brain)
    signal = _blend(signal, np.float32(FLAIR["fluid"]), ventricle)
    mask = (brain >= 0.5).astype(np.uint8)
    mask[(lesion >= 0.5) & (brain >= 0.5)] = 3
    mask[ventricle >= 0.5] = 2
    return _scan(signal, SCANNERS[scanner], slice_), mask, {"scanner": scanner}


def write_cohort(folder: Path, cases: int = 160, seed: int = 0) -> Path:
    """Write phantoms as PNG files with a manifest: `images/`, `masks/` and `manifest.csv`.

    Two slices per made-up patient; 40 % of the patients are `train`, 10 % `val` and the others `test`. Columns of the
    manifest: image, mask, patient, split, scanner.

    Returns:
        The path of the manifest.

    Raises:
        OptionError: fewer than 6 or more than 200,000 cases, or a negative seed.
        OutputError: the folder cannot be written.
    """
    if not 3 * SLICES <= cases <= SLICES * SEEDS_PER_COHORT or seed < 0:
        raise OptionError(
            f"A cohort of {cases} phantoms with seed {seed} is not possible.",
            f"Ask for {3 * SLICES} to {SLICES * SEEDS_PER_COHORT} cases and a seed of at least 0.",
        )
    patients = -(-cases // SLICES)
    train, tuning = round(TRAIN * patients), max(1, round(TUNING * patients))
    splits = ["train"] * train + ["val"] * tuning + ["test"] * (patients - train - tuning)
    manifest = Path(folder) / "manifest.csv"
    try:
        for part in ("images", "masks"):
            (manifest.parent / part).mkdir(parents=True, exist_ok=True)
        with manifest.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["image", "mask", "patient", "split", "scanner"])
            for case in range(cases):
                patient, number = divmod(case, SLICES)
                image, mask, attributes = make_case(seed * SEEDS_PER_COHORT + patient, slice_number=number)
                name = f"phantom-{patient:03d}-{number}.png"
                Picture.fromarray(image).save(manifest.parent / "images" / name)
                Picture.fromarray(mask).save(manifest.parent / "masks" / name)
                row = [f"images/{name}", f"masks/{name}", f"phantom-{patient:03d}", splits[patient]]
                rows.writerow([*row, attributes["scanner"]])
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{folder} cannot be written: {reason}.", "Choose another folder.") from error
    return manifest


def _head_grid(size: int, patient: np.random.Generator, slice_: np.random.Generator) -> tuple[Array, Array]:
    """Coordinates of the pixels in the head: x to the right, y to the front, turned, scaled, shifted and warped."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    angle, scale = patient.normal(0, 0.09), patient.uniform(0.92, 1.02)
    aspect = patient.uniform(0.96, 1.04)
    shift = patient.uniform(-0.04, 0.04, 2) + slice_.uniform(-0.01, 0.01, 2)
    across, along = axis[None, :] - np.float32(shift[0]), -axis[:, None] - np.float32(shift[1])
    cos, sin = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    x = (across * cos + along * sin) * np.float32(aspect)
    y = (along * cos - across * sin) / np.float32(aspect)
    bend = patient.uniform(-0.012, 0.012, 2).astype(np.float32)
    phase = patient.uniform(0, 2 * np.pi, 2).astype(np.float32)
    return x + bend[0] * np.sin(4 * y + phase[0]), y + bend[1] * np.sin(4 * x + phase[1])


def _relative_radius(x: Array, y: Array) -> Array:
    """0 in the middle of the head, 1 on the skin."""
    radius: Array = np.hypot(x / np.float32(SEMI_AXES[0]), y / np.float32(SEMI_AXES[1]))
    return radius


def _cover(distance: Array, pixel: float) -> Array:
    """Share of each pixel that lies inside a shape; `distance` is negative inside."""
    return np.clip(0.5 - distance / np.float32(pixel), 0, 1)


def _blend(below: Array, above: Array | np.float32, share: Array) -> Array:
    blend: Array = below + (above - below) * share
    return blend


def _capsule(x: Array, y: Array, start: tuple[float, float], end: tuple[float, float]) -> tuple[Array, Array]:
    """Distance to a line segment, and how far along it (0 to 1) the nearest point lies."""
    dx, dy = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    px, py = x - np.float32(start[0]), y - np.float32(start[1])
    along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(px - along * dx, py - along * dy), along


def _shells(x: Array, y: Array, pixel: float) -> Array:
    """Scalp, skull and fluid, as brightness."""
    radius = _relative_radius(x, y)
    signal = np.full(x.shape, FLAIR["air"], np.float32)
    for border, tissue in ((1.0, "scalp"), (SKULL, "skull"), (FLUID, "fluid")):
        signal = _blend(signal, np.float32(FLAIR[tissue]), _cover((radius - border) * RADIUS, pixel))
    return signal


def _cortex_depth(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Distance to the nearest fluid outside or in a sulcus: positive in the brain, negative in the fluid.

    Sulci are slits on curved rays whose depth varies around the brain; the fissures are slits of their own.
    """
    radius, angle = _relative_radius(x, y), np.arctan2(y, x)
    sulci = int(rng.integers(20, 27))
    phase, depth, bent = (_waves(angle, rng, 5, strength) for strength in (0.9, 0.045, 1.1))
    # Distance to the nearest ray: its angle is a multiple of 2π / sulci, shifted by waves and bent inwards.
    turn = np.sin(0.5 * (sulci * angle + phase + 14 * bent * (BRAIN - radius)))
    across = np.abs(turn) * radius * np.float32(2 * RADIUS / sulci)
    floor = BRAIN - np.clip(0.13 + depth, 0.04, 0.24)
    width = np.float32(rng.uniform(0.008, 0.016))
    slit = np.hypot(across, np.maximum(0, floor - radius) * RADIUS) - width
    depth_below: Array = np.minimum((BRAIN - radius) * RADIUS, slit)
    for start, end, fissure in (
        ((0.0, 1.0), (0.0, 0.42), 0.013),
        ((0.0, -1.0), (0.0, -0.40), 0.013),
        ((0.66, 0.2), (0.42, 0.02), 0.018),
        ((-0.66, 0.2), (-0.42, 0.02), 0.018),
    ):
        depth_below = np.minimum(depth_below, _capsule(x, y, start, end)[0] - np.float32(fissure))
    return depth_below


def _waves(angle: Array, rng: np.random.Generator, count: int, strength: float) -> Array:
    """A smooth random function around the head: sines with 1 to `count` periods."""
    size = rng.normal(0, strength / np.sqrt(count), count).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    waves = np.zeros_like(angle)
    for k in range(count):
        waves += size[k] * np.sin((k + 1) * angle + phase[k])
    return waves


def _thickness(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Thickness of the gray matter: 3 to 4 % of the image, varying along the cortex."""
    k, phase = rng.uniform(14, 20, 2).astype(np.float32), rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    waves: Array = np.sin(k[0] * x + phase[0]) * np.sin(k[1] * y + phase[1])
    return np.float32(0.04) + np.float32(0.009) * waves


def _ventricles(x: Array, y: Array, level: float, rng: np.random.Generator) -> Array:
    """Signed distance of the lateral ventricles (frontal horns and atria) and of the third ventricle.

    Higher up (`level` towards 1) the two parts of a lateral ventricle join and the third ventricle ends.
    """
    widening, apart = rng.lognormal(0, 0.22), rng.uniform(0.055, 0.08)
    distance = np.full(x.shape, np.inf, np.float32)
    for side in (-1, 1):
        size = widening * rng.uniform(0.9, 1.1)
        middle = -0.02 - 0.1 * max(0.0, level)
        # Both parts are bowed: the frontal horn around the caudate, the atrium around the thalamus.
        bow = np.where(y > middle, 0.035, -0.03) * np.clip(1 - ((np.abs(y - middle) - 0.16) / 0.16) ** 2, 0, 1)
        bowed = x + np.float32(side) * bow.astype(np.float32)
        front, along = _capsule(bowed, y, (side * (apart + 0.09), 0.30), (side * apart, middle + 0.02))
        front = front - (0.046 - 0.022 * along) * np.float32(size)
        start = 0.02 if level > 0.1 else -0.16  # the body joins both parts only in the upper slices
        back, along = _capsule(bowed, y, (side * (apart + 0.005 - 0.4 * min(0.0, start)), start), (side * 0.2, -0.34))
        back = back - (0.026 + 0.026 * along) * np.float32(size)
        distance = np.minimum(distance, np.minimum(front, back))
    if level < 0.2:
        third = _capsule(x, y, (0.0, 0.02), (0.0, -0.16))[0]
        distance = np.minimum(distance, third - np.float32(0.014 * widening))
    return distance


def _nuclei(x: Array, y: Array, level: float) -> Array:
    """Signed distance of the deep gray matter: caudate, putamen and, in the lower slices, thalamus."""
    shrink = np.float32(1 - 0.35 * max(0.0, level))
    side = np.abs(x)
    caudate = _capsule(side, y, (0.19, 0.27), (0.15, 0.08))[0] - 0.03 * shrink
    putamen = _capsule(side, y, (0.29, 0.20), (0.33, -0.06))[0] - 0.05 * shrink
    thalamus = _capsule(side, y, (0.09, -0.01), (0.14, -0.13))[0] - (0.07 if level < 0.5 else 0.03) * shrink
    return np.minimum(np.minimum(caudate, putamen), thalamus)


def _lesions(
    x: Array, y: Array, where: Array, pixel: float, rng: np.random.Generator
) -> tuple[Array, Array | np.float32]:
    """Cover and brightness of 0 to 4 irregular blobs with their centres in `where`."""
    cover = np.zeros(x.shape, np.float32)
    places = np.flatnonzero(where)
    for _ in range(int(rng.choice(len(LESIONS), p=LESIONS))):
        centre = rng.choice(places)
        dx, dy = x - x.flat[centre], y - y.flat[centre]
        border = rng.uniform(0.045, 0.12) * (1 + _waves(np.arctan2(dy, dx), rng, 5, 0.22))
        # A rim twice as soft as other edges: lesions fade into the tissue.
        cover = np.maximum(cover, _cover((np.hypot(dx, dy) - border) / 2, pixel))
    return cover, np.float32(rng.uniform(0.7, 0.9))


def _scan(signal: Array, scanner: Scanner, rng: np.random.Generator) -> Array:
    """What the scanner makes of the true signal: contrast, coil shading, blur, Rician noise, 8 bits."""
    size = signal.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    contrast = scanner.contrast * rng.uniform(0.92, 1.08)
    signal = np.maximum(0, 0.35 * (1 - contrast) * (signal > 0.02) + contrast * signal).astype(np.float32)
    taps = np.exp(-0.5 * (np.arange(-2, 3) / scanner.blur) ** 2).astype(np.float32)
    taps /= taps.sum()
    for line in (0, 1):
        signal = sum((tap * np.roll(signal, k - 2, line) for k, tap in enumerate(taps)), np.zeros_like(signal))
    tilt, bowl = rng.uniform(-0.2, 0.2, 2).astype(np.float32), rng.uniform(-0.15, 0.15, 2).astype(np.float32)
    signal = signal * (1 + tilt[0] * axis + bowl[0] * axis**2) * (1 + tilt[1] * axis + bowl[1] * axis**2)[:, None]
    noise = rng.standard_normal((2, size, size), dtype=np.float32) * np.float32(scanner.noise)
    scanned = np.hypot(signal + noise[0], noise[1])
    stored: Array = np.clip(scanned * 235 + 0.5, 0, 255).astype(np.uint8)
    return stored
