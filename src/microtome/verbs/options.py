"""What a verb may be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from microtome.medical.pipeline import Pipeline
from microtome.types import CalibrationChoice

RULES, MEASURED = "rules", "measured"
AUTO, FLOAT = "auto", "f32"  # recipes: the one that tries others, and the one that changes nothing


@dataclass(frozen=True)
class CompressOptions:
    """What `compress` may be told, beside model, cohort and output.

    Attributes:
        target: runtime of the package; several make one package with a part for each, of which the first counts.
        recipe: chain of methods: a name, or a TOML file; or `auto`, which tries some from cheap to expensive.
        set: fields of its methods, over what the recipe says: `{"quantize.weight_bits": 4}`.
        weights: weights for a model given as `file.py:factory`.
        input_shape: (C, *S) that the network is captured with; None takes it from the pipeline.
        pipeline: pre- and post-processing, or a pipeline.json; None takes the model's, or guesses from the cohort.
        pipeline_fields: values of its fields in place of those, such as `{"mirror": []}`, as pipeline.json has them.
        preset: normalisation of a common source where no pipeline is declared: a name of `medical.presets`.
        fold: of an nnU-Net folder, see `models.Part`.
        configuration: of an nnU-Net folder, likewise.
        output: name of the network's output that holds the scores; None goes by the pipeline, or finds it.
        inputs: where further inputs of the network come from, by name, instead of what the pipeline says: a folder of
            images, or a CSV table.
        format: layout of the cohort; None looks.
        patient_pattern: regular expression for the patient in a file name.
        trained_on: a list of names, or a folder of images, that the network was trained on: see
            `medical.trained_on`.
        calibration: another cohort to calibrate on, all of whose cases are taken for calibration.
        calibration_cases: at most so many.
        calibration_choice: how they are chosen, see `batches.selection`.
        tuning: share of patients kept for tuning.
        evaluation: share of patients kept for evaluation.
        metric: what the verdict rests on; None is Dice or AUROC.
        margin: the acceptable loss of it.
        observer: how activation ranges are found; None goes by the recipe.
        skip: layers that stay in float.
        weight_bits: width of weights, or `float`; None goes by the recipe.
        activation_bits: width of layers' inputs, likewise.
        batch: images per step of training.
        flips: spatial axes along which a mirrored image is another plausible image, for training; those along which
            the pipeline mirrors are among them anyway.
        worst_subgroup: `auto` also asks that no subgroup's metric falls by more than the margin.
        faster_than: `auto` goes on until the network is so many times faster than its parent in eager PyTorch.
        smaller_than: likewise, until its file is so many times smaller than the parent's weights in float32.
        time_budget: minutes after which `auto` tries nothing more; None is no limit.
        placement: where integers pay: by `rules`, or `measured` on this machine.
        placement_minutes: after so long the search for it tries nothing more.
        precision: of what stays in float: `f32`, `bf16`, or `auto` for the faster.
        coded: entropy-code the package's model files into one, see docs/entropy-coding.md; None goes by the recipe.
        seed: of the split, the calibration windows, the bootstrap, and of methods that draw at random.
        threads: of the runtime and of eager PyTorch; 0 means all cores.
        device: where calibration and the parent run.
        title: of the report.
    """

    target: str | tuple[str, ...] = "openvino"
    recipe: str | Path = "int8"
    set: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    input_shape: tuple[int, ...] | None = None
    pipeline: Pipeline | Path | None = None
    pipeline_fields: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    fold: str | None = None
    configuration: str | None = None
    output: str | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)
    format: str | None = None
    patient_pattern: str | None = None
    trained_on: Path | None = None
    calibration: Path | None = None
    calibration_cases: int = 32
    calibration_choice: CalibrationChoice = "first"
    tuning: float = 0.1
    evaluation: float = 0.3
    metric: str | None = None
    margin: float | None = None
    observer: str | None = None
    skip: tuple[str, ...] = ()
    weight_bits: int | Literal["float"] | None = None
    activation_bits: int | Literal["float"] | None = None
    batch: int = 4
    flips: tuple[int, ...] = ()
    worst_subgroup: bool = False
    faster_than: float | None = None
    smaller_than: float | None = None
    time_budget: float | None = None
    placement: str = RULES
    placement_minutes: float = 3.0
    precision: str = "auto"
    coded: bool | None = None
    seed: int = 0
    threads: int = 0
    device: str = "cpu"
    title: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """All targets, in the order given."""
        return (self.target,) if isinstance(self.target, str) else self.target
