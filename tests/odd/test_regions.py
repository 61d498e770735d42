"""Sigmoid channels that overlap: a tumour, its core and what enhances in it, as in BraTS."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

import microtome
from microtome.clinical.overlap import dice
from microtome.errors import DataError, OptionError
from microtome.evidence.comparison import Pair, evaluate_pair, streamed
from microtome.medical.cohort import load_cohort
from microtome.medical.infer import finish_segmentation
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.regions import code_type, codes, label_map, masks_of_codes, masks_of_labels
from microtome.medical.stream import segment_streamed
from microtome.models.bundles.declared import Declared
from microtome.models.bundles.translate import translate
from microtome.tasks import task
from microtome.tasks.guess import default_pipeline
from microtome.types import Array, Image
from microtome.verbs.options import CompressOptions
from sharing import Once

SIZE = 16
COUNTS = {1: 2156, 2: 799, 3: 115}
REGIONS = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
NESTED = Pipeline(
    "segmentation",
    ("background", "whole", "core", "enhancing"),
    spatial_dims=3,
    orientation="RAS",
    activation="sigmoid",
    regions=REGIONS,
)


def labelled(seed: int) -> Array:
    """A label map of these very counts, without any shape."""
    rest = SIZE**3 - sum(COUNTS.values())
    values = np.repeat(np.array([0, *COUNTS], np.uint8), [rest, *COUNTS.values()])
    return np.random.default_rng(seed).permutation(values).reshape(SIZE, SIZE, SIZE)


class Nested(nn.Module):
    """Channel k is above the threshold where the image is above k + 0.5; in another order of channels if asked."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2), shift: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 1)
        with torch.no_grad():
            self.conv.weight.fill_(20.0)
            self.conv.bias.copy_(torch.tensor([-20.0 * (k + 0.5 + shift) for k in order]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)

    def run(self, x: Array) -> Array:
        with torch.no_grad():
            return self.forward(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def cohort_of(folder: Path, labels: dict[str, Any], *, cases: int = 8, **more: Any) -> Path:
    """An nnU-Net folder of volumes whose values are their labels."""
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for i in range(cases):
        mask = labelled(i)
        nibabel.save(nibabel.Nifti1Image(mask.astype(np.float32), np.eye(4)), folder / f"imagesTr/c{i}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / f"labelsTr/c{i}.nii.gz")
    content = {"channel_names": {"0": "T1"}, "labels": labels, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


NNUNET = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


def counts(labels: Array) -> dict[int, int]:
    return {k: int((labels == k).sum()) for k in COUNTS}


def image_of(labels: Array) -> Image:
    return Image(labels[None].astype(np.float32), np.eye(4))


@pytest.mark.parametrize(
    "more", [{}, {"patch": (8, 8, 8)}, {"spacing": (2.0, 1.0, 1.0)}, {"patch": (8, 16, 16), "mirror": (0,)}]
)
def test_no_voxel_of_an_inner_region_is_lost(more: dict[str, Any]) -> None:
    labels, pipeline = labelled(0), replace(NESTED, **more)
    prepared = prepare(image_of(labels), pipeline)
    masks = segment_streamed(streamed(Nested().run), prepared, pipeline)
    assert (masks.dtype, masks.shape) == (np.bool_, (3, SIZE, SIZE, SIZE))
    if "spacing" not in more:
        for mask, numbers in zip(masks, REGIONS.values(), strict=True):
            np.testing.assert_array_equal(mask, np.isin(labels, numbers))
        assert counts(label_map(masks, pipeline)) == COUNTS
    if not pipeline.patch:
        scores = Nested().run(prepared.array[None])[0]
        np.testing.assert_array_equal(finish_segmentation(scores, prepared, pipeline), masks)


def test_without_regions_channels_exclude_one_another_as_before() -> None:
    labels, pipeline = labelled(0), replace(NESTED, regions=None)
    found = segment_streamed(streamed(Nested().run), prepare(image_of(labels), pipeline), pipeline)
    assert counts(found) == {1: 3070, 2: 0, 3: 0}


@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
def test_pictures_too(size: tuple[int, int]) -> None:
    pipeline = Pipeline("segmentation", NESTED.classes, activation="sigmoid", regions=REGIONS, size=size)
    labels = np.zeros((16, 16), np.uint8)
    labels[2:14, 2:14], labels[4:12, 4:12], labels[6:10, 6:10] = 1, 2, 3
    prepared = prepare(Image(labels[None].astype(np.float32)), pipeline)
    scores = np.stack([20 * (prepared.array[0] - k - 0.5) for k in range(3)])
    masks = finish_segmentation(scores, prepared, pipeline)
    streamed_too = segment_streamed(lambda batches: (scores[None] for _ in batches), prepared, pipeline)
    np.testing.assert_array_equal(masks, streamed_too)
    if size == (16, 16):
        np.testing.assert_array_equal(label_map(masks, pipeline), labels)
    assert masks.sum(axis=(1, 2)).tolist() == sorted(masks.sum(axis=(1, 2)).tolist(), reverse=True)
    assert (masks[0] >= masks[1]).all()


def test_the_order_of_channels_is_not_that_of_writing() -> None:
    """MONAI's BraTS networks return core, whole, enhancing."""
    labels = labelled(1)
    pipeline = replace(NESTED, regions={"core": (2, 3), "whole": (1, 2, 3), "enhancing": (3,)})
    masks = segment_streamed(streamed(Nested((1, 0, 2)).run), prepare(image_of(labels), pipeline), pipeline)
    np.testing.assert_array_equal(label_map(masks, pipeline), labels)


@pytest.mark.parametrize(
    ("regions", "order", "writing"),
    [
        (REGIONS, None, ((0, 1), (1, 2), (2, 3))),
        ({"whole": (1, 2, 3), "core": (1, 3), "enhancing": (3,)}, (2, 1, 3), ((0, 2), (1, 1), (2, 3))),
        ({"whole": (1, 2, 3), "core": (1, 3), "enhancing": (3,)}, None, ((0, 2), (1, 1), (2, 3))),
        ({"core": (2, 3), "whole": (1, 2, 3), "et": (3,)}, None, ((1, 1), (0, 2), (2, 3))),
        ({"core": (2, 3), "whole": (1, 2, 3), "et": (3,)}, ("whole", "core", "et"), ((1, 1), (0, 2), (2, 3))),
        ({"a": (1, 2), "b": (2, 3)}, None, ((0, 1), (1, 3))),
        ({"a": (1, 2), "b": (2, 3)}, ("b", "a"), ((1, 3), (0, 1))),
        ({"all": (1, 2, 3)}, None, ((0, 1),)),
        ({"all": (1, 2, 3)}, (2,), ((0, 2),)),
    ],
)
def test_what_is_written_where(regions: Any, order: Any, writing: Any) -> None:
    assert replace(NESTED, regions=regions, regions_order=order).writing == writing


def test_later_regions_win() -> None:
    pipeline = replace(NESTED, regions={"a": (1, 2), "b": (2, 3)})
    masks = np.array([[True, True, False, False], [False, True, True, False]])
    assert label_map(masks, pipeline).tolist() == [1, 3, 3, 0]
    assert label_map(masks, replace(pipeline, regions_order=("b", "a"))).tolist() == [1, 1, 3, 0]
    assert label_map(masks, replace(pipeline, regions_order=(2, 3))).tolist() == [2, 3, 3, 0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"activation": "softmax"}, "'softmax' excludes that"),
        ({"regions": {"whole": (1, 2, 4)}}, "numbers of 1 to 3"),
        ({"regions": {"whole": (0, 1)}}, "numbers of 1 to 3"),
        ({"regions": {"whole": (1, 1)}}, "numbers of 1 to 3"),
        ({"regions": {"whole": ()}}, "numbers of 1 to 3"),
        ({"regions": {}}, "must hold 1 to 64"),
        ({"regions": {"whole": "1"}}, "'regions' must be"),
        ({"regions": {"whole": (1, 2), "same": (1, 2)}}, "every label of the region 'whole' is overwritten"),
        ({"regions_order": ("whole", "core")}, "must name each of whole, core, enhancing once"),
        ({"regions_order": (1, 2)}, "or give each a label"),
        ({"regions_order": (1, 1, 3)}, "writes 1 for the region 'core'"),
        ({"regions_order": ("enhancing", "core", "whole")}, "every label of the region 'enhancing' is overwritten"),
        ({"regions": None, "regions_order": (1, 2, 3)}, "goes only with 'regions'"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        replace(NESTED, **fields)


def test_a_pipeline_file_keeps_regions_and_their_order() -> None:
    declared = json.loads(NESTED.to_json())
    declared |= {"regions": {"core": [2, 3], "whole": [1, 2, 3], "enhancing": 3}, "regions_order": [2, 1, 3]}
    with pytest.raises(OptionError, match="writes 1 for the region 'core'"):
        Pipeline.from_json(json.dumps(declared | {"regions_order": [1, 2, 3]}))
    read = Pipeline.from_json(json.dumps(declared))
    assert list((read.regions or {}).items()) == [("core", (2, 3)), ("whole", (1, 2, 3)), ("enhancing", (3,))]
    assert Pipeline.from_json(read.to_json()) == read


@pytest.mark.parametrize("count", [1, 8, 9, 33, 64])
def test_codes_hold_every_region(count: int) -> None:
    masks = np.random.default_rng(count).random((count, 5, 6)) > 0.5
    found = codes(masks.astype(np.float32), 0.5, code_type(count))
    np.testing.assert_array_equal(masks_of_codes(found, count), masks)


def test_a_reference_has_the_labels_of_each_region() -> None:
    labels = labelled(3)
    for mask, numbers in zip(masks_of_labels(labels, REGIONS), REGIONS.values(), strict=True):
        np.testing.assert_array_equal(mask, np.isin(labels, numbers))


def test_channels_that_do_not_fit_are_refused() -> None:
    prepared = prepare(image_of(labelled(0)), NESTED)
    with pytest.raises(DataError, match="2 output channels, and there are 3 regions"):
        finish_segmentation(np.zeros((2, SIZE, SIZE, SIZE), np.float32), prepared, NESTED)
    assert task("segmentation").outputs(NESTED) == {3}


def test_every_region_has_its_own_metrics(tmp_path: Path) -> None:
    folder = cohort_of(tmp_path / "c", NNUNET, cases=6, regions_class_order=[1, 2, 3])
    cohort = load_cohort(folder, seed=0, evaluation=1.0)
    pair = Pair(streamed(Nested().run), streamed(Nested(shift=0.9).run))  # each region is taken for the next one
    parts = evaluate_pair(pair, cohort, NESTED).parts
    parent = {name: entry["value"] for name, entry in parts["parent"]["metrics"].items()}
    assert {f"dice/{name}" for name in REGIONS} < parent.keys()
    assert parent["dice/whole"] == parent["dice/core"] == parent["dice/enhancing"] == 1
    labels, moved = labelled(0), np.maximum(labelled(0).astype(int) - 1, 0)
    for name, numbers in REGIONS.items():
        ours, theirs = np.isin(moved, numbers), np.isin(labels, numbers)
        expected = dice(ours.astype(np.uint8), theirs.astype(np.uint8))
        assert parts["compressed"]["metrics"][f"dice/{name}"]["value"] == pytest.approx(expected)
    assert parts["agreement"]["value"] == pytest.approx((SIZE**3 - 3070) / SIZE**3)
    assert parts["verdict"]["non_inferior"] is False


def test_regions_of_a_cohort_are_read(tmp_path: Path) -> None:
    cohort = load_cohort(cohort_of(tmp_path / "a", NNUNET, cases=4, regions_class_order=[1, 2, 3]), seed=0)
    assert cohort.classes == ("background", "whole", "core", "enhancing")
    assert cohort.regions == REGIONS
    pipeline = default_pipeline(cohort, outputs=3)
    assert (pipeline.regions, pipeline.regions_order, pipeline.activation) == (REGIONS, (1, 2, 3), "sigmoid")
    assert default_pipeline(cohort, outputs=4).regions is None
    brats = {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": [3], "ignore": 4}
    cohort = load_cohort(cohort_of(tmp_path / "b", brats, cases=4, regions_class_order=[2, 1, 3]), seed=0)
    assert cohort.classes == ("background", "core", "whole", "enhancing")
    assert list(cohort.regions or {}) == ["whole", "core", "enhancing"]
    with pytest.raises(DataError, match="not single numbers"):
        load_cohort(cohort_of(tmp_path / "e", NNUNET, cases=4), seed=0)
    plain = load_cohort(cohort_of(tmp_path / "d", {"background": 0, "a": 1, "b": 2, "c": 3}, cases=4), seed=0)
    assert plain.regions is None


def test_regions_of_other_layouts_are_read(tmp_path: Path) -> None:
    folder = cohort_of(tmp_path / "c", NNUNET, cases=4, regions_class_order=[1, 2, 3])
    (folder / "imagesTr").rename(folder / "images")
    (folder / "labelsTr").rename(folder / "masks")
    for file in (folder / "images").iterdir():
        file.rename(file.with_name(file.name.replace("_0000", "")))
    assert load_cohort(folder).format == "image_masks"
    assert load_cohort(folder).regions == REGIONS
    lines = [f"images/c{i}.nii.gz,masks/c{i}.nii.gz" for i in range(4)]
    (folder / "cohort.csv").write_text("\n".join(["image,mask", *lines]))
    assert load_cohort(folder / "cohort.csv").regions == REGIONS


@pytest.mark.parametrize("order", [[1, 2], [1, 1, 3], "123", [1, 2, 4]])
def test_an_order_that_does_not_fit_is_refused(tmp_path: Path, order: Any) -> None:
    with pytest.raises(DataError, match="regions_class_order"):
        load_cohort(cohort_of(tmp_path / "c", NNUNET, cases=4, regions_class_order=order), seed=0)


@pytest.fixture(scope="module")
def made(once: Once) -> Path:
    """A package of the nested network, and its cohort."""

    def make(folder: Path) -> None:
        cohort = cohort_of(folder / "cohort", NNUNET, cases=10, regions_class_order=[1, 2, 3])
        options = CompressOptions(
            pipeline=NESTED, input_shape=(1, SIZE, SIZE, SIZE), recipe="f32", threads=1, evaluation=0.5, tuning=0.0
        )
        microtome.compress(Nested(), cohort, folder / "package", options=options)

    return once("regions", make)


def test_compress_and_evaluate_keep_every_voxel(made: Path) -> None:
    result = json.loads((made / "package" / "result.json").read_text())
    for side in ("parent", "compressed"):
        for name in REGIONS:
            assert result[side]["metrics"][f"dice/{name}"]["value"] == 1
    assert result["verdict"]["non_inferior"] is True
    assert "Dice" in (made / "package" / "report.html").read_text()
    assert "whole: 1, 2, 3; core: 2, 3; enhancing: 3" in (made / "package" / "MODEL_CARD.md").read_text()


def test_predict_writes_one_label_map_of_these_counts(made: Path, tmp_path: Path) -> None:
    microtome.predict(made / "package", [made / "cohort" / "imagesTr"], tmp_path / "out")
    for i in range(10):
        (file,) = (tmp_path / "out").glob(f"c{i}*.nii.gz")
        found = np.asarray(nibabel.load(file).dataobj)
        assert counts(found) == COUNTS
        np.testing.assert_array_equal(found, labelled(i))


def test_an_opened_package_gives_masks_and_the_label_map(made: Path) -> None:
    package = microtome.open_package(made / "package")
    masks = package.predict(image_of(labelled(7)))
    assert masks.sum(axis=(1, 2, 3)).tolist() == [3070, 914, 115]
    np.testing.assert_array_equal(package.label_map(masks), labelled(7))


def test_overlap_that_nobody_declared_is_said(made: Path, tmp_path: Path) -> None:
    options = CompressOptions(
        pipeline=replace(NESTED, regions=None), input_shape=(1, SIZE, SIZE, SIZE), threads=1, target="reference"
    )
    (tmp_path / "n.py").write_text("import test_regions\n\ndef make():\n    return test_regions.Nested()\n")
    plain = cohort_of(tmp_path / "c", {"background": 0, "whole": 1, "core": 2, "enhancing": 3}, cases=3)
    options = replace(options, evaluation=1.0, tuning=0.0)
    result = microtome.evaluate(f"{tmp_path}/n.py:make", plain, tmp_path / "out", options=options)
    assert any("more than one channel is above the threshold" in note for note in result["notes"])


def test_a_bundle_for_brats_says_what_its_channels_mean() -> None:
    """The labels are those of MONAI's own transform."""
    transforms = pytest.importorskip("monai.transforms")
    names = {"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"}
    post = {
        "transforms": [{"_target_": "Activationsd", "sigmoid": True}, {"_target_": "AsDiscreted", "threshold": 0.5}]
    }
    label = {"_target_": "ConvertToMultiChannelBasedOnBratsClassesd", "keys": "label"}
    image = {"spatial_shape": ["8*n"] * 3, "num_channels": 1}
    prediction = {"spatial_shape": ["8*n"] * 3, "format": "segmentation", "channel_def": names}
    config = {"preprocessing": {"transforms": [label]}, "postprocessing": post}
    made = translate(Declared(config, image, prediction))
    pipeline = made.pipeline
    assert pipeline is not None
    assert made.notes == ()
    labels = np.random.default_rng(0).choice([0, 1, 2, 4], size=(1, 4, 5, 6)).astype(np.uint8)
    expected = np.asarray(transforms.ConvertToMultiChannelBasedOnBratsClasses()(torch.from_numpy(labels)))
    np.testing.assert_array_equal(masks_of_labels(labels[0], pipeline.regions or {}), expected.astype(bool))
    np.testing.assert_array_equal(label_map(expected.astype(bool), pipeline), labels[0])
    undeclared = Declared({"preprocessing": {"transforms": []}, "postprocessing": post}, image, prediction)
    assert "may overlap" in translate(undeclared).notes[0]
