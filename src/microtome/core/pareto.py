"""Choosing among candidates by several objectives at once. All objectives are to be small."""

from __future__ import annotations

import numpy as np

from microtome.types import Array


def fronts(points: Array) -> list[Array]:
    """Sort candidates by dominance: the first front is dominated by none, the next by those of the first alone, ….

    Source: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, section III.A.

    Args:
        points: (candidates, objectives).

    Returns:
        Numbers of candidates, int64, for each front.
    """
    points = np.asarray(points, float)
    better = (points[:, None] <= points[None]).all(2) & (points[:, None] < points[None]).any(2)  # row dominates column
    left, found = np.ones(len(points), bool), []
    while left.any():
        front = left & ~(better & left[:, None]).any(0)
        found.append(np.flatnonzero(front))
        left &= ~front
    return found


def crowding(points: Array) -> Array:
    """Return how far each candidate's neighbours on a front are from one another; infinite at the ends.

    Source: Deb et al. 2002, section III.B.

    Args:
        points: (candidates, objectives), of one front.

    Returns:
        (candidates,), float64.
    """
    points = np.asarray(points, float)
    distance = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return distance


def best(points: Array, count: int) -> Array:
    """Return the numbers of the candidates that NSGA-II keeps: front by front, of the last the least crowded."""
    chosen: list[int] = []
    for front in fronts(points):
        room = count - len(chosen)
        if room <= 0:
            break
        alone = crowding(np.asarray(points, float)[front])
        chosen += front[np.argsort(-alone, kind="stable")][:room].tolist()
    return np.array(chosen, np.int64)


class Predictor:
    """Kernel ridge regression with a linear and a Gaussian part, on standardized features and values.

    Source: Saunders et al., "Ridge regression learning algorithm in dual variables", ICML 1998, equation 8. A sum of
    kernels is a kernel; the linear part extrapolates.
    """

    def __init__(self, features: Array, values: Array, *, ridge: float = 1e-2) -> None:
        """Learn from (n, d) features and (n, k) values; at least one row."""
        features, values = np.asarray(features, float), np.asarray(values, float)
        self._centre, self._spread = features.mean(0), np.maximum(features.std(0), 1e-9)
        self._mean, self._scale = values.mean(0), np.maximum(values.std(0), 1e-12)
        self._known = (features - self._centre) / self._spread
        kernel = self._kernel(self._known)
        self._weights = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), (values - self._mean) / self._scale)

    def __call__(self, features: Array) -> Array:
        """Predict (m, k) values from (m, d) features."""
        kernel = self._kernel((np.asarray(features, float) - self._centre) / self._spread)
        predicted: Array = kernel @ self._weights * self._scale + self._mean
        return predicted

    def _kernel(self, features: Array) -> Array:
        size = features.shape[1]
        apart = ((features[:, None] - self._known[None]) ** 2).sum(2)
        kernel: Array = features @ self._known.T / size + np.exp(-apart / (2 * size))
        return kernel
