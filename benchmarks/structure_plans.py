"""What `structure.py` runs: chains of methods, as tables of a recipe file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS = ("prune", "tucker", "distill", "deep", "search", "chain", "norms")
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """One row of the table: a recipe on a reference network.

    Attributes:
        part: of the benchmark.
        network: a reference.
        what: is done, in a word or two.
        methods: tables of the recipe, in order. Methods that train get the limit of minutes.
        coded: whether the package is entropy-coded.
        builtin: a recipe that comes with microtome, in place of `methods`.
        settings: of the built-in one.
    """

    part: str
    network: str
    what: str
    methods: tuple[Table, ...] = ()
    coded: bool = False
    builtin: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """A name for its files."""
        return f"{self.part}-{self.network}-{self.what}".replace(" ", "_")

    def recipe(self, folder: Path, minutes: float) -> str | Path:
        """Write the recipe file, if it is no built-in one, and return what names it."""
        if self.builtin:
            return self.builtin
        folder.mkdir(exist_ok=True, parents=True)
        file = folder / f"{self.title}.toml"
        lines = [f"description = {toml(self.what)}", f"coded = {toml(self.coded)}"]
        for table in self.methods:
            trains = table["method"] in ("finetune", "distill")
            limited = {**table, "minutes": minutes} if trains else table
            lines += ["", "[[method]]", *(f"{key} = {toml(value)}" for key, value in limited.items())]
        file.write_text("\n".join(lines) + "\n")
        return file


def toml(value: Any) -> str:
    """Write a plain value as TOML has it, tables and lists in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f'"{key}" = {toml(inner)}' for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(inner) for inner in value) + "]"
    return repr(value)


# Images per step are those of `structure.BATCHES`: an epoch of hippocampus has 32 steps, of skin 160, of chest 260.
STEPS = {"hippocampus": 3000, "skin": 2000, "chest": 1200}
# Epochs after which images come as they came before: what the teacher says of them is then read from the disk.
VIEWS = {"hippocampus": 16, "skin": 4, "chest": 2}
TRAINED: Table = {"method": "finetune", "labels": 0.5, "amp": True, "rate": 2e-2, "check_every": 150}
INT8: tuple[Table, ...] = ({"method": "fold"}, {"method": "quantize", "end_bits": 8}, {"method": "correct_bias"})


def trained(network: str, **more: Any) -> Table:
    """Return the table of a training that is as long as all are of a network."""
    return {**TRAINED, "steps": STEPS[network], **more}


def student(network: str, **more: Any) -> Table:
    """Return the table of a distillation as long as that."""
    return {**TRAINED, "method": "distill", "steps": STEPS[network], "views": VIEWS[network], **more}


def plans(parts: Iterable[str]) -> Iterator[Plan]:
    """Yield the plans of some parts."""
    for part in parts:
        yield from {
            "prune": _prune,
            "tucker": _tucker,
            "distill": _distill,
            "deep": _deep,
            "search": _search,
            "chain": _chain,
            "norms": _norms,
        }[part]()


def _prune() -> Iterator[Plan]:
    """At least 80 % of the weights and 70 % of the multiplications go; beside it the natively small network."""
    for network in ("hippocampus", "skin"):
        cut = {"method": "prune", "of": "macs", "share": 0.82, "scope": "uniform", "round_to": 8}
        yield Plan("prune", network, "pruned", (cut, trained(network)))
        native = student(network, width=0.42, multiple=8, init="fresh", labels=1.0)
        yield Plan("prune", network, "natively small", (native,))


def _tucker() -> Iterator[Plan]:
    """At least 85 % of the weights go."""
    yield Plan("tucker", "hippocampus", "factorized", builtin="tucker", settings=_tucker_settings())


def _tucker_settings() -> dict[str, Any]:
    told = {f"finetune.{key}": value for key, value in trained("hippocampus").items() if key != "method"}
    return {"factorize.share": 0.14, **told}


def _distill() -> Iterator[Plan]:
    """Students with at most a tenth of the weights, with a teacher and without; and 94 % fewer, from kept weights."""
    for network in ("hippocampus", "skin"):
        small = {"width": 0.25, "init": "fresh"}
        yield Plan("distill", network, "with teacher", (student(network, **small),))
        yield Plan("distill", network, "without teacher", (student(network, **small, labels=1.0),))
        cut = {"method": "prune", "of": "macs", "share": 0.925, "scope": "uniform", "round_to": 8}
        yield Plan("distill", network, "94 percent fewer", (cut, student(network)))


def _deep() -> Iterator[Plan]:
    """Zeros, shared weights, and a code."""
    for network in ("chest", "skin"):
        yield Plan("deep", network, "deep-compression", builtin="deep-compression")


def _search() -> Iterator[Plan]:
    yield Plan("search", "hippocampus", "search", builtin="search")


def _chain() -> Iterator[Plan]:
    """Structure, then int8."""
    for network, share, fixed in (("hippocampus", 0.925, True), ("skin", 0.925, False), ("chest", 0.9, False)):
        cut = {"method": "prune", "of": "macs", "share": share, "scope": "uniform", "round_to": 8}
        norms: tuple[Table, ...] = ({"method": "replace_norms"},) if fixed else ()
        yield Plan("chain", network, "prune+distill+int8", (cut, *norms, student(network), *INT8))
        yield Plan("chain", network, "int8", builtin="int8")


def _norms() -> Iterator[Plan]:
    """Int8 with norms, and without."""
    for network in ("hippocampus_dynunet", "hippocampus_segresnet"):
        yield Plan("norms", network, "int8", builtin="int8")
        replaced = (
            {"method": "replace_norms", "mix": 0.5},
            trained("hippocampus", steps=300),
            {"method": "replace_norms"},
            trained("hippocampus", steps=900),
        )
        yield Plan("norms", network, "norms replaced+int8", (*replaced, *INT8))
