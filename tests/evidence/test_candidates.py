from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from microtome.errors import OptionError, SplitError
from microtome.evidence.candidates import Judge
from microtome.evidence.comparison import Pair, evaluate_pair, streamed
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.metrics import METRICS as TABLE
from microtome.tasks.base import Judgement
from microtome.tasks.guess import default_pipeline
from microtome.tasks.segmentation import Segmentation
from microtome.types import Array


def predictor(module: nn.Module):
    def run(x: Array) -> Array:
        with torch.no_grad():
            return module.eval()(torch.from_numpy(x)).numpy()

    return streamed(run)


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    cohort = load_cohort(tiny.manifest_cohort(tmp_path_factory.mktemp("cohort")), seed=0)
    pipeline = Pipeline("segmentation", ("background", "spot"), grayscale=True, normalize="unit")
    return cohort, pipeline


def worse(module: nn.Module, shift: float) -> nn.Module:
    with torch.no_grad():
        module.head.bias += torch.tensor([0.0, shift])
    return module


def test_it_says_what_the_final_evaluation_says(segmentation):
    cohort, pipeline = segmentation
    parent, candidate = predictor(tiny.Spots()), predictor(worse(tiny.Spots(), -0.4))
    judged = Judge(parent, cohort, cohort.evaluation, pipeline)(candidate)
    final = evaluate_pair(Pair(parent, candidate), cohort, pipeline).parts
    assert judged.value == final["compressed"]["metrics"]["dice"]["value"]
    assert judged.parent == final["parent"]["metrics"]["dice"]["value"]
    assert judged.difference.value == final["difference"]["dice"]["value"]
    assert judged.difference.low == final["difference"]["dice"]["low"]
    assert judged.lower == final["verdict"]["lower"]
    assert judged.non_inferior == final["verdict"]["non_inferior"]
    assert judged.agreement == pytest.approx(final["agreement"]["value"])


def test_the_worst_subgroup_is_found(segmentation):
    cohort, pipeline = segmentation
    judged = Judge(predictor(tiny.Spots()), cohort, cohort.evaluation, pipeline)(predictor(worse(tiny.Spots(), -0.4)))
    final = evaluate_pair(Pair(predictor(tiny.Spots()), predictor(worse(tiny.Spots(), -0.4))), cohort, pipeline).parts[
        "subgroups"
    ]
    differences = [group["difference"]["dice"]["value"] for groups in final.values() for group in groups.values()]
    assert judged.worst == min(differences)


class ByDistance(Segmentation):
    """A task whose usual metric is one of which less is better."""

    NAME = "test_candidates:ByDistance"
    METRICS = ("hd95",)
    OWN = {"hd95": replace(TABLE["hd95"], margin=1.0)}  # noqa: RUF012


def test_where_lower_is_better_the_worst_subgroup_rose_most(segmentation):
    cohort, pipeline = segmentation
    pipeline = replace(pipeline, task=ByDistance.NAME)
    parent, candidate = predictor(tiny.Spots()), predictor(worse(tiny.Spots(), -0.4))
    judge = Judge(parent, cohort, cohort.evaluation, pipeline)
    judged = judge(candidate)
    final = evaluate_pair(Pair(parent, candidate), cohort, pipeline, Judgement("hd95", 1.0)).parts
    groups = [group for groups in final["subgroups"].values() for group in groups.values()]
    differences = [group["difference"]["hd95"]["value"] for group in groups]
    assert max(differences) > min(differences)
    assert judged.worst == max([*differences, final["difference"]["hd95"]["value"]])
    assert judge.gain(judged.worst) == -judged.worst == min(judge.gain(d) for d in differences)


def test_the_parent_itself_loses_nothing(segmentation):
    cohort, pipeline = segmentation
    judged = Judge(predictor(tiny.Spots()), cohort, cohort.tuning, pipeline)(predictor(tiny.Spots()))
    assert judged.difference.value == 0
    assert judged.agreement == 1


def test_images_are_prepared_once_and_the_parent_runs_once(segmentation, monkeypatch):
    cohort, pipeline = segmentation
    runs = []

    def parent(batches):
        for x in batches:
            runs.append(x)
            yield from predictor(tiny.Spots())([x])

    judge = Judge(parent, cohort, cohort.evaluation, pipeline)
    assert len(runs) == len(cohort.evaluation)
    monkeypatch.setattr("microtome.evidence.candidates.prepare", lambda *_: pytest.fail("prepared again"))
    judge(predictor(tiny.Spots()))
    assert len(runs) == len(cohort.evaluation)


def test_classification(tmp_path: Path):
    cohort = load_cohort(tiny.class_cohort(tmp_path), seed=0)
    pipeline = default_pipeline(cohort)
    parent = predictor(tiny.Brightness())
    judge = Judge(parent, cohort, cohort.evaluation, pipeline)
    assert judge.metric == "auroc"
    judged = judge(lambda batches: (-x for x in parent(batches)))
    assert judged.value == pytest.approx(1 - judged.parent)
    assert judged.non_inferior is not True


def test_cases_without_reference_cannot_be_judged(segmentation):
    cohort, pipeline = segmentation
    with pytest.raises(SplitError, match="none of the 0 cases"):
        Judge(predictor(tiny.Spots()), cohort, (), pipeline)


def test_the_metric_of_the_verdict_is_judged_by(tmp_path: Path, segmentation):
    cohort, pipeline = segmentation
    judge = Judge(predictor(tiny.Spots()), cohort, cohort.evaluation, pipeline, metric="nsd/spot", margin=0.02)
    assert (judge.metric, judge.margin) == ("nsd/spot", 0.02)
    judged = judge(predictor(tiny.Spots()))
    assert judged.difference.value == 0
    assert judge.score(predictor(tiny.Spots())) == pytest.approx(judged.value)
    with pytest.raises(OptionError, match="auroc does not fit segmentation"):
        Judge(predictor(tiny.Spots()), cohort, cohort.evaluation, pipeline, metric="auroc")
    classes = load_cohort(tiny.class_cohort(tmp_path), seed=0)
    judge = Judge(
        predictor(tiny.Brightness()),
        classes,
        classes.evaluation,
        default_pipeline(classes),
        metric="sensitivity",
        margin=0.05,
    )
    assert judge.metric == "sensitivity"


def test_a_worse_network_scores_lower_also_where_it_finds_nothing(segmentation):
    cohort, pipeline = segmentation
    judge = Judge(predictor(tiny.Spots()), cohort, cohort.evaluation, pipeline, metric="nsd/spot", margin=0.02)
    scores = [judge.score(predictor(worse(tiny.Spots(), shift))) for shift in (0.0, 1.5, -100.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[2] == 0


def test_where_lower_is_better_more_is_a_loss(segmentation):
    cohort, pipeline = segmentation
    cases = cohort.evaluation
    judge = Judge(predictor(tiny.Spots()), cohort, cases, pipeline, metric="hd95/spot", margin=0.05)
    judged = judge(predictor(worse(tiny.Spots(), 0.8)))
    assert judged.difference.value > 0
    assert judged.non_inferior is not True
    assert judge.score(predictor(worse(tiny.Spots(), 0.8))) == -judged.value < judge.score(predictor(tiny.Spots()))
    with pytest.raises(OptionError, match="--margin"):
        Judge(predictor(tiny.Spots()), cohort, cases, pipeline, metric="hd95/spot")
