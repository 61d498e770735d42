"""The list of model sources, and a source of another package."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from microtome.errors import OptionError, ReadError
from microtome.medical.pipeline import Pipeline
from microtome.models import SOURCES, load_model, looked_for

PIPELINE = Pipeline(task="segmentation", classes=("background", "lesion"), size=(16, 16))


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_defines_what_the_protocol_says(name):
    module = importlib.import_module(SOURCES[name])
    assert name == module.NAME
    assert isinstance(module.LOOKS_LIKE, str)
    assert not module.matches("neither this nor that")
    assert callable(module.load)


def test_what_is_no_model_is_told_all_that_was_looked_for(tmp_path):
    for name, place in SOURCES.items():
        assert (importlib.import_module(place).LOOKS_LIKE in looked_for()) or name == "module"
    with pytest.raises(ReadError) as caught:
        load_model(tmp_path)
    assert looked_for() in caught.value.hint


def test_a_source_of_another_package_is_found_when_it_is_named(tmp_path):
    loaded = load_model("their_pkg.zoo::5", pipeline=PIPELINE)
    assert (loaded.title, loaded.pipeline, loaded.network.shape) == ("zoo 5", PIPELINE, (1, 16, 16))
    assert loaded.network.run(torch.zeros(1, 1, 16, 16))["output"].shape == (1, 5, 16, 16)
    torch.save(nn.Conv2d(1, 2, 3).state_dict(), tmp_path / "w.pt")
    told = load_model("their_pkg.zoo::2", weights=tmp_path / "w.pt")
    assert (told.network.shape, told.files) == ((1, 8, 8), (tmp_path / "w.pt",))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("their_pkg.nothing::5", "cannot be imported"),
        ("their_pkg.boxed::5", "no model source: it has no load"),
    ],
)
def test_what_is_no_source_is_refused(source, problem):
    with pytest.raises(OptionError, match=problem):
        load_model(source)


def test_a_guess_is_made_only_where_nothing_says_the_shape():
    module, guesses = nn.Conv2d(1, 2, 3, padding=1), []

    def guess():
        guesses.append(PIPELINE)
        return PIPELINE

    assert load_model(module, input_shape=(1, 8, 8), guess=guess).network.shape == (1, 8, 8)
    assert load_model(module, pipeline=PIPELINE, guess=guess).network.shape == (1, 16, 16)
    assert not guesses
    loaded = load_model(module, guess=guess)
    assert (loaded.network.shape, loaded.pipeline, len(guesses)) == ((1, 16, 16), None, 1)  # a guess declares nothing
