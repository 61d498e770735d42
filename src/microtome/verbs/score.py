"""How good a network is on the tuning patients: what methods may steer by, since nothing of it is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from microtome.deployment.timing import eager
from microtome.evidence.candidates import Judge
from microtome.evidence.comparison import streamed
from microtome.evidence.guess_check import check_guess
from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.progress import Progress
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import Request

if TYPE_CHECKING:
    from microtome.graph.network import Network
    from microtome.models import Loaded


def score_of(request: Request, progress: Progress) -> Callable[[Network], float] | None:
    """Return what scores a network by the metric of the verdict, higher is better; None without labelled patients.

    The parent runs when it is first asked.
    """
    if not any(case.labelled for case in request.cohort.tuning):
        return None
    options, known = request.options, list[Judge]()

    def score(network: Network) -> float:
        if not known:
            known.append(judge_of(request, progress))
        return known[0].score(streamed(eager(network.to("cpu"), options.threads)))

    return score


def judge_of(request: Request, progress: Progress) -> Judge:
    """Run the parent on the tuning patients, to compare candidates with.

    Raises:
        SplitError: there are no tuning cases with a reference.
    """
    options = request.options
    return Judge(
        streamed(eager(request.loaded.network.to("cpu"), options.threads)),
        request.cohort,
        request.cohort.tuning,
        request.pipeline,
        metric=options.metric,
        margin=options.margin,
        seed=options.seed,
        progress=progress,
    )


def doubt_of(
    loaded: Loaded, cohort: Cohort, pipeline: Pipeline, options: CompressOptions, progress: Progress
) -> str | None:
    """Return the sentence that warns of a guessed pipeline with which the parent does much worse than with another."""
    if not loaded.guessed:
        return None
    doubt = check_guess(
        streamed(eager(loaded.network.to("cpu"), options.threads)),
        cohort,
        pipeline,
        seed=options.seed,
        free=all(loaded.network.dynamic[2:]),
        progress=progress,
    )
    if doubt is not None:
        progress.say(doubt)
    return doubt
