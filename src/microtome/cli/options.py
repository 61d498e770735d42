"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from microtome.medical.formats import FORMATS
from microtome.medical.presets import PRESETS
from microtome.metrics import METRICS
from microtome.models import looked_for
from microtome.runtimes import TARGETS

if TYPE_CHECKING:
    from microtome.verbs.options import CompressOptions

# Panels of the help, as they come.
NETWORK, COHORT, RECIPE, EVIDENCE, RUN = "Network", "Cohort", "Recipe", "Evidence", "Run"
MARGINS = ", ".join(f"{metric.title} {metric.margin:g}" for metric in METRICS.values() if metric.margin is not None)


def one_of(names: Iterable[str]) -> str:
    """Return names as help has them."""
    *first, last = names
    return f"{', '.join(first)} or {last}"


Model = Annotated[
    str,
    typer.Argument(help=f"One of: {looked_for()}. Or another package's: their_pkg.their_source::NAME."),
]
CohortPath = Annotated[Path, typer.Argument(help="Labelled cases: a folder, an .npz file, or a CSV manifest.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")]
Weights = Annotated[
    Path | None,
    typer.Option(help="Weights for file.py:factory (.pt, .pth, .safetensors).", rich_help_panel=NETWORK),
]
PackageTarget = Annotated[
    str | None, typer.Option("--target", help="Which of the package's targets; the first one otherwise.")
]
PipelineFile = Annotated[
    Path | None,
    typer.Option(
        "--pipeline",
        help="pipeline.json; otherwise the model's own, or a guess from the cohort.",
        rich_help_panel=NETWORK,
    ),
]
PipelineFields = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="FIELD=VALUE",
        help="A field of the pipeline in place of the declared or guessed one, such as mirror=[]; may be repeated.",
        rich_help_panel=NETWORK,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Normalisation of a common source, where no pipeline is declared: {one_of(PRESETS)}.",
        rich_help_panel=NETWORK,
    ),
]
Fold = Annotated[
    str | None,
    typer.Option(help="Of an nnU-Net folder: 0, or 0,1,2 for their mean; otherwise all.", rich_help_panel=NETWORK),
]
Configuration = Annotated[
    str | None,
    typer.Option(help="Of an nnU-Net folder that holds several: such as 3d_fullres.", rich_help_panel=NETWORK),
]
InputShape = Annotated[
    str | None, typer.Option(help="C,H,W or C,D,H,W that the network can take.", rich_help_panel=NETWORK)
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help=f"{one_of(FORMATS)}; or another package's module; otherwise found by looking.",
        rich_help_panel=COHORT,
    ),
]
Tuning = Annotated[float, typer.Option(min=0, max=1, help="Share of patients for tuning.", rich_help_panel=COHORT)]
Evaluation = Annotated[
    float, typer.Option(min=0, max=1, help="Share of patients for evaluation.", rich_help_panel=COHORT)
]
TrainedOn = Annotated[
    Path | None,
    typer.Option(
        metavar="LIST|FOLDER",
        help="What the network was trained on: a list of names (text, or nnU-Net's splits_final.json), or a folder of "
        "images. These patients are never evaluated.",
        rich_help_panel=COHORT,
    ),
]
PatientPattern = Annotated[
    str | None, typer.Option(help="Regular expression for the patient in a file name.", rich_help_panel=COHORT)
]
Seed = Annotated[
    int,
    typer.Option(help="Of the split, the calibration windows, the bootstrap, and methods.", rich_help_panel=RUN),
]
Threads = Annotated[
    int, typer.Option(min=0, help="Of the runtime and of eager PyTorch; 0 is all cores.", rich_help_panel=RUN)
]
Metric = Annotated[
    str | None,
    typer.Option(help=f"What the verdict rests on: {one_of(METRICS)}.", rich_help_panel=EVIDENCE),
]
Margin = Annotated[
    float | None,
    typer.Option(help=f"Acceptable loss (default: {MARGINS}).", rich_help_panel=EVIDENCE),
]
Output = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The network's output that holds the scores, where it has several that might.",
        rich_help_panel=NETWORK,
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=PATH",
        help="Where another input of the network comes from: a folder of files called like the images, or a CSV table "
        "with a column image. May be repeated.",
        rich_help_panel=COHORT,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print result.json and nothing else.", rich_help_panel=RUN)]
Key = Annotated[
    Path | None,
    typer.Option(
        help="Also write which file each pseudonym stands for. Identifies patients: keep it in the hospital.",
        rich_help_panel=COHORT,
    ),
]
Target = Annotated[str, typer.Option(help=f"{one_of(TARGETS)}, or another package's module.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help=f"{one_of(TARGETS)}, or another package's module; openvino if none is given. May be repeated: the "
        "verdict is the first one's.",
    ),
]
OneTarget = Annotated[
    str | None, typer.Option("--target", help="Which of a package's; for a model any. None is the first, or openvino.")
]


def shape(text: str | None) -> tuple[int, ...] | None:
    """Parse `C,H,W`."""
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        raise typer.BadParameter(f"{text!r} is not a shape like 1,256,256 or 1,96,96,96", param_hint="--input-shape")
    return shape


def places(given: Iterable[str] | None) -> dict[str, Path]:
    """Parse `NAME=PATH`."""
    found = {}
    for text in given or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise typer.BadParameter(f"{text!r} is not NAME=PATH", param_hint="--input")
        found[name] = Path(path)
    return found


def bits(text: str | None, option: str) -> int | Literal["float"] | None:
    """Parse a width, or `float`; None is not given."""
    if text is None or text == "float":
        return text  # type: ignore[return-value]
    if not text.isdigit():
        raise typer.BadParameter(f"{text!r} is neither a number of bits nor `float`", param_hint=option)
    return int(text)


def options_of(given: Mapping[str, Any]) -> CompressOptions:
    """Return the options that a command was given, by its parameters' names; what it has no parameter for stays."""
    from microtome.verbs.options import CompressOptions

    read: dict[str, Any] = {
        "input_shape": shape(given["input_shape"]),
        "format": given["format_"],
        "flips": tuple(given.get("flip") or ()),
        "skip": tuple(given.get("skip") or ()),
        "inputs": places(given.get("input_")),
    }
    if "target" in given:
        read["target"] = tuple(given["target"] or ("openvino",))
    for width in ("weight_bits", "activation_bits"):
        if width in given:
            read[width] = bits(given[width], f"--{width.replace('_', '-')}")
    for parameter, field, example in (
        ("set_", "set", "--set METHOD.FIELD=VALUE, such as quantize.weight_bits=4"),
        ("with_", "pipeline_fields", "--with FIELD=VALUE, such as mirror=[]"),
    ):
        if given.get(parameter):
            from microtome.recipes.files import assignments

            read[field] = assignments(given[parameter], example)
    names = {field.name for field in dataclasses.fields(CompressOptions)}
    return CompressOptions(**{name: value for name, value in given.items() if name in names} | read)
