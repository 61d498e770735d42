"""The content of `result.json`, put together from what was measured."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict

from microtome.core.affine import real_range
from microtome.deployment.deploy import Deployed
from microtome.deployment.gain import no_gain
from microtome.deployment.layers import integer_counts
from microtome.environment import describe, peak_memory_mib
from microtome.evidence.comparison import Evaluation
from microtome.graph.network import Network
from microtome.graph.quantizers import quantizers
from microtome.medical.described import describe as describe_pipeline
from microtome.medical.formats import title_of
from microtome.package import SCHEMA
from microtome.results import QuantizerRow, Result
from microtome.verbs.request import Request
from microtome.verbs.roles import cohort_notes
from microtome.verbs.targets import session
from microtome.version import __version__

# The runtime may differ from the simulated graph by roundings, which is less than quantization itself costs. Where it
# differs by much more than that, it computes something else.
PARITY_DB = 20.0
PARITY_SLACK_DB = 6.0
# A file that is not at least so many times smaller has not shrunk.
SHRUNK = 1.1
# Quartiles of a latency lie within a few percent of one another on a quiet machine.
UNSTEADY = 1.5


def assemble(request: Request, network: Network, deployed: Deployed, evaluation: Evaluation) -> Result:
    """Return the content of `result.json`, schema 1, but for `examples` and `seconds`."""
    options, parts, target = request.options, evaluation.parts, request.runtime
    eager_run = next(run for run in deployed.runs if run["runtime"] == "pytorch")
    ours = next(run for run in deployed.runs if run.get("compressed"))
    baseline_bytes = next((run["bytes"] for run in deployed.runs if run["bytes"] and not run.get("compressed")), None)
    parent = request.loaded.network
    integer = integer_counts(deployed.layers)
    _, calibration = request.calibration
    counts = {
        **parts["counts"],
        "calibration": len(calibration),
        "tuning": len(request.cohort.tuning),
        "failed": 0,
        "same_images": dict(request.same.counts),
    }
    result: Result = {
        "schema": SCHEMA,
        "microtome": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "title": options.title or f"{request.loaded.title} on {title_of(request.cohort.format)}",
        "task": request.pipeline.task,
        "target": target.NAME,
        "recipe": request.recipe,
        "classes": list(request.pipeline.classes),
        "length_unit": "px" if request.pipeline.spatial_dims == 2 else "mm",
        "parent": {
            "sha256": parent.fingerprint(),
            "parameters": parent.parameters,
            "bytes": baseline_bytes or parent.parameters * 4,
            "latency_ms": eager_run["latency_ms"],
            **parts["parent"],
        },
        "compressed": {
            "sha256": network.fingerprint(),
            "parameters": network.parameters,
            "bytes": ours["bytes"] or 0,
            "latency_ms": ours["latency_ms"],
            "file": deployed.path.name,
            **parts["compressed"],
        },
        "session": session(request, deployed.path, deployed.precision),
        "input": {
            "shape": [1, *network.shape],
            "pipeline": describe_pipeline(request.pipeline),
            "guessed": request.loaded.guessed,
        },
        "inputs": [asdict(port) for port in network.inputs],
        "outputs": [asdict(port) for port in network.outputs],
        "difference": parts["difference"],
        "agreement": parts["agreement"],
        "operating_point": parts["operating_point"],
        "subgroups": parts["subgroups"],
        "cases": parts["cases"],
        "verdict": parts["verdict"],
        "runs": deployed.runs,
        "layers": deployed.layers,
        "integer": integer,
        "parity": {"runtime_vs_simulated_db": deployed.parity_db, "simulated_vs_f32_db": deployed.quantization_db},
        "counts": counts,
        "quantizers": _quantizer_table(network),
        "methods": list(network.history),
        "stages_ms": {name: round(value * 1e3, 3) for name, value in evaluation.stages.items()},
        "memory": {"compress_peak_mib": peak_memory_mib()},
        "environment": describe(options.threads),
        "notes": list(dict.fromkeys((*request.loaded.notes, *network.notes, *_of_cohorts(request)))),
        "warnings": _warnings(request, network, deployed, integer, parts["verdict"].get("remarks", [])),
    }
    if integer["executed"] < integer["requested"]:
        result["verdict"] = {
            **result["verdict"],
            "reason": f"{result['verdict']['reason']} But only {integer['executed']} of the {integer['requested']} "
            "layers that were asked to run in integers did.",
        }
    return result


def _of_cohorts(request: Request) -> list[str]:
    """Return the notes of the cohort, and of the one to calibrate on where that is another."""
    calibration, _ = request.calibration
    read = (*calibration.notes, *calibration.remarks.sentences)
    others = [f"Calibration: {note}" for note in read if calibration is not request.cohort]
    return [*cohort_notes(request.cohort), *request.same.notes, *others]


def _warnings(
    request: Request, network: Network, deployed: Deployed, integer: dict[str, int], remarks: Sequence[str]
) -> list[str]:
    """Return what nobody may overlook."""
    found = [*request.same.warnings, *remarks]
    name = request.runtime.NAME
    if name == "reference":
        found.append("The reference target simulates integers in PyTorch: nothing here is smaller or faster yet.")
    elif integer["executed"] < integer["requested"]:
        layers = [r["name"] for r in deployed.layers if r["requested"].startswith("int") and r["executed"] != "int8"]
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        found.append(
            f"{name} ran {integer['executed']} of {integer['requested']} layers in integers; "
            f"not {', '.join(layers[:3])}{more}."
        )
    found += _parity(name, deployed)
    unsteady = max(run["quartiles_ms"][1] / max(run["quartiles_ms"][0], 1e-9) for run in deployed.runs)
    if unsteady > UNSTEADY:
        found.append(
            f"The machine was busy: times varied by {unsteady:.1f}× between their quartiles. Measure speed again on a "
            "quiet one."
        )
    ours = next(run for run in deployed.runs if run.get("compressed"))
    floats = [run for run in deployed.runs if run["runtime"] == name and not run.get("compressed")]
    slow = no_gain(network, deployed.runs, name) if integer["requested"] else None
    if slow is not None:
        found.append(slow)
    float_bytes = min((run["bytes"] or 0 for run in floats if run["bytes"]), default=0)
    our_bytes = ours["bytes"] or 0
    if integer["requested"] and 0 < float_bytes < SHRUNK * our_bytes:
        found.append(
            f"The file did not shrink ({float_bytes:,} → {our_bytes:,} bytes): the network has so few weights that "
            "the description of its graph outweighs them."
        )
    return found


def _parity(name: str, deployed: Deployed) -> list[str]:
    """Return a sentence where the exported file is far from the graph that was meant."""
    if deployed.parity_db >= PARITY_DB:
        return []
    far = (
        f"{name} computes something else than the exported graph ({deployed.parity_db} dB against the simulation, "
        f"where quantization itself leaves {deployed.quantization_db} dB)"
    )
    if not deployed.parity_db >= deployed.quantization_db - PARITY_SLACK_DB:
        return [f"{far}: a fault of the runtime on this machine."]
    return [
        f"{far}: the network makes small differences large, as norms with the image's own statistics do, and the "
        "diagnosis, which is simulated, says little of the file. What was measured is the file."
    ]


def _quantizer_table(network: Network) -> list[QuantizerRow]:
    """Return a row for each quantizer; how its range was found is what the last method that did so left written."""
    found: dict[str, str] = {}
    for record in network.history:
        found |= record.get("grids", {})
    rows: list[QuantizerRow] = []
    for quantizer in quantizers(network):
        low, high = real_range(quantizer.qparams)
        rows.append(
            {
                "name": quantizer.name,
                "kind": quantizer.kind,
                "qtype": quantizer.qparams.qtype.name,
                "low": float(low.min()),
                "high": float(high.max()),
                "observer": found.get(quantizer.kind),
            }
        )
    return rows
