"""What stands in `result.json`, schema 1, as types: every verb that writes or reads one has these names.

All values are as JSON holds them; None is what could not be told. Lengths are in `length_unit`, times in milliseconds
unless a name says seconds, sizes in bytes. A reader must expect parts to be absent: each verb writes those that it
measured, and a target that this machine cannot run has no metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class Estimate(TypedDict):
    """A value with its two-sided 95 % interval, by patient."""

    value: float | None
    low: float | None
    high: float | None


class LostMetric(TypedDict):
    """A structure, class or metric that lost more than its margin, see `microtome.clinical.guard`."""

    metric: str
    margin: float
    patients: int
    value: float | None
    low: float | None
    high: float | None
    p: float | None


class Verdict(TypedDict, total=False):
    """Whether nothing clinical was lost, see `microtome.clinical.noninferiority` and `microtome.clinical.guard`."""

    metric: str
    margin: float
    cases: int
    patients: int
    lower: float | None
    non_inferior: bool | None
    reason: str
    cause: str
    losses: list[LostMetric]
    others: list[LostMetric]
    left_out: list[str]
    remarks: list[str]


class Side(TypedDict, total=False):
    """One of the two networks. `latency_ms` of the parent is in eager PyTorch; `file` is relative to the folder."""

    sha256: str
    parameters: int
    bytes: int
    latency_ms: float
    file: str
    metrics: dict[str, Estimate]


class SessionFiles(TypedDict, total=False):
    """What `open_package` opens: the file that was measured, with the SHA-256 of each of its parts."""

    runtime: str
    file: str
    precision: str
    sha256: dict[str, str]
    pipeline_sha256: str


class Rung(TypedDict):
    """A value of the network that stands on a grid, on a runtime and simulated: differences in steps of that grid.

    `own_…` are of this part alone, given what the runtime had before it; the others of all from the input on.
    """

    layer: str
    step: float
    own_largest: float
    own_mean: float
    largest: float
    mean: float
    departs: bool


class Target(SessionFiles, total=False):
    """One of the targets of a package."""

    bytes: int
    measured: bool
    latency_ms: float
    integer: dict[str, int]
    agreement: Estimate | None
    parity: dict[str, Any]
    verdict: Verdict


class Run(TypedDict, total=False):
    """One way to run a network, timed beside the others."""

    name: str
    runtime: str
    precision: str
    latency_ms: float
    quartiles_ms: list[float]
    rounds: int
    bytes: int | None
    compressed: bool


class LayerRow(TypedDict, total=False):
    """A layer: what it was asked to run in, and what it ran in."""

    name: str
    op: str
    requested: str
    executed: str
    kernel: str
    bytes: int
    latency_ms: float | None


class QuantizerRow(TypedDict, total=False):
    """A quantizer: the range of its grid, and what that cost on the calibration images."""

    name: str
    kind: str
    qtype: str
    bits: int
    low: float
    high: float
    observer: str | None
    clipped: float | None
    sqnr_db: float | None
    histogram: dict[str, Any] | None


class CaseRow(TypedDict, total=False):
    """An evaluated case, by its pseudonym; the sides hold metrics, the `score` of each class or finding, the
    `value`s, or the `boxes` (class, score, corners). `label` is a class, or what is given in their place."""

    case: str
    patient: str
    subgroups: dict[str, str]
    label: int | float | list[Any] | None
    parent: dict[str, Any]
    compressed: dict[str, Any]
    agreement: float | None


class Result(TypedDict, total=False):
    """The whole of it. `targets` and `failed_targets` stand in a package's own file only."""

    schema: int
    microtome: str
    created: str
    title: str
    task: str
    target: str
    recipe: str
    measured: bool
    classes: list[str]
    length_unit: str
    parent: Side
    compressed: Side
    session: SessionFiles
    input: dict[str, Any]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    difference: dict[str, Estimate]
    agreement: Estimate | None
    operating_point: dict[str, Any] | None
    subgroups: dict[str, Any]
    cases: list[CaseRow]
    verdict: Verdict
    runs: list[Run]
    layers: list[LayerRow]
    integer: dict[str, int]
    parity: dict[str, float]
    counts: dict[str, Any]
    quantizers: list[QuantizerRow]
    methods: list[Mapping[str, Any]]
    sensitivity: dict[str, Any]
    stages_ms: dict[str, float]
    seconds: dict[str, float]
    memory: dict[str, float]
    packed: dict[str, int]
    environment: dict[str, Any]
    notes: list[str]
    warnings: list[str]
    examples: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    training: dict[str, Any]
    pareto: list[dict[str, Any]]
    structure: dict[str, Any]
    trajectory: list[dict[str, Any]]
    search: list[dict[str, Any]]
    placement: list[dict[str, Any]]
    rungs: list[Rung]
    targets: dict[str, Target]
    failed_targets: dict[str, str]
