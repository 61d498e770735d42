"""Mutated tables: a few hundred here, thousands by `python tests/odd/fuzz_tables.py --mutations 6000`."""

import json

import pytest
from folders import dataset_json, mask, picture, volume
from fuzz_tables import run

from microtome.errors import DataError, LabelError, ReadError
from microtome.medical.cohort import load_cohort


def test_nothing_but_our_errors_comes_out():
    outcome = run(400, seed=1)
    assert outcome.faults == []
    assert outcome.kinds["read"] > 20
    assert outcome.kinds.total() - outcome.kinds["read"] > 100


def read_all(cohort):
    for case in cohort.cases:
        cohort.image(case)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", DataError),
        (b"image", DataError),
        (b"image\n", DataError),
        (b"image,mask\n0.png,\0\n", ReadError),
        (b"image,mask\n" + b"x" * 5000 + b",m0.png\n", ReadError),
        (b"image,mask\n0.png," + b"/x" * 3000 + b"\n", ReadError),
        (b'image,mask\n"0.png,m0.png\n', ReadError),
        (b"image,mask\n0.png,m0.png,extra\n", DataError),
        (b"image,label\n0.png,99999999999999999999\n1.png,1\n", LabelError),
        (b"image,label\n0.png,999999999999999999999999999999999999\n1.png,1\n", LabelError),
        ("image,label\n0.png,²\n1.png,²\n".encode(), LabelError),
        (b"\xff\xfe\x00", ReadError),
        (b"image" * 50000 + b"\n", DataError),
        (b"image,mask\n;;,m0.png\n", DataError),
        (b"image\n/\n.\n\\\n..\n", DataError),
    ],
)
def test_manifests(tmp_path, content, error):
    for k in range(4):
        picture(tmp_path / f"{k}.png", k)
        mask(tmp_path / f"m{k}.png")
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(error):
        read_all(load_cohort(tmp_path / "x.csv"))


@pytest.mark.parametrize(
    "labels",
    [
        None,
        1,
        "background",
        [],
        {},
        ["background"],
        ["background", 1],
        {"0": "background", "1": None},
        {"0": "background", "1": ["a"]},
        {"background": 0, "a": 0.5},
        {"background": 0, "a": True},
        {"background": 0, "a": [1, 2]},
        {"background": 0, "a": 10**12},
        {"background": 0, "a": -1},
        {"background": 0, "a": 0},
        {"0": "background", "²": "a"},
        {"0": "background", "00": "a", "1": "b"},
        {"1": "a", "2": "b"},
    ],
)
def test_labels_of_dataset_json(tmp_path, labels):
    for k in range(4):
        volume(tmp_path / "imagesTr" / f"{k}.nii.gz", k)
        volume(tmp_path / "labelsTr" / f"{k}.nii.gz")
    dataset_json(tmp_path, labels=labels)
    with pytest.raises(DataError, match=r"dataset\.json"):
        load_cohort(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", "nul", "[" * 100_000, '{"labels": NaN}', "\ufeff{}"])
def test_no_dataset_json(tmp_path, content):
    for k in range(4):
        volume(tmp_path / "imagesTr" / f"{k}.nii.gz", k)
        volume(tmp_path / "labelsTr" / f"{k}.nii.gz")
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError):
        load_cohort(tmp_path)


@pytest.mark.parametrize(
    "lists", [None, 1, "x", [1], [None], [{}], [{"image": 1}], [{"image": []}], ["a/\0b"], {"a": 1}]
)
def test_lists_of_dataset_json_that_make_no_sense_are_passed_over(tmp_path, lists):
    for k in range(6):
        volume(tmp_path / "imagesTr" / f"{k}.nii.gz", k)
        volume(tmp_path / "labelsTr" / f"{k}.nii.gz")
    content = {"labels": {"background": 0, "spot": 1}, "training": lists, "validation": lists, "modality": lists}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert len(load_cohort(tmp_path).cases) == 6
