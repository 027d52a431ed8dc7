"""The score test of an estimator's contrast by its saddlepoint law: the null fit, the score, and the kinds of cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice._expression.count_score import NullScore, saddlepoint_test
from pyrosplice._expression.engine.pseudo_cells import distinct_rows
from pyrosplice._expression.engine.row_source import Design
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.tests import null_fit
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
BINS = 40  # of size factors within a kind of cells: the law's moments to 1e-4
ENTRIES = 2_000_000  # genes × kinds of a block


def score_test(estimator: Estimator, contrast: Array) -> tuple[Array, Array]:
    """Corrected signed root and p-value ``(G,)`` of one contrast ``(1, P)`` of the full location coefficients.

    Raises
    ------
    InvalidArgumentError
        For another noise than the negative binomial, observation weights, or several contrasts at once.
    """
    source, constraints = estimator.source, estimator.input_data.constraints_loc
    if not estimator.input_data.likelihood.is_negative_binomial:
        raise InvalidArgumentError("noise_model: the score test by saddlepoint needs negative-binomial noise.")
    if source.design.weights is not None:
        raise InvalidArgumentError("weights: the score test takes no observation weights.")
    fit, _ = null_fit(source, constraints, contrast)
    free = (contrast @ constraints.matrix)[0]
    _, _, basis = np.linalg.svd(free[None])
    kept = source.design.x @ basis[1:].T
    nuisance = np.linalg.qr(kept)[0]
    tested = source.design.x @ (free / (free @ free))
    tested = tested - nuisance @ (nuisance.T @ tested)
    root, pval = (np.full(len(fit.theta), np.nan) for _ in range(2))
    p, kinds = fit.n_location, _kinds(source.design)
    good = np.flatnonzero(np.isfinite(fit.theta).all(1))
    signed = np.full(len(fit.theta), np.nan)
    for which, rows in source.with_location(basis[1:].T).blocks(good):
        theta = torch.as_tensor(fit.theta[which], device=rows.x.device)
        terms = source.likelihood.terms(rows.total, rows.weight, rows.eta(theta[:, :p]), rows.zeta(theta[:, p:]))
        column = tested if source.compression is None else source.compression.expand(tested)
        signed[which] = (terms.g_eta @ torch.as_tensor(column, device=rows.x.device)).cpu().numpy()
    for which in np.array_split(good, max(len(good) * len(kinds.first) // ENTRIES, 1)):
        null = _null_score(signed[which], fit.theta[which], source.design, kinds, (kept, nuisance, tested), which)
        root[which], pval[which] = saddlepoint_test(null)
    return root, pval


@dataclass(frozen=True)
class _Kinds:
    """Cells that are alike: one of each, how many there are, and their offset; None where offsets are gene-wise."""

    first: NDArray[np.intp]
    cells: Array
    offset: Array | None


def _kinds(design: Design) -> _Kinds:
    n = len(design.x)
    if design.offset.ndim == 2:
        return _Kinds(np.arange(n), np.ones(n), None)
    group, first = distinct_rows(design.x, design.z, design.zeta_offset)
    if 2 * len(first) > n:
        return _Kinds(np.arange(n), np.ones(n), design.offset)
    bins = np.zeros(n)
    for k in range(len(first)):
        own = design.offset[group == k]
        if np.ptp(own) > 0 and len(own) > BINS:
            bins[group == k] = np.searchsorted(np.quantile(own, np.linspace(0, 1, BINS + 1)[1:-1]), own)
        elif len(own) > 1:
            bins[group == k] = np.unique(own, return_inverse=True)[1]
    kind, first = distinct_rows(group.astype(float), bins)
    cells = np.bincount(kind).astype(float)
    level = np.full(len(first), -np.inf)
    np.maximum.at(level, kind, design.offset)
    size = np.bincount(kind, weights=np.exp(design.offset - level[kind]))
    return _Kinds(first, cells, level + np.log(size / cells))


def _null_score(
    score: Array,
    theta: Array,
    design: Design,
    kinds: _Kinds,
    columns: tuple[Array, Array, Array],
    which: NDArray[np.intp],
) -> NullScore:
    kept, nuisance, tested = (c[kinds.first] for c in columns)
    p, first = kept.shape[1], kinds.first
    offset = design.offset[:, which].T if kinds.offset is None else kinds.offset
    mean = np.exp(np.minimum(theta[:, :p] @ kept.T + offset, 300.0))
    zeta = theta[:, p:] @ design.z[first].T + design.zeta_offset[first]
    dispersion = np.exp(-np.maximum(zeta, -300.0))
    shrink = 1 / (1 + mean * dispersion)
    weight = mean * shrink * kinds.cells
    gram = np.einsum("gn,np,nq->gpq", weight, nuisance, nuisance)
    slope = np.linalg.solve(gram, ((weight * tested) @ nuisance)[..., None])[..., 0]
    residual = tested - slope @ nuisance.T
    return NullScore(score, residual * shrink, mean, dispersion, kinds.cells)
