"""Normalisation by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from microtome.errors import OptionError
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.presets import PRESETS, with_preset
from microtome.types import Image
from microtome.verbs.guessed import guessed, undeclared
from microtome.verbs.options import CompressOptions
from tiny import class_cohort

GUESSED = Pipeline("classification", ("a", "b"), channels=3, size=(4, 4), normalize="unit")
GRAY = Pipeline("classification", ("a", "b"), channels=1, size=(4, 4), window=(0, 100), normalize="minmax")


def seen(pipeline, value):
    """What the network gets of a picture of one value."""
    picture = np.full((pipeline.channels, 4, 4), value, np.uint8)
    return prepare(Image(picture), pipeline).array[:, 0, 0]


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_makes_a_pipeline(name):
    assert with_preset(GUESSED, name).normalize == PRESETS[name]["normalize"]


def test_constants_are_those_of_their_sources():
    imagenet = seen(with_preset(GUESSED, "imagenet"), 255)
    assert np.allclose(imagenet, [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], atol=1e-5)
    for value, wanted in ((0, -1), (255, 1)):
        assert np.allclose(seen(with_preset(GUESSED, "inception"), value), wanted, atol=1e-5)
        xray = with_preset(GRAY, "torchxrayvision")
        assert np.allclose(seen(xray, value), 1024 * wanted, atol=1e-2)
    assert (with_preset(GRAY, "clip").channels, xray.channels) == (3, 1)  # gray is repeated for a network of colours
    assert xray.window is None  # what was guessed of intensities goes


def test_what_does_not_fit_is_refused():
    with pytest.raises(OptionError, match=r"no preset 'imagnet'\. Did you mean imagenet"):
        with_preset(GUESSED, "imagnet")
    with pytest.raises(OptionError, match="has 3 channels, the images have 4"):
        with_preset(replace(GUESSED, channels=4), "clip")
    with pytest.raises(OptionError, match="would contradict"):
        undeclared(GUESSED, CompressOptions(preset="clip"))


def test_a_preset_is_over_the_guess_and_under_given_fields(tmp_path):
    cohort = load_cohort(class_cohort(tmp_path / "c", per_class=4))
    given = guessed(cohort, CompressOptions(preset="inception", pipeline_fields={"divisible": 2}))
    assert (given.normalize, given.mean, given.divisible) == ("fixed", (0.5,), 2)
    assert guessed(cohort, CompressOptions()).normalize == "unit"
