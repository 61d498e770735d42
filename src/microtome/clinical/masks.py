"""Both masks of one structure of one case, as metrics get them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from microtome.clinical.surface import SurfaceDistances, surface_distances
from microtome.types import Array


@dataclass(frozen=True, eq=False)
class Masks:
    """Two masks of a structure, neither of them empty, cut to the box around both.

    Attributes:
        prediction: bool, 2-D or 3-D.
        reference: bool, of the same shape.
        spacing: mm per voxel along each axis (pixels for pictures).
        tolerance: the largest distance in mm that counts as equal, for metrics of surfaces.
    """

    prediction: Array
    reference: Array
    spacing: tuple[float, ...]
    tolerance: float

    @functools.cached_property
    def distances(self) -> SurfaceDistances:
        """Distances in mm between both borders, measured once for all metrics that ask."""
        return surface_distances(self.prediction, self.reference, spacing=self.spacing)
