r"""Contrasts of location coefficients that have no finite estimate, in genes whose optimum is at infinity.

Where all counts of a group are zero its log mean runs to minus infinity, and Newton stops where no likelihood is left
to gain: the estimate says how far it went and the standard error how little it saw there, and neither says anything of
the gene. Along such a direction Newton's next step would still move the predictors (by about one, for ever), while it
is zero along all that the counts identify.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._optimize.convergence import FitCode

Array = NDArray[np.float64]
MOVES = 0.1  # of a predictor, by Newton's next step: one where the estimate is at infinity, else below 0.01
ALIKE = 10.0  # information of directions that go to infinity together, over the largest that still moves
UNKNOWN = 2e-4  # log likelihood still to gain from which its supremum is not known; QUICK training leaves up to 1e-4
TOUCHES = 1e-3  # part of a contrast along such a direction, which is known to about 1e-5 (QUICK training)


def identified_contrasts(fit: GlmFit, rows: Array) -> dict[int, Array]:
    """What of contrasts the counts identify, for the separated genes in which that is not all of it.

    Parameters
    ----------
    fit
        Estimates of G genes.
    rows : (k, P)
        Contrasts of the location coefficients.

    Returns
    -------
    dict
        Combinations by gene of the rows ``(q, k)`` that have a finite estimate; none, ``(0, k)``, where every one
        is at infinity.
    """
    p, out = fit.n_location, {}
    scaled = rows @ fit.basis.matrix[:p, :p] / fit.reach
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    for gene in np.flatnonzero(fit.code == FitCode.SEPARATED):
        directions = _directions(fit, int(gene))
        along = (scaled / length) @ directions
        if np.abs(along).max(initial=0.0) > TOUCHES:
            _, size, turn = np.linalg.svd(along.T)
            out[int(gene)] = turn[int((size > TOUCHES).sum()) :] / length.T
    return out


def in_span(kept: Array) -> NDArray[np.bool_]:
    """Which contrasts ``(k,)`` are among the combinations ``kept`` ``(q, k)``, alone."""
    projector = np.linalg.pinv(kept) @ kept if len(kept) else np.zeros((kept.shape[1], kept.shape[1]))
    return np.asarray(np.abs(projector - np.eye(len(projector))).max(0) < 2 * TOUCHES)


def largest_log_likelihood(fit: GlmFit) -> Array:
    """Supremum of each gene's log likelihood ``(G,)``; NaN where the fit failed, or is far from it at infinity.

    Along a direction to infinity the log likelihood nears its supremum as −exp(−t) where means are exponentials of the
    predictor. Newton's decrement ``g' H⁻¹ g`` is then all that is left to gain, wherever the search stopped. Of other
    links it is a share of it (half, of −1/t), and no supremum is given but where it is small.
    """
    value = np.where(fit.code >= FitCode.FAILED, np.nan, fit.log_likelihood)
    for gene in np.flatnonzero(fit.code == FitCode.SEPARATED):
        left = _left_to_gain(fit, int(gene))
        value[gene] = value[gene] + left if left < UNKNOWN else np.nan
    return value


def _left_to_gain(fit: GlmFit, gene: int) -> float:
    """Newton's decrement of a gene, over the directions whose curvature is above its rounding."""
    information, gradient = fit.inner_information[gene], fit.gradient[gene] @ fit.basis.matrix
    if not (np.isfinite(information).all() and np.isfinite(gradient).all()):
        return np.inf
    curvature, direction = np.linalg.eigh(information)
    rounding = np.finfo(np.float64).eps * len(curvature) * np.abs(curvature).max()
    return float(((gradient @ direction) ** 2 / np.maximum(np.abs(curvature), max(rounding, 1e-300))).sum())


def _directions(fit: GlmFit, gene: int) -> Array:
    """Directions ``(P, m)`` in which a gene's optimum is at infinity, in columns of largest entry one."""
    p = fit.n_location
    matrix, gradient = fit.inner_fisher[gene] / np.outer(fit.reach, fit.reach), fit.gradient[gene, :p]
    if not (np.isfinite(matrix).all() and np.isfinite(gradient).all()):
        return np.eye(p)
    value, vector = np.linalg.eigh(matrix)
    slope = np.abs(vector.T @ (gradient @ fit.basis.matrix[:p, :p] / fit.reach))
    moves = (value <= 0) | (slope > MOVES * np.maximum(value, 0.0))
    return vector[:, value <= ALIKE * value[moves].max(initial=-np.inf)]
