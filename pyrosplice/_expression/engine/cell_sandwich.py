r"""Standard errors of location that take nothing from the noise but its mean: the sandwich over cells.

.. math:: V = B \Big[\sum_i \frac{s_i^2}{1 - h_i} x_i x_i'\Big] B, \qquad B = \Big(\sum_i w_i x_i x_i'\Big)^{-1}

with :math:`s_i = d\ell_i / d\eta_i`, expected information :math:`w_i` and leverage :math:`h_i = w_i x_i' B x_i` (HC2);
degrees of freedom by Satterthwaite's formula for independent cells (two groups: nearly Welch's). The location estimates
are right for any counts whose mean the model has right, zero-inflated ones included; this makes their errors so too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.engine.row_source import RowSource
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.likelihoods._cell_terms import LOG_LINK_LIMIT

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RobustCovariance:
    """Covariance of the location coefficients ``(G, P, P)`` and the degrees of freedom of a contrast ``(G,)``.

    NaN for separated genes: a group without a count has no squared residuals to learn from. ``units`` are what the
    degrees of freedom go by, if not by cells: a factor, and how many of its groups there are, of all genes or of each.
    ``identified``: what :func:`pyrosplice._expression.engine.endless_contrasts.identified_contrasts` says of the
    contrasts, where the fit does not.
    """

    covariance: Array
    df: Array
    units: tuple[Any, Any] | None = None
    identified: Mapping[int, Array] | None = None


def robust_covariance(source: RowSource, fit: GlmFit, contrast: Array) -> RobustCovariance:
    """Sandwich over the cells of ``source``, which are read one by one; ``contrast`` ``(P,)`` of location."""
    g, p = len(fit.theta), fit.n_location
    out = RobustCovariance(np.full((g, p, p), np.nan), np.full(g, np.nan))
    fitted = np.isfinite(fit.theta).all(1) & (fit.code != FitCode.SEPARATED)
    apart = replace(source.design, strata=np.arange(len(source.design.x)))
    cells = RowSource(source.counts, apart, source.likelihood, device=source.device, block_size=source.block_size)
    location = cells.basis.part(slice(0, p))
    direction = torch.as_tensor(contrast @ location.matrix, dtype=torch.float64, device=source.device)
    for which, rows in cells.conditioned.blocks(np.flatnonzero(fitted)):
        theta = torch.as_tensor(cells.basis.inward(fit.theta[which]), device=rows.x.device)
        eta, zeta = rows.eta(theta[:, :p]), rows.zeta(theta[:, p:])
        slope = source.likelihood.terms(rows.total, rows.weight, eta, zeta).g_eta
        weight = source.likelihood.location_information(rows.total, rows.weight, eta, zeta)
        bread = torch.linalg.inv_ex(rows.design.gram(weight))[0]
        leverage = weight * torch.einsum("np,gpq,nq->gn", rows.x, bread, rows.x)
        squared = slope.square() / (1 - leverage).clamp_min(1e-3)
        share = (rows.x @ (bread @ direction).mT).mT.square() * weight  # each cell's part of the contrast's variance
        covariance = bread @ rows.design.gram(squared) @ bread
        out.covariance[which] = location.covariance(covariance.cpu().numpy())
        out.df[which] = (share.sum(1).square() / share.square().sum(1)).cpu().numpy()
    return out


def variance_ratio(source: RowSource, fit: GlmFit) -> Array:
    """Squared residuals of each gene over the variance that its negative-binomial fit expects ``(G,)``.

    One where the noise is right. Below where it gives the counts more variance than they have: zeros beyond the noise
    are bought with a dispersion that the other counts do not show. NaN without a fit.
    """
    out, p = np.full(len(fit.theta), np.nan), fit.n_location
    for which, rows in source.blocks(np.flatnonzero(np.isfinite(fit.theta).all(1))):
        theta = torch.as_tensor(fit.theta[which], device=rows.x.device)
        eta = rows.eta(theta[:, :p]).clamp_max(LOG_LINK_LIMIT)
        mean, bound = eta.exp(), source.likelihood.at_scale(rows.zeta(theta[:, p:]))
        expected = (rows.weight * bound.variance(eta.unsqueeze(-1)).squeeze(-1)).sum(1)
        assert rows.table is not None
        squares = rows.table.sum_squares() - 2 * (rows.total * mean).sum(1) + (rows.weight * mean.square()).sum(1)
        out[which] = (squares / expected).cpu().numpy()
    return out
