"""Channels of a sigmoid network that overlap, where nobody declared what they mean: said before it spoils a result."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from microtome.batches.calibration import inputs, tensors
from microtome.errors import DataError
from microtome.medical.cohort import Cohort
from microtome.medical.infer import foreground_threshold
from microtome.medical.pipeline import Pipeline
from microtome.tasks import task

if TYPE_CHECKING:
    from microtome.graph.network import Network

LOOK = 4  # images
OVERLAP = 0.1  # of the foreground: networks whose channels exclude one another stay far below


def overlap_notes(network: Network, pipeline: Pipeline, cohort: Cohort) -> list[str]:
    """Return a sentence if channels overlap and no regions are declared, or if a label belongs to no region.

    For the first, the network is run on up to four images.
    """
    if not task(pipeline.task).MAPS or pipeline.activation != "sigmoid":
        return []
    if pipeline.regions is not None:
        claimed = {label for labels in pipeline.regions.values() for label in labels}
        left = [name for label, name in enumerate(cohort.classes) if label > 0 and label not in claimed]
        return [f"No region holds the cohort's label {', '.join(left)}: it counts as background."] if left else []
    share = _share(network, pipeline, cohort) if len(pipeline.classes) > 2 else 0.0
    if share < OVERLAP:
        return []
    return [
        f"In {share:.0%} of what the network finds, more than one channel is above the threshold, and each voxel "
        "is given the highest one. If they mean regions that overlap, declare 'regions' in --pipeline."
    ]


def _share(network: Network, pipeline: Pipeline, cohort: Cohort) -> float:
    """Return the share of voxels with two or more channels above the threshold, of those with at least one."""
    import torch

    rng, found, several = np.random.default_rng(0), 0, 0
    for case in (cohort.train or cohort.cases)[:LOOK]:
        with contextlib.suppress(DataError):  # broken files have their say when they are used
            for x in inputs(cohort, case, pipeline, rng)[:1]:
                with torch.no_grad():
                    scores = network(tensors(x))[0].cpu().numpy()
                above = (scores > foreground_threshold(scores.shape[0], pipeline)).sum(axis=0)
                found, several = found + int((above > 0).sum()), several + int((above > 1).sum())
    return several / found if found else 0.0
