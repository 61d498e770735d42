"""References that are numbers: in one cell, in columns of their own, and matched with what a network gives."""

from dataclasses import replace
from pathlib import Path

import pytest
from cohort_files import manifest

from microtome.errors import LabelError, MicrotomeError
from microtome.medical.cohort import Cohort, load_cohort
from microtome.medical.column_names import columns_matched


def labels(cohort: Cohort) -> dict[str, object]:
    return {cohort.key[case.id]: case.label for case in cohort.cases}


def test_findings_stand_in_one_cell_or_each_in_a_column(tmp_path: Path) -> None:
    one = load_cohort(
        manifest(tmp_path / "a", ["image,findings", "0.png,1;0;1", "1.png,0;;1", "2.png,", "3.png,0;0;0"])
    )
    assert (one.task, one.classes) == ("multi-label", ("findings 1", "findings 2", "findings 3"))
    assert labels(one) == {"0.png": (1.0, 0.0, 1.0), "1.png": (0.0, None, 1.0), "3.png": (0.0, 0.0, 0.0)}
    assert "1 line without findings left out." in one.notes
    lines = ["image,findings:nodule,Finding:oedema,site", "0.png,1,0,A", "1.png,,1.0,B", "2.png,0,0,A"]
    each = load_cohort(manifest(tmp_path / "b", lines))
    assert each.classes == ("nodule", "oedema")
    assert labels(each)["1.png"] == (None, 1.0)
    assert {case.subgroups["site"] for case in each.cases} == {"A", "B"}


def test_a_value_is_a_number_or_several(tmp_path: Path) -> None:
    cohort = load_cohort(manifest(tmp_path, ["image,value", "0.png,61.5", "1.png,-3e1", "2.png,40"]))
    assert (cohort.task, cohort.classes) == ("regression", ("value",))
    assert labels(cohort)["1.png"] == (-30.0,)
    pairs = load_cohort(manifest(tmp_path, ["image,value:x,value:y", "0.png,1,2", "1.png,3,4", "2.png,5,6"]))
    assert labels(pairs)["2.png"] == (5.0, 6.0)


def test_columns_called_after_what_the_network_gives_are_its_references(tmp_path: Path) -> None:
    path = manifest(tmp_path, ["image,age,sex", "0.png,61.5,f", "1.png,30,m", "2.png,,m", "3.png,40,f"])
    cohort = load_cohort(path, columns=("regression", ("Age",)))
    assert (cohort.task, cohort.classes) == ("regression", ("age",))
    assert labels(cohort) == {"0.png": (61.5,), "1.png": (30.0,), "2.png": None, "3.png": (40.0,)}
    assert cohort.cases[0].subgroups.keys() == {"sex"}
    assert load_cohort(path).task == "segmentation"  # nothing says that a column is a reference


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ["image,findings", "0.png,1;0", "1.png,2;0"],
            "has '2' in the column findings, which is neither 0 nor 1",
        ),
        (["image,findings:a", "0.png,1", "1.png,-1"], "has '-1' in the column findings:a, which is neither 0 nor 1"),
        (
            ["image,findings", "0.png,1;0", "1.png,1;0;1"],
            "has 3 numbers in the column findings, and .*line 2 has 2",
        ),
        (["image,value", "0.png,61", "1.png,old"], "line 3, has 'old' in the column value, which is no number"),
        (["image,value", "0.png,61", "1.png,nan"], "has 'nan' in the column value, which is no number"),
        (["image,value,value:x", "0.png,61,1"], "has a column 'value' and columns of its parts"),
    ],
)
def test_what_is_no_such_number_is_refused_with_its_place(tmp_path: Path, lines: list[str], reason: str) -> None:
    with pytest.raises(MicrotomeError, match=reason):
        load_cohort(manifest(tmp_path, lines))


def test_a_column_of_the_network_that_holds_text_is_refused(tmp_path: Path) -> None:
    path = manifest(tmp_path, ["image,age", "0.png,61.5", "1.png,old", "2.png,1"])
    with pytest.raises(LabelError, match=r"the line of 1\.png, has 'old' in the column age, which is no number"):
        load_cohort(path, columns=("regression", ("age",)))


def test_columns_are_matched_by_name_or_else_by_place(tmp_path: Path) -> None:
    lines = ["image,findings:Pleural Effusion,findings:nodule", "0.png,1,0", "1.png,0,1", "2.png,0,0"]
    cohort = load_cohort(manifest(tmp_path, lines))
    found = columns_matched(cohort, ("nodule", "mass", "pleural_effusion"), "finding")
    assert labels(found)["0.png"] == (0.0, None, 1.0)
    assert "The cohort has no finding mass, which the network knows." in found.notes
    fewer = columns_matched(cohort, ("nodule",), "finding")
    assert labels(fewer)["1.png"] == (1.0,)
    assert "The network has no finding Pleural Effusion: that column was passed over." in fewer.notes
    with pytest.raises(LabelError, match="columns for Pleural Effusion, nodule, and the network gives mass"):
        columns_matched(cohort, ("mass",), "finding")
    unnamed = replace(cohort, classes=("findings 1", "findings 2"), unnamed=frozenset({0, 1}))
    assert labels(columns_matched(unnamed, ("a", "b"), "finding"))["0.png"] == (1.0, 0.0)
    with pytest.raises(LabelError, match=r"2 numbers for each case, and the network 3 \(a, b, c\)"):
        columns_matched(unnamed, ("a", "b", "c"), "finding")
