"""A reference network with all that is stored beside it: trained on a cohort, scored, written into a folder."""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from microtome.graph import pt2
from microtome.graph.capture import capture
from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.sliding import tiles
from microtome.types import Case
from training import Examples, Recipe, Row, classification_scores, segmentation_scores, train

SPLITS = {"train": "train", "tuning": "val", "evaluation": "test"}


@dataclass(frozen=True)
class Reference:
    """A network with all that is stored beside it."""

    module: nn.Module
    shape: tuple[int, ...]
    pipeline: Pipeline
    rows: Sequence[Row] = ()
    scores: Mapping[str, object] = field(default_factory=dict)


def trained(
    module: nn.Module,
    cohort: Cohort,
    pipeline: Pipeline,
    recipe: Recipe,
    device: str,
    *,
    whole: tuple[int, ...] | None = None,
) -> Reference:
    """Train and score; `whole` is the size that volumes are padded to in training, where the patch is smaller."""
    for note in cohort.notes:
        print(note)
    started = time.monotonic()
    examples = _examples(cohort, cohort.train, replace(pipeline, patch=whole or pipeline.patch))
    print(f"{len(examples.images)} training images read in {time.monotonic() - started:.0f} s", flush=True)
    module = train(module, examples, recipe, device=device)
    seconds = time.monotonic() - started
    rows = [_row(cohort, case) for case in cohort.cases]
    measure = segmentation_scores if cohort.task == "segmentation" else classification_scores
    scores = {
        **measure(module, rows, pipeline, device),
        "training_seconds": round(seconds),
        "total_seconds": round(time.monotonic() - started),
        "training_cases": len(cohort.train),
        "seed": recipe.seed,
    }
    assert pipeline.input_shape is not None
    return Reference(module, pipeline.input_shape, pipeline, rows, scores)


def _examples(cohort: Cohort, cases: Sequence[Case], pipeline: Pipeline) -> Examples:
    """Prepare the training images once, on the network's grid. Classes are drawn equally often."""
    images, targets = [], []
    for case in cases:
        image = cohort.image(case)
        array = prepare(image, pipeline).array
        mask = cohort.mask(case, image)
        if pipeline.patch is not None:
            array = next(tiles(array, patch=pipeline.patch, overlap=pipeline.overlap))
            mask = None if mask is None else next(tiles(mask[None], patch=pipeline.patch, overlap=pipeline.overlap))[0]
        images.append(torch.from_numpy(array.astype(np.float16)))
        targets.append(torch.tensor(case.label) if mask is None else torch.from_numpy(mask.astype(np.uint8)))
    labels = torch.tensor([case.label or 0 for case in cases])
    return Examples(torch.stack(images), torch.stack(targets), 1.0 / torch.bincount(labels)[labels])


def _row(cohort: Cohort, case: Case) -> Row:
    reference = {"label": cohort.classes[case.label]} if case.label is not None else {"mask": str(case.mask)}
    return {
        "image": ";".join(str(path.resolve()) for path in case.image),
        **reference,
        "patient": case.patient,
        "split": SPLITS[case.role],
        **case.subgroups,
    }


def store(folder: Path, reference: Reference) -> None:
    """Write everything into a temporary folder beside the final one, then put it in its place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        new = Path(name) / "new"
        new.mkdir()
        network = capture(reference.module, shape=reference.shape)
        pt2.save(network, new / "network.pt2")
        (new / "pipeline.json").write_text(reference.pipeline.to_json())
        parameters = sum(p.numel() for p in reference.module.parameters())
        scores = {"parameters": parameters, **reference.scores, "torch": torch.__version__}
        (new / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        if reference.rows:
            with (new / "manifest.csv").open("w", newline="") as stream:
                writer = csv.DictWriter(stream, list(reference.rows[0]))
                writer.writeheader()
                writer.writerows(reference.rows)
        if reference.pipeline.task == "segmentation":
            labels = {str(k): label for k, label in enumerate(reference.pipeline.classes)}
            (new / "dataset.json").write_text(json.dumps({"labels": labels}, indent=2) + "\n")
        if folder.exists():
            shutil.move(folder, Path(name) / "old")
        new.rename(folder)
