"""`evaluate`: a package or a model on a cohort, alone or against its parent."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from microtome.clinical.guard import absent
from microtome.deployment.timing import eager
from microtome.environment import describe, peak_memory_mib
from microtome.errors import OptionError, SplitError
from microtome.evidence.comparison import Evaluation, Pair, evaluate_pair, of_output, streamed
from microtome.evidence.examples import choose, pictures
from microtome.evidence.same_images import Images, repeated
from microtome.files import write_json, writing
from microtome.medical.cohort import Cohort
from microtome.medical.described import describe as describe_pipeline
from microtome.medical.formats import title_of
from microtome.medical.further import with_further
from microtome.medical.pipeline import Pipeline
from microtome.medical.stream import Stream
from microtome.package import SCHEMA, Package, open_package
from microtome.progress import Progress, Silent
from microtome.results import Result, Verdict
from microtome.staging import Staging
from microtome.tasks import task
from microtome.tasks.base import Judgement
from microtome.verbs.loading import declared
from microtome.verbs.options import CompressOptions
from microtome.verbs.report import write_pages
from microtome.verbs.request import read_network
from microtome.verbs.roles import as_classes, check_masks, cohort_notes, read_cohort, stamps, unseen
from microtome.version import __version__


def evaluate(
    model: str | Path,
    cohort: str | Path,
    out: str | Path,
    *,
    parent: str | Path | None = None,
    target: str | None = None,
    options: CompressOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Evaluate a package, or a model in PyTorch, on the evaluation cases of a cohort.

    Without `parent` there is no difference and no verdict. With one its fingerprint is in the result, and if it is not
    the network that the package was made from, a warning says so. Cases that a package was calibrated on are left out.
    An operating point comes from the package; without one the class of highest probability is the decision.

    Args:
        model: a package, or anything that `compress` takes.
        cohort: labelled cases.
        out: folder to make, with `result.json` and `report.html`.
        parent: the uncompressed network; runs in PyTorch.
        target: which of a package's targets; None is the first.
        options: those that concern cohort, model and judgement.
        progress: told of each case.

    Returns:
        The content of `result.json`.

    Raises:
        MicrotomeError: of the kind that says what is wrong; nothing is written to `out`.
    """
    options, progress, out = options or CompressOptions(evaluation=1.0, tuning=0.0), progress or Silent(), Path(out)
    cases = read_cohort(Path(cohort), options, _own_pipeline(Path(model)))
    predict, pipeline, known = _open(model, cases, options, target)
    cases = unseen(cases, known.pop("trained_on", None), options)
    cases = with_further(as_classes(cases, pipeline), pipeline, options.inputs)
    check_masks(cases, progress)
    images = Images(cases, cases.evaluation, progress)
    cases = _without_calibration(cases, images, known.pop("calibrated", ()))
    same = repeated(cases, images)
    metric = task(pipeline.task).metric(options.metric, pipeline)
    reference, given, warnings, notes = predict, None, list(same.warnings), list(known.pop("notes", ()))
    if parent is not None:
        loaded, _ = read_network(parent, cases, replace(options, pipeline=pipeline))
        cases = unseen(cases, loaded.trained_on, options)
        given = loaded.network.fingerprint()
        notes += [f"The parent: {note}" for note in loaded.notes]
        warnings += _another(given, known.get("parent"))
        reference = streamed(eager(loaded.network, options.threads))
    staging = Staging(
        out,
        {
            "evaluate": str(model),
            "parent": f"{parent} {given}",
            "target": target,
            "cohort": str(cohort),
            "files": stamps(cases),
            "networks": [known.pop("sha256", None), given],
            "pipeline": pipeline.to_json(),
            "options": str(options),
        },
    )
    with writing(out):
        pair = Pair(reference, predict)
        evaluation = evaluate_pair(
            pair,
            cases,
            pipeline,
            Judgement(metric, options.margin, options.seed),
            operating_point=known.get("operating_point"),
            store=staging.work / "cases.jsonl",
            progress=progress,
        )
        examples, arrays = pictures(choose(evaluation.parts, pipeline), pair, cases, pipeline)
        result = _measured(evaluation, cases, pipeline, known, options)
        result["examples"] = examples
        result["notes"] = list(dict.fromkeys((*notes, *cohort_notes(cases), *same.notes)))
        result["warnings"] = [*warnings, *evaluation.parts["verdict"].get("remarks", [])]
        result["counts"]["same_images"] = dict(same.counts)
        if given is None:
            result |= _alone(result)
        else:
            result["parent"] = {"sha256": given, **result["parent"]}
        write_json(staging.package / "result.json", result)
        np.savez_compressed(staging.package / "examples.npz", **arrays)  # type: ignore[arg-type]
        write_pages(staging.package, card=False)
        staging.finish()
    return result


def _measured(
    evaluation: Evaluation, cohort: Cohort, pipeline: Pipeline, known: Mapping[str, Any], options: CompressOptions
) -> Result:
    """Return what was measured, and on what."""
    return {
        "schema": SCHEMA,
        "microtome": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "title": options.title or f"Evaluation on {title_of(cohort.format)}",
        "task": pipeline.task,
        "target": known.get("target", "pytorch"),
        "recipe": known.get("recipe", "none"),
        "classes": list(pipeline.classes),
        "length_unit": "px" if pipeline.spatial_dims == 2 else "mm",
        "input": {"pipeline": describe_pipeline(pipeline), "guessed": known.get("guessed", False)},
        **evaluation.parts,
        "stages_ms": {name: round(value * 1e3, 3) for name, value in evaluation.stages.items()},
        "memory": {"evaluate_peak_mib": peak_memory_mib()},
        "environment": describe(options.threads),
    }


def _alone(result: Result) -> Result:
    """Return the parts of a result that say that there was nothing to compare with."""
    left_out = result["verdict"].get("left_out", [])
    remarks = [absent(left_out)] if left_out else []
    compared = result["verdict"].get("remarks", [])
    others = [warning for warning in result["warnings"] if warning not in compared]
    verdict: Verdict = {
        **result["verdict"],
        "non_inferior": None,
        "lower": None,
        "reason": "No parent was given to compare with: these are the network's own numbers.",
        "cause": "no parent",
        "losses": [],
        "others": [],
        "remarks": remarks,
    }
    return {
        "parent": {"metrics": {}},
        "difference": {},
        "agreement": None,
        "verdict": verdict,
        "warnings": [*others, *remarks],
    }


def _another(given: str, own: str | None) -> list[str]:
    """Return a warning if the parent that was given is not the one that a package was made from."""
    if own is None or given == own:
        return []
    return [
        f"The parent that was given ({given[:12]}…) is not the one that the package was made from ({own[:12]}…): the "
        "difference is that of two networks, and not what compression lost."
    ]


def _own_pipeline(model: Path) -> Pipeline | None:
    """Return the pipeline of a package; None of what is none."""
    file = model / "pipeline.json"
    return Pipeline.from_json(file.read_text()) if (model / "result.json").exists() and file.exists() else None


def _open(
    model: str | Path, cohort: Cohort, options: CompressOptions, target: str | None
) -> tuple[Stream, Pipeline, dict[str, Any]]:
    """Return how to run the model, its pipeline, and what its package knows."""
    folder = Path(model)
    if not (folder / "result.json").exists():
        if target is not None:
            raise OptionError(f"{model} is no package: it has no target.", "Leave --target out.")
        loaded, pipeline = read_network(model, cohort, options)
        known: dict[str, Any] = {
            "notes": loaded.notes,
            "guessed": loaded.guessed,
            "trained_on": loaded.trained_on,
            "sha256": loaded.network.fingerprint(),
        }
        return streamed(eager(loaded.network, options.threads)), pipeline, known
    package = open_package(folder, target=target, threads=options.threads)
    known = {key: package.result.get(key) for key in ("target", "recipe", "operating_point")}
    known["parent"] = package.result.get("parent", {}).get("sha256")
    known["sha256"] = package.result["session"]["sha256"]
    known["notes"] = package.result.get("notes", ())
    stream: Stream = package.session.stream
    pipeline = package.pipeline
    other = declared(options)
    if other is not None and other != pipeline:
        stream, pipeline = _another_output(package, other), other
        known["operating_point"] = None
        known["notes"] = (*known["notes"], "It was evaluated with another pipeline than that of the package.")
    known["guessed"] = package.result.get("input", {}).get("guessed", False)
    record = folder / "provenance.json"
    if record.exists():
        origin = json.loads(record.read_text())["cohort"]
        files = {entry["image"] for entry in origin["calibration_sha256"].values()}
        known["calibrated"] = files | set(origin.get("calibration_voxels_sha256", {}).values())
    return stream, pipeline, known


def _another_output(package: Package, pipeline: Pipeline) -> Stream:
    """Return a stream of the output that a pipeline reads, which the package has beside that of its own pipeline.

    Raises:
        OptionError: the package has no such output.
    """
    names = [port.name for port in package.session.outputs]
    wanted = pipeline.output or package.pipeline.output or names[0]
    if wanted not in names:
        raise OptionError(
            f"the package has no output '{wanted}'.",
            f"It has {', '.join(names)}; others are kept if 'keep' in the pipeline names them when it is made.",
        )
    return of_output(package.session.stream, package.session.inputs[0].name, wanted)


def _without_calibration(cohort: Cohort, images: Images, calibrated: Collection[str]) -> Cohort:
    """Leave out evaluation cases whose files or voxels the package was calibrated on.

    Raises:
        SplitError: none are left.
    """
    if not calibrated:
        return cohort
    hashes = dict(zip((case.id for case in cohort.evaluation), images.of(cohort.evaluation), strict=True))
    kept = tuple(c for c in cohort.cases if c.role != "evaluation" or hashes[c.id].hashes.isdisjoint(calibrated))
    left_out = len(cohort.cases) - len(kept)
    if not any(case.role == "evaluation" for case in kept):
        raise SplitError("the package was calibrated on every case of this cohort.", "Evaluate it on other cases.")
    note = (f"{left_out} cases were left out: the package was calibrated on them.",) if left_out else ()
    return replace(cohort, cases=kept, notes=(*cohort.notes, *note))
