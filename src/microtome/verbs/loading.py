"""A model as the options want it: which one of several, and with which pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import OptionError
from microtome.medical.pipeline import Pipeline, with_fields
from microtome.models import Part, load_model
from microtome.verbs.options import CompressOptions

if TYPE_CHECKING:
    from torch import nn

    from microtome.models import Loaded


def load(
    model: str | Path | nn.Module,
    options: CompressOptions,
    guess: Callable[[], Pipeline] | None = None,
    *,
    task: str | None = None,
    untrained: bool = False,
) -> Loaded:
    """Load and capture a model; where its pipeline is declared, with the fields that the options change.

    Args:
        model: see `load_model`.
        options: those that concern the model and its pipeline.
        guess: see `load_model`.
        task: likewise.
        untrained: see `Part`.

    Raises:
        OptionError: the pipeline that the options name does not exist, or makes no sense.
        MicrotomeError: see `load_model`.
    """
    part = Part(options.fold, options.configuration, options.output, untrained)
    loaded = _changed(model, options, guess, task, part)
    pipeline = loaded.pipeline
    if pipeline is None or not pipeline.mirror:
        return loaded
    times = 2 ** len(pipeline.mirror)
    note = (
        f"Each window is predicted {times} times, mirrored, and the scores are averaged, as the pipeline says. Once is "
        f"{times} times faster, and may be less accurate: --with mirror=[]"
    )
    return replace(loaded, notes=(*loaded.notes, note))


def _changed(
    model: str | Path | nn.Module,
    options: CompressOptions,
    guess: Callable[[], Pipeline] | None,
    task: str | None,
    part: Part,
) -> Loaded:
    """Load a model, with the pipeline that the options declare, or its own with the fields that they change."""
    given = declared(options)
    loaded = _load(model, options, given, guess, task, part)
    if given is not None:
        return replace(loaded, pipeline=given)
    if loaded.pipeline is None or not options.pipeline_fields:
        return loaded
    changed = with_fields(loaded.pipeline, options.pipeline_fields)
    if changed.input_shape != loaded.pipeline.input_shape:  # then it has to be captured with another size
        return replace(_load(model, options, changed, guess, task, part), notes=loaded.notes)
    return replace(loaded, pipeline=changed)


def _load(
    model: str | Path | nn.Module,
    options: CompressOptions,
    pipeline: Pipeline | None,
    guess: Callable[[], Pipeline] | None,
    task: str | None,
    part: Part,
) -> Loaded:
    return load_model(
        model,
        weights=Path(options.weights) if options.weights is not None else None,
        input_shape=options.input_shape,
        pipeline=pipeline,
        device=options.device,
        guess=guess,
        part=part,
        task=task,
    )


def declared(options: CompressOptions) -> Pipeline | None:
    """Return the pipeline that the options name, with the fields that they change.

    Raises:
        OptionError: there is no such file, or it makes no sense.
    """
    if options.pipeline is None:
        return None
    if isinstance(options.pipeline, Pipeline):
        return with_fields(options.pipeline, options.pipeline_fields)
    path = Path(options.pipeline)
    if not path.exists():
        raise OptionError(f"{path} does not exist.", "Give the pipeline.json to use.")
    return with_fields(Pipeline.from_json(path.read_text()), options.pipeline_fields)
