"""Verdicts that a mean would hide: structures and classes that lost, parents that are no better than chance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from scipy import stats
from torch import nn

import tiny
from microtome.clinical.cases import CasePrediction, CaseScores
from microtome.clinical.chance import whole_image
from microtome.clinical.guard import holm, losses
from microtome.clinical.overlap import dice
from microtome.clinical.statistics import resample_means
from microtome.clinical.summary import summarise_classification, summarise_segmentation
from microtome.errors import OptionError
from microtome.evidence.candidates import Judge
from microtome.evidence.comparison import Pair, evaluate_pair, streamed
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.report import headline
from microtome.tasks import task
from microtome.tasks.base import Judgement
from microtome.types import Array, Image

NAN = float("nan")
SIDE = 24
REGIONS = Pipeline(
    "segmentation", ("background", "a", "b"), activation="sigmoid", regions={"all": (1, 2), "inner": (2,)}
)
PATIENTS = 60


def around(mean: float, half: float, count: int = PATIENTS) -> Array:
    """Values of this very mean whose 95 % interval is `half` wide to either side."""
    values = np.resize([-1.0, 1.0], count)
    return mean + values * half * np.sqrt(count) / stats.t.ppf(0.975, count - 1) / values.std(ddof=1)


def segmented(change: dict[str, Array], *, level: float = 0.87, agreement: float = 0.999, **other: dict[str, Array]):
    """Cases of one patient each whose Dice (and other metrics) change so."""
    count = len(next(iter(change.values())))
    measured = {"dice": change, **other}
    cases = []
    for i in range(count):
        parent = {m: dict.fromkeys(by, level if m != "hd95" else 2.0) for m, by in measured.items()}
        ours = {m: {name: parent[m][name] + values[i] for name, values in by.items()} for m, by in measured.items()}
        trivial = dict.fromkeys(change, 0.02)
        cases.append(CaseScores(f"c{i}", f"p{i}", parent, ours, agreement, trivial=trivial))
    return cases


def test_a_structure_that_lost_is_not_hidden_by_the_mean() -> None:
    found = summarise_segmentation(segmented({"a": around(0.0072, 0.001), "b": around(-0.0072, 0.0020)}))
    assert found["difference"]["dice"]["value"] == pytest.approx(0, abs=1e-12)
    assert found["difference"]["dice/b"]["value"] == pytest.approx(-0.0072)
    assert found["difference"]["dice/b"]["high"] == pytest.approx(-0.0052, abs=2e-4)
    verdict = found["verdict"]
    assert (verdict["non_inferior"], verdict["cause"]) == (False, "loss")
    assert [loss["metric"] for loss in verdict["losses"]] == ["dice/b"]
    assert verdict["losses"][0]["p"] == pytest.approx(2 * verdict_p(around(-0.0072, 0.0020)), rel=0.4)
    assert verdict["reason"].startswith("Dice (b) lost more than its limit of 0.005: -0.0072 (")
    _, word, sentence = headline.verdict(found)
    assert (word, sentence) == ("Inferior", "The compressed network is inferior to its parent in Dice · b.")


def verdict_p(values: Array, margin: float = 0.005) -> float:
    return float(stats.ttest_1samp(values, -margin, alternative="less").pvalue)


def test_a_loss_that_may_be_within_the_margin_takes_nothing_away() -> None:
    found = summarise_segmentation(segmented({"a": around(0.006, 0.001), "b": around(-0.006, 0.002)}))
    assert found["difference"]["dice/b"]["high"] > -0.005
    assert found["verdict"]["non_inferior"] is True
    assert found["verdict"]["losses"] == []


def test_many_structures_need_more_than_one_does() -> None:
    """The same loss among 20 structures could be chance: Holm."""
    quiet = {f"s{k}": around(0.0, 0.001) for k in range(19)}
    found = summarise_segmentation(segmented({**quiet, "b": around(-0.0072, 0.0020)}))
    assert found["verdict"]["non_inferior"] is True
    found = summarise_segmentation(segmented({**quiet, "b": around(-0.0092, 0.0020)}))
    assert found["verdict"]["non_inferior"] is False


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({}) == {}
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_chances_are_those_of_the_t_test_for_normal_data() -> None:
    random = np.random.default_rng(0)
    for shift in (-0.2, 0.1, 0.3, 1.0, 3.0):
        values = random.normal(size=40) - shift
        replicates = resample_means(values[:, None], list(range(40)), resamples=20_000)[0]
        expected = stats.ttest_1samp(values, 0, alternative="less").pvalue
        assert replicates.chance_of(0.0) == pytest.approx(expected, rel=0.25, abs=1e-6)


def test_false_alarms_are_about_five_in_a_hundred() -> None:
    """Ten structures that all lost just the margin: all is well, by definition."""
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(200):
        table = -0.005 + 0.01 * random.normal(size=(30, 10))
        found = resample_means(table, list(range(30)), resamples=500)
        alarms += bool(losses("dice", 0.005, {f"dice/s{k}": one for k, one in enumerate(found)})[0])
    assert 1 <= alarms <= 20


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"nsd": {"a": around(-0.03, 0.005), "b": around(0.03, 0.005)}}, "nsd/a"),
        ({"hd95": {"a": around(2.0, 0.3), "b": around(-2.0, 0.3)}}, "hd95/a"),
        ({"hd95": {"a": around(1.5, 0.2), "b": around(1.5, 0.2)}}, "hd95"),
    ],
)
def test_another_metric_that_lost_is_not_hidden(other: dict[str, dict[str, Array]], name: str) -> None:
    quiet = {"a": around(0.0, 0.001), "b": around(0.0, 0.001)}
    verdict = summarise_segmentation(segmented(quiet, **other))["verdict"]
    assert verdict["non_inferior"] is False
    assert name in [loss["metric"] for loss in verdict["losses"]]


def test_with_one_primary_structure_the_others_are_said_and_decide_nothing() -> None:
    cases = segmented({"a": around(0.0, 0.001), "b": around(-0.02, 0.001)})
    found = summarise_segmentation(cases, metric="dice/a")
    verdict = found["verdict"]
    assert verdict["non_inferior"] is True
    assert verdict["losses"] == []
    assert {loss["metric"] for loss in verdict["others"]} == {"dice", "dice/b"}
    assert any("about a alone. Dice (b) lost more than its limit of 0.005: -0.0200" in r for r in verdict["remarks"])
    assert headline.verdict(found)[2] == "The compressed network is non-inferior to its parent in Dice · a."
    assert summarise_segmentation(cases, metric="dice/b")["verdict"]["non_inferior"] is False


def test_other_metrics_of_the_primary_structure_decide() -> None:
    surfaces = {"a": around(-0.03, 0.003), "b": around(0.0, 0.003)}
    cases = segmented({"a": around(0.0, 0.001), "b": around(0.0, 0.001)}, nsd=surfaces)
    verdict = summarise_segmentation(cases, metric="dice/a")["verdict"]
    assert verdict["non_inferior"] is False
    assert [loss["metric"] for loss in verdict["losses"]] == ["nsd/a"]


def test_a_structure_lost_in_three_patients_forbids_the_tick() -> None:
    """Too few for a test, and too much to pass over."""
    rare = np.full(PATIENTS, NAN)
    rare[:3] = -0.8
    cases = [
        dataclasses.replace(
            case,
            parent={"dice": {"a": 0.9, "rare": NAN if np.isnan(rare[i]) else 0.9}},
            compressed={"dice": {"a": 0.9 + case.compressed["dice"]["a"] - 0.87, "rare": 0.9 + rare[i]}},
            empty=("rare",) if np.isnan(rare[i]) else (),
        )
        for i, case in enumerate(segmented({"a": around(0.015, 0.0005)}))
    ]
    found = summarise_segmentation(cases, margin=0.05)
    verdict = found["verdict"]
    assert verdict["lower"] > -0.05
    assert (verdict["non_inferior"], verdict["cause"]) == (None, "cases")
    assert verdict["reason"].startswith("Not enough cases: Dice (rare) changed by -0.8000")
    assert "in 3 patients, too few to judge a limit of 0.05." in verdict["reason"]
    assert headline.verdict(found)[1] == "Not enough cases"


def test_structures_that_no_reference_has_are_left_out_and_named() -> None:
    """Two absent structures that both networks invent: Dice 0 for both, and no difference."""
    cases = [
        dataclasses.replace(
            case,
            parent={"dice": {"a": 0.9, "x": 0.0, "y": 0.0}},
            compressed={"dice": {"a": 0.9 + change, "x": 0.0, "y": 0.0}},
            empty=("x", "y"),
            trivial={"a": 0.02},
        )
        for case, change in zip(segmented({"a": np.zeros(PATIENTS)}), around(-0.0072, 0.001).tolist(), strict=True)
    ]
    found = summarise_segmentation(cases)
    assert found["parent"]["metrics"]["dice"]["value"] == pytest.approx(0.9)
    assert found["difference"]["dice"]["value"] == pytest.approx(-0.0072)
    assert found["cases"][0]["parent"]["dice"] == pytest.approx(0.9)
    assert found["parent"]["metrics"]["dice/x"]["value"] == 0
    assert found["verdict"]["non_inferior"] is False
    assert found["verdict"]["left_out"] == ["x", "y"]
    assert "No reference case holds x and y: the means leave them out." in found["verdict"]["remarks"]
    alone = summarise_segmentation(cases, metric="dice/x")["verdict"]
    assert (alone["non_inferior"], alone["cause"]) == (None, "reference")


def test_inventing_a_structure_that_is_left_out_is_a_loss_all_the_same() -> None:
    cases = [
        CaseScores(f"c{i}", f"p{i}", {"dice": {"a": 0.9, "x": NAN}}, {"dice": {"a": 0.9, "x": 0.0}}, 1.0, ("x",))
        for i in range(20)
    ]
    verdict = summarise_segmentation(cases)["verdict"]
    assert verdict["non_inferior"] is False
    assert verdict["losses"][0]["metric"] == "dice/x"


def test_healthy_patients_only_can_show_nothing() -> None:
    cases = [CaseScores(f"c{i}", f"p{i}", {"dice": {"x": NAN}}, {"dice": {"x": NAN}}, 1.0, ("x",)) for i in range(20)]
    found = summarise_segmentation(cases)
    assert found["verdict"]["non_inferior"] is None
    assert headline.verdict(found)[1] == "No verdict"


@pytest.mark.parametrize(("level", "trivial"), [(0.03, 0.02), (0.3, 0.35), (0.5, 0.5), (0.0, 0.02)])
def test_a_parent_that_finds_nothing_gets_no_tick(level: float, trivial: float) -> None:
    cases = segmented({"a": around(0.0, 0.0005)}, level=level)
    cases = [dataclasses.replace(case, trivial={"a": trivial}) for case in cases]
    found = summarise_segmentation(cases)
    assert (found["verdict"]["non_inferior"], found["verdict"]["cause"]) == (None, "parent")
    assert found["verdict"]["reason"].startswith("The parent itself")
    assert headline.verdict(found)[1] == "No verdict"


def test_a_structure_that_the_parent_never_finds_is_named() -> None:
    cases = [
        dataclasses.replace(
            case,
            parent={"dice": {"a": 0.9, "never": 0.0}},
            compressed={"dice": {"a": 0.9, "never": 0.0}},
            trivial={"a": 0.02, "never": 0.01},
        )
        for case in segmented({"a": np.zeros(PATIENTS)})
    ]
    verdict = summarise_segmentation(cases)["verdict"]
    assert any("hardly better than chance in never" in remark for remark in verdict["remarks"])


def test_networks_that_hardly_agree_get_no_tick() -> None:
    found = summarise_segmentation(segmented({"a": around(0.0, 0.001)}, agreement=0.88))
    assert (found["verdict"]["non_inferior"], found["verdict"]["cause"]) == (None, "agreement")
    assert "agree in 88.0% of the voxels only" in found["verdict"]["reason"]


def test_a_large_background_is_no_agreement() -> None:
    """Both find half of a small structure, each another half: 99.9 % of all voxels agree."""
    cases = [dataclasses.replace(case, found=(10, 100)) for case in segmented({"a": around(0.0, 0.001)}, level=0.5)]
    found = summarise_segmentation(cases)["verdict"]
    assert (found["non_inferior"], found["cause"]) == (None, "agreement")
    assert "a Dice of 0.20 between them" in found["reason"]
    alike = [dataclasses.replace(case, found=(48, 100)) for case in cases]
    assert summarise_segmentation(alike)["verdict"]["non_inferior"] is True


@pytest.mark.parametrize("pipeline", [Pipeline("segmentation", ("background", "a", "b")), REGIONS])
def test_what_both_find_is_counted(pipeline: Pipeline) -> None:
    random = np.random.default_rng(0)
    shape = (9, 8) if pipeline.regions is None else (2, 9, 8)
    first, second = (random.integers(0, 3 if pipeline.regions is None else 2, shape, np.uint8) for _ in range(2))
    if pipeline.regions is not None:
        first, second = first > 0, second > 0
    reference = random.integers(0, 3, (9, 8), np.uint8)
    record = task("segmentation").compare(first, second, reference, Image(np.zeros((1, 9, 8))), pipeline)
    both = int(((first == second) & (first > 0)).sum())
    assert record["found"] == (both, int((first > 0).sum() + (second > 0).sum()))


def test_the_dice_of_the_whole_image() -> None:
    reference = np.random.default_rng(0).choice(3, p=[0.8, 0.15, 0.05], size=(20, 30)).astype(np.uint8)
    found = whole_image(reference, labels={1: "a", 2: "b", 3: "absent"})
    assert found == {name: pytest.approx(dice(np.full_like(reference, k), reference, label=k)) for k, name in
                     ((1, "a"), (2, "b"))}  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1])
def test_several_margins_deserve_a_sentence(sign: int) -> None:
    verdict = summarise_segmentation(segmented({"a": around(0.0167 * sign, 0.002)}))["verdict"]
    assert verdict["non_inferior"] is (sign > 0)
    text = f"do not behave alike: Dice by {'+' if sign > 0 else '-'}0.0167, 3.3 margins"
    assert any(text in remark for remark in verdict["remarks"])
    calm = summarise_segmentation(segmented({"a": around(0.004 * sign, 0.0005)}))["verdict"]
    assert calm["remarks"] == []


def classified(
    parent: Array, compressed: Array, labels: Array, *, metric: str = "auroc", threshold: float | None = 0.5
):
    cases = [
        CasePrediction(f"c{i}", f"p{i}", (1 - p, p), (1 - q, q), int(y))
        for i, (p, q, y) in enumerate(zip(parent, compressed, labels, strict=True))
    ]
    return summarise_classification(cases, threshold=threshold, metric=metric, margin=0.05)


def test_a_classifier_at_chance_gets_no_tick() -> None:
    random = np.random.default_rng(0)
    labels, scores = np.arange(200) % 2, random.random(200)
    found = classified(scores, scores, labels)
    assert found["parent"]["metrics"]["auroc"]["low"] <= 0.5 <= found["parent"]["metrics"]["auroc"]["high"]
    assert (found["verdict"]["non_inferior"], found["verdict"]["cause"]) == (None, "parent")
    assert "no better than chance: its AUROC is" in found["verdict"]["reason"]


def test_a_classifier_that_is_always_wrong_gets_no_tick() -> None:
    labels = np.arange(100) % 2
    scores = np.where(labels, 0.2, 0.8) + 0.01 * np.random.default_rng(0).random(100)
    assert classified(scores, scores, labels)["verdict"]["non_inferior"] is None


def test_a_classifier_that_always_says_the_same_gets_no_tick() -> None:
    random = np.random.default_rng(0)
    labels = (np.arange(200) % 10 == 0).astype(int)
    scores = 0.2 + 0.1 * labels + 0.05 * random.random(200)
    found = classified(scores, scores, labels)
    assert found["parent"]["metrics"]["auroc"]["value"] > 0.99
    assert (found["verdict"]["non_inferior"], found["verdict"]["cause"]) == (None, "parent")
    assert "always saying the same class" in found["verdict"]["reason"]
    assert classified(scores, scores, labels, threshold=0.28)["verdict"]["non_inferior"] is True


@pytest.mark.parametrize("metric", ["auroc", "sensitivity"])
def test_evaluation_cases_of_one_class_get_no_tick(metric: str) -> None:
    scores = 0.6 + 0.3 * np.random.default_rng(0).random(50)
    verdict = classified(scores, scores, np.ones(50, int), metric=metric)["verdict"]
    assert verdict["non_inferior"] is None
    assert verdict["cause"] == "reference"
    assert "All evaluation cases are of one class (class 1)." in verdict["reason"]


def test_a_loss_at_the_operating_point_is_not_hidden_by_the_auroc() -> None:
    """All scores fall by 0.1: their order, and the AUROC, stay; sensitivity does not."""
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2
    scores = np.clip(0.45 + 0.15 * labels + 0.12 * random.normal(size=400), 0.12, 0.98)
    found = classified(scores, scores - 0.04, labels)
    assert found["difference"]["auroc"]["value"] == pytest.approx(0)
    assert found["difference"]["sensitivity"]["high"] < -0.02
    assert found["verdict"]["non_inferior"] is False
    assert [loss["metric"] for loss in found["verdict"]["losses"]] == ["sensitivity"]


def test_one_lost_case_of_three_is_no_proof_of_a_loss() -> None:
    labels = np.zeros(60, int)
    labels[:3] = 1
    scores = np.where(labels, 0.9, 0.1) + 0.01 * np.arange(60) / 60
    worse = scores.copy()
    worse[0] = 0.45
    verdict = classified(scores, worse, labels)["verdict"]
    assert verdict["non_inferior"] is None
    assert "Sensitivity" in verdict["reason"]


class Random(nn.Module):
    """A network that was never trained: four outputs."""

    def __init__(self, seed: int, noise: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2))
        torch.manual_seed(99)
        with torch.no_grad():
            for weight in self.parameters():
                weight.add_(noise * weight.std() * torch.randn_like(weight))

    def run(self, x: Array) -> Array:
        with torch.no_grad():
            return self.net(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("seed", range(12))
def test_random_weights_are_never_non_inferior(tmp_path: Path, seed: int) -> None:
    cohort = load_cohort(tiny.manifest_cohort(tmp_path), seed=0)
    pipeline = Pipeline("segmentation", ("background", "spot", "x", "y"), grayscale=True, normalize="unit")
    pair = Pair(streamed(Random(seed).run), streamed(Random(seed, 0.01).run))
    verdict = evaluate_pair(pair, cohort, pipeline).parts["verdict"]
    assert verdict["non_inferior"] is not True
    assert verdict["left_out"] == ["x", "y"]


@pytest.mark.parametrize("metric", ["dice/liver", "dice/", "nsd/background"])
def test_a_structure_that_is_not_there_is_refused_before_any_work(metric: str) -> None:
    pipeline = Pipeline("segmentation", ("background", "spot"))
    with pytest.raises(OptionError, match="has no"):
        task("segmentation").metric(metric, pipeline)
    assert task("segmentation").metric("dice/spot", pipeline) == "dice/spot"


def test_of_two_classes_none_has_metrics_of_its_own() -> None:
    two, three = (Pipeline("classification", names) for names in (("a", "b"), ("a", "b", "c")))
    with pytest.raises(OptionError, match="has no auroc of 'b'"):
        task("classification").metric("auroc/b", two)
    assert task("classification").metric("auroc/b", three) == "auroc/b"


def marked(folder: Path) -> Path:
    """Two structures of value 1 and 2, a fifth of each a little brighter."""
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for i in range(24):
        random = np.random.default_rng(i)
        labels = random.choice(3, size=(SIDE, SIDE), p=[0.6, 0.2, 0.2]).astype(np.uint8)
        hard = (random.random(labels.shape) < 0.2) & (labels > 0)
        Picture.fromarray(labels * 80 + 20 * hard.astype(np.uint8)).save(folder / "images" / f"person{i}_0.png")
        Picture.fromarray(labels).save(folder / "masks" / f"person{i}_0.png")
    return folder


def misses(value: int):
    """A network that takes one kind of bright pixels for background."""

    def run(x: Array) -> Array:
        pixels = np.rint(255 * x[0, 0])
        label = np.where(pixels == value, 0, np.rint(np.where(pixels % 80 == 20, pixels - 20, pixels) / 80))
        return np.stack([label == k for k in range(3)])[None].astype(np.float32)

    return streamed(run)


def test_candidates_are_judged_as_the_final_verdict_is(tmp_path: Path) -> None:
    cohort = load_cohort(marked(tmp_path / "c"), seed=0, tuning=0.0, evaluation=0.7)
    pipeline = Pipeline("segmentation", ("background", "a", "b"), normalize="unit", activation="none")
    parent, candidate = misses(100), misses(180)
    judged = Judge(parent, cohort, cohort.evaluation, pipeline, margin=0.05)(candidate)
    final = evaluate_pair(Pair(parent, candidate), cohort, pipeline, Judgement("dice", 0.05)).parts["verdict"]
    assert abs(judged.difference.value or 0.0) < 0.01
    assert judged.non_inferior is final["non_inferior"] is False
    assert judged.losses == ("dice/b",)
