"""The same image in several roles: found by content, taken out of all but evaluation, counted."""

import io
import json
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from folders import table
from PIL import Image as Picture
from scipy import ndimage

import tiny
from microtome.errors import SplitError
from microtome.evidence.same_images import Images, repeated, separated, without
from microtome.medical.cohort import load_cohort
from microtome.medical.fingerprint import ALIKE, alike, fingerprint
from microtome.medical.pipeline import Pipeline
from microtome.report.technical import provenance as shown
from microtome.types import Image
from microtome.verbs.compress import compress
from microtome.verbs.evaluate import evaluate
from microtome.verbs.options import CompressOptions


def anatomy(seed: int, shape: tuple[int, ...] = (48, 64)) -> np.ndarray:
    """A smooth random picture with some noise, uint8: as different from others as patients are."""
    rng = np.random.default_rng(seed)
    coarse = ndimage.gaussian_filter(rng.normal(size=shape), 3, mode="wrap")
    array = 128 + 40 * coarse / coarse.std() + rng.normal(0, 4, shape)
    return np.clip(array, 0, 255).astype(np.uint8)


def save(path: Path, array: np.ndarray, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(array).save(path, **how)
    return path


@pytest.fixture
def folders(tmp_path):
    """Parts of 24, 8 and 12 images of two classes, all different."""
    seed = 0
    for part, count in (("train", 24), ("val", 8), ("test", 12)):
        for k in range(count):
            save(tmp_path / part / "AB"[k % 2] / f"{part}{k}.png", anatomy(seed))
            seed += 1
    return tmp_path


def image(folders, part: str, k: int) -> np.ndarray:
    return np.asarray(Picture.open(folders / part / "AB"[k % 2] / f"{part}{k}.png"))


def found(folders):
    cohort, same, _ = separated(load_cohort(folders))
    return cohort, same


def test_nothing_is_found_where_all_are_different(folders):
    cohort, same = found(folders)
    assert not any(same.counts.values())
    assert same.warnings == same.notes == ()
    assert [len(cohort.train), len(cohort.tuning), len(cohort.evaluation)] == [24, 8, 12]


def test_copies_are_taken_out_of_train_and_tuning_never_of_evaluation(folders):
    for k in range(3):
        save(folders / "train" / "AB"[k % 2] / f"copy{k}.png", image(folders, "test", k))
    save(folders / "train" / "B" / "again.png", image(folders, "test", 1))
    save(folders / "val" / "B" / "copy.png", image(folders, "test", 5))
    save(folders / "train" / "A" / "tuned.png", image(folders, "val", 2))
    save(folders / "test" / "A" / "twice.png", image(folders, "test", 0))
    cohort, same = found(folders)
    assert [len(cohort.train), len(cohort.tuning), len(cohort.evaluation)] == [24, 8, 13]
    assert same.counts | {"x": 0} == {
        "in_train": 4,  # test0 and its repeat, test1, test2
        "in_tuning": 1,
        "repeated": 1,
        "other_label": 0,
        "like_train": 0,
        "like_tuning": 0,
        "like_another": 0,
        "taken_out_of_tuning": 1,
        "taken_out_of_train": 5,
        "x": 0,
    }
    assert (
        "4 of the 13 evaluated images are also among those for training, 1 among those for tuning" in same.warnings[0]
    )
    assert "1 of the 13 evaluated images are repeats of others" in same.warnings[1]
    left = {cohort.key[case.id] for case in (*cohort.train, *cohort.tuning)}
    assert not any("copy" in name or "again" in name or "tuned" in name for name in left)


@pytest.mark.parametrize("how", ["bmp", "tiff", "rgb", "sixteen", "palette", "exif"])
def test_other_encodings_without_loss_are_the_same(folders, how):
    array = image(folders, "test", 1)
    if how == "rgb":
        save(folders / "train" / "B" / "copy.png", np.repeat(array[..., None], 3, 2))
    elif how == "sixteen":
        save(folders / "train" / "B" / "copy.png", array.astype(np.uint16))
    elif how == "palette":
        Picture.fromarray(array).convert("P").save(folders / "train" / "B" / "copy.png")
    elif how == "exif":
        exif = Picture.Exif()
        exif[0x0112] = 3  # turned by 180°
        save(folders / "train" / "B" / "copy.png", array[::-1, ::-1], exif=exif)
    else:
        save(folders / "train" / "B" / f"copy.{how}", array)
    cohort, same = found(folders)
    assert (same.counts["in_train"], same.counts["taken_out_of_train"], len(cohort.train)) == (1, 1, 24)


def lossy(array: np.ndarray, how: str) -> np.ndarray:
    picture = Picture.fromarray(array)
    if how.startswith("jpeg"):
        packed = io.BytesIO()
        picture.save(packed, "JPEG", quality=int(how[4:]))
        return np.asarray(Picture.open(packed))
    if how == "brighter":
        return np.clip(0.8 * array + 30, 0, 255).astype(np.uint8)
    if how == "square":
        return np.asarray(picture.resize((40, 40), Picture.Resampling.BICUBIC))
    factor = float(how)
    return np.asarray(picture.resize((round(64 * factor), round(48 * factor)), Picture.Resampling.BILINEAR))


@pytest.mark.parametrize("how", ["jpeg90", "jpeg60", "0.7", "1.5", "2.0", "square", "brighter"])
def test_lossy_and_resized_copies_are_a_warning_only(folders, how):
    for k in range(12):
        save(folders / "train" / "AB"[k % 2] / f"copy{k}.png", lossy(image(folders, "test", k), how))
    cohort, same = found(folders)
    assert same.counts["like_train"] == 12
    assert same.counts["in_train"] == same.counts["taken_out_of_train"] == same.counts["like_another"] == 0
    assert len(cohort.train) == 36
    assert "12 might be, by their looks, copies (of another size or encoding) of one for training" in same.warnings[0]


def test_slices_of_one_patient_are_no_copies(tmp_path):
    for k in range(4):
        array = anatomy(k)
        for one in range(3):
            save(
                tmp_path / "AB"[k % 2] / f"person{k}_{one}.png",
                np.clip(array.astype(int) + one, 0, 255).astype(np.uint8),
            )
    cohort = load_cohort(tmp_path, evaluation=1, tuning=0)
    assert repeated(cohort, Images(cohort, cohort.cases)).counts == {"repeated": 0, "like_another": 0}
    for file in list(tmp_path.rglob("*_1.png")):
        file.rename(file.with_name(f"other{file.name.replace('person', '')}"))
    cohort = load_cohort(tmp_path, evaluation=1, tuning=0)
    assert repeated(cohort, Images(cohort, cohort.cases)).counts["like_another"] >= 4


def test_volumes_are_the_same_whatever_their_axes_and_types(tmp_path):
    lines = [["image", "label", "split", "patient"]]
    for k in range(12):
        array, affine = anatomy(k, (12, 14, 10)).astype(np.int16), np.diag([2.0, 2, 3, 1])
        path = tmp_path / f"{k}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        lines.append([path.name, k % 2, ("train", "val", "test")[k // 4], f"p{k}"])
        if k in (8, 9):
            turned = nibabel.Nifti1Image(array, affine).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
            data = np.asarray(turned.dataobj).astype(np.float32 if k == 8 else np.int32)
            nibabel.save(nibabel.Nifti1Image(data, turned.affine), tmp_path / f"copy{k}.nii")
            lines.append([f"copy{k}.nii", k % 2, "train", f"q{k}"])
    cohort, same, _ = separated(load_cohort(table(tmp_path / "x.csv", lines)))
    assert same.counts["in_train"] == same.counts["taken_out_of_train"] == 2
    assert len(cohort.train) == 4


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3])
def test_resampled_volumes_look_alike_and_others_do_not(factor):
    arrays = [ndimage.gaussian_filter(np.random.default_rng(k).normal(size=(32, 36, 28)), 2) for k in range(4)]
    looks = np.stack([fingerprint(Image(array[None].astype(np.float32))).look for array in arrays])
    copies = [ndimage.zoom(a, factor, order=1, grid_mode=True, mode="nearest").astype(np.float32) for a in arrays]
    other = np.stack([fingerprint(Image(copy[None])).look for copy in copies])
    assert np.array_equal(alike(looks, other) >= ALIKE, np.eye(4, dtype=bool))


def test_images_that_show_nothing_look_like_none(tmp_path):
    for part in ("train", "test"):
        for k in range(6):
            save(
                tmp_path / part / "AB"[k % 2] / f"{part}{k}.png", np.full((16, 16), 10 * k + (part == "test"), np.uint8)
            )
    _, same = found(tmp_path)
    assert not any(same.counts.values())


def test_other_labels_are_told(folders):
    save(folders / "train" / "B" / "copy.png", image(folders, "test", 0))
    _, same = found(folders)
    assert same.counts["other_label"] == 1
    assert "1 of the 12 evaluated images are there with another label, too." in same.warnings


def test_every_format_and_a_random_split(tmp_path):
    arrays = np.stack([anatomy(k % 30, (28, 28)) for k in range(40)])
    labels = np.arange(40)[:, None] % 30 % 2
    sizes = {"train": slice(0, 20), "val": slice(20, 28), "test": slice(28, 40)}  # 30 to 39 repeat 0 to 9
    parts = {f"{part}_images": arrays[s] for part, s in sizes.items()}
    np.savez(tmp_path / "x.npz", **parts, **{f"{part}_labels": labels[s] for part, s in sizes.items()})
    cohort, same, _ = separated(load_cohort(tmp_path / "x.npz"))
    assert (same.counts["in_train"], len(cohort.train)) == (10, 10)
    for k in range(40):
        save(tmp_path / "y" / f"{k}.png", arrays[k])
    cohort, same, _ = separated(load_cohort(tmp_path / "y"))
    hashes = [{fingerprint(cohort.image(case)).voxels for case in role} for role in (cohort.train, cohort.evaluation)]
    assert hashes[0].isdisjoint(hashes[1])
    assert same.counts["taken_out_of_train"] > 0


def test_all_of_train_is_evaluated(tmp_path):
    for k in range(8):
        for part in ("train", "test"):
            save(tmp_path / part / "AB"[k % 2] / f"{k}.png", anatomy(k))
    with pytest.raises(SplitError, match=r"every image that .* has for training is also one for tuning or evaluation"):
        separated(load_cohort(tmp_path, tuning=0))


def test_another_cohort_to_calibrate_on(folders, tmp_path):
    other = tmp_path / "other"
    for k in range(6):
        array = image(folders, "test", k) if k < 2 else image(folders, "val", k) if k == 2 else anatomy(900 + k)
        save(other / f"{k}.bmp", array if k != 5 else lossy(image(folders, "test", 7), "jpeg80"))
    cohort, _, images = separated(load_cohort(folders))
    kept, same = without(load_cohort(other, evaluation=1, tuning=0), cohort, images)
    assert len(kept.cases) == 3
    assert same.counts == {"taken_out_of_calibration": 3, "like_calibration": 1}
    assert "3 of the 6 images to calibrate on are evaluated or tuned on too" in same.warnings[0]
    for file in list(other.iterdir())[:]:
        if file.stem in "345":
            file.unlink()
    with pytest.raises(SplitError, match="every image to calibrate on"):
        without(load_cohort(other, evaluation=1, tuning=0), cohort, images)


def test_a_broken_image_stops_nothing(folders):
    (folders / "train" / "A" / "train0.png").write_bytes(b"\x89PNG broken")
    _, same = found(folders)
    assert not any(same.counts.values())


def test_memory_does_not_grow_with_the_images(tmp_path):
    def peak(count: int) -> int:
        root = tmp_path / str(count)
        for k in range(count):
            save(root / f"{k}.png", anatomy(k, (256, 256)))
        cohort = load_cohort(root, evaluation=1, tuning=0)
        tracemalloc.start()
        Images(cohort, cohort.cases)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(4), peak(40)
    assert many - few < 36 * 8 * 1024  # an image has 64 KiB, and 512 KiB as numbers


def test_result_report_and_provenance_of_a_package(tmp_path):
    cohort = tmp_path / "cohort"
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 6), ("test", 10)):
        for k in range(count):
            array = np.clip(rng.normal(60 + 120 * (k % 2), 30, (32, 32)), 0, 255).astype(np.uint8)
            save(cohort / part / ("dark", "light")[k % 2] / f"{part}{k}.png", array)
    save(cohort / "train" / "dark" / "copy.png", np.asarray(Picture.open(cohort / "test" / "dark" / "test0.png")))
    save(cohort / "test" / "dark" / "twice.png", np.asarray(Picture.open(cohort / "test" / "dark" / "test2.png")))
    pipeline = Pipeline("classification", ("dark", "light"), 1, 2, size=(32, 32), normalize="unit")
    options = CompressOptions(target="reference", pipeline=pipeline, input_shape=(1, 32, 32), recipe="f32")
    package = tmp_path / "package"
    result = compress(tiny.Brightness(), cohort, package, options=options)
    assert result["counts"]["same_images"]["in_train"] == result["counts"]["same_images"]["repeated"] == 1
    assert sum("of the 11 evaluated images" in line for line in result["warnings"]) == 2
    record = json.loads((package / "provenance.json").read_text())["cohort"]
    assert record["disjoint_by_patient"] is True
    assert record["same_images"]["taken_out_of_train"] == 1
    assert record["patients"] == "every file is a patient of its own"
    page, card = (package / "report.html").read_text(), (package / "MODEL_CARD.md").read_text()
    assert "1 of the 11 evaluated images are also among those for training" in page
    assert "Evaluated images that are also for training" in page
    assert "Evaluated images that are also for tuning" not in page
    assert all("are disjoint, by patient and by what images hold" in text for text in (page, card))
    record["disjoint_by_patient"] = False
    (package / "provenance.json").write_text(json.dumps({"cohort": record}))
    assert "disjoint" not in shown({**result, "seconds": {}}, package)["split"]
    again = tmp_path / "again"
    for k, file in enumerate(sorted((cohort / "train").rglob("*.png"))):  # what it was calibrated on, as BMP
        save(again / file.parent.name / f"{k}.bmp", np.asarray(Picture.open(file)))
    for k in range(4):
        array = np.clip(rng.normal(60 + 120 * (k % 2), 30, (32, 32)), 0, 255).astype(np.uint8)
        for copy in range(2):
            save(again / ("dark", "light")[k % 2] / f"new{k}-{copy}.bmp", array)
    judged = evaluate(package, again, tmp_path / "evaluation")
    assert judged["counts"]["evaluation"] == 8 + 1  # the copy that was taken out was not calibrated on
    assert judged["counts"]["same_images"]["repeated"] == 4
    assert any("of the 9 evaluated images" in line for line in judged["warnings"])  # also without a parent
    assert "disjoint" not in (tmp_path / "evaluation" / "report.html").read_text()


def test_repeats_within_evaluation_are_counted(folders):
    save(folders / "test" / "A" / "twice.png", image(folders, "test", 0))
    cohort = load_cohort(folders)
    same = repeated(cohort, Images(cohort, cohort.evaluation))
    assert same.counts == {"repeated": 1, "like_another": 0}
