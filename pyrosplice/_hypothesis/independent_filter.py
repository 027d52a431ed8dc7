"""Independent filtering: the cut of a filter statistic, above which p-values are adjusted, by their discoveries.

Source: Bourgon, Gentleman and Huber (2010) PNAS 107:9546; the choice of the cut is that of DESeq2's ``results``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._tables.names import by_name
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
CUTS, HIGHEST = 50, 0.95  # quantiles that are tried: how many, and the last
SPAN, ROBUST_STEPS = 0.2, 3  # of lowess
FEW = 10  # discoveries; with no more no cut is better than another


@dataclass(frozen=True, kw_only=True)
class FilterCut:
    """A cut and what is above it.

    Attributes
    ----------
    passes
        Which genes are at least the cut ``(G,)``.
    by
        Name of the filter statistic.
    cut, quantile, alpha
        Its value, the share of genes below it, and the false discovery rate that it was chosen at.
    """

    passes: NDArray[np.bool_]
    by: str
    cut: float
    quantile: float
    alpha: float

    def record(self) -> dict[str, Any]:
        """What a table says of it."""
        plain = {name: getattr(self, name) for name in ("by", "cut", "quantile", "alpha")}
        return {**plain, "n_filtered": int((~self.passes).sum())}


def numbers_of(by: object, genes: NDArray[np.object_]) -> Array:
    """A filter statistic as numbers ``(G,)`` in the order of ``genes``; a Series is paired by name.

    Raises
    ------
    InvalidArgumentError
        Something else, or of other genes.
    """
    names = pd.Index([str(gene) for gene in genes])
    try:
        values = np.asarray(by_name(by, names, "by", what="gene"), dtype=np.float64)
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"by: expected a number a gene, found {type(by).__name__} ({error}).") from error
    if values.shape != (len(names),):
        raise InvalidArgumentError(f"by: expected {len(names)} numbers, one a gene, found shape {values.shape}.")
    return values


def cut_for_most(pval: Array, values: Array, alpha: float, *, by: str) -> FilterCut:
    """Choose the cut of ``values`` ``(G,)`` with about the most p-values ``(G,)`` found at ``alpha`` above it.

    Raises
    ------
    InvalidArgumentError
        Values that are missing or infinite.
    """
    if not np.isfinite(values).all():
        wrong = np.flatnonzero(~np.isfinite(values))
        raise InvalidArgumentError(
            f"by: expected finite numbers, found {len(wrong)} others (first: {values[wrong[0]]} in row {wrong[0]})."
        )
    lowest = float((values == 0).mean()) if len(values) else 0.0
    share = np.linspace(lowest, HIGHEST if lowest < HIGHEST else 1.0, CUTS)
    cuts = np.quantile(values, share) if len(values) else np.zeros(CUTS)
    found = np.array([_discoveries(pval[values >= cut], alpha) for cut in cuts])
    best = _first_of_most(share, found)
    return FilterCut(
        passes=values >= cuts[best], by=by, cut=float(cuts[best]), quantile=float(share[best]), alpha=alpha
    )


def _discoveries(pval: Array, alpha: float) -> float:
    return float((adjust_pvalues(pval) <= alpha).sum())


def _first_of_most(share: Array, found: Array) -> int:
    """The lowest cut whose discoveries are within the noise of the largest smoothed number."""
    if found.max() <= FEW or np.ptp(share) == 0:
        return 0
    smooth = lowess(share, found)
    noise = np.sqrt(np.square(found - smooth)[found > 0].mean())
    enough = np.flatnonzero(found > smooth.max() - noise)
    return int(enough[0]) if len(enough) else 0


def lowess(x: Array, y: Array) -> Array:
    """Smooth by local lines with tricube weights over the nearest :data:`SPAN` of points, robustly (Cleveland 1979).

    ``x`` is increasing. Bisquare weights of the residuals, in six median absolute ones, take part in
    :data:`ROBUST_STEPS` further rounds.
    """
    k = max(int(SPAN * len(x) + 1e-10), 2)
    distance = np.abs(x[:, None] - x)
    reach = np.sort(distance, axis=1)[:, k - 1, None]
    near = np.clip(1 - (distance / np.maximum(reach, 1e-300)) ** 3, 0, None) ** 3
    robust = np.ones(len(x))
    fitted = y.astype(np.float64)
    for _ in range(ROBUST_STEPS + 1):
        fitted = _local_lines(x, y, near * robust)
        residual = np.abs(y - fitted)
        scale = 6 * np.median(residual)
        if scale <= 1e-7 * max(np.abs(residual).mean(), 1e-300):
            break
        robust = np.clip(1 - (residual / scale) ** 2, 0, None) ** 2
    return fitted


def _local_lines(x: Array, y: Array, weights: Array) -> Array:
    """The value at each point of the weighted least-squares line of its row of ``weights``."""
    weights = weights / np.maximum(weights.sum(1, keepdims=True), 1e-300)
    center, level = weights @ x, weights @ y
    off = x - center[:, None]
    spread = (weights * off**2).sum(1)
    slope = np.divide((weights * off * y).sum(1), spread, out=np.zeros(len(x)), where=spread > 1e-6 * np.ptp(x) ** 2)
    return level + slope * (x - center)
