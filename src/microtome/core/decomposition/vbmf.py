"""The rank of a matrix under noise, found without any setting."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor


def vbmf_rank(energies: Tensor, rows: int, columns: int) -> int:
    """Return how many components of a matrix stand out of its noise: empirical variational Bayes, solved analytically.

    The matrix is taken for a sum of a low-rank one and Gaussian noise of unknown variance. The variance is the one of
    least free energy, and components whose singular value lies above the threshold that follows are kept.

    Source: Nakajima et al., "Global Analytic Solution of Fully-observed Variational Bayesian Matrix Factorization",
    JMLR 14, 2013, theorem 2 (threshold), equations 29 to 34 (noise variance).

    Args:
        energies: all squared singular values, the largest first.
        rows: of the matrix.
        columns: likewise.

    Returns:
        0 to min(rows, columns).
    """
    short, long = sorted((rows, columns))
    squares = energies.double().numpy()[:short]
    if squares.size == 0 or squares[0] <= 0:
        return 0
    alpha = short / long
    least = _tau(alpha)
    limit = (1 + least) * (1 + alpha / least)  # of a component's square over (long * variance)
    floor = float(squares[0]) * 1e-14
    squares = np.maximum(squares, floor)

    def free_energy(log_variance: float) -> float:
        x = squares / (long * math.exp(log_variance))
        kept, noise = x[x > limit], x[x <= limit]
        tau = 0.5 * (kept - (1 + alpha) + np.sqrt((kept - (1 + alpha)) ** 2 - 4 * alpha))
        signal = kept - tau + np.log((tau + 1) / kept) + alpha * np.log(tau / alpha + 1)
        return float((noise - np.log(noise)).sum() + signal.sum())

    # The variance lies between what the smallest components say and what all say (equations 32 to 34).
    most = min(math.ceil(short / (1 + alpha)) - 1, short - 1)
    tail = squares[most:]
    low = max(float(squares[most]) / (long * limit), float(tail.mean()) / long)
    high = float(squares.sum()) / (short * long)
    variance = high
    if low < high:
        # It has a kink wherever a component crosses the limit: each stretch between two has a minimum of its own.
        kinks = np.log(squares / (long * limit))
        ends = math.log(low), math.log(high)
        marks = sorted({*ends, *(float(kink) for kink in kinks if ends[0] < kink < ends[1])})
        found = [
            minimize_scalar(free_energy, bounds=stretch, method="bounded", options={"xatol": 1e-6})
            for stretch in itertools.pairwise(marks)
        ]
        variance = math.exp(min(found, key=lambda one: float(one.fun)).x)
    return int((squares > long * variance * limit).sum())


def _tau(alpha: float) -> float:
    """Return the zero of Φ(τ) + Φ(τ / α) with Φ(z) = log(z + 1) / z − 1/2 (theorem 2); about 2.5129 √α."""

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    return float(brentq(lambda tau: phi(tau) + phi(tau / alpha), 1e-9, 10.0))
