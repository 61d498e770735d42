"""`compress`: model + cohort + recipe + target → a package folder with the evidence."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from microtome import recipes
from microtome.batches.calibration import CalibrationBatches
from microtome.deployment import parity
from microtome.deployment.deploy import Running, deploy
from microtome.deployment.memory import shortage
from microtome.deployment.placement import Placement, measured_placement
from microtome.deployment.timing import eager
from microtome.environment import arithmetic
from microtome.errors import MicrotomeError, TargetError
from microtome.evidence.comparison import Pair, evaluate_pair, streamed
from microtome.evidence.diagnosis import diagnose, from_history
from microtome.evidence.examples import choose, pictures
from microtome.evidence.provenance import provenance
from microtome.evidence.structure import structure
from microtome.files import write_json, writing
from microtome.graph.network import Network
from microtome.graph.packed import packed_bytes, theoretical_bytes
from microtome.medical.inputs import image_of
from microtome.methods.base import Context
from microtome.package import target_folder
from microtome.progress import Progress, Silent, Stopwatch
from microtome.results import QuantizerRow, Result
from microtome.staging import Place, Staging
from microtome.tasks import task as kind
from microtome.tasks.base import Judgement
from microtome.verbs.auto import choose as choose_recipe
from microtome.verbs.coding import with_weights_on_grids, write_network
from microtome.verbs.context import context_of, example_of
from microtome.verbs.options import AUTO, FLOAT, RULES, CompressOptions
from microtome.verbs.report import write_pages
from microtome.verbs.request import Request, identity, read_request
from microtome.verbs.result import assemble
from microtome.verbs.roles import cohort_notes
from microtome.verbs.score import doubt_of
from microtome.verbs.targets import Made, for_each_target, listed, without_evidence

if TYPE_CHECKING:
    from torch import nn

# Disk space that the work needs, in sizes of the f32 network: its checkpoints, both exports, the package.
ROOM = 8


def compress(
    model: str | Path | nn.Module,
    cohort: str | Path,
    out: str | Path,
    *,
    options: CompressOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Compress a network for a target and measure what that did.

    The package appears at `out` when it is whole. Interrupted work is kept in `out.partial`; the same call goes on.

    Args:
        model: `package.module:factory`, `file.py:factory`, a `.pt2` file, a MONAI bundle, a package, or a module.
        cohort: folder, npz file or CSV manifest of labelled cases.
        out: folder to make.
        options: see CompressOptions.
        progress: told of stages and steps.

    Returns:
        The content of `result.json`.

    Raises:
        MicrotomeError: of the kind that says what is wrong; nothing is written to `out`. A further target that fails is
            left out instead, and named under `failed_targets`: what was measured for the others is kept.

    Example:
        >>> import microtome
        >>> result = microtome.compress("unet.pt2", "cohort/", "package/")  # doctest: +SKIP
        >>> result["verdict"]["reason"]  # doctest: +SKIP
    """
    options, progress, out = options or CompressOptions(), progress or Silent(), Path(out)
    seconds = Stopwatch()
    request = read_request(model, Path(cohort), options, progress)
    progress.say(arithmetic())
    told = (*cohort_notes(request.cohort), *request.same.notes, *request.same.warnings)
    for note in (*request.loaded.notes, *told):
        progress.say(note)
    doubt = doubt_of(request.loaded, request.cohort, request.pipeline, options, progress)
    scarce = shortage(request.loaded.network, image_of(example_of(request)).shape[1:])
    if scarce is not None:
        progress.say(scarce)
    staging = Staging(out, identity(request))
    if staging.resumed:
        progress.say("going on where the last run stopped")
    seconds.lap("read")
    with writing(out):
        staging.require(ROOM * 4 * request.loaded.network.parameters * len(options.targets))
        made: list[Made] = []
        failed: dict[str, str] = {}
        for part in for_each_target(request):
            place = staging.part(part.runtime.NAME, target_folder(part.runtime.NAME))
            try:
                one = _made(part, place, made, seconds if not made else Stopwatch(), progress)
                made.append(_with_rungs(one, part, progress) if len(options.targets) > 1 else one)
            except MicrotomeError as error:
                if not made:
                    raise
                failed[part.runtime.NAME] = str(error)
                progress.say(f"{part.runtime.NAME} is left out: {error}")
                shutil.rmtree(staging.package / target_folder(part.runtime.NAME), ignore_errors=True)
        progress.say("write the package")
        made = write_network(staging.package, made, request)
        result = listed(made, failed)
        result["warnings"] = [*filter(None, (doubt, scarce)), *result["warnings"]]
        _write(request, made, result, staging, progress)
        staging.finish()
    return result


def _made(request: Request, place: Place, others: Sequence[Made], seconds: Stopwatch, progress: Progress) -> Made:
    """Compress for one target, and measure it if this machine can."""
    if request.runtime.measurable():
        return _measured(request, place, seconds, progress)
    return _exported(request, place, others[0], progress)


def _measured(request: Request, place: Place, seconds: Stopwatch, progress: Progress) -> Made:
    """Compress for one target, and measure what that did."""
    options, context = request.options, context_of(request, progress)
    request, start, placement = _placed(request, context, place, progress)
    seconds.lap("place")
    network, trials = _compressed(request, start, context, place, progress)
    network = with_weights_on_grids(request, network)
    seconds.lap("compress")
    ran = next((trial["name"] for trial in trials if trial["chosen"]), request.recipe)
    precision = _precision(request, placement, ran)
    deployed = deploy(
        request.loaded.network,
        network,
        request.runtime,
        example_of(request),
        place,
        title=precision if ran == FLOAT and precision else request.recipe,
        running=Running(options.threads, precision),
        progress=progress,
    )
    seconds.lap("export and bench")
    pair = Pair(streamed(eager(request.loaded.network, options.threads)), deployed.session.stream)
    judgement = Judgement(kind(request.pipeline.task).metric(options.metric), options.margin, options.seed)
    store = place.work / "cases.jsonl"
    evaluation = evaluate_pair(pair, request.cohort, request.pipeline, judgement, store=store, progress=progress)
    seconds.lap("evaluate")
    examples, arrays = pictures(choose(evaluation.parts, request.pipeline), pair, request.cohort, request.pipeline)
    seconds.lap("examples")
    result = assemble(request, network, deployed, evaluation)
    if ran == FLOAT and deployed.precision != FLOAT:
        result["notes"].append(f"Nothing was quantized, and the network runs in {deployed.precision}, not in {FLOAT}.")
    result["examples"], result["seconds"] = examples, seconds.laps
    result["packed"] = {"bytes": packed_bytes(network), "theoretical_bytes": theoretical_bytes(network)}
    _add_diagnosis(result, request, network)
    seconds.lap("diagnose")
    if trials:
        result["trials"] = trials
    if placement is not None:
        result["placement"] = list(placement.tried)
    return Made(request.runtime.NAME, network, result, arrays)


def _exported(request: Request, place: Place, first: Made, progress: Progress) -> Made:
    """Compress for a target that this machine cannot run, and export that: there is no evidence."""
    network, _ = _compressed(request, (request.loaded.network, 0), context_of(request, progress), place, progress)
    progress.say(f"export to {request.runtime.NAME}, which this machine cannot run: nothing is measured")
    network = with_weights_on_grids(request, network)
    path = request.runtime.export(network.to("cpu"), place.package)
    return Made(request.runtime.NAME, network, without_evidence(request, network, path, first.result), {})


def _placed(
    request: Request, context: Context, place: Place, progress: Progress
) -> tuple[Request, tuple[Network, int], Placement | None]:
    """Measure where integers pay on this machine, if that is asked for.

    Returns:
        The request, its recipes told what was found; the network that was measured, and how many methods of the recipe
        made it; what was found.
    """
    options, parent, first = request.options, request.loaded.network, request.recipes[0]
    if options.placement == RULES:
        return request, (parent, 0), None
    checkpoints = None if request.recipe == AUTO else place.work
    network = recipes.run(first, parent, context, checkpoints=checkpoints, until=first.structural)
    progress.say("measure where integers pay on this machine")
    placement = measured_placement(
        network.to("cpu"),
        request.runtime,
        example_of(request),
        threads=options.threads,
        budget=60 * options.placement_minutes,
        progress=progress,
        skip=frozenset(options.skip),
    )
    if placement.in_float:
        progress.say(f"on this machine no layer is faster in integers: recipe {FLOAT} in place of {request.recipe}")
        plain = replace(request, options=replace(options, recipe=FLOAT), recipes=(recipes.read(FLOAT),))
        return plain, (parent, 0), placement
    placed = tuple(recipe.with_fields(readers=placement.readers, skip=placement.skip) for recipe in request.recipes)
    return replace(request, recipes=placed), (network, first.structural), placement


def _precision(request: Request, placement: Placement | None, recipe: str) -> str | None:
    """Return the precision of what stays in float, if that is decided: by the user, with the placement, or by `f32`."""
    if request.options.precision != "auto":
        return request.options.precision
    if placement is not None:
        return placement.precision
    return FLOAT if recipe == FLOAT and FLOAT in request.runtime.PRECISIONS else None


def _compressed(
    request: Request, start: tuple[Network, int], context: Context, place: Place, progress: Progress
) -> tuple[Network, list[dict[str, Any]]]:
    """Run the recipe from where it stands; with `auto` also return what was tried."""
    if request.recipe == AUTO:
        return choose_recipe(request, context, place, progress)
    network, done = start
    context = replace(context, teacher=request.loaded.network)
    return recipes.run(request.recipes[0], network, context, checkpoints=place.work, done=done), []


def _add_diagnosis(result: Result, request: Request, network: Network) -> None:
    """Add what each layer lost, where values were clipped, and what methods found on their way."""
    cohort, cases = request.calibration
    batches = CalibrationBatches(cohort, cases, request.pipeline, Silent(), request.options.seed)
    found = diagnose(request.loaded.network, network, batches)
    rows = zip(result["quantizers"], found.pop("quantizers"), strict=True)
    result["quantizers"] = [cast(QuantizerRow, {**row, **more}) for row, more in rows]
    result.update(cast(Result, found | from_history(network)))
    removed = structure(request.loaded.network.to("cpu"), network.to("cpu"))
    if removed:
        result["structure"] = removed


def _with_rungs(made: Made, request: Request, progress: Progress) -> Made:
    """Return what came out for one of several targets, and where its runtime departs from the simulation."""
    name, result = request.runtime.NAME, made.result
    if not result.get("measured", True):
        return made
    if not parity.fits(made.network):
        result["notes"].append(f"{name} was not compared with its network layer by layer: that takes too much memory.")
        return made
    progress.say(f"compare {name} with the simulation, layer by layer")
    running = Running(request.options.threads, result["session"]["precision"])
    try:
        rungs = parity.climbed(made.network, request.runtime, example_of(request), running)
    except TargetError as error:
        result["notes"].append(f"{name} was not compared with its network layer by layer: {error}")
        return made
    departs = next((rung["layer"] for rung in rungs if rung["departs"]), None)
    warnings = [f"{name} computes something else than its network before {departs}: see `microtome parity`."]
    result["warnings"] += warnings if departs is not None else []
    return replace(made, result={**result, "rungs": rungs})


def _write(request: Request, made: Sequence[Made], result: Result, staging: Staging, progress: Progress) -> None:
    """Fill the package folder but for the network: the first target's result; of each other its own."""
    folder, (first, *others) = staging.package, made
    for one in others:
        write_json(folder / target_folder(one.name) / "result.json", one.result)
        if one.arrays:
            np.savez_compressed(folder / target_folder(one.name) / "examples.npz", **one.arrays)  # type: ignore[arg-type]
    write_json(folder / "result.json", result)
    np.savez_compressed(folder / "examples.npz", **first.arrays)  # type: ignore[arg-type]
    (folder / "pipeline.json").write_text(request.pipeline.to_json())
    calibration_cohort, cases = request.calibration
    write_json(
        folder / "provenance.json",
        provenance(
            request.loaded, request.cohort, calibration_cohort, cases, result, folder, progress, same=request.same
        ),
    )
    write_pages(folder)
