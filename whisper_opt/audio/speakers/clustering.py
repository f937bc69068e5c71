"""Which voices are the same: agglomerative clustering by cosine distance.

Average linkage (UPGMA, SciPy). Thousands of voices are first merged in parts with a strict limit,
so that time and memory stay bounded; the merged ones are clustered again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whisper_opt.core.arrays import F32

__all__ = ["LEAST", "LIMIT", "Labels", "cluster", "similarities"]

Labels = npt.NDArray[np.intp]
"""Number of the cluster of each voice, from 0."""

LIMIT = 0.65
"""Mean cosine distance up to which two clusters are one speaker."""
_STRICT = 0.3
"""The same for the first merge of many voices."""
_PART = 1000
"""Voices that are merged at once."""
_TRIED = 100
"""Clusters that are too small, at most, while a number of large ones is looked for."""
LEAST = 3.0
"""Seconds of speech; a cluster with less is no speaker of its own if there are others."""


def _merged(voices: F32, limit: float) -> Labels:
    """Labels from 0 of voices [n, d], with clusters no further apart than ``limit``."""
    if len(voices) < 2:
        return np.zeros(len(voices), np.intp)
    return _cut(_tree(voices), limit)


def _tree(voices: F32) -> npt.NDArray[np.float64]:
    from scipy.cluster.hierarchy import linkage

    unit = _unit(voices)
    rows, columns = np.triu_indices(len(unit), 1)
    distances = (1 - unit @ unit.T)[rows, columns]
    found: npt.NDArray[np.float64] = linkage(np.maximum(distances, 0), "average")
    return found


def _cut(tree: npt.NDArray[np.float64], limit: float) -> Labels:
    from scipy.cluster.hierarchy import fcluster

    found: Labels = fcluster(tree, limit, "distance") - 1
    return found


def _cut_into(tree: npt.NDArray[np.float64], k: int) -> Labels:
    from scipy.cluster.hierarchy import cut_tree

    found: Labels = cut_tree(tree, k)[:, 0].astype(np.intp)
    return found


def _unit(voices: F32) -> F32:
    length = np.linalg.norm(voices, axis=1, keepdims=True)
    found: F32 = voices / np.maximum(length, np.float32(1e-12))
    return found


def _means(voices: F32, weights: F32, labels: Labels) -> tuple[F32, F32]:
    """Weighted mean [k, d] and total weight [k] of every cluster."""
    n = int(labels.max()) + 1
    totals = np.bincount(labels, weights, n).astype(np.float32)
    sums = np.zeros((n, voices.shape[1]), np.float32)
    np.add.at(sums, labels, voices * weights[:, None])
    return sums / totals[:, None], totals


def similarities(voices: F32, centres: F32) -> F32:
    """Cosine similarity [n, k] of voices [n, d] and centres [k, d]."""
    found: F32 = _unit(voices) @ _unit(centres).T
    return found


def cluster(
    voices: F32,
    weights: Sequence[float],
    *,
    low: int = 1,
    high: int | None = None,
    limit: float = LIMIT,
    least: float = LEAST,
) -> tuple[Labels, F32]:
    """Labels of voices, and the mean voice of every label.

    Args:
        voices: F32 [n, d] of unit length, n at least 1.
        weights: seconds of speech of each.
        low: minimum number of clusters; fewer are made only if there are fewer voices.
        high: maximum number of clusters; default: no limit.
        limit: cosine distance up to which clusters are merged.
        least: seconds of speech; a cluster with less joins the most similar other one.

    Returns:
        Labels [n] from 0, and centres F32 [k, d].
    """
    heavy = np.asarray(weights, np.float32)
    first, points, totals = _reduced(voices, heavy)
    tree = _tree(points) if len(points) > 1 else np.empty((0, 4))
    labels = _large(tree, points, totals, low, high, limit, least)
    labels = _large_only(points, totals, labels, low, least)
    labels = np.unique(labels[first], return_inverse=True)[1].astype(np.intp)
    return labels, _means(voices, heavy, labels)[0]


def _reduced(voices: F32, weights: F32) -> tuple[Labels, F32, F32]:
    """At most about ``_PART`` merged voices: label of each voice, means and weights of these."""
    labels = np.arange(len(voices))
    points, totals, strict = voices, weights, _STRICT
    while len(points) > 2 * _PART:
        parts, n = [], 0
        for i in range(0, len(points), _PART):
            part = _merged(points[i : i + _PART], strict)
            parts.append(part + n)
            n += int(part.max()) + 1
        merged = np.concatenate(parts)
        points, totals = _means(points, totals, merged)
        labels = merged[labels]
        strict = min(1.0, strict + 0.1)
    return labels, points, totals


def _large(
    tree: npt.NDArray[np.float64],
    points: F32,
    totals: F32,
    low: int,
    high: int | None,
    limit: float,
    least: float,
) -> Labels:
    """The cut of the tree at the limit, or at another if it gives too few or many clusters."""

    def n_large(labels: Labels) -> int:
        return max(1, int((np.bincount(labels, totals) >= least).sum()))

    found = _cut(tree, limit) if len(tree) else np.zeros(len(points), np.intp)
    n = n_large(found)
    if not len(tree) or (low <= n and (high is None or n <= high)):
        return found
    wanted = low if n < low else high or low
    best = _cut_into(tree, 1)
    for k in range(wanted, min(len(points), wanted + _TRIED) + 1):
        labels = _cut_into(tree, k)
        if n_large(labels) > wanted:
            break
        if n_large(labels) > n_large(best) or k == wanted:
            best = labels
        if n_large(best) == wanted:
            break
    return best


def _large_only(points: F32, totals: F32, labels: Labels, low: int, least: float) -> Labels:
    """Labels after small clusters were joined to the most similar large one."""
    means, sums = _means(points, totals, labels)
    n_kept = max(1, min(low, len(sums)), int((sums >= least).sum()))
    kept = np.sort(np.argsort(-sums, kind="stable")[:n_kept])
    nearest = kept[similarities(means, means[kept]).argmax(axis=1)]
    nearest[kept] = kept
    found: Labels = nearest[labels]
    return found
