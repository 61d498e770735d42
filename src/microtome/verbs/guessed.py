"""A pipeline where nobody declares one: guessed from the cohort, then a preset's normalisation, then given fields."""

from __future__ import annotations

from microtome.errors import OptionError
from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline, with_fields
from microtome.medical.presets import preset, with_preset
from microtome.tasks.guess import default_pipeline
from microtome.verbs.options import CompressOptions


def guessed(cohort: Cohort, options: CompressOptions, *, outputs: int | None = None) -> Pipeline:
    """Return the pipeline that a cohort suggests, with the options' preset over it, and their fields over both.

    Raises:
        OptionError: there is no such preset, or a value does not fit.
        MicrotomeError: see `default_pipeline`.
    """
    pipeline = default_pipeline(cohort, outputs=outputs)
    if options.preset is not None:
        pipeline = with_preset(pipeline, options.preset)
    return with_fields(pipeline, options.pipeline_fields)


def undeclared(pipeline: Pipeline | None, options: CompressOptions) -> Pipeline | None:
    """Return a pipeline that is declared, or None.

    Raises:
        OptionError: it is declared, and a preset would contradict it.
    """
    if options.preset is not None:
        preset(options.preset)
        if pipeline is not None:
            raise OptionError(
                f"the pipeline is declared, so that --preset {options.preset} would contradict it.",
                "Leave --preset out, or change single fields with --with FIELD=VALUE.",
            )
    return pipeline
