"""`--recipe auto`: try recipes from cheap to expensive until one loses nothing on the tuning cases and is fastest."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microtome import recipes
from microtome.batches.calibration import inputs
from microtome.clinical.guard import listed
from microtome.deployment.timing import Candidate, eager, file_bytes, interleaved
from microtome.errors import MicrotomeError
from microtome.evidence.candidates import Judge
from microtome.files import write_json
from microtome.graph import pt2
from microtome.graph.network import Network
from microtome.methods.base import Context
from microtome.metrics import title
from microtome.progress import Progress
from microtome.recipes import Recipe
from microtome.runtimes.base import Session
from microtome.staging import Place
from microtome.verbs.request import Request
from microtome.verbs.score import judge_of

# A network that is not so much slower than the fastest counts as fast: it is within what times vary by.
AS_FAST = 1.05
TIMING_SECONDS = 3.0


@dataclass(frozen=True)
class Trial:
    """One rung that was tried, with what came out."""

    name: str
    network: Network
    record: dict[str, Any]


def choose(
    request: Request, context: Context, staging: Place, progress: Progress
) -> tuple[Network, list[dict[str, Any]]]:
    """Return the first network that is non-inferior on the tuning cases and as fast as any, and all that was tried.

    What is finished lies in the staging folder: the same call goes on behind it. Where no rung is non-inferior, the one
    with the best lower bound is returned, and the final evaluation will say what it says.

    Raises:
        SplitError: there are no tuning cases with a reference.
    """
    folder = staging.work / "auto"
    folder.mkdir(exist_ok=True)
    judge = judge_of(request, progress)
    climb = _Climb(request, context, folder, judge, progress)
    spent = 0.0
    for recipe in request.recipes:
        if request.options.time_budget is not None and spent > request.options.time_budget * 60:
            progress.say(f"auto: the time budget of {request.options.time_budget:g} minutes is spent")
            break
        trial = climb.step(recipe)
        if trial is None:
            continue
        spent += trial.record["seconds"]
        progress.say(f"auto: {recipe.name}: {trial.record['reason']}")
        if trial.record["chosen"]:
            break
    return climb.best()


@dataclass(frozen=True)
class Goals:
    """What is asked for beside that nothing is lost.

    Attributes:
        faster: times faster than the parent in eager PyTorch.
        smaller: times smaller than the parent's weights in float32.
    """

    faster: float | None = None
    smaller: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self._asked)

    @property
    def _asked(self) -> dict[str, float]:
        goals = {"faster": self.faster, "smaller": self.smaller}
        return {name: goal for name, goal in goals.items() if goal is not None}

    def share(self, record: Mapping[str, Any]) -> float:
        """Return how much of the goals a rung reached: of the one that it is furthest from, 1 where it met all."""
        return min((min(1.0, record[name] / goal) for name, goal in self._asked.items()), default=1.0)

    def missed(self, record: Mapping[str, Any]) -> str:
        """Say which goals a rung missed; empty where none."""
        found = [
            f"{record[name]:.1f}× {name}, not {goal:g}×" for name, goal in self._asked.items() if record[name] < goal
        ]
        return " and ".join(found)

    def met(self, record: Mapping[str, Any]) -> str:
        """Say what a rung reached."""
        return " and ".join(f"{record[name]:.1f}× {name}" for name in self._asked)


class _Climb:
    """The rungs tried so far."""

    def __init__(self, request: Request, context: Context, folder: Path, judge: Judge, progress: Progress) -> None:
        self.request, self.context = request, context
        self.folder, self.judge, self.progress = folder, judge, progress
        self.trials: list[Trial] = []
        self.failed: list[dict[str, Any]] = []
        self.fastest: Session | None = None
        self.fastest_ms = float("inf")
        cohort, cases = request.calibration
        rng = np.random.default_rng(request.options.seed)
        self.example = inputs(cohort, cases[0], request.pipeline, rng)[0]
        self.goals = Goals(request.options.faster_than, request.options.smaller_than)

    def step(self, recipe: Recipe) -> Trial | None:
        """Try a rung, or read what came out of it; None where the recipe cannot run on this network."""
        name = recipe.name
        folder = self.folder / name
        stored = folder / "trial.json"
        if stored.exists():
            record = json.loads(stored.read_text())
            network = pt2.load(folder / "network.pt2")
            self.fastest_ms = min(self.fastest_ms, record["latency_ms"])
            trial = Trial(name, network, record)
        else:
            folder.mkdir(exist_ok=True)
            start = time.perf_counter()
            try:
                network, session, size = self._compress(recipe, folder)
            except MicrotomeError as error:
                self.failed.append({"name": name, "verdict": None, "reason": f"could not run: {error.problem}"})
                self.progress.say(f"auto: {name}: {error.problem}")
                return None
            latency, faster = self._time(session)
            record = self._judged(name, session) | {"latency_ms": latency, "bytes": size}
            record |= {"faster": faster, "smaller": round(4 * self.request.loaded.network.parameters / size, 3)}
            record["seconds"] = round(time.perf_counter() - start, 1)
            record |= self._decided(record)
            pt2.save(network, folder / "network.pt2")
            write_json(stored, record)
            trial = Trial(name, network, record)
        self.trials.append(trial)
        return trial

    def best(self) -> tuple[Network, list[dict[str, Any]]]:
        """Return the network that was chosen, or the best of those tried."""
        if not self.trials:
            raise MicrotomeError("none of the recipes can run on this network.", self.failed[-1]["reason"])

        def rank(trial: Trial) -> tuple[bool, float, float]:
            record = trial.record
            if record["verdict"]:
                return True, self.goals.share(record), -record["latency_ms"]
            return False, 0.0, -np.inf if record["lower"] is None else self.judge.gain(record["lower"])

        chosen = next((t for t in self.trials if t.record["chosen"]), None) or max(self.trials, key=rank)
        records = [trial.record | {"chosen": trial is chosen} for trial in self.trials]
        return chosen.network, [*records, *self.failed]

    def _compress(self, recipe: Recipe, folder: Path) -> tuple[Network, Session, int]:
        request, options = self.request, self.request.options
        network = recipes.run(recipe, request.loaded.network, self.context, checkpoints=folder).to("cpu")
        path = request.runtime.export(network, folder)
        precision = request.runtime.PRECISIONS[0]
        session = request.runtime.open_session(path, threads=options.threads, precision=precision)
        return network, session, file_bytes(request.runtime, path)

    def _time(self, session: Session) -> tuple[float, float | None]:
        """Return the median latency, as it compares with the fastest so far in the same run; and how many times faster
        than the parent in eager PyTorch that is, where it is asked for.
        """
        target = self.request.runtime.NAME
        session.run(self.example)
        candidates = [Candidate("this", target, "", session.run)]
        if self.fastest is not None:
            candidates.append(Candidate("fastest", target, "", self.fastest.run))
        if self.goals.faster is not None:
            run = eager(self.request.loaded.network.to("cpu"), self.request.options.threads)
            run(self.example)
            candidates.append(Candidate("parent", "pytorch", "f32", run))
        times = {run["name"]: run["latency_ms"] for run in interleaved(candidates, self.example, budget=TIMING_SECONDS)}
        latency = float(times["this"])
        if "fastest" in times:
            latency = self.fastest_ms * times["this"] / times["fastest"]
        if latency < self.fastest_ms:
            self.fastest, self.fastest_ms = session, latency
        faster = round(times["parent"] / times["this"], 3) if "parent" in times else None
        return round(float(latency), 4), faster

    def _judged(self, name: str, session: Session) -> dict[str, Any]:
        found = self.judge(session.stream, f"{name} on the tuning cases")
        return {
            "name": name,
            "metric": self.judge.metric,
            "value": found.value,
            "difference": found.difference.value,
            "lower": found.lower,
            "worst_subgroup": found.worst,
            "verdict": found.non_inferior,
            "losses": list(found.losses),
        }

    def _decided(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Say whether this is the one, and why or why not."""
        fast = record["latency_ms"] <= AS_FAST * self.fastest_ms
        lower = "cannot be told" if record["lower"] is None else f"{record['lower']:+.4f}"
        side = "lower" if self.judge.gain(1) > 0 else "upper"
        bound = f"on the tuning cases ({side} bound {lower})"
        worst = record["worst_subgroup"]
        if self.request.options.worst_subgroup and worst is not None and self.judge.gain(worst) < -self.judge.margin:
            return {"chosen": False, "reason": f"the worst subgroup changes by {worst:+.4f} {bound}."}
        missed = self.goals.missed(record)
        if record["verdict"] and missed:
            return {"chosen": False, "reason": f"non-inferior {bound}, but {missed}: went on."}
        if record["verdict"] and (fast or self.goals):
            if self.goals:
                return {"chosen": True, "reason": f"non-inferior {bound}, and {self.goals.met(record)}."}
            return {"chosen": True, "reason": f"non-inferior {bound}, and as fast as any."}
        if record["verdict"]:
            slower = record["latency_ms"] / self.fastest_ms
            return {
                "chosen": False,
                "reason": f"non-inferior {bound}, but {slower:.2f}× the time of the fastest: went on.",
            }
        lost = f" in {listed([title(name) for name in record['losses']])}" if record["losses"] else ""
        what = f"inferior{lost}" if record["verdict"] is False else "not shown to be non-inferior"
        return {"chosen": False, "reason": f"{what} {bound}."}
