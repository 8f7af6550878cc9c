"""Confidence intervals by resampling videos, not items.

Questions about one video share its scene, light and wearer, so resampling single questions would give intervals that
are too narrow. Videos are drawn with replacement instead (cluster bootstrap), and the bounds are percentiles of the
statistic.
"""

from collections.abc import Callable, Sequence

import numpy as np

NUM_DRAWS = 1000
CONFIDENCE = 0.95
INTERVAL_RULE = f"{100 * CONFIDENCE:.0f} % percentile bootstrap over the {{clusters}}, {NUM_DRAWS} draws, seed 0"


def cluster_weights(clusters: Sequence, num_draws: int = NUM_DRAWS, seed: int = 0) -> np.ndarray:
    """
    How often each item counts in each draw.

    Args:
        clusters (sequence of length `num_items`): The video of each item.

    Returns:
        `np.ndarray` of shape `(num_draws, num_items)`, int16. Each draw takes as many videos as exist, with
        replacement.
    """
    names, number = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) == 0:
        raise ValueError("No items to resample.")
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_draws).astype(np.int16)
    return counts[:, number]


def weighted_mean(values: np.ndarray) -> Callable[[np.ndarray], float]:
    """The statistic "mean of `values` `(num_items,)`" as a function of the items' weights; nan without any weight."""
    values = np.asarray(values, dtype=np.float64)

    def mean(weights: np.ndarray) -> float:
        total = weights.sum()
        return float(values @ weights / total) if total > 0 else float("nan")

    return mean


def bootstrap_intervals(
    statistics: dict[str, Callable[[np.ndarray], float]],
    clusters: Sequence,
    num_draws: int = NUM_DRAWS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, list[float] | None]:
    """
    Percentile intervals, all from the same draws.

    Args:
        statistics: For each name, a function of the weights of the items `(num_items,)`, such as
            `weighted_mean(values)`. A draw in which it is nan (no item of that kind) is left out.
        clusters (sequence of length `num_items`): The video of each item.

    Returns:
        `[low, high]` for each name; `None` if there is only one video, which has no spread.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence ({confidence}) must be between 0 and 1.")
    if len(set(clusters)) < 2:
        return dict.fromkeys(statistics)
    draws: dict[str, list[float]] = {name: [] for name in statistics}
    for weights in cluster_weights(clusters, num_draws, seed):
        for name, statistic in statistics.items():
            draws[name].append(statistic(weights))
    tail = 100 * (1 - confidence) / 2
    result: dict[str, list[float] | None] = {}
    for name, values in draws.items():
        finite = np.array(values)[np.isfinite(values)]
        result[name] = [float(x) for x in np.percentile(finite, [tail, 100 - tail])] if len(finite) else None
    return result
