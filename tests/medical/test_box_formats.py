"""Boxes as COCO, MONAI and tables have them; boxes that are none, or lie outside of their images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cohort_files import picture, volume

from microtome.errors import DataError, LabelError, MicrotomeError
from microtome.medical.cohort import Cohort, load_cohort
from microtome.medical.reference_boxes import boxes_on
from microtome.types import Boxes, Image


def coco(folder: Path, *, name: str = "boxes.json", **changes: object) -> Path:
    for k in range(6):
        picture(folder / "images" / f"p{k}.png", size=(20, 30))
    content: dict = {
        "images": [{"id": 10 + k, "file_name": f"p{k}.png", "height": 20, "width": 30} for k in range(6)],
        "categories": [{"id": 7, "name": "mass"}, {"id": 3, "name": "nodule"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "bbox": [4, 2, 10, 5]},
            {"id": 2, "image_id": 10, "category_id": 3, "bbox": [0, 0, 3, 3]},
            {"id": 3, "image_id": 12, "category_id": 3, "bbox": [0, 0, 3, 3], "iscrowd": 1},
        ],
        **changes,
    }
    (folder / name).write_text(json.dumps(content))
    return folder


def boxes_of(cohort: Cohort) -> dict[str, Boxes]:
    return {Path(cohort.key[case.id]).name: case.boxes for case in cohort.cases}


def test_coco_has_x_before_y_and_images_without_boxes(tmp_path: Path) -> None:
    cohort = load_cohort(coco(tmp_path))
    assert (cohort.format, cohort.task, cohort.classes) == ("boxes", "detection", ("nodule", "mass"))
    found = boxes_of(cohort)
    assert found["p0.png"] == Boxes((1, 0), ((2.0, 4.0, 7.0, 14.0), (0.0, 0.0, 3.0, 3.0)))
    assert found["p1.png"] == Boxes((), ())
    assert cohort.labelled
    assert "1 box of crowds left out." in cohort.notes


def test_files_named_after_their_part_are_the_split(tmp_path: Path) -> None:
    for name, first in (("instances_train2017.json", 0), ("val.json", 2), ("test.json", 4)):
        images = [{"id": k, "file_name": f"p{k}.png"} for k in (first, first + 1)]
        coco(tmp_path, name=name, images=images, annotations=[])
    cohort = load_cohort(tmp_path)
    assert [len(cases) for cases in (cohort.train, cohort.tuning, cohort.evaluation)] == [2, 2, 2]
    assert not cohort.drawn


def test_monais_lists_are_centres_and_sizes_in_millimetres(tmp_path: Path) -> None:
    for k in range(4):
        volume(tmp_path / f"v{k}.nii.gz")
    entries = [{"image": f"v{k}.nii.gz", "box": [[-1.5, -2.0, 2.5, 1, 2, 3]], "label": [0]} for k in range(4)]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries[:2], "validation": entries[2:]}))
    cohort = load_cohort(tmp_path)
    case = cohort.cases[0]
    assert case.boxes.frame == "lps"
    # the affine is the identity: RAS (1.5, 2, 2.5) is the middle of voxels that end at 2, 2.5 and 3
    assert boxes_on(case.boxes, cohort.image(case), "v") == pytest.approx(np.array([[0, 1.5, 1.5, 1.5, 2.5, 3.5, 4.5]]))
    assert any("centres and sizes in mm" in note for note in cohort.notes)


def test_a_table_has_a_line_per_box(tmp_path: Path) -> None:
    for k in range(4):
        picture(tmp_path / f"p{k}.png", size=(20, 30))
    lines = ["image,patient,x_min,y_min,x_max,y_max,class,site"]
    lines += ["p0.png,a,4,2,14,7,mass,A", "p0.png,a,0,0,3,3,nodule,A", "p1.png,b,,,,,,B"]
    lines += ["p2.png,c,1,1,2,2,mass,A", "p3.png,d,1,1,2,2,mass,B"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    cohort = load_cohort(tmp_path)
    assert (cohort.format, cohort.classes) == ("boxes", ("mass", "nodule"))
    assert boxes_of(cohort)["p0.png"] == Boxes((0, 1), ((2.0, 4.0, 7.0, 14.0), (0.0, 0.0, 3.0, 3.0)))
    assert boxes_of(cohort)["p1.png"].labels == ()
    assert {case.subgroups["site"] for case in cohort.cases} == {"A", "B"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"annotations": [{"id": 4, "image_id": 10, "category_id": 7, "bbox": [25, 2, 10, 5]}]},
         r"the annotation 4 has a box outside of its image: it goes to \(35, 7\), and the image is 30×20"),
        ({"annotations": [{"id": 4, "image_id": 10, "category_id": 7, "bbox": [25, 2, 10]}]}, "which is not 4 numbers"),
        ({"annotations": [{"id": 4, "image_id": 10, "category_id": 7, "bbox": "all"}]}, "which is not 4 numbers"),
        ({"annotations": [{"id": 4, "image_id": 99, "category_id": 7, "bbox": [0, 0, 1, 1]}]}, "that is not there"),
        ({"images": [{"id": 10, "file_name": "gone.png"}], "annotations": []}, "gone.png does not exist"),
        ({"categories": []}, "has no categories"),
    ],
)  # fmt: skip
def test_what_does_not_hold_together_is_refused(tmp_path: Path, changes: dict, reason: str) -> None:
    with pytest.raises(MicrotomeError, match=reason):
        load_cohort(coco(tmp_path, **changes))


@pytest.mark.parametrize(
    ("corners", "reason"),
    [
        (
            (2.0, 4.0, 25.0, 14.0),
            r"a box outside of the image: it goes from \(2, 4\) to \(25, 14\) in voxels",
        ),
        ((2.0, 4.0, 2.0, 14.0), "a box without extent"),
        ((2.0, 4.0, 1.0, 5.0, 6.0, 7.0), "a box of 6 numbers, and 2 axes"),
    ],
)
def test_a_box_that_cannot_be_is_refused_when_its_image_is_read(corners: tuple, reason: str) -> None:
    image = Image(np.zeros((1, 20, 30)))
    assert boxes_on(Boxes((0,), ((2.0, 4.0, 7.0, 14.0),)), image, "p.png").tolist() == [[0, 2, 4, 7, 14]]
    with pytest.raises(LabelError, match=reason):
        boxes_on(Boxes((0,), (corners,)), image, "p.png")
    with pytest.raises(DataError, match="in millimetres"):
        boxes_on(replace(Boxes((0,), ((2.0, 4.0, 7.0, 14.0),)), frame="lps"), image, "p.png")
