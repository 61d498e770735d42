"""The parts of result.json, worked by hand and against the functions that they rest on."""

import dataclasses
import json
import math

import numpy as np
import pytest

from microtome.clinical.cases import CasePrediction, CaseScores, flatten, flatten_difference
from microtome.clinical.classification import auroc, sensitivity
from microtome.clinical.statistics import bootstrap_mean
from microtome.clinical.summary import summarise_classification, summarise_segmentation
from microtome.errors import DataError, LabelError, OptionError

NAN = math.nan
ROUNDING = 1e-12
NULL = {"value": None, "low": None, "high": None}


def scores(a: float, b: float, *, hd95: float = 2.0) -> dict[str, dict[str, float]]:
    return {"dice": {"a": a, "b": b}, "nsd": {"a": a, "b": b}, "hd95": {"a": hd95, "b": NAN if math.isnan(b) else hd95}}


def segmented(n: int = 12, loss: float = 0.001) -> list[CaseScores]:
    random = np.random.default_rng(0)
    cases = []
    for i in range(n):
        a, b = 0.8 + 0.1 * random.random(2)
        da, db = loss + 0.001 * random.normal(size=2)
        site = {"site": "north" if i else "south", "sex": "f" if i % 2 else "m"}
        cases.append(CaseScores(f"case-{i:04d}", f"p-{i // 2}", scores(a, b), scores(a - da, b - db), 0.99, (), site))
    return cases


def classified(n: int = 60, noise: float = 0.01) -> list[CasePrediction]:
    random = np.random.default_rng(1)
    labels = np.arange(n) % 2
    parent = 1 / (1 + np.exp(-random.normal(size=n) - 2 * (labels - 0.5)))
    compressed = np.clip(parent + noise * random.normal(size=n), 0, 1)
    return [
        CasePrediction(f"c{i}", f"p{i}", (1 - p, p), (1 - q, q), int(y), {"site": "north" if i else "south"})
        for i, (p, q, y) in enumerate(zip(parent, compressed, labels, strict=True))
    ]


def test_flatten_takes_the_mean_over_defined_structures() -> None:
    assert flatten({"dice": {"a": 0.8, "b": NAN, "c": 0.6}}) == pytest.approx(
        {"dice": 0.7, "dice/a": 0.8, "dice/b": NAN, "dice/c": 0.6}, nan_ok=True
    )
    assert math.isnan(flatten({"dice": {"a": NAN}})["dice"])


def test_an_invented_structure_is_a_loss_and_not_left_out() -> None:
    parent, compressed = scores(0.9, NAN), scores(0.9, 0.0, hd95=50.0)
    found = flatten_difference(CaseScores("c", "p", parent, compressed, 1.0, ("b",)))
    assert (found["dice/a"], found["dice/b"], found["dice"]) == (0.0, -1.0, -0.5)
    assert found["hd95/b"] == 50.0
    back = flatten_difference(CaseScores("c", "p", compressed, parent, 1.0, ("b",)))
    assert back["dice"] == 0.5
    neither = flatten_difference(CaseScores("c", "p", parent, parent, 1.0, ("b",)))
    assert math.isnan(neither["dice/b"])
    assert neither["dice"] == 0.0


def test_segmentation_by_hand() -> None:
    cases = [
        CaseScores("c0", "p0", scores(0.8, 0.6), scores(0.7, 0.6), 0.9),
        CaseScores("c1", "p1", scores(0.9, NAN), scores(0.8, NAN), 1.0, ("b",)),
    ]
    found = summarise_segmentation(cases)
    assert found["parent"]["metrics"]["dice"]["value"] == pytest.approx((0.7 + 0.9) / 2)
    assert found["parent"]["metrics"]["dice/b"] == {"value": 0.6, "low": None, "high": None}
    assert found["compressed"]["metrics"]["dice/a"]["value"] == pytest.approx(0.75)
    assert found["difference"]["dice"]["value"] == pytest.approx((-0.05 - 0.1) / 2)
    assert found["difference"]["hd95"]["value"] == 0.0
    assert found["agreement"]["value"] == pytest.approx(0.95)
    assert found["counts"] == {
        "evaluation": 2,
        "patients": 2,
        "empty_reference": {"a": 0, "b": 1},
        "invented": {"a": 0, "b": 0},
    }
    assert found["cases"][1]["parent"]["dice/b"] is None
    assert found["verdict"]["non_inferior"] is None


def test_segmentation_shape_and_intervals() -> None:
    cases = segmented()
    found = summarise_segmentation(cases, seed=3)
    json.dumps(found, allow_nan=False)
    assert set(found) == {
        *("parent", "compressed", "difference", "agreement", "verdict", "operating_point", "subgroups", "counts"),
        "cases",
    }
    expected = bootstrap_mean(
        np.array([flatten(case.parent)["dice"] for case in cases]), [case.patient for case in cases], seed=3
    )
    assert found["parent"]["metrics"]["dice"] == pytest.approx(dataclasses.asdict(expected), abs=ROUNDING)
    assert found["counts"]["patients"] == 6
    assert found["verdict"]["patients"] == 6
    assert found["verdict"]["non_inferior"] is True


def test_subgroups_have_the_same_keys_and_small_ones_no_interval() -> None:
    found = summarise_segmentation(segmented())
    assert set(found["subgroups"]) == {"site", "sex"}
    south, north = (found["subgroups"]["site"][name] for name in ("south", "north"))
    assert (south["cases"], north["cases"]) == (1, 11)
    for part in ("parent", "compressed"):
        assert set(south[part]) == set(found[part]["metrics"])
    assert south["difference"]["dice"]["value"] is not None
    assert south["difference"]["dice"]["low"] is None
    assert north["difference"]["dice"]["low"] is not None


def test_a_collapse_to_background_is_inferior() -> None:
    cases = [dataclasses.replace(case, compressed=scores(0.0, 0.0, hd95=99.0)) for case in segmented()]
    found = summarise_segmentation(cases)
    assert found["verdict"]["non_inferior"] is False


def test_invented_structures_are_counted_and_decide() -> None:
    healthy = [CaseScores(f"c{i}", f"p{i}", scores(0.9, NAN), scores(0.9, NAN), 1.0, ("b",)) for i in range(20)]
    assert summarise_segmentation(healthy)["verdict"]["non_inferior"] is True
    invented = [dataclasses.replace(case, compressed=scores(0.9, 0.0)) for case in healthy]
    found = summarise_segmentation(invented)
    assert found["counts"]["invented"] == {"a": 0, "b": 20}
    assert found["verdict"]["non_inferior"] is False


def test_without_reference_only_the_agreement_is_known() -> None:
    found = summarise_segmentation([CaseScores(f"c{i}", f"p{i}", {}, {}, 0.99) for i in range(6)])
    assert found["parent"]["metrics"] == {}
    assert found["agreement"]["value"] == pytest.approx(0.99)
    assert found["verdict"]["non_inferior"] is None
    assert found["verdict"]["reason"].startswith("No case has a reference label")


@pytest.mark.parametrize("summarise", [lambda c: summarise_segmentation(c, seed=1)])
def test_the_order_of_cases_does_not_matter(summarise) -> None:
    cases = segmented()
    first, second = summarise(cases), summarise(cases[::-1])
    for part in ("parent", "compressed"):
        for name, value in first[part]["metrics"].items():
            assert second[part]["metrics"][name] == pytest.approx(value, abs=ROUNDING)
    for name, value in first["difference"].items():
        assert second["difference"][name] == pytest.approx(value, abs=ROUNDING)


def test_classification() -> None:
    cases = classified()
    found = summarise_classification(cases, threshold=0.4)
    json.dumps(found, allow_nan=False)
    labels = np.array([case.label for case in cases])
    parent, compressed = (np.array([getattr(case, side)[1] for case in cases]) for side in ("parent", "compressed"))
    values = {name: entry["value"] for name, entry in found["parent"]["metrics"].items()}
    assert set(values) == {"auroc", "auprc", "sensitivity", "specificity"}
    assert values["auroc"] == auroc(parent, labels)
    assert values["sensitivity"] == sensitivity(parent, labels, threshold=0.4)
    change = auroc(compressed, labels) - auroc(parent, labels)
    assert found["difference"]["auroc"]["value"] == pytest.approx(change, abs=ROUNDING)
    assert found["difference"]["auroc"]["low"] <= change <= found["difference"]["auroc"]["high"]
    assert found["agreement"]["value"] == pytest.approx(np.mean((parent >= 0.4) == (compressed >= 0.4)))
    assert found["verdict"]["metric"] == "auroc"
    assert found["verdict"]["margin"] == 0.01
    assert found["cases"][3] == {
        "case": "c3",
        "patient": "p3",
        "subgroups": {"site": "north"},
        "label": 1,
        "parent": {"score": list(cases[3].parent)},
        "compressed": {"score": list(cases[3].compressed)},
    }
    assert found["subgroups"]["site"]["south"]["parent"]["auroc"] == NULL


def test_classification_that_did_not_change_is_non_inferior() -> None:
    found = summarise_classification(classified(noise=0.0), threshold=0.5)
    assert found["verdict"]["non_inferior"] is True
    assert found["verdict"]["lower"] == 0.0
    assert found["agreement"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_classification_that_lost_its_meaning_is_inferior() -> None:
    cases = [dataclasses.replace(case, compressed=case.compressed[::-1]) for case in classified()]
    assert summarise_classification(cases, threshold=0.5)["verdict"]["non_inferior"] is False


def test_many_classes_and_unknown_labels() -> None:
    random = np.random.default_rng(0)
    cases = [
        CasePrediction(f"c{i}", f"p{i}", table, table[::-1] if i == 0 else table, None if i == 5 else i % 3)
        for i, table in enumerate(random.dirichlet(np.ones(3), 30).tolist())
    ]
    found = summarise_classification(cases)
    keep = [case for case in cases if case.label is not None]
    expected = auroc(np.array([case.parent for case in keep]), np.array([case.label for case in keep]))
    assert found["parent"]["metrics"]["auroc"]["value"] == pytest.approx(expected, abs=ROUNDING)
    assert found["verdict"]["cases"] == 29
    assert found["counts"]["evaluation"] == 30
    unlabelled = summarise_classification([dataclasses.replace(case, label=None) for case in cases])
    assert unlabelled["parent"]["metrics"] == {}
    assert unlabelled["verdict"]["reason"].startswith("No case has a reference label")


def test_one_class_only_gives_no_verdict() -> None:
    cases = [case for case in classified() if case.label == 1]
    found = summarise_classification(cases, threshold=0.5)
    assert found["parent"]["metrics"]["auroc"] == NULL
    assert found["parent"]["metrics"]["sensitivity"]["value"] is not None
    assert "a class or structure is missing" in found["verdict"]["reason"]


def test_refusals() -> None:
    with pytest.raises(DataError, match="no evaluation cases"):
        summarise_segmentation([])
    with pytest.raises(DataError, match="no evaluation cases"):
        summarise_classification([])
    with pytest.raises(LabelError, match="no metric 'dice/spleen'"):
        summarise_segmentation(segmented(), metric="dice/spleen", margin=0.01)
    with pytest.raises(OptionError, match="no default margin for hd95"):
        summarise_segmentation(segmented(), metric="hd95")
    broken = [dataclasses.replace(classified()[0], compressed=(NAN, NAN)), *classified()[1:]]
    with pytest.raises(DataError, match="not a finite number"):
        summarise_classification(broken)
