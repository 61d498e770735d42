"""Names and numbers of classes, compared between cohort and network."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from sklearn.metrics import f1_score
from torch import nn

from microtome.batches.calibration import inputs
from microtome.batches.training import TrainingBatches
from microtome.errors import LabelError
from microtome.evidence.comparison import Pair, evaluate_pair, streamed
from microtome.medical.class_names import match_classes
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.verbs.evaluate import evaluate
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import Request, read_request
from microtome.verbs.roles import as_classes

BRATS = ("background", "ncr", "ed", "et")
NUMBERS = (0, 1, 2, 4)
STEP = 50  # gray values of one class above those of the one before


def pipeline(classes: tuple[str, ...] = BRATS, task: str = "segmentation", size: int = 16) -> Pipeline:
    return Pipeline(task, classes, 1, 2, size=(size, size), normalize="none", activation="softmax")


class ByValue(nn.Module):
    """Class k where the gray value is k steps: score 2·k·x − k², the nearest step. Logits (N, K, H, W) or (N, K)."""

    def __init__(self, classes: int, *, maps: bool = True) -> None:
        super().__init__()
        self.maps, self.conv = maps, nn.Conv2d(1, classes, 1)
        k = torch.arange(classes, dtype=torch.float32)
        with torch.no_grad():
            self.conv.weight.copy_((2 * k / STEP)[:, None, None, None])
            self.conv.bias.copy_(-(k**2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.conv(x)
        return found if self.maps else found.mean((2, 3))


def pictures(k: int, numbers: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a stripe of each class, and its mask; the stripes differ from picture to picture."""
    kinds = (np.arange(16)[:, None] // 4 + k) % 4 * np.ones((1, 16), int)
    return (kinds * STEP).astype(np.uint8), np.array(numbers, np.uint8)[kinds]


def cohort(root: Path, layout: str, numbers: tuple[int, ...] = NUMBERS, labels: object = None) -> Path:
    images, masks = ("imagesTr", "labelsTr") if layout == "decathlon" else ("images", "masks")
    table = []
    for sub in (images, masks):
        (root / sub).mkdir(parents=True)
    for k in range(12):
        image, mask = pictures(k, numbers)
        Picture.fromarray(image).save(root / images / f"c{k}.png")
        Picture.fromarray(mask).save(root / masks / f"c{k}.png")
        table.append([f"{images}/c{k}.png", f"{masks}/c{k}.png", k])
    named = {"labels": dict(zip(BRATS, numbers, strict=True)) if labels is None else labels}
    if labels != {}:
        (root / "dataset.json").write_text(json.dumps(named))
    if layout == "manifest":
        with (root / "cohort.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["image", "mask", "patient"], *table])
    return root


def request(root: Path, classes: tuple[str, ...] | None = BRATS, module: nn.Module | None = None, **more) -> Request:
    declared = pipeline(classes) if classes else None
    options = CompressOptions(target="reference", pipeline=declared, input_shape=(1, 16, 16), **more)
    return read_request(module or ByValue(4), root, options)


def dice(found: Request) -> dict[str, float]:
    run = streamed(lambda x: found.loaded.network(torch.from_numpy(x)).detach().numpy())
    parts = evaluate_pair(Pair(run, run), found.cohort, found.pipeline).parts
    return {name: value["value"] for name, value in parts["parent"]["metrics"].items() if name.startswith("dice")}


@pytest.mark.parametrize("layout", ["decathlon", "image_masks", "manifest"])
def test_masks_of_other_numbers_are_matched_by_name(tmp_path, layout):
    found = request(cohort(tmp_path, layout))
    assert found.cohort.format == layout
    assert dice(found) == pytest.approx({"dice": 1, "dice/ncr": 1, "dice/ed": 1, "dice/et": 1})
    assert any("4 → 3 (et)" in note for note in found.cohort.notes)


def test_without_a_declared_pipeline_the_gap_is_no_class(tmp_path):
    found = request(cohort(tmp_path, "decathlon"), None)
    assert found.pipeline.classes == BRATS
    case = found.cohort.cases[0]
    assert set(np.unique(found.cohort.mask(case, None))) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "names",
    [
        ("Background", "NCR", "ED", "ET"),
        ("bg", "Ncr", "ed ", "et"),
        ("Hintergrund", "ncr", "ed", "et"),
        ("background", "et", "ncr", "ed"),
        ("background", "ed", "et", "ncr"),
    ],
)
def test_case_order_and_name_of_the_background_do_not_matter(tmp_path, names):
    kinds = ("background", "ncr", "ed", "et")
    values = {name: kinds.index(name.strip().lower()) if k else 0 for k, name in enumerate(names)}
    numbers = tuple(values[name] for name in names)  # the mask's number of each class of the cohort
    order = [k if k == 0 else names.index(next(n for n in names if values[n] == k)) for k in range(4)]
    root = cohort(tmp_path, "decathlon", tuple(order), {name: k for k, name in enumerate(names)})
    assert sorted(numbers) == [0, 1, 2, 3]
    assert dice(request(root)) == pytest.approx({"dice": 1, "dice/ncr": 1, "dice/ed": 1, "dice/et": 1})


def test_training_and_calibration_see_the_same_numbers(tmp_path):
    found = request(cohort(tmp_path, "decathlon"), calibration_choice="foreground")
    for case in found.cohort.train:
        batches = TrainingBatches(found.cohort, [case], found.pipeline, batch=1, augment=False, labelled=True)
        x, y = next(iter(batches))
        assert torch.equal(y[0], (x[0, 0] / STEP).round().long())
    own, cases = found.calibration
    assert own.numbers == {0: 0, 1: 1, 2: 2, 4: 3}
    assert inputs(own, cases[0], found.pipeline, np.random.default_rng(0), foreground=True)


def test_another_cohort_to_calibrate_on_is_matched_too(tmp_path):
    other = cohort(tmp_path / "b", "decathlon", (0, 3, 2, 1), {"background": 0, "et": 1, "ed": 2, "ncr": 3})
    calibration, cases = request(cohort(tmp_path / "a", "decathlon"), calibration=other).calibration
    case = cases[0]
    image = calibration.image(case)
    assert np.array_equal(calibration.mask(case, image), image.array[0] // STEP)


@pytest.mark.parametrize("choice", ["first", "foreground"])
def test_calibration_on_other_classes_is_refused_only_where_they_are_used(tmp_path, choice):
    names = {"background": 0, "liver": 1, "spleen": 2, "kidney": 4}
    root, other = cohort(tmp_path / "a", "decathlon"), cohort(tmp_path / "b", "decathlon", labels=names)
    if choice == "foreground":
        with pytest.raises(LabelError, match="'liver' is none of the network's"):
            request(root, calibration=other, calibration_choice=choice)
    else:
        assert all(case.mask is None for case in request(root, calibration=other).calibration[1])


def test_names_that_differ_are_an_error_that_shows_both_lists(tmp_path):
    root = cohort(tmp_path, "decathlon", labels={"background": 0, "necrosis": 1, "ed": 2, "et": 4})
    with pytest.raises(LabelError) as error:
        request(root)
    assert "0 background, 1 necrosis, 2 ed, 4 et" in error.value.problem
    assert "0 background, 1 ncr, 2 ed, 3 et" in error.value.problem
    assert "'necrosis' is none of the network's" in error.value.problem


def test_more_classes_in_the_cohort_are_an_error(tmp_path):
    with pytest.raises(LabelError, match="'et' is none of the network's"):
        request(cohort(tmp_path, "decathlon"), ("background", "ncr", "ed"), ByValue(3))


def test_fewer_classes_in_the_cohort_are_told(tmp_path):
    root = cohort(tmp_path, "decathlon", (0, 1, 1, 0), {"background": 0, "ed": 1})
    found = request(root)
    assert found.cohort.numbers == {0: 0, 1: 2}
    assert any("has no class ncr, et, which the network knows" in note for note in found.cohort.notes)


def test_several_numbers_may_have_one_name(tmp_path):
    labels = {"0": "background", "1": "tumour", "2": "Background", "4": "tumour"}
    found = request(cohort(tmp_path, "decathlon", labels=labels), ("background", "tumour"), ByValue(2))
    case = found.cohort.cases[0]
    assert sorted(np.unique(found.cohort.mask(case, None))) == [0, 1]
    assert found.cohort.numbers == {0: 0, 1: 1, 2: 0, 4: 1}


def test_a_value_that_nobody_named_is_told_with_the_names(tmp_path):
    root = cohort(tmp_path, "decathlon")
    odd = root / "labelsTr" / "c0.png"
    Picture.fromarray(np.full((16, 16), 3, np.uint8)).save(odd)
    found = as_classes(load_cohort(root), pipeline())
    case = next(case for case in found.cases if case.mask == odd)
    with pytest.raises(LabelError, match=r"holds the label 3, but the labels are 0 background, 1 ncr, 2 ed, 4 et"):
        found.mask(case, None)


def test_it_is_told_before_any_work(tmp_path):
    root = cohort(tmp_path, "decathlon")
    case = load_cohort(root).evaluation[0]
    Picture.fromarray(np.full((16, 16), 9, np.uint8)).save(case.mask)
    with pytest.raises(LabelError, match="holds the label 9"):
        request(root)
    (tmp_path / "network.py").write_text("from torch import nn\n\ndef make():\n    return nn.Conv2d(1, 4, 1)\n")
    options = CompressOptions(pipeline=pipeline(), input_shape=(1, 16, 16), evaluation=1, tuning=0)
    with pytest.raises(LabelError, match="holds the label 9"):
        evaluate(f"{tmp_path / 'network.py'}:make", root, tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_masks_without_names_beyond_the_network(tmp_path):
    with pytest.raises(LabelError) as error:
        request(cohort(tmp_path, "image_masks", labels={}))
    assert "4 label 4" in error.value.problem
    assert "3 et" in error.value.problem


def test_masks_without_names_are_matched_by_number_and_that_is_said(tmp_path):
    found = request(cohort(tmp_path, "image_masks", (0, 1, 2, 3), {}))
    assert dice(found)["dice/et"] == pytest.approx(1)
    assert any("label 1 is ncr, label 2 is ed, label 3 is et" in note for note in found.cohort.notes)


def test_a_label_in_one_mask_of_many_without_names(tmp_path):
    for k in range(80):
        for sub in ("images", "masks"):
            (tmp_path / sub).mkdir(exist_ok=True)
            label = 3 if k == 79 else k % 2  # of 80 masks every other is looked at
            Picture.fromarray(np.full((4, 4), label, np.uint8)).save(tmp_path / sub / f"{k:02d}.png")
    found = load_cohort(tmp_path)
    assert found.classes == ("background", "foreground")
    network = as_classes(found, pipeline())
    case = next(case for case in network.cases if case.mask.name == "79.png")
    assert set(np.unique(network.mask(case, None))) == {3}
    with pytest.raises(LabelError, match="holds the label 3, but the labels are 0 background, 1 ncr, 2 ed"):
        as_classes(found, pipeline(("background", "ncr", "ed"))).mask(case, None)


def test_volumes(tmp_path):
    for k in range(6):
        _, mask = pictures(k, NUMBERS)
        for sub, array in (("imagesTr", mask), ("labelsTr", mask)):
            (tmp_path / sub).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(np.stack([array] * 4, 2), np.eye(4)), tmp_path / sub / f"{k}.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": dict(zip(BRATS, NUMBERS, strict=True))}))
    found = as_classes(load_cohort(tmp_path), Pipeline("segmentation", BRATS, 1, 3, patch=(8, 8, 8)))
    case = found.cases[0]
    assert sorted(np.unique(found.mask(case, found.image(case)))) == [0, 1, 2, 3]


# Classes of whole images.

KINDS = ("glioma", "meningioma", "no tumour")


def class_cohort(root: Path, layout: str, names: tuple[str, ...] = KINDS) -> Path:
    """Pictures whose gray value says which of KINDS they are; `names` are what the cohort calls these."""
    lines, images = [["image", "label", "patient"]], []
    for k in range(30):
        value = k % 3
        picture = Picture.fromarray(np.full((16, 16), STEP * value + k // 3, np.uint8))
        folder = root / (names[value] if layout == "class_folders" else "images")
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"x{k}.png")
        images.append(np.asarray(picture))
        lines.append([f"images/x{k}.png", names[value], str(k)])
    if layout == "manifest":
        with (root / "cohort.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    if layout == "medmnist":
        labels = np.array([int(names[k % 3]) for k in range(30)])[:, None]
        parts = {"train": slice(0, 12), "val": slice(12, 18), "test": slice(18, 30)}
        arrays = {f"{p}_images": np.stack(images)[s] for p, s in parts.items()}
        np.savez(root / "x.npz", **arrays, **{f"{p}_labels": labels[s] for p, s in parts.items()})
        return root / "x.npz"
    return root


def classified(root: Path, classes: tuple[str, ...] = KINDS) -> tuple[Request, float]:
    options = CompressOptions(target="reference", pipeline=pipeline(classes, "classification"), input_shape=(1, 16, 16))
    found = read_request(ByValue(len(classes), maps=False), root, options)
    truth, decided = [], []
    for case in found.cohort.cases:
        truth.append(case.label)
        image = torch.from_numpy(found.cohort.image(case).array[None].astype(np.float32))
        decided.append(int(found.loaded.network(image).argmax()))
    return found, f1_score(truth, decided, average="macro")


@pytest.mark.parametrize("layout", ["class_folders", "manifest"])
@pytest.mark.parametrize("names", [KINDS, ("Glioma", "MENINGIOMA", "no_tumour"), ("glioma", "meningioma", "No-Tumour")])
def test_classes_of_images_are_matched_by_name(tmp_path, layout, names):
    order = ("no tumour", "glioma", "meningioma")  # not that of the characters

    class Reordered(ByValue):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, [2, 0, 1]]

    root = class_cohort(tmp_path, layout, names)
    options = CompressOptions(target="reference", pipeline=pipeline(order, "classification"), input_shape=(1, 16, 16))
    found = read_request(Reordered(3, maps=False), root, options)
    for case in found.cohort.cases:
        image = found.cohort.image(case).array[None].astype(np.float32)
        assert int(found.loaded.network(torch.from_numpy(image)).argmax()) == case.label
    batches = TrainingBatches(found.cohort, found.cohort.train, found.pipeline, batch=1, augment=False, labelled=True)
    for x, y in batches:
        assert int(found.loaded.network(x).argmax()) == int(y)
    assert names[2][0] == "N" or any("0 → 1 (glioma)" in note for note in found.cohort.notes)


@pytest.mark.parametrize("layout", ["class_folders", "manifest"])
def test_other_classes_of_images_are_an_error(tmp_path, layout):
    with pytest.raises(LabelError, match=r"0 adenoma, 1 glioma, 2 meningioma; .* 0 glioma, 1 meningioma, 2 no tumour"):
        classified(class_cohort(tmp_path, layout, ("glioma", "meningioma", "adenoma")))


def test_numbers_beyond_the_network_are_an_error(tmp_path):
    with pytest.raises(LabelError, match="the network has 0 glioma, 1 meningioma, 2 no tumour"):
        classified(class_cohort(tmp_path, "medmnist", ("1", "2", "3")))


@pytest.mark.parametrize("layout", ["medmnist", "manifest"])
def test_numbers_are_taken_as_numbers_and_that_is_said(tmp_path, layout):
    found, f1 = classified(class_cohort(tmp_path, layout, ("0", "1", "2")))
    assert f1 == 1
    assert any("0 is glioma, 1 is meningioma, 2 is no tumour" in note for note in found.cohort.notes)


@pytest.mark.parametrize(
    ("cohort", "network", "unnamed", "background", "numbers"),
    [
        (("bg", "left kidney"), ("background", "Left_Kidney"), (), True, {0: 0, 1: 1}),
        (("background", "foreground"), ("background", "spot"), (0, 1), True, {0: 0, 1: 1}),
        (("background", "foreground"), ("background", "a", "b"), (0, 1), True, {0: 0, 1: 1, 2: 2}),
        (("background", "lesion"), ("background", "foreground"), (), True, {0: 0, 1: 1}),
        (
            ("background", "label 1", "label 2"),
            ("background", "label 2", "label 1"),
            (0, 1, 2),
            True,
            {0: 0, 1: 2, 2: 1},
        ),
        (("background", "a", "b"), ("background", "class_1", "class_2"), (), True, {0: 0, 1: 1, 2: 2}),
        (("background", "label 1", "b"), ("background", "class 1", "class 2"), (1,), True, {0: 0, 2: 2, 1: 1}),
        (("liver", "background"), ("background", "liver"), (), True, {0: 1, 1: 0}),
        (("HER2-", "HER2+"), ("HER2+", "HER2-"), (), False, {0: 1, 1: 0}),
        (("grade 1-2", "grade 12"), ("grade 12", "grade 1-2"), (), False, {0: 1, 1: 0}),
        (("10", "2"), ("2", "10"), (), False, {0: 1, 1: 0}),
        (("1", "2"), ("dark", "light"), (), False, {0: 0, 1: 1}),
    ],
)
def test_match(cohort, network, unnamed, background, numbers):
    assert match_classes(cohort, network, unnamed=unnamed, background=background).numbers == numbers


@pytest.mark.parametrize(
    ("cohort", "network", "background"),
    [
        (("background", "lesion"), ("background", "spot"), True),
        (("background", "kidney", "Kidney "), ("background", "KIDNEY", "kidney_"), True),
        (("1", "2", "3"), ("0", "1", "2"), False),
        (("cat", "dog"), ("cat", "cow"), False),
    ],
)
def test_no_match(cohort, network, background):
    with pytest.raises(LabelError, match=r"the cohort has .* the network has"):
        match_classes(cohort, network, background=background)
