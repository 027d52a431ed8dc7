r"""Shrunken fold changes: a Cauchy prior on one coefficient (Zhu, Ibrahim and Love 2019).

The heavy tails leave large, well-determined effects alone; small or noisy ones move to zero. The scale of the prior is
estimated from all genes: the estimates are the effects, Cauchy, plus normal errors.

Root mean squared errors of log2 fold changes (1,500 genes, a fifth with normal effects, 6 and 20 samples;
``tests/benchmarks/shrinkage.py``): maximum likelihood 0.86 and 0.49, dispersions ``"fitted"`` 0.49 and 0.26,
``"shrunken"`` 0.38 and 0.28, DESeq2 1.38 with its normal prior 0.42 and 0.30, apeglm's method (pydeseq2 0.5) 0.37 and
0.28.
"""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import voigt_profile
from torch import Tensor

from pyrosplice._expression.engine.gene_fits import GlmFit, fit_glm
from pyrosplice._expression.engine.joint_newton import LogPrior, NewtonOptions
from pyrosplice._expression.engine.pseudo_cells import Derivatives
from pyrosplice._expression.engine.row_source import RowSource
from pyrosplice._optimize.convergence import FitCode

Array = NDArray[np.float64]
SCALE_RANGE = (1e-3, 10.0)


def prior_scale(estimate: Array, se: Array) -> float:
    """Scale of the Cauchy that makes the estimates likeliest, each with normal error ``se``: a Voigt profile.

    Genes with NaN, or without information on the coefficient, do not count.
    """
    use = np.isfinite(estimate) & np.isfinite(se) & (se > 0) & (se < 10)

    def loss(log_scale: float) -> float:
        return -float(np.log(voigt_profile(estimate[use], se[use], np.exp(log_scale))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=tuple(np.log(SCALE_RANGE)), method="bounded").x))


@torch.inference_mode(False)
def shrink_coefficient(
    source: RowSource, fit: GlmFit, coefficient: int, *, scale: float, prior: dist.TorchDistribution | None = None
) -> tuple[Array, Array]:
    """Posterior mode of one location coefficient and its Laplace standard deviation ``(G,)``, dispersions held.

    Parameters
    ----------
    coefficient
        Which free location coefficient.
    scale
        Scale of the Cauchy prior; natural-log units.
    prior
        Another univariate prior in its place.
    """
    zero = torch.tensor(0.0, dtype=torch.float64, device=source.device)
    density = prior or dist.Cauchy(zero, zero + scale)
    start = np.nan_to_num(fit.theta)
    separated = fit.code == FitCode.SEPARATED
    start[separated, coefficient] = 0.0
    genes = np.flatnonzero(np.isfinite(fit.theta).all(1))
    shrunk = fit_glm(
        source,
        start=lambda rows, which: torch.as_tensor(start[which], device=rows.x.device),
        prior=lambda _: coefficient_prior(density, coefficient),
        options=NewtonOptions(fit_scale=False),
        genes=genes,
    )
    p = fit.n_location
    mode, sd = shrunk.theta[:, coefficient].copy(), np.full(len(start), np.nan)
    curvature, row = shrunk.inner_information[:, :p, :p], shrunk.basis.matrix[coefficient, :p]
    ok = np.isfinite(curvature).all((1, 2))
    sd[ok] = np.sqrt(np.maximum(np.linalg.pinv(curvature[ok], hermitian=True) @ row @ row, 0.0))
    return mode, sd


def coefficient_prior(density: dist.TorchDistribution, coefficient: int) -> LogPrior:
    """Derivatives of a univariate log prior on one coefficient, by autograd."""

    def prior(theta: Tensor, _: Tensor) -> Derivatives:
        with torch.enable_grad():
            b = theta[:, coefficient].detach().requires_grad_(True)
            value = density.log_prob(b)
            (slope,) = torch.autograd.grad(value.sum(), b, create_graph=True)
            (bend,) = torch.autograd.grad(slope.sum(), b)
        gradient, information = torch.zeros_like(theta), torch.zeros(*theta.shape, theta.shape[1], dtype=theta.dtype)
        information = information.to(theta.device)
        gradient[:, coefficient], information[:, coefficient, coefficient] = slope.detach(), -bend
        return Derivatives(value.detach(), gradient, information)

    return prior
