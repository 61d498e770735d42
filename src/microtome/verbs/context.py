"""What methods are run with: images of the right patients, the target, and what is measured on both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from microtome.batches.calibration import CalibrationBatches, inputs
from microtome.batches.training import TrainingBatches, TuningBatches
from microtome.clinical.noninferiority import chosen_margin
from microtome.deployment.latency import Latency
from microtome.methods.base import Context
from microtome.progress import Progress
from microtome.tasks import task as kind
from microtome.types import Batch
from microtome.verbs.loading import load
from microtome.verbs.request import Request
from microtome.verbs.score import score_of

MOST_TUNING = 32  # cases that early stopping looks at


def context_of(request: Request, progress: Progress) -> Context:
    """Return what methods may read: nothing of it is evaluated, and tuning patients are not trained on."""
    options, pipeline = request.options, request.pipeline
    cohort, cases = request.calibration
    task = kind(pipeline.task)
    labelled = any(case.labelled for case in request.cohort.train)
    label_loss = task.label_loss(pipeline) if labelled else None
    training = None
    if request.cohort.train:
        training = TrainingBatches(
            request.cohort,
            request.cohort.train,
            pipeline,
            batch=options.batch,
            seed=options.seed,
            augment=True,
            flips=tuple(sorted({*options.flips, *pipeline.mirror})),  # what is predicted mirrored is learned mirrored
            labelled=label_loss is not None,
            partly=True,
        )
    tuning = None
    if request.cohort.tuning:
        tuning = TuningBatches(request.cohort, pipeline, MOST_TUNING, options.seed)
    on_foreground = options.calibration_choice == "foreground"
    calibration = CalibrationBatches(cohort, cases, pipeline, progress, options.seed, foreground=on_foreground)
    return Context(
        calibration,
        training,
        tuning,
        capabilities=request.runtime.capabilities(),
        sigmoid=pipeline.activation == "sigmoid",
        loss=task.loss(pipeline),
        label_loss=label_loss,
        score=score_of(request, progress),
        margin=chosen_margin(task.metric(options.metric), options.margin, task.OWN),
        latency=latency_of(request),
        load=lambda name: load(name, replace(options, weights=None), lambda: pipeline, task=pipeline.task).network,
        progress=progress,
    )


def latency_of(request: Request) -> Latency | None:
    """Return what measures networks on the target; None where this machine cannot run it, or it only simulates."""
    options, target = request.options, request.runtime
    if not (target.measurable() and target.RUNS_INTEGERS):
        return None
    precision = None if options.precision == "auto" else options.precision
    return Latency(target, example_of(request), threads=options.threads, precision=precision)


def example_of(request: Request) -> Batch:
    """Return the first calibration input, float32 (1, C, *S), or several by name."""
    cohort, cases = request.calibration
    return inputs(cohort, cases[0], request.pipeline, np.random.default_rng(request.options.seed))[0]
