"""What `structure.py` runs: chains of methods, as tables of a recipe file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS = ("prune", "student", "tucker", "distill", "deep", "search", "chain", "norms")
WITH, WITHOUT = "with teacher", "without teacher"
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
STEPS = {"hippocampus": 3000, "skin": 2000, "chest": 1200, "nnunet": 2000}
SHORT = {"hippocampus": 600, "skin": 500}  # where many trainings are compared
MIDDLE = {"hippocampus": 900, "skin": 800}
STUDENT = {"hippocampus": 1500, "skin": 1200}  # of fresh weights: they need longer
# Epochs after which images come as they came before: what the teacher says of them is then read from the disk.
VIEWS = {"hippocampus": 16, "skin": 4, "chest": 2, "nnunet": 16}
INSTANCE_NORMS = ("hippocampus", "nnunet")
TRAINED: Table = {"labels": 0.5, "amp": True, "rate": 2e-2, "check_every": 150}
INT8: tuple[Table, ...] = ({"method": "fold"}, {"method": "quantize", "end_bits": 8}, {"method": "correct_bias"})


def cut(share: float) -> Table:
    """Return the table that removes a share of the multiplications, the same share of every layer's channels."""
    return {"method": "prune", "of": "macs", "share": share, "scope": "uniform", "round_to": 8}


def student(network: str, *, lengths: Mapping[str, int] = STEPS, **more: Any) -> Table:
    """Return the table of a distillation; all of one length and network train equally long."""
    steps = lengths[network]
    return {"method": "distill", **TRAINED, "steps": steps, "views": VIEWS[network], **more}


def plans(parts: Iterable[str]) -> Iterator[Plan]:
    """Yield the plans of some parts."""
    for part in parts:
        yield from {
            "prune": _prune,
            "student": _student,
            "tucker": _tucker,
            "distill": _distill,
            "deep": _deep,
            "search": _search,
            "chain": _chain,
            "norms": _norms,
        }[part]()


def _prune() -> Iterator[Plan]:
    """Nine tenths of the weights go, or five sixths; beside it fresh weights, with a teacher and without."""
    for network in ("hippocampus", "skin"):
        yield Plan("prune", network, "pruned", (cut(0.91), student(network, lengths=SHORT)))
        yield Plan("prune", network, "pruned by five sixths", (cut(0.83), student(network, lengths=MIDDLE)))
        small = {"width": 0.32, "multiple": 8, "init": "fresh", "lengths": SHORT}
        yield Plan("prune", network, "small with teacher", (student(network, **small),))
        yield Plan("prune", network, "natively small", (student(network, **small, labels=1.0),))


def _student() -> Iterator[Plan]:
    """A tenth of the weights, fresh ones, trained for long: with a teacher and without."""
    for network in ("hippocampus", "skin"):
        small = {"width": 0.32, "multiple": 8, "init": "fresh", "lengths": STUDENT}
        yield Plan("student", network, WITH, (student(network, **small),))
        yield Plan("student", network, WITHOUT, (student(network, **small, labels=1.0),))


def _tucker() -> Iterator[Plan]:
    """At least 85 % of the weights go."""
    trained = {f"finetune.{key}": value for key, value in TRAINED.items()}
    settings = {"factorize.share": 0.14, **trained, "finetune.steps": 700, "finetune.rate": 5e-3}
    few = {"factorize.images": 6, "factorize.measurements": 0}
    yield Plan("tucker", "hippocampus", "factorized", builtin="tucker", settings={**settings, **few})


def _distill() -> Iterator[Plan]:
    """94 % of the weights go, and what is left trains long."""
    for network in ("hippocampus", "skin"):
        yield Plan("distill", network, "94 percent fewer", (cut(0.925), student(network)))


def _deep() -> Iterator[Plan]:
    """Zeros, shared weights, and a code: the recipe `deep-compression` with shorter trainings.

    Without references: what learns from them moves its scores, and a fixed operating point with them.
    """
    for network in ("chest", "skin"):
        zeros = [{"method": "sparsify", "share": share, "importance": "lamp"} for share in (0.8, 0.92)]
        trained = [
            {"method": "finetune", **TRAINED, "labels": 0.0, "rate": 1e-2, "steps": steps} for steps in (150, 300)
        ]
        shared = ({"method": "fold"}, {"method": "quantize", "end_bits": 8})
        code = ({"method": "encode", "format": "codebook5i"}, {"method": "correct_bias"})
        chain = (zeros[0], trained[0], zeros[1], trained[1], *shared, *code)
        yield Plan("deep", network, "deep-compression", chain, coded=True)


def _search() -> Iterator[Plan]:
    """A front in one supernet, with networks of one width throughout on it or behind it."""
    settings = {"search.supernet_minutes": 12.0, "search.evaluations": 40, "search.minutes": 8.0}
    trained = {f"search.{key}": value for key, value in TRAINED.items()}
    yield Plan("search", "hippocampus", "search", builtin="search", settings={**settings, **trained})


def _chain() -> Iterator[Plan]:
    """Structure, then int8. Norms that look at each image go before the training that repairs the cut."""
    shares = {"hippocampus": 0.925, "skin": 0.925, "chest": 0.9, "nnunet": 0.925}
    for network, share in shares.items():
        norms: tuple[Table, ...] = ({"method": "replace_norms"},) if network in INSTANCE_NORMS else ()
        yield Plan("chain", network, "prune+distill+int8", (cut(share), *norms, student(network), *INT8))
        yield Plan("chain", network, "int8", builtin="int8")


def _norms() -> Iterator[Plan]:
    """Int8 with norms, and without."""
    for network in ("hippocampus_dynunet", "hippocampus_segresnet"):
        yield Plan("norms", network, "int8", builtin="int8")
        replaced = (
            {"method": "replace_norms", "mix": 0.5},
            {"method": "finetune", **TRAINED, "steps": 150, "rate": 1e-2},
            {"method": "replace_norms"},
            {"method": "finetune", **TRAINED, "steps": 350, "rate": 1e-2},
        )
        yield Plan("norms", network, "norms replaced+int8", (*replaced, *INT8))
