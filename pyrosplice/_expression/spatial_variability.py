"""Which genes vary in space: the score test of a fitted model of expression, gene by gene."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.noise_models import mean_link
from pyrosplice._expression.positions import SpotOptions, Spots
from pyrosplice._hypothesis.fdr import adjust_pvalues
from pyrosplice._hypothesis.test_table import TestTable
from pyrosplice._hypothesis.variance.count_residuals import count_residuals, multiplied_residuals
from pyrosplice._hypothesis.variance.permutation_law import permutation_law
from pyrosplice._hypothesis.variance.score_test import genes_per_block, orthonormal_columns
from pyrosplice._hypothesis.variance.spatial_kernel import SpatialKernel, spatial_kernel
from pyrosplice._linalg.rank import collinear_columns
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.errors import InvalidArgumentError, NotReadyError, UnreliableWarning, check_option
from pyrosplice.likelihoods._cell_terms import LOG_LINK_LIMIT
from pyrosplice.reasons import Reason
from pyrosplice.spatial._covariance import SpatialCovariance

Array = NDArray[np.float64]
COUNTED = 5
"""Spots with counts that a test needs: fewer give T so few values that a null law has hardly a tail."""
DAMPING = 0.01
"""Damping of the kernel. Power at 5 % of .1, .01 and 0 (mean 2; effects as in tests/studies/sv_expression.py, at 1,024
spots .45 of these): 256 spots, fields .42, .40, .39, hot-spots .55, .50, .48, gradients .95, .97, .97; 1,024 spots,
fields .23, .24, .24, domains .59, .69, .68, hot-spots .52, .55, .55, gradients .76, .90, .92."""


@dataclass(frozen=True)
class SpatialScores:
    """Standardised score and p-value, mean count and number of spots with counts of each gene, ``(G,)``."""

    statistic: Array
    pvalue: Array
    mean: Array
    counted: NDArray[np.int64]


def spatial_variability(estimator: Estimator, spots: Spots | None, options: SpotOptions, method: str) -> pd.DataFrame:
    """Test every gene of a fitted model for spatial variability beside its covariates.

    The score for an effect on the log mean that is alike in neighbouring spots (a CAR field), from the residuals of
    pairs of different spots, :mod:`pyrosplice._hypothesis.variance.count_residuals`; p-values from their permutations,
    each spot weighted by what it carries, :mod:`pyrosplice._hypothesis.variance.permutation_law`. Nothing spatial is
    fitted, and the noise need not be negative binomial: its variance is taken from the residuals.

    Returns
    -------
    DataFrame
        By gene ``statistic``, ``pvalue``, ``pvalue_adj`` (Benjamini–Hochberg), ``reason`` ("" or why there is no
        p-value), ``mean`` (counts a spot) and ``coverage`` (share of spots with a count); ``attrs["graph"]`` says whose
        neighbours were taken.

    Raises
    ------
    InvalidArgumentError
        Another method or likelihood, observation weights, and what :meth:`Spots.covariance` refuses.
    NotReadyError
        The fit was of something else than an AnnData.

    Notes
    -----
    Size at 5 %, 60 to 4,900 spots, mean counts .05 to 20, sizes of the spots log-normal of sd 0 to 1.5, Poisson, NB of
    dispersion .1 to 3.3, half of the counts zero, log-normal noise, a covariate, spatial sizes, four sections: .029 to
    .068 in 193 settings of about 1,000 genes, .049 on average; .010 at 1 %, .0010 at .1 %. With few counts for many
    levels of sections it is conservative (.014 with four sections and five to seven spots with counts).
    Power: no less than rivals on log-normalised counts for fields, domains, gradients and hot-spots
    (``tests/studies/sv_expression.py``).
    """
    check_option("method", method, ("score",))
    if spots is None:
        raise NotReadyError("The test needs the places of the spots: fit an AnnData that has them in obsm or obsp.")
    inputs = estimator.input_data
    if options.section_key is not None:
        _warn_of_sections(inputs.location.matrix, inputs.cells.levels(options.section_key, "section_key").codes)
    table = spatial_table(estimator, spots.covariance(inputs.cells, options))
    table.attrs["graph"] = spots.graph_name(options)
    return table


def spatial_table(estimator: Estimator, covariance: SpatialCovariance, by: Array | None = None) -> pd.DataFrame:
    """Tabulate the tests of all genes with the kernel of a covariance of the spots, times ``by`` ``(N,)``."""
    inputs = estimator.input_data
    scores = spatial_scores(estimator, spatial_kernel(covariance, damping=DAMPING), by)
    free = np.subtract(*inputs.location.matrix.shape)
    otherwise = Reason.FEW_SPOTS if free < 2 else Reason.NOT_IDENTIFIED  # the counts do not vary beside the covariates
    why = np.where(scores.counted < COUNTED, Reason.FEW_COUNTS.value, otherwise.value).astype(object)
    why = np.where(estimator.fit.code >= FitCode.ALL_ZERO, estimator.fit.reason, why)
    table = TestTable(
        labels={},
        statistic=scores.statistic,
        pvalue=scores.pvalue,
        pvalue_adj=adjust_pvalues(scores.pvalue),
        why=why,
        more={"mean": scores.mean, "coverage": scores.counted / len(inputs.location.matrix)},
    ).to_frame()
    return table.set_axis(pd.Index(inputs.counts.gene_names, name="gene"))


def spatial_scores(estimator: Estimator, kernel: SpatialKernel, by: Array | None = None) -> SpatialScores:
    """Score tests of all genes, read and tested in blocks; NaN for those without a fit and of few spots with counts.

    Raises
    ------
    InvalidArgumentError
        A likelihood whose mean is no multiple of the exponential of its predictor; observation weights.
    """
    source, theta = estimator.source, estimator.fit.theta
    if mean_link(source.likelihood) != "log":
        raise InvalidArgumentError(
            f"noise_model: the test of space is of counts with a log mean, found {source.likelihood!r}; fit 'nb' or "
            "'poisson'."
        )
    if source.design.weights is not None:
        raise InvalidArgumentError("weights: the test of space takes no observation weights.")
    n_genes = len(theta)
    statistic, pvalue, mean = (np.full(n_genes, np.nan) for _ in range(3))
    counted = np.zeros(n_genes, dtype=np.int64)
    basis = orthonormal_columns(torch.from_numpy(np.ascontiguousarray(source.design.x)), kernel.diagonal)
    fitted = np.isfinite(theta).all(1) & (estimator.fit.code < FitCode.FAILED)
    size = genes_per_block(kernel, max(2, basis.shape[1]))
    for genes in np.split(np.arange(n_genes), range(size, n_genes, size)):
        counts = source.counts.genes(genes)
        mean[genes], counted[genes] = counts.mean(1), (counts > 0).sum(1)
        tested = fitted[genes] & (counted[genes] >= COUNTED)
        if tested.any():
            moments = _null_moments(estimator, genes[tested])
            residuals = count_residuals(torch.from_numpy(counts[tested]), *moments, basis)
            if by is not None:
                residuals = multiplied_residuals(residuals, torch.from_numpy(by))
            found = permutation_law(residuals, kernel)
            statistic[genes[tested]], pvalue[genes[tested]] = (x.numpy() for x in found)
    return SpatialScores(statistic, pvalue, mean, counted)


def _null_moments(estimator: Estimator, genes: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
    """Fitted mean and variance of the counts of some genes, ``(g, N)`` each."""
    design, fit = estimator.source.design, estimator.fit
    location, scale = fit.theta[genes, : fit.n_location], fit.theta[genes, fit.n_location :]
    offset = design.offset if design.offset.ndim == 1 else design.offset[:, genes].T
    eta = torch.from_numpy(location @ design.x.T + offset).clamp_max(LOG_LINK_LIMIT).unsqueeze(-1)
    bound = estimator.source.likelihood.at_scale(torch.from_numpy(scale @ design.z.T + design.zeta_offset))
    return bound.expected(eta).squeeze(-1), bound.variance(eta).squeeze(-1)


def _warn_of_sections(location: Array, codes: NDArray[np.intp]) -> None:
    """Warn where the fitted design leaves the sections' levels in what is tested."""
    if section_columns(location, codes).shape[1]:
        warnings.warn(
            "section_key: the fit has no levels of the sections, so that differences between them count as spatial "
            "variability; add the column to the formula.",
            UnreliableWarning,
            stacklevel=5,
        )


def section_columns(location: Array, codes: NDArray[np.intp]) -> Array:
    """Indicators ``(N, S')`` of those sections whose levels the location design ``(N, P)`` does not have."""
    sections = np.eye(codes.max() + 1)[codes][:, 1:]
    known = location.shape[1]
    nothing = collinear_columns(torch.from_numpy(np.concatenate([location, sections], 1)))
    return sections[:, [k for k in range(sections.shape[1]) if known + k not in nothing]]
