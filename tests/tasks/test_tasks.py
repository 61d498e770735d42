"""What holds for every task, and what each refuses."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from microtome.errors import DataError, OptionError
from microtome.evidence.comparison import streamed
from microtome.medical.detector import Detector
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.metrics import METRICS, STRUCTURE, about, base, distinct, named, title
from microtome.tasks import TASKS, task
from microtome.tasks.base import Task, predict_one
from microtome.tasks.classification import Classification
from microtome.types import Image

SOURCES = Path(importlib.import_module("microtome").__file__).parent
RETINA = Detector("anchors", strides=(8.0,), anchors=(((8.0, 8.0),),))
PIPELINES = {
    "segmentation": Pipeline("segmentation", ("background", "spot")),
    "classification": Pipeline("classification", ("dark", "light"), size=(8, 8)),
    "multi-label": Pipeline("multi-label", ("nodule", "oedema"), size=(8, 8), activation="sigmoid"),
    "regression": Pipeline("regression", ("age",), size=(8, 8), activation="none"),
    "image-to-image": Pipeline("image-to-image", ("image",), activation="none"),
    "detection": Pipeline("detection", ("nodule",), activation="sigmoid", detector=Detector("corners")),
}


class Landmarks(Classification):
    """Another package's task."""

    NAME = "test_tasks:Landmarks"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_it_must(name: str) -> None:
    kind = task(name)
    assert name == kind.NAME
    assert kind.METRICS
    assert kind.metric(None) == kind.METRICS[0]
    assert about(kind.METRICS[0], kind.OWN).margin is not None
    assert len(kind.outputs(PIPELINES[name])) >= 1
    kind.check(PIPELINES[name])


def test_a_task_of_another_package_is_found_when_named() -> None:
    assert isinstance(task("test_tasks:Landmarks"), Classification)
    for unknown in ("tracking", "test_tasks:Nothing", "nowhere.at.all:Task", "numpy:ndarray"):
        with pytest.raises(OptionError, match="ask"):
            task(unknown)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("classification", {"patch": (64, 64), "size": None}, "'patch' is for segmentation only"),
        ("classification", {"mirror": (0,)}, "'mirror' and 'skip_empty' are for segmentation only"),
        ("classification", {"skip_empty": True}, "'mirror' and 'skip_empty' are for segmentation only"),
        ("classification", {"classes": ("one",)}, "'classes' must hold two or more"),
        ("segmentation", {"classes": ("background",)}, "at least one structure"),
        ("multi-label", {"activation": "softmax"}, "findings do not exclude one another"),
        ("multi-label", {"patch": (4, 4), "size": None}, "'patch' is for maps only"),
        ("regression", {"activation": "sigmoid"}, "the outputs are the numbers themselves"),
        ("regression", {"mirror": (0,)}, "'mirror' and 'skip_empty' are for maps only"),
        ("regression", {"output_scale": (1.0, 2.0)}, "'output_scale' must hold one value, or one for each of age"),
        ("regression", {"output_scale": (0.0,)}, "'output_scale' is 0"),
        ("image-to-image", {"activation": "softmax"}, "'activation' is for label maps; with image-to-image it must be"),
        ("image-to-image", {"skip_empty": True}, "'skip_empty' is for label maps"),
        ("image-to-image", {"undo_normalize": True, "normalize": "zscore_nonzero"}, "cannot undo 'zscore_nonzero'"),
        ("detection", {"detector": None}, "'detector' must say how the network's heads become boxes"),
        ("detection", {"mirror": (0,)}, "'mirror', 'skip_empty', .* are for label maps only"),
        ("detection", {"detector": Detector("corners", ("s",), ("b",))}, "'output' and 'keep' must name the outputs"),
        ("detection", {"spatial_dims": 3, "detector": RETINA}, "'anchors' of the detector must have 3 sizes each"),
    ],
)
def test_a_pipeline_that_makes_no_sense_is_refused(name: str, fields: dict, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        task(name).check(dataclasses.replace(PIPELINES[name], **fields))


def test_a_metric_of_another_task_is_refused() -> None:
    with pytest.raises(OptionError, match="auroc does not fit segmentation"):
        task("segmentation").metric("auroc")
    assert task("segmentation").metric("dice/spot") == "dice/spot"


def test_what_is_wrong_with_one_image_is_raised() -> None:
    pipeline = PIPELINES["classification"]
    broken = streamed(lambda x: np.full((1, 2), np.nan, np.float32))
    with pytest.raises(DataError, match="NaN"):
        predict_one(task("classification"), broken, prepare(Image(np.ones((1, 8, 8))), pipeline), pipeline)


def test_no_name_of_a_task_is_compared_anywhere() -> None:
    # a comparison has an else, which silently means the other task
    compared = re.compile(
        r"[!=]=\s*[\"'](segmentation|classification)[\"']|[\"'](segmentation|classification)[\"']\s*[!=]="
    )
    found = [
        f"{file.relative_to(SOURCES)}:{number}"
        for file in SOURCES.rglob("*.py")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if compared.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.computed_by])
def test_every_metric_is_computed_somewhere(name: str) -> None:
    place, _, function = METRICS[name].computed_by.partition(":")
    assert callable(getattr(importlib.import_module(place), function))
    assert METRICS[name].words
    assert METRICS[name].of in ("structure", "classes", "numbers", "images")


def test_names_of_metrics() -> None:
    assert named(STRUCTURE) == ("dice", "nsd", "hd95")
    assert (base("dice/left lung"), title("dice/left lung"), title("unheard")) == (
        "dice",
        "Dice (left lung)",
        "unheard",
    )
    assert about("hd95/a").lower_is_better
    assert not about("unheard").lower_is_better


def test_tasks_are_loaded_without_torch() -> None:
    code = (
        "import sys; from microtome.tasks import TASKS, task; [task(n) for n in TASKS]; print('torch' in sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.strip() == "False"


def test_a_task_is_abstract() -> None:
    with pytest.raises(TypeError):
        Task()


@pytest.mark.parametrize(
    ("names", "keep", "left"),
    [
        (["dice", "dice/spot", "nsd", "nsd/spot"], "dice", ["dice", "nsd"]),
        (["dice", "dice/spot", "nsd", "nsd/spot"], "dice/spot", ["dice/spot", "nsd"]),
        (["dice", "dice/a", "dice/b"], "", ["dice", "dice/a", "dice/b"]),
        (["dice/a"], "", ["dice/a"]),  # there is no mean that would say it
        (["auroc", "sensitivity"], "", ["auroc", "sensitivity"]),
    ],
)
def test_the_mean_over_one_structure_is_shown_once(names, keep, left):
    assert distinct(names, keep) == left
