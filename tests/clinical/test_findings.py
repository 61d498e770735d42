"""Several findings of one image: each against scikit-learn, missing answers, and what nobody can tell."""

import numpy as np
import pytest
from sklearn import metrics

from microtome.clinical.findings import FindingsCase, operating_points, summarise_findings
from microtome.errors import DataError

EXACT = 1e-12  # the same float64 arithmetic in another order
NAMES = ("nodule", "oedema", "fracture")


def cohort(n: int = 60, noise: float = 0.0, patients: int = 30, missing: float = 0.2) -> list[FindingsCase]:
    random = np.random.default_rng(3)
    truth = random.random((n, 3)) < 0.4
    scores = 1 / (1 + np.exp(-(3.0 * (truth - 0.5) + random.normal(size=(n, 3)))))
    after = np.clip(scores + noise * random.normal(size=(n, 3)), 0, 1)
    known = random.random((n, 3)) >= missing
    return [
        FindingsCase(
            f"case-{i}",
            f"p-{i % patients}",
            scores[i].tolist(),
            after[i].tolist(),
            tuple(float(t) if k else None for t, k in zip(truth[i], known[i], strict=True)),
            {"site": "ab"[i % 2]},
        )
        for i in range(n)
    ]


def column(cases: list[FindingsCase], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of one finding where the label is known."""
    known = [case for case in cases if case.label[k] is not None]
    return np.array([case.label[k] for case in known], int), np.array([case.parent[k] for case in known])


def test_each_finding_and_the_macro_mean_are_those_of_scikit_learn() -> None:
    cases = cohort()
    found = summarise_findings(cases, NAMES, thresholds=[0.5, 0.3, 0.7], resamples=50)["parent"]["metrics"]
    expected = {"auroc": [], "auprc": [], "sensitivity": []}
    for k, threshold in enumerate((0.5, 0.3, 0.7)):
        labels, scores = column(cases, k)
        expected["auroc"].append(metrics.roc_auc_score(labels, scores))
        expected["auprc"].append(metrics.average_precision_score(labels, scores))
        expected["sensitivity"].append(metrics.recall_score(labels, scores >= threshold))
    for name, values in expected.items():
        assert [found[f"{name}/{finding}"]["value"] for finding in NAMES] == pytest.approx(values, abs=EXACT)
        assert found[name]["value"] == pytest.approx(np.mean(values), abs=EXACT)


def test_without_missing_answers_the_macro_mean_is_that_of_multilabel_scikit_learn() -> None:
    cases = cohort(missing=0.0)
    labels, scores = np.array([case.label for case in cases]), np.array([case.parent for case in cases])
    found = summarise_findings(cases, NAMES, resamples=20)["parent"]["metrics"]["auroc"]["value"]
    assert found == pytest.approx(metrics.roc_auc_score(labels, scores, average="macro"), abs=EXACT)


def test_a_missing_answer_leaves_its_case_out_of_that_finding_alone() -> None:
    cases = cohort(missing=0.0)
    first = cases[0]
    without = [
        FindingsCase(first.case, first.patient, first.parent, first.compressed, (None, *first.label[1:])),
        *cases[1:],
    ]
    all_of, fewer = (summarise_findings(some, NAMES, resamples=20)["parent"]["metrics"] for some in (cases, without))
    assert fewer["auroc/oedema"] == all_of["auroc/oedema"]
    labels, scores = column(without, 0)
    assert len(labels) == len(cases) - 1
    assert fewer["auroc/nodule"]["value"] == pytest.approx(metrics.roc_auc_score(labels, scores), abs=EXACT)


def test_a_finding_that_nobody_has_is_left_out_and_said() -> None:
    cases = [FindingsCase(c.case, c.patient, c.parent, c.compressed, (*c.label[:2], 0.0)) for c in cohort(missing=0.0)]
    result = summarise_findings(cases, NAMES, resamples=50)
    found = result["parent"]["metrics"]
    assert "auroc/fracture" not in found
    assert found["auroc"]["value"] == pytest.approx(
        (found["auroc/nodule"]["value"] + found["auroc/oedema"]["value"]) / 2
    )
    assert found["specificity/fracture"]["value"] is not None
    assert result["verdict"]["left_out"] == ["fracture"]
    assert result["counts"]["findings"]["fracture"] == {"present": 0, "absent": 60}
    assert any("No reference case holds fracture" in remark for remark in result["verdict"]["remarks"])


def test_a_rare_finding_does_not_take_the_interval_from_the_mean() -> None:
    labels = [(1.0 if i == 0 else 0.0) for i in range(60)]  # in one case: a third of the resamples have none
    cases = [
        FindingsCase(c.case, c.patient, c.parent, c.compressed, (*c.label[:2], labels[i]))
        for i, c in enumerate(cohort(missing=0.0))
    ]
    found = summarise_findings(cases, NAMES, resamples=200)["parent"]["metrics"]["auroc"]
    assert found["low"] is not None
    assert found["low"] < found["value"] < found["high"]


def test_what_forbids_a_verdict() -> None:
    same = [FindingsCase(f"c{i}", f"p{i}", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], (1.0, 1.0, 0.0)) for i in range(20)]
    assert summarise_findings(same, NAMES, resamples=20)["verdict"]["cause"] == "reference"
    random = np.random.default_rng(4)
    chance = [
        FindingsCase(f"c{i}", f"p{i}", s.tolist(), s.tolist(), tuple(float(v) for v in random.random(3) < 0.5))
        for i, s in enumerate(random.random((40, 3)))
    ]
    verdict = summarise_findings(chance, NAMES, resamples=200)["verdict"]
    assert (verdict["non_inferior"], verdict["cause"]) == (None, "parent")
    nobody = [FindingsCase(f"c{i}", f"p{i}", [0.2, 0.4, 0.6], [0.2, 0.4, 0.6], None) for i in range(8)]
    result = summarise_findings(nobody, NAMES, resamples=20)
    assert (result["verdict"]["non_inferior"], result["verdict"]["cause"]) == (None, "reference")
    assert result["agreement"]["value"] == 1.0


def test_one_finding_that_is_lost_makes_the_network_inferior() -> None:
    random = np.random.default_rng(1)
    cases = [
        FindingsCase(c.case, c.patient, c.parent, [c.parent[0], c.parent[1], float(random.random())], c.label)
        for c in cohort(n=240, patients=240)
    ]
    verdict = summarise_findings(cases, NAMES, resamples=400)["verdict"]
    assert verdict["non_inferior"] is False
    assert (
        "auroc/fracture" in [verdict["metric"], *(loss["metric"] for loss in verdict["losses"])]
        or verdict["lower"] < -0.01
    )


def test_one_patient_gets_no_verdict_and_no_interval() -> None:
    cases = [FindingsCase(c.case, "p", c.parent, c.compressed, c.label) for c in cohort()]
    result = summarise_findings(cases, NAMES, resamples=20)
    assert result["verdict"]["non_inferior"] is None
    assert result["parent"]["metrics"]["auroc"]["low"] is None


def test_operating_points_maximise_youden_for_each_finding() -> None:
    cases = cohort()
    references = np.array([[np.nan if v is None else v for v in case.label] for case in cases])
    references[:, 2] = 0.0
    found = operating_points(np.array([case.parent for case in cases]), references, NAMES)
    assert found["fracture"] is None
    for k, name in enumerate(NAMES[:2]):
        labels, scores = column(cases, k)
        false, true, _ = metrics.roc_curve(labels, scores)
        best = (true - false).max()
        above = scores >= found[name]
        assert above[labels == 1].mean() - above[labels == 0].mean() == pytest.approx(best, abs=EXACT)


def test_what_is_no_number_is_refused() -> None:
    cases = [FindingsCase("c", "p", [np.nan, 0.1, 0.2], [0.1, 0.1, 0.2], (1.0, 0.0, 1.0)), *cohort()]
    with pytest.raises(DataError, match="not a finite number"):
        summarise_findings(cases, NAMES, resamples=20)
