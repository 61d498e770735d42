"""What a verb is asked to do: options, and everything that they name read and checked before any work is done."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import LabelError, OptionError
from microtome.evidence.same_images import Same, separated
from microtome.files import writing
from microtome.medical.cohort import Cohort
from microtome.medical.described import describe as describe_pipeline
from microtome.medical.further import with_further
from microtome.medical.pipeline import Pipeline
from microtome.progress import Progress
from microtome.runtimes import runtime
from microtome.runtimes.base import Runtime, check_network
from microtome.tasks import task as kind
from microtome.types import Case
from microtome.verbs.fit import channels_of, check_heads
from microtome.verbs.guessed import guessed, undeclared
from microtome.verbs.loading import load
from microtome.verbs.named import check_inputs, with_names
from microtome.verbs.options import AUTO, MEASURED, RULES, CompressOptions
from microtome.verbs.roles import as_classes, calibration_of, check_masks, read_cohort, stamps, unseen
from microtome.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from microtome.graph.network import Network
    from microtome.models import Loaded
    from microtome.recipes import Recipe


@dataclass(frozen=True)
class Request:
    """Everything that was read: what the rest of the road works on. Of several recipes one is to be chosen."""

    options: CompressOptions
    recipes: tuple[Recipe, ...]
    loaded: Loaded
    pipeline: Pipeline
    cohort: Cohort
    calibration: tuple[Cohort, tuple[Case, ...]]
    runtime: Runtime
    same: Same

    @property
    def target(self) -> str:
        """The name under which `runtimes.runtime` finds the runtime: that of the first target."""
        return self.options.targets[0]

    @property
    def recipe(self) -> str:
        """The name of the recipe, or `auto`."""
        return AUTO if self.options.recipe == AUTO else self.recipes[0].name


def write_key(path: Path, cohort: Path, options: CompressOptions) -> None:
    """Write which file each pseudonym of a cohort stands for, as CSV. The file identifies patients.

    Raises:
        OutputError: it cannot be written.
        MicrotomeError: see `load_cohort`.
    """
    loaded = read_cohort(cohort, options)
    known = {case.id: (case, one.key[case.id]) for one in (loaded, *loaded.also.values()) for case in one.cases}
    with writing(path), path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["case", "patient", "role", "files"])
        table.writerows([case.id, case.patient, case.role, files] for _, (case, files) in sorted(known.items()))


def read_request(
    model: str | Path | nn.Module, cohort_path: Path, options: CompressOptions, progress: Progress | None = None
) -> Request:
    """Read and check everything before any work is done. Images in several roles are left to one of them.

    Raises:
        MicrotomeError: see `load_cohort`, `load_model`, `runtime`.
    """
    from microtome.verbs.recipe import asked

    target = _runtimes(options)[0]
    if options.placement not in (RULES, MEASURED):
        raise OptionError(f"there is no placement {options.placement!r}.", f"Choose {RULES} or {MEASURED}.")
    recipes = asked(options)
    cohort = read_cohort(cohort_path, options)
    loaded, pipeline = read_network(model, cohort, options)
    check_network(target, loaded.network)
    kind(pipeline.task).metric(options.metric, pipeline)
    cohort = as_classes(unseen(cohort, loaded.trained_on, options), pipeline)
    cohort = with_further(cohort, pipeline, options.inputs)
    check_masks(cohort, progress)
    cohort, same, images = separated(cohort, progress)
    calibration, more = calibration_of(cohort, images, pipeline, options, progress)
    return Request(options, recipes, loaded, pipeline, cohort, calibration, target, same.and_also(more))


def _runtimes(options: CompressOptions) -> list[Runtime]:
    """Return the runtimes of all targets.

    Raises:
        OptionError: there is no such target, or not in that precision; one is named twice; what has to be measured is
            for one that this machine cannot run.
    """
    found = [runtime(name) for name in options.targets]
    names = [target.NAME for target in found]
    if not found or len(set(names)) < len(names):
        raise OptionError(f"the targets are {', '.join(names) or 'none'}.", "Name at least one, and each once.")
    for place, target in enumerate(found):
        if options.precision not in ("auto", *target.PRECISIONS):
            raise OptionError(
                f"--precision {options.precision} is nothing that {target.NAME} offers.",
                f"Choose auto or {', '.join(target.PRECISIONS)}.",
            )
        if target.measurable():
            continue
        if place == 0:
            raise OptionError(
                f"this machine cannot run {target.NAME}, so that there would be no evidence.",
                "Name a target first that it can run; others after it are exported too.",
            )
        if options.recipe == AUTO or options.placement == MEASURED:
            what = f"--recipe {AUTO}" if options.recipe == AUTO else f"--placement {MEASURED}"
            raise OptionError(f"{what} measures, and this machine cannot run {target.NAME}.", "Choose another.")
    return found


def read_network(model: str | Path | nn.Module, cohort: Cohort, options: CompressOptions) -> tuple[Loaded, Pipeline]:
    """Load a network, and settle what it wants: declared, found beside it, or guessed from the cohort."""
    from microtome.verbs.overlapping import overlap_notes

    task = None if cohort.also else cohort.task
    loaded = load(model, options, lambda: guessed(cohort, options), task=task)
    pipeline = undeclared(loaded.pipeline, options)
    check_inputs(loaded.network, pipeline)
    if pipeline is not None:
        _check_task(pipeline, cohort.of_task(pipeline.task))
    else:
        cohort = _for_output(loaded.network, cohort)
    outputs = channels_of(loaded.network, kind(cohort.task if pipeline is None else pipeline.task))
    if pipeline is None:
        pipeline = guessed(cohort, options, outputs=outputs)
        note = (
            f"Pre-processing was guessed from the cohort: {describe_pipeline(pipeline)}; the network's outputs are "
            f"taken for {', '.join(pipeline.classes)}, in that order. Declare it with --pipeline."
        )
        loaded = replace(loaded, notes=(*loaded.notes, note), guessed=True)
    pipeline = with_names(pipeline, loaded.network, options.output)
    kind(pipeline.task).check(pipeline)
    _check_fit(loaded.network, pipeline, outputs)
    check_heads(loaded.network, kind(pipeline.task), pipeline)
    cases = with_further(cohort.of_task(pipeline.task), pipeline, options.inputs)
    notes = overlap_notes(loaded.network, pipeline, cases)
    return replace(loaded, notes=(*loaded.notes, *notes)), pipeline


def _for_output(network: Network, cohort: Cohort) -> Cohort:
    """Return the cohort for the task that the network's output speaks of, where it has references for several."""
    maps = len(network.outputs[0].shape) > 1
    return next((one for one in (cohort, *cohort.also.values()) if maps == kind(one.task).MAPS), cohort)


def _check_task(pipeline: Pipeline, cohort: Cohort) -> None:
    """Raise OptionError if a pipeline is for another task than a cohort."""
    if pipeline.task != cohort.task:
        raise OptionError(
            f"the pipeline is for {pipeline.task}, but {cohort.path} is a {cohort.task} cohort.",
            "Give the cohort or the --pipeline that belongs to this network.",
        )


def _check_fit(network: Network, pipeline: Pipeline, outputs: int) -> None:
    """Check that network and pipeline speak of the same thing."""
    channels, dims = pipeline.network_channels, pipeline.network_dims
    if network.shape[0] != channels or network.spatial_dims != dims:
        raise OptionError(
            f"the network takes {network.shape[0]} channels in {network.spatial_dims}-D, the pipeline gives "
            f"{channels} in {dims}-D.",
            "Give a --pipeline that declares what the network was trained with.",
        )
    if outputs not in kind(pipeline.task).outputs(pipeline):
        raise LabelError(
            f"the network has {outputs} outputs, but there are {len(pipeline.classes)} classes "
            f"({', '.join(pipeline.classes)}) and the activation is {pipeline.activation}.",
            "Declare the network's own classes in --pipeline"
            + ("; or 'sigmoid', if its channels are the structures." if outputs == len(pipeline.classes) - 1 else "."),
        )


def identity(request: Request) -> dict[str, Any]:
    """Return what makes a request the same as an interrupted one."""
    calibration, _ = request.calibration
    options = {f.name: str(getattr(request.options, f.name)) for f in dataclasses.fields(request.options)}
    return {
        "version": __version__,
        "network": request.loaded.network.fingerprint(),
        "pipeline": request.pipeline.to_json(),
        "cohort": str(request.cohort.path.resolve()),
        "files": stamps(request.cohort) + (stamps(calibration) if calibration is not request.cohort else []),
        "roles": [case.role for case in request.cohort.cases],
        "options": options,
        "recipes": [recipe.describe() for recipe in request.recipes],
    }
