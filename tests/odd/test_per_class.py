"""Classification with several classes: what the mean over them hides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import tiny
from microtome.clinical.cases import CasePrediction
from microtome.clinical.summary import summarise_classification
from microtome.evidence.candidates import Judge
from microtome.evidence.comparison import Pair, evaluate_pair
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.report import headline, words
from microtome.tasks.classification import Classification
from microtome.types import Array
from microtome.verbs.options import CompressOptions
from microtome.verbs.roles import read_cohort

NAMES = ("glioma", "meningioma", "no tumour", "pituitary")
ROUNDING = 1e-12


def table(count: int = 400, seed: int = 0, strength: float = 3.0) -> tuple[Array, Array]:
    """Probabilities (N, 4) and labels."""
    random = np.random.default_rng(seed)
    labels = random.choice(4, size=count, p=[0.4, 0.3, 0.2, 0.1])
    logits = random.normal(size=(count, 4)) + strength * np.eye(4)[labels]
    values = np.exp(logits)
    return values / values.sum(1, keepdims=True), labels


def summarised(parent: Array, compressed: Array, labels: Array, *, metric: str = "auroc", margin: float = 0.02):
    cases = [
        CasePrediction(f"c{i}", f"p{i // 2}", tuple(p), tuple(q), int(y), {"site": "north" if i % 3 else "south"})
        for i, (p, q, y) in enumerate(zip(parent, compressed, labels, strict=True))
    ]
    return summarise_classification(cases, metric=metric, margin=margin, classes=NAMES)


def test_every_class_has_its_own_metrics() -> None:
    parent, labels = table()
    compressed, _ = table(seed=1)
    compressed = 0.9 * parent + 0.1 * compressed
    found = summarised(parent, compressed, labels)
    for side, scores in (("parent", parent), ("compressed", compressed)):
        values = {name: entry["value"] for name, entry in found[side]["metrics"].items()}
        decided = scores.argmax(1)
        for k, name in enumerate(NAMES):
            ours = labels == k
            assert values[f"auroc/{name}"] == pytest.approx(roc_auc_score(ours, scores[:, k]), abs=ROUNDING)
            assert values[f"auprc/{name}"] == pytest.approx(average_precision_score(ours, scores[:, k]), abs=1e-9)
            assert values[f"sensitivity/{name}"] == pytest.approx(np.mean(decided[ours] == k), abs=ROUNDING)
            assert values[f"specificity/{name}"] == pytest.approx(np.mean(decided[~ours] != k), abs=ROUNDING)
        for metric in ("auroc", "auprc", "sensitivity", "specificity"):
            mean = np.mean([values[f"{metric}/{name}"] for name in NAMES])
            assert values[metric] == pytest.approx(mean, abs=ROUNDING)
        expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
        assert values["auroc"] == pytest.approx(expected, abs=ROUNDING)
    for name, change in found["difference"].items():
        sides = [found[side]["metrics"][name]["value"] for side in ("parent", "compressed")]
        assert change["value"] == pytest.approx(sides[1] - sides[0], abs=ROUNDING)
        assert change["low"] <= change["value"] <= change["high"]
    assert "sensitivity/glioma" in found["subgroups"]["site"]["south"]["difference"]


def test_a_class_that_lost_is_not_hidden_by_the_others() -> None:
    """What glioma gains meningioma loses: a threshold between the two that moved."""
    parent, labels = table(1600, strength=2.0)
    compressed = parent.copy()
    compressed[:, 0] += 0.35
    compressed /= compressed.sum(1, keepdims=True)
    found = summarised(parent, compressed, labels, metric="auroc", margin=0.05)
    changes = {name: entry["value"] for name, entry in found["difference"].items()}
    assert changes["sensitivity/glioma"] > 0
    assert changes["sensitivity/meningioma"] < -0.05
    assert found["verdict"]["non_inferior"] is False
    lost = [loss["metric"] for loss in found["verdict"]["losses"]]
    assert "sensitivity/meningioma" in lost
    assert "sensitivity/glioma" not in lost
    assert "in Sensitivity · " in headline.verdict(found)[2] or "Specificity · glioma" in headline.verdict(found)[2]
    assert words.metric_name("sensitivity/no tumour") == "Sensitivity · no tumour"


def test_one_class_may_be_primary() -> None:
    parent, labels = table()
    compressed = parent.copy()
    compressed[:, 3] = np.random.default_rng(0).permutation(compressed[:, 3])
    assert summarised(parent, compressed, labels)["verdict"]["non_inferior"] is False
    found = summarised(parent, compressed, labels, metric="auroc/pituitary")["verdict"]
    assert (found["metric"], found["non_inferior"]) == ("auroc/pituitary", False)
    other = summarised(parent, compressed, labels, metric="auroc/meningioma")["verdict"]
    assert "auroc/pituitary" in [loss["metric"] for loss in other["others"]]


def test_classes_without_a_case_are_named_and_not_averaged() -> None:
    parent, labels = table()
    keep = labels != 2
    found = summarised(parent[keep], parent[keep], labels[keep])
    assert found["verdict"]["left_out"] == ["no tumour"]
    assert "auroc/no tumour" not in found["parent"]["metrics"]
    assert found["verdict"]["non_inferior"] is True
    assert any("no tumour" in remark for remark in found["verdict"]["remarks"])


def test_a_class_that_the_parent_cannot_tell_is_named() -> None:
    parent, labels = table(strength=4.0)
    parent[:, 1] = np.random.default_rng(3).permutation(parent[:, 1])
    found = summarised(parent, parent, labels)
    assert found["parent"]["metrics"]["auroc/meningioma"]["low"] < 0.5
    assert any("hardly better than chance in meningioma" in remark for remark in found["verdict"]["remarks"])


def test_many_classes_at_chance_get_no_tick() -> None:
    random, (_, labels) = np.random.default_rng(1), table()
    noise = random.dirichlet(np.ones(4), len(labels))
    assert summarised(noise, noise, labels)["verdict"]["non_inferior"] is None
    constant = np.tile([0.7, 0.1, 0.1, 0.1], (len(labels), 1))
    assert summarised(constant, constant, labels)["verdict"]["non_inferior"] is None


def test_names_of_classes_reach_the_result(tmp_path: Path) -> None:
    names = ("dark", "grey", "light")
    cohort = load_cohort(tiny.class_cohort(tmp_path / "c", per_class=12, classes=names), seed=0)
    pipeline = Pipeline("classification", names, size=(32, 32), normalize="unit")

    def network(batches):
        for x in batches:
            yield np.stack([[-((v - m) ** 2) * 50 for m in (0.39, 0.62, 0.86)] for v in x.mean((1, 2, 3))])

    parts = evaluate_pair(Pair(network, network), cohort, pipeline).parts
    assert {"auroc/dark", "sensitivity/grey", "specificity/light"} <= parts["parent"]["metrics"].keys()
    judge = Judge(network, cohort, cohort.tuning, pipeline, metric="auroc/grey", margin=0.05)
    assert judge(network).difference.value == 0


def test_no_patients_are_set_aside_for_nothing(tmp_path: Path) -> None:
    three = tiny.class_cohort(tmp_path / "three", per_class=20, classes=("a", "b", "c"))
    two = tiny.class_cohort(tmp_path / "two", per_class=20)
    options = CompressOptions(tuning=0.2)
    plain = read_cohort(three, options)
    assert plain.tuning == ()
    assert any("No patients were set aside for tuning: there is no operating point" in note for note in plain.notes)
    drawn = load_cohort(three, seed=0, tuning=0.2)
    assert {case.id for case in plain.evaluation} == {case.id for case in drawn.evaluation}
    assert len(plain.train) == len(drawn.train) + len(drawn.tuning)
    for recipe in ("qat", "auto"):
        assert len(read_cohort(three, replace(options, recipe=recipe)).tuning) == len(drawn.tuning) > 0
    assert len(read_cohort(two, options).tuning) > 0


def test_an_official_split_is_kept(tmp_path: Path) -> None:
    for part, count in (("train", 9), ("val", 4), ("test", 6)):
        tiny.class_cohort(tmp_path / part, per_class=count, classes=("a", "b", "c"))
    assert len(read_cohort(tmp_path, CompressOptions(patient_pattern=r"(.*)")).tuning) == 12


def test_only_two_classes_have_an_operating_point() -> None:
    assert Classification().tunes(("a", "b"))
    assert not Classification().tunes(("a", "b", "c"))


def test_examples_show_the_score_of_the_true_class() -> None:
    """The last class's score says nothing of a glioma that was lost."""
    rows = [
        {"case": "c0", "label": 0, "parent": {"score": [0.9, 0.1, 0.0]}, "compressed": {"score": [0.1, 0.9, 0.0]}},
        {"case": "c1", "label": 2, "parent": {"score": [0.1, 0.1, 0.8]}, "compressed": {"score": [0.1, 0.1, 0.8]}},
        {"case": "c2", "label": None, "parent": {"score": [0.1, 0.6, 0.3]}, "compressed": {"score": [0.1, 0.5, 0.4]}},
    ]
    found = Classification().choose(rows)
    assert [(e["case"], e["text"]) for e in found[:2]] == [("c0", "score 0.900 → 0.100"), ("c2", "score 0.600 → 0.500")]
    two = [{"case": "c", "label": 0, "parent": {"score": [0.9, 0.1]}, "compressed": {"score": [0.8, 0.2]}}]
    assert Classification().choose(two)[0]["text"] == "score 0.100 → 0.200"
