"""A package's targets: which are asked for, what came out for each, and how the package lists them."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from microtome.deployment.timing import file_bytes
from microtome.environment import describe
from microtome.files import sha256
from microtome.graph.network import Network
from microtome.package import SCHEMA, target_folder
from microtome.results import Result, SessionFiles, Target
from microtome.runtimes import runtime
from microtome.types import Array
from microtome.verbs.request import Request
from microtome.version import __version__


@dataclass(frozen=True)
class Made:
    """What came out for one target.

    Attributes:
        name: of the target.
        network: compressed for it.
        result: as its `result.json` holds it; its files lie beside that.
        arrays: of the example pictures.
    """

    name: str
    network: Network
    result: Result
    arrays: Mapping[str, Array]


def for_each_target(request: Request) -> Iterator[Request]:
    """Yield the request for one target after the other, as if it were the only one."""
    for name in request.options.targets:
        yield replace(request, options=replace(request.options, target=name), runtime=runtime(name))


def without_evidence(request: Request, network: Network, path: Path, primary: Result) -> Result:
    """Return the `result.json` of a target that this machine cannot run: nothing of it was measured, and it says so.

    Args:
        request: of this target.
        network: compressed for it.
        path: the exported file.
        primary: the whole result of the package's first target; what is the parent's and the cohort's holds here too.
    """
    name, size = request.runtime.NAME, file_bytes(request.runtime, path)
    reason = f"This machine cannot run {name}: the network was exported for it, and nothing was measured."
    precision = request.runtime.PRECISIONS[0] if request.options.precision == "auto" else request.options.precision
    return {
        "schema": SCHEMA,
        "microtome": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "title": primary["title"],
        "task": primary["task"],
        "classes": primary["classes"],
        "length_unit": primary["length_unit"],
        "operating_point": primary["operating_point"],
        "input": primary["input"],
        "target": name,
        "recipe": primary["recipe"],
        "measured": False,
        "parent": {
            "sha256": primary["parent"]["sha256"],
            "parameters": primary["parent"]["parameters"],
            "metrics": {},
        },
        "compressed": {
            "sha256": network.fingerprint(),
            "parameters": network.parameters,
            "bytes": size,
            "file": path.name,
            "metrics": {},
        },
        "session": session(request, path, precision),
        "verdict": {"non_inferior": None, "lower": None, "reason": reason, "cause": "not measured"},
        "methods": list(network.history),
        "environment": describe(request.options.threads),
        "notes": list(network.notes),
        "warnings": [reason],
    }


def session(request: Request, path: Path, precision: str) -> SessionFiles:
    """Return what `open_package` needs of a target's files; `file` is relative to the folder of the `result.json`."""
    hashes = {file.name: sha256(file) for file in request.runtime.files(path)}
    return {
        "runtime": request.target,
        "file": path.name,
        "precision": precision,
        "sha256": hashes,
        "pipeline_sha256": hashlib.sha256(request.pipeline.to_json().encode()).hexdigest(),
    }


def listed(made: Sequence[Made], failed: Mapping[str, str]) -> Result:
    """Return the package's `result.json`: the whole of its first target, and a line for each under `targets`.

    Args:
        made: what came out for each target.
        failed: targets that are left out, and why.
    """
    first = made[0]
    place = target_folder(first.name)
    file = (place / first.result["session"]["file"]).as_posix()
    return {
        **first.result,
        "compressed": {**first.result["compressed"], "file": file},
        "session": {**first.result["session"], "file": file},
        "targets": {one.name: _line(one) for one in made},
        "failed_targets": dict(failed),
        "warnings": [
            *first.result["warnings"],
            *(f"The package has no part for {name}: {why}" for name, why in failed.items()),
        ],
    }


def _line(made: Made) -> Target:
    result = made.result
    measured = result.get("measured", True)
    line: Target = {
        "runtime": result["session"]["runtime"],
        "file": (target_folder(made.name) / result["session"]["file"]).as_posix(),
        "precision": result["session"]["precision"],
        "sha256": result["session"]["sha256"],
        "pipeline_sha256": result["session"]["pipeline_sha256"],
        "bytes": result["compressed"]["bytes"],
        "measured": measured,
    }
    if measured:
        line["latency_ms"] = result["compressed"]["latency_ms"]
        line["integer"] = result["integer"]
        line["agreement"] = result["agreement"]
    if "rungs" in result:
        line["parity"] = {
            "values": len(result["rungs"]),
            "largest": max(rung["own_largest"] for rung in result["rungs"]),
            "mean": max(rung["own_mean"] for rung in result["rungs"]),
            "departs": next((rung["layer"] for rung in result["rungs"] if rung["departs"]), None),
        }
    line["verdict"] = result["verdict"]
    return line
