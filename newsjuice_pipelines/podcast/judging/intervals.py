"""Means and quantiles with 95 % bootstrap intervals that resample whole articles. What is measured is not known here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BOOTSTRAP_RESAMPLES = 1000
MIN_CLUSTERS = 5
_RESAMPLES_AT_ONCE = 100  # bounds the memory of quantiles: so many weights a script

Estimate = dict[str, Any]
"""`value`, `low`, `high` (None where there is nothing to measure, or too few articles) and `scripts`, how many were measured."""


def summarise(
    rows: Sequence[Mapping[str, float | None]], clusters: Sequence[str], seed: int = 42, names: Iterable[str] | None = None
) -> dict[str, Any]:
    """Means over scripts, each with a 95 % bootstrap interval that resamples whole articles.

    Args:
        rows: the measures of each script by name; None where not measured.
        clusters: the article of each script; scripts of one article are not independent.
        seed: of the resampling.
        names: which measures; default: those of the first row.

    Returns:
        `scripts`, `articles`, and an `Estimate` a measure. Intervals need at least five articles.

    Raises:
        ValueError: as many ids as scripts are needed.
    """
    if len(rows) != len(clusters):
        raise ValueError(f"{len(rows)} scripts but {len(clusters)} article ids: give one id a script.")
    measures = list(names) if names is not None else list(rows[0]) if rows else []
    estimates = {name: mean_estimate([row[name] for row in rows], clusters, seed) for name in measures}
    return {"scripts": len(rows), "articles": len(set(clusters)), **estimates}


def mean_estimate(values: Sequence[float | None], clusters: Sequence[str], seed: int) -> Estimate:
    """The mean of the known values, with its interval."""
    known, owners = _known(values, clusters)
    low, high = cluster_interval(known, owners, seed) or (None, None)
    return {"value": sum(known) / len(known) if known else None, "low": low, "high": high, "scripts": len(known)}


def quantile_estimate(values: Sequence[float | None], clusters: Sequence[str], share: float, seed: int) -> Estimate:
    """The quantile `share` (0 to 1) of the known values, with its interval: the least value that so many do not exceed."""
    known, owners = _known(values, clusters)
    if not known:
        return {"value": None, "low": None, "high": None, "scripts": 0}
    import numpy as np

    order = np.argsort(known, kind="stable")
    ascending, owner = np.asarray(known, dtype=float)[order], np.asarray(owners, dtype=object)[order]

    def quantiles(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        reached = np.cumsum(weights, axis=1)
        found: NDArray[np.float64] = ascending[(reached >= share * reached[:, -1:] - 1e-9).argmax(axis=1)]
        return found

    value = float(quantiles(np.ones((1, len(known))))[0])
    low, high = _interval(list(owner), seed, lambda drawn, index: quantiles(drawn[:, index])) or (None, None)
    return {"value": value, "low": low, "high": high, "scripts": len(known)}


def cluster_interval(values: Sequence[float], clusters: Sequence[str], seed: int) -> tuple[float, float] | None:
    """The 2.5th and 97.5th percentile of the mean when clusters are drawn with replacement; None below five clusters.

    The pairs cluster bootstrap of A. C. Cameron and D. L. Miller, "A Practitioner's Guide to Cluster-Robust Inference", 2015.
    """
    import numpy as np

    def means(drawn: NDArray[np.float64], index: NDArray[np.intp]) -> NDArray[np.float64]:
        sums, sizes = np.bincount(index, weights=np.asarray(values, dtype=float)), np.bincount(index)
        found: NDArray[np.float64] = (drawn @ sums) / (drawn @ sizes)
        return found

    return _interval(clusters, seed, means)


def article_clusters(article_ids: Sequence[str], texts: Sequence[str]) -> list[str]:
    """A cluster a row: rows of one article, and rows with the same text under several ids, are one cluster.

    Of a row with an empty id the text alone decides.
    """
    first: dict[str, str] = {}
    numbers: dict[str, int] = {}

    def root(key: str) -> str:
        while first[key] != key:
            key = first[key]
        return key

    keys = []
    for article_id, text in zip(article_ids, texts, strict=True):
        shared = f"text {numbers.setdefault(text, len(numbers))}"
        own = f"id {article_id}" if article_id else shared
        first.setdefault(own, own)
        first.setdefault(shared, own)
        first[root(own)] = root(shared)
        keys.append(own)
    return [root(key).removeprefix("id ") for key in keys]


def _known(values: Sequence[float | None], clusters: Sequence[str]) -> tuple[list[float], list[str]]:
    pairs = [(float(value), cluster) for value, cluster in zip(values, clusters, strict=True) if value is not None]
    return [value for value, _ in pairs], [cluster for _, cluster in pairs]


def _interval(
    clusters: Sequence[str],
    seed: int,
    statistic: Callable[[NDArray[np.float64], NDArray[np.intp]], NDArray[np.float64]],
) -> tuple[float, float] | None:
    """Percentiles of a statistic of (how often each cluster was drawn in each resample, the cluster's number of each row)."""
    import numpy as np

    names, index = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    if len(names) < MIN_CLUSTERS:
        return None
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(BOOTSTRAP_RESAMPLES // _RESAMPLES_AT_ONCE):
        drawn = generator.integers(len(names), size=(_RESAMPLES_AT_ONCE, len(names)))
        drawn += np.arange(_RESAMPLES_AT_ONCE)[:, None] * len(names)
        times = np.bincount(drawn.ravel(), minlength=_RESAMPLES_AT_ONCE * len(names)).reshape(_RESAMPLES_AT_ONCE, -1)
        found.append(statistic(times.astype(float), index))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return float(low), float(high)
