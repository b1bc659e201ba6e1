"""Low Training Data instruction tuning ("Maybe Only 0.5% Data is Needed", arXiv 2305.09246): few rows that cover the target's kind.

1. Embed every row (unit vectors; `siftune.methods.vectors`).
2. Keep the target's family: rows that are said to be of its task, or the K-means clusters in which a target row falls.
3. Where asked, keep of those only the m instruction templates nearest to the target: few suffice.
4. Cover the family: k-centre greedy (Gonzalez 1985), from the row nearest to the target on, always the row farthest from those taken.

The paper leaves the distance, the starting row and K open. Here: Euclidean distance on unit vectors, the family row nearest to the
target's centroid, and K = sqrt(N / 2).

    score = distance to the nearest row taken before it    rows of the family, 0 … 2 (the first row taken: 2)
    score = cosine with the target's centroid - 2          all others, so below any row of the family

Sorted by score, ties by row, the rows taken come first, in the order taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from siftune.records.errors import SiftuneError

WHOLE_KMEANS = 50_000
"""Up to so many rows, K-means sees all of them at every step; above, batches of them (MiniBatchKMeans)."""
SAME = 1e-3
"""Distances below this are 0: fp32 can't tell them from rounding, and equal rows must tie."""


class LtdResult(NamedTuple):
    """What came out, over N pool rows.

    score_N:   see above; NaN for a row without a vector
    taken_K:   rows taken by k-centre, in order
    family_N:  rows that k-centre chose from
    cluster_N: each row's K-means cluster, -1 without a vector; None where the family was given
    templates: the templates kept, nearest first; None where no number of them was asked for
    """

    score_N: np.ndarray
    taken_K: np.ndarray
    family_N: np.ndarray
    cluster_N: np.ndarray | None
    templates: list[str] | None


def ltd_scores(
    vectors_N_D: np.ndarray,
    vectors_V_D: np.ndarray,
    *,
    family_N: np.ndarray | None,
    template_N: Sequence[str | None] | None,
    clusters: int | None,
    templates: int | None,
    count: int,
    seed: int,
) -> LtdResult:
    """Scores of the pool for one target.

    vectors_N_D: unit vectors of the pool rows, fp32; NaN rows have none
    vectors_V_D: those of the target rows
    family_N:    rows of the target's task family (bool); None: found by K-means
    template_N:  name of each row's instruction template; a row without one belongs to none
    clusters:    K of K-means; None: sqrt(N / 2)
    templates:   how many templates to keep; None: all
    count:       rows to take by k-centre; the family's other rows follow by their distance to those
    seed:        of K-means
    """
    usable_N = ~np.isnan(vectors_N_D[:, 0])
    centroid_D = vectors_V_D.mean(axis=0)
    centroid_D = centroid_D / (np.linalg.norm(centroid_D) or 1)
    cosine_N = vectors_N_D @ centroid_D
    cluster_N = names = None
    if family_N is None:
        cluster_N, target_clusters = _clustered(vectors_N_D, usable_N, vectors_V_D, clusters, seed)
        family_N = np.isin(cluster_N, target_clusters)
    family_N = family_N & usable_N
    if not family_N.any():
        raise SiftuneError(
            "no pool row that has a vector is of the target's task family",
            where="family",
            todo="Name the family as the pool does, or leave it out: clusters take its place",
        )
    if templates is not None:
        names, family_N = _nearest_templates(family_N, template_N, cosine_N, templates)
    rows = np.flatnonzero(family_N)
    start = int(np.argmax(cosine_N[rows]))
    taken_K, _, near_M = _covered(vectors_N_D[rows], start, count)
    score_N = (cosine_N - 2).astype(np.float32)
    score_N[rows] = near_M
    return LtdResult(score_N, rows[taken_K], family_N, cluster_N, names)


def k_centre(vectors_N_D: np.ndarray, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Farthest-first traversal of unit vectors: (rows taken [K], their distance to the rows taken before [K]).

    Euclidean distance, non-increasing from 2.0 (for the first, which has none before it), ties by row. One matrix-vector product a
    row taken, so N·K·D in all, and N numbers of memory beside the vectors.
    """
    taken_K, radius_K, _ = _covered(vectors_N_D, start, count)
    return taken_K, radius_K


def _covered(vectors_N_D: np.ndarray, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows taken, their radii, and the distance of every row to the rows taken before it (all of them, if it was not taken)."""
    n_rows = len(vectors_N_D)
    taken_K = np.empty(min(count, n_rows), np.int64)
    radius_K = np.empty(len(taken_K), np.float32)
    left_N = np.full(
        n_rows, np.nextafter(np.float32(2), np.float32(0))
    )  # only the first row taken has 2.0 itself
    row, radius = start, np.float32(2)
    for k in range(len(taken_K)):
        taken_K[k], radius_K[k] = row, radius
        left_N[row] = -1  # never again
        square_N = 2 - 2 * (vectors_N_D @ vectors_N_D[row])  # |x - y|² of unit vectors
        distance_N = np.sqrt(np.maximum(square_N, 0))
        distance_N[distance_N < SAME] = 0
        np.minimum(left_N, distance_N, out=left_N)
        row = int(np.argmax(left_N))
        radius = left_N[row]
    near_N = left_N
    near_N[taken_K] = radius_K
    return taken_K, radius_K, near_N


def _clustered(
    vectors_N_D: np.ndarray, usable_N: np.ndarray, vectors_V_D: np.ndarray, clusters: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each pool row's cluster (-1: no vector), and the clusters in which target rows fall."""
    # heavy, and needed for nothing else
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    n_usable = int(usable_N.sum())
    wanted = max(1, round(np.sqrt(n_usable / 2))) if clusters is None else clusters
    if not 1 <= wanted <= max(n_usable, 1):
        raise SiftuneError(
            f"{wanted} clusters can't be made of {n_usable:,} rows",
            where="clusters",
            todo=f"Give a number from 1 to {n_usable}, or leave it out",
        )
    cluster_N = np.full(len(usable_N), -1, np.int64)
    if not n_usable:
        return cluster_N, np.empty(0, np.int64)
    kind = KMeans if n_usable <= WHOLE_KMEANS else MiniBatchKMeans
    kmeans = kind(n_clusters=wanted, n_init="auto", random_state=seed)
    # With several threads the sums' order, and so the clusters, would depend on chance.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # repeated rows may leave clusters empty: no harm
        cluster_N[usable_N] = kmeans.fit_predict(vectors_N_D[usable_N])
        return cluster_N, np.unique(kmeans.predict(vectors_V_D))


def _nearest_templates(
    family_N: np.ndarray, template_N: Sequence[str | None] | None, cosine_N: np.ndarray, wanted: int
) -> tuple[list[str], np.ndarray]:
    """The `wanted` templates whose family rows have the highest mean cosine with the target's centroid, and their rows."""
    if wanted < 1:
        raise SiftuneError(
            f"{wanted} templates leave no row", where="templates", todo="Give 1 or more, or leave it out"
        )
    if template_N is None:
        raise SiftuneError(
            "it takes a column that names each row's instruction template",
            where="template_column",
            todo="Name the column, or leave out templates",
        )
    cosines: dict[str, list[float]] = {}
    for row in np.flatnonzero(family_N).tolist():
        name = template_N[row]
        if name is not None:
            cosines.setdefault(name, []).append(float(cosine_N[row]))
    if not cosines:
        raise SiftuneError(
            "no row of the target's family names an instruction template",
            where="template_column",
            todo="Check the column's name, or leave out templates",
        )
    nearness = {name: np.mean(of_template) for name, of_template in cosines.items()}
    kept = sorted(nearness, key=lambda name: (-nearness[name], name))[:wanted]
    of_kept_N = np.array([name in kept for name in template_N], dtype=bool)
    return kept, family_N & of_kept_N
