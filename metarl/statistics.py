"""Statistics of few-task, few-seed experiments (Agarwal et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]


def mean(scores: Array) -> Array:
    """Mean over the first axis: `[M, ...] -> [...]`."""
    return np.asarray(scores.mean(axis=0))


def iqm(scores: Array) -> Array:
    """Interquartile mean over the first axis: the mean of the middle half."""
    return np.asarray(stats.trim_mean(scores, 0.25, axis=0))


def stratified_bootstrap(
    scores: Array,
    statistic: Statistic = mean,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Percentile interval of `statistic`, resampling within each stratum.

    Args:
        scores: `[S, M, ...]`: S strata (runs) of M samples (tasks); trailing axes are kept.
        statistic: maps `[S * M, ...]` to `[...]`, whatever the trailing axes.
        level: coverage.
        resamples: bootstrap replicates.
        seed: of the resampling.

    Returns:
        Lower and upper bounds, `[...]` each.
    """
    rng = np.random.default_rng(seed)
    strata, samples = scores.shape[:2]
    rows = np.arange(strata)[:, None]
    replicates = []
    # All replicates of a block in one call: a call of SciPy's costs more than its arithmetic.
    block = max(1, min(resamples, 2**18 // max(scores.size, 1)))
    for start in range(0, resamples, block):
        size = (min(block, resamples - start), strata, samples)
        drawn = np.moveaxis(scores[rows, rng.integers(samples, size=size)], 0, 2)
        replicates.append(statistic(drawn.reshape(strata * samples, size[0], *scores.shape[2:])))
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(np.concatenate(replicates), [tail, 100.0 - tail], axis=0)
    return low, high
