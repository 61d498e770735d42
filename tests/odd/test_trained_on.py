"""What a network was trained on is not evaluated, however it is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as Picture

from microtome.errors import OptionError, ReadError, SplitError
from microtome.medical.cohort import Cohort, load_cohort
from microtome.medical.trained_on import without_trained
from microtome.verbs.roles import cohort_notes
from tiny import manifest_cohort, segmentation_cohort, volume_cohort


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return load_cohort(segmentation_cohort(tmp_path_factory.mktemp("pictures"), cases=30), seed=0)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return load_cohort(volume_cohort(tmp_path_factory.mktemp("volumes")), seed=0)


def files(cohort: Cohort, role: str = "evaluation", count: int = 2) -> list[Path]:
    return [case.image[0] for case in cohort.cases if case.role == role][:count]


def evaluated(cohort: Cohort) -> set[Path]:
    return {case.image[0] for case in cohort.evaluation}


def of_patients(cohort: Cohort, paths: list[Path]) -> set[Path]:
    """Return all images of the patients of some images."""
    patients = {case.patient for case in cohort.cases if case.image[0] in paths}
    return {case.image[0] for case in cohort.cases if case.patient in patients}


@pytest.mark.parametrize(
    "line",
    [
        lambda path, root: path.name,
        lambda path, root: path.stem,
        lambda path, root: f'"{path.name}"',
        lambda path, root: path.relative_to(root).as_posix(),
        lambda path, root: "./" + path.relative_to(root).as_posix(),
        lambda path, root: path.relative_to(root).as_posix().replace("/", "\\"),
        lambda path, root: str(path),
    ],
)
def test_a_list_of_names(pictures: Cohort, tmp_path: Path, line: Callable[[Path, Path], str]) -> None:
    trained = files(pictures)
    (tmp_path / "list.txt").write_text(
        "\ufeff# seen in training\n\n" + "\n".join(line(p, pictures.path) for p in trained)
    )
    changed = without_trained(pictures, tmp_path / "list.txt")
    assert evaluated(pictures) - evaluated(changed) == of_patients(pictures, trained)
    assert len(changed.cases) == len(pictures.cases)
    assert "trained on 2 cases of this cohort" in changed.notes[-1]
    assert not any(path.stem in note for path in trained for note in changed.notes)


def test_a_name_that_another_begins_with_is_another(pictures: Cohort, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(files(pictures)[0].stem[:-1])
    with pytest.raises(OptionError, match="names nothing that is in the cohort"):
        without_trained(pictures, tmp_path / "list.txt")


def test_names_that_stand_for_nothing_are_counted(pictures: Cohort, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{files(pictures)[0].name}\nother-hospital-1.png\nother-hospital-2.png\n")
    assert "2 of the names in list.txt stand for no case" in without_trained(pictures, tmp_path / "list.txt").notes[-1]


def test_a_folder_is_compared_by_content(pictures: Cohort, tmp_path: Path) -> None:
    trained = files(pictures)
    (tmp_path / "seen" / "deep").mkdir(parents=True)
    for number, path in enumerate(trained):
        shutil.copy(path, tmp_path / "seen" / "deep" / f"{number}.png")
    other = next(iter(evaluated(pictures) - of_patients(pictures, trained)))
    (tmp_path / "seen" / other.name).write_bytes(trained[0].read_bytes())  # another's name is not another's image
    changed = without_trained(pictures, tmp_path / "seen")
    assert evaluated(pictures) - evaluated(changed) == of_patients(pictures, trained)


def test_folds_of_nnunet(volumes: Cohort, tmp_path: Path) -> None:
    names = [path.name.removesuffix(".nii.gz") for path in files(volumes, count=2)]
    folds = [{"train": [names[0]], "val": [names[1]]}, {"train": [names[1]], "val": [names[0]]}]
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(folds))
    for fold in (0, 1):
        changed = without_trained(volumes, tmp_path / f"splits_final.json#{fold}")
        gone = {file.name.removesuffix(".nii.gz") for file in evaluated(volumes) - evaluated(changed)}
        assert gone == {names[fold]}
    with pytest.raises(OptionError, match=r"2 folds.*splits_final.json#0"):
        without_trained(volumes, path)
    with pytest.raises(OptionError, match="no fold 5"):
        without_trained(volumes, tmp_path / "splits_final.json#5")


def test_a_dataset_json_names_what_is_under_training(volumes: Cohort, tmp_path: Path) -> None:
    first, second = files(volumes)
    content = {
        "training": [{"image": f"./imagesTr/{first.name}", "label": f"./labelsTr/{second.name}"}],
        "test": [f"./imagesTs/{second.name}"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert evaluated(volumes) - evaluated(without_trained(volumes, tmp_path / "dataset.json")) == {first}


def test_a_patient_goes_as_a_whole(tmp_path: Path) -> None:
    cohort = load_cohort(segmentation_cohort(tmp_path / "c", cases=30), seed=0, patient_pattern=r"person(\d)")
    trained = cohort.evaluation[0]
    assert len(of_patients(cohort, list(trained.image))) > 1
    (tmp_path / "list.txt").write_text(trained.image[0].name)
    changed = without_trained(cohort, tmp_path / "list.txt")
    assert not [case for case in changed.cases if case.patient == trained.patient and case.role != "train"]


def test_what_makes_no_sense_is_refused(pictures: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="does not exist"):
        without_trained(pictures, tmp_path / "nowhere.txt")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ReadError, match="cannot be read"):
        without_trained(pictures, tmp_path / "broken.json")
    (tmp_path / "all.txt").write_text("\n".join(case.image[0].name for case in pictures.cases))
    with pytest.raises(SplitError, match="trained on every case"):
        without_trained(pictures, tmp_path / "all.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="names nothing"):
        without_trained(pictures, tmp_path / "empty")


def test_a_draw_asks_what_was_trained_on(pictures: Cohort, tmp_path: Path) -> None:
    assert any("--trained-on" in note for note in cohort_notes(pictures))
    (tmp_path / "list.txt").write_text(files(pictures)[0].name)
    assert not any("--trained-on" in note for note in cohort_notes(without_trained(pictures, tmp_path / "list.txt")))
    official = load_cohort(manifest_cohort(tmp_path / "official"), seed=0)
    everything = load_cohort(pictures.path, evaluation=1.0, tuning=0.0)
    assert not any("--trained-on" in note for note in (*cohort_notes(official), *cohort_notes(everything)))


def test_another_encoding_is_the_same_image(pictures: Cohort, tmp_path: Path) -> None:
    trained = files(pictures, count=1)
    (tmp_path / "seen").mkdir()
    with Picture.open(trained[0]) as picture:
        picture.save(tmp_path / "seen" / "a.bmp")
    changed = without_trained(pictures, tmp_path / "seen")
    assert evaluated(pictures) - evaluated(changed) == of_patients(pictures, trained)
