"""Images that networks make: blended, brought back to the image's own grid, written and read again."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
from cohort_files import manifest

from microtome.errors import DataError, GeometryError, OutputError
from microtome.medical.cohort import load_cohort
from microtome.medical.maps import map_each, read_target
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.read import read_image
from microtome.medical.write_image import write_image
from microtome.types import Image

FLOAT32 = 1e-5  # weights of windows add up to one in float32
VOLUMES = Pipeline("image-to-image", ("image",), 1, 3, orientation="RAS", patch=(8, 8, 8), activation="none")


def same(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """A network that returns what it gets."""
    yield from batches


def oblique(shape: tuple[int, ...] = (11, 9, 13)) -> Image:
    """A volume whose axes run left, superior and posterior."""
    affine = np.array([[-1.0, 0, 0, 0], [0, 0, -2.0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])
    return Image(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), affine)


@pytest.mark.parametrize(
    "changes", [{}, {"patch": None}, {"mirror": (0, 2)}, {"blending": "constant"}, {"crop": "nonzero"}]
)
def test_a_network_that_changes_nothing_gives_the_image_back(changes: dict) -> None:
    image, pipeline = oblique(), replace(VOLUMES, **changes)
    found = next(map_each(same, [prepare(image, pipeline)], pipeline))
    assert found.dtype == np.float32
    assert found == pytest.approx(image.array, abs=FLOAT32)


def test_outputs_come_back_in_the_unit_of_the_reference_and_at_the_images_own_size() -> None:
    rows = np.add.outer(np.arange(32.0), np.arange(48.0)).astype(np.float32)
    pipeline = Pipeline(
        "image-to-image", ("image",), size=(64, 96), activation="none", output_scale=(10.0,), output_offset=(-5.0,)
    )
    found = next(map_each(same, [prepare(Image(rows[None]), pipeline)], pipeline))
    inner = (0, slice(2, -2), slice(2, -2))  # at borders interpolation repeats the last value
    assert found[inner] == pytest.approx(10 * rows[2:-2, 2:-2] - 5, rel=1e-4)


KINDS = (
    {"normalize": "zscore"},
    {"normalize": "minmax", "range": (-1.0, 1.0)},
    {"normalize": "minmax", "window": (-500.0, 500.0)},
    {"normalize": "fixed", "mean": (10.0,), "std": (3.0,), "scale": 2.0},
    {"normalize": "zscore", "normalize_first": True, "spacing": (1.0, 2.0, 1.5)},
)


@pytest.mark.parametrize("how", KINDS)
def test_normalization_is_undone_by_the_images_own_numbers(how: dict) -> None:
    image = oblique()
    image = Image(image.array * 40 + 100, image.affine)
    pipeline = replace(VOLUMES, undo_normalize=True, **how)
    found = next(map_each(same, [prepare(image, pipeline)], pipeline))
    assert found == pytest.approx(image.array, abs=1e-2)
    integers = Image(np.arange(24, dtype=np.uint8).reshape(1, 4, 6))
    unit = Pipeline("image-to-image", ("image",), normalize="unit", activation="none", undo_normalize=True)
    assert next(map_each(same, [prepare(integers, unit)], unit)) == pytest.approx(integers.array, abs=1e-3)
    repeated = replace(unit, channels=3, classes=("r", "g", "b"))
    assert next(map_each(same, [prepare(integers, repeated)], repeated))[2] == pytest.approx(
        integers.array[0], abs=1e-3
    )


def test_what_is_wrong_with_one_image_is_said_and_the_others_go_on() -> None:
    pipeline = replace(VOLUMES, patch=None, divisible=1)
    broken = oblique()
    found = list(
        map_each(
            lambda xs: (np.where(x.max() > 50, np.inf, x).astype(np.float32) for x in xs),
            [prepare(Image(broken.array + 100, broken.affine), pipeline), prepare(broken, pipeline)],
            pipeline,
        )
    )
    assert isinstance(found[0], DataError)
    assert "NaN or infinity" in str(found[0])
    assert isinstance(found[1], np.ndarray)
    two = next(map_each(lambda xs: (np.concatenate([x, x], axis=1) for x in xs), [prepare(broken, pipeline)], pipeline))
    assert "2 output channels, and 1 are named (image)" in str(two)


def test_volumes_are_written_as_nifti_where_the_image_lies(tmp_path: Path) -> None:
    image = oblique()
    values = np.random.default_rng(1).normal(size=(3, *image.spatial)).astype(np.float32)
    for name, channels in (("one.nii.gz", 1), ("three.nii", 3)):
        write_image(values[:channels], image, tmp_path / name)
        found = read_image([tmp_path / name])
        assert np.array_equal(found.array, values[:channels])
        assert found.affine == pytest.approx(image.affine)
        assert nibabel.load(tmp_path / name).get_data_dtype() == np.float32


def test_pictures_are_written_as_tiff(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(2, 5, 7)).astype(np.float32)
    write_image(values[:1], Image(np.zeros((1, 5, 7))), tmp_path / "a.tif")
    assert np.array_equal(read_image([tmp_path / "a.tif"]).array, values[:1])
    write_image(values, Image(np.zeros((1, 5, 7))), tmp_path / "b.tif")
    with PIL.Image.open(tmp_path / "b.tif") as pages:
        assert pages.n_frames == 2
        pages.seek(1)
        assert np.array_equal(np.array(pages), values[1])
    with pytest.raises(OutputError, match=r"an image of 2 axes is no \.png file"):
        write_image(values, Image(np.zeros((1, 5, 7))), tmp_path / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]


def test_targets_are_read_from_a_manifest_on_the_images_grid(tmp_path: Path) -> None:
    cohort = load_cohort(manifest(tmp_path, ["image,target", "0.png,m1.png", "1.png,m1.png", "2.png,"]))
    assert cohort.task == "image-to-image"
    assert len(cohort.cases) == 2
    image = cohort.image(cohort.cases[0])
    assert read_target(cohort, cohort.cases[0], image).max() == 255
    assert read_target(cohort, replace(cohort.cases[0], target=None), image) is None
    with pytest.raises(GeometryError, match="has the shape 4×4, its image 5×5"):
        read_target(cohort, cohort.cases[0], Image(np.zeros((1, 5, 5))))
