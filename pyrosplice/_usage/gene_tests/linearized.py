"""Data of fitted genes as the tests of :mod:`pyrosplice._hypothesis` take them, one batch of genes at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pyrosplice._hypothesis.coefficients.score import Linearized, information_product
from pyrosplice._hypothesis.variance.permutation import PermutationNull, PermutedStatistic, permutation_test
from pyrosplice._hypothesis.variance.score_test import variance_component_test
from pyrosplice._hypothesis.variance.spatial_kernel import SpatialKernel
from pyrosplice._linalg.blocks import matmul
from pyrosplice._usage.glm import MultinomGLM
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice.effects._isoform_effect import SoftmaxBasis
from pyrosplice.glmm._laplace import Laplace
from pyrosplice.glmm._mode import Mode

Result = TypeVar("Result")


@dataclass(frozen=True)
class GeneTests:
    """Test results of all genes, ``(G,)`` or ``(G, T)``: statistics, p-values, and the columns that were tested.

    ``posterior_df``: degrees of freedom with which the variance of what is tested is known, NaN where it is taken as
    given; ``slope_ratio``: likelihood ratio for a field whose standard deviation depends on the covariate. ``reason``:
    "" or why there is no p-value.
    """

    statistic: NDArray[np.float64]
    pvalue: NDArray[np.float64]
    rank: NDArray[np.float64]
    posterior_df: NDArray[np.float64]
    slope_ratio: NDArray[np.float64]
    reason: NDArray[Any]

    @classmethod
    def blank(cls, shape: tuple[int, ...]) -> GeneTests:
        """Make results that are NaN everywhere."""
        statistic, pvalue, rank, posterior_df, slope_ratio = (np.full(shape, np.nan) for _ in range(5))
        return cls(statistic, pvalue, rank, posterior_df, slope_ratio, np.full(shape, "", dtype=object))

    @classmethod
    def gather(
        cls, batches: Sequence[Sequence[int]], results: Sequence[Sequence[Tensor]], shape: tuple[int, ...]
    ) -> GeneTests:
        """Put the results of batches, in the order of the fields, back in the order of the genes."""
        tests = cls.blank(shape)
        for genes, values in zip(batches, results, strict=True):
            wholes = tests.statistic, tests.pvalue, tests.rank, tests.posterior_df, tests.slope_ratio
            for whole, part in zip(wholes, values, strict=False):
                whole[list(genes)] = part.numpy()
        return tests


def variability_score(
    counts: Tensor, kernel: SpatialKernel, design: Tensor | None, genes: Sequence[int], null: PermutationNull | None
) -> tuple[Tensor, Tensor]:
    """Variance-component score test of a batch ``(B, N, K)``, its p-values from permutations when ``null`` is given."""
    if null is None:
        test = variance_component_test(counts, kernel, design=design)
        return test.statistic, test.pvalue

    def statistic(some: Tensor, order: Tensor) -> Tensor:
        if design is None:
            return variance_component_test(permuted(counts[some], order), kernel).statistic
        each = (
            variance_component_test(counts[gene : gene + 1, rows], kernel, design=design[rows]).statistic
            for gene, rows in zip(some.tolist(), order, strict=True)
        )
        return torch.cat(list(each))

    return permutation_pvalues(statistic, counts, genes, null)


def permuted(counts: Tensor, order: Tensor) -> Tensor:
    """Rows of each gene in its own order: ``(A, N, K)`` by ``(A, N)``."""
    return torch.gather(counts, 1, order.unsqueeze(-1).expand(counts.shape))


def informed_spots(model: MultinomGLM) -> Tensor:
    """Which spots inform about each gene, ``(B, N)``: those with counts, or all where totals are random."""
    return (model.counts.sum(-1) > 0) | (not model.likelihood.conditional)


def linearized(model: MultinomGLM) -> Linearized:
    """The model at its fit as the tests of covariates see it."""
    totals, informed = model.counts.sum(-1), informed_spots(model)
    if isinstance(model, MultinomGLMM):
        return replace(linearized_at(model.posterior_mode()), informed=informed)
    eta = model.linear_predictor().detach()
    information = model.bound_likelihood.information(model.counts, eta)
    residual = model.bound_likelihood.score(model.counts, eta)
    repeats = (totals - 1).clamp_min(0.0) / totals.clamp_min(1.0)
    if not model.likelihood.conditional:
        repeats = torch.ones_like(totals)
    return Linearized(residual, information_product(information), information, repeats, informed)


def linearized_at(mode: Mode) -> Linearized:
    """Linearise a mixed model at the mode of its random effects, as if all spots informed; logits throughout."""
    weight, laplace = mode.step.information, Laplace(mode)
    spot_precision = weight - matmul(matmul(weight, laplace.covariance), weight)
    fit = Linearized(laplace.residual, mode.step.marginal_precision_product, spot_precision)
    return of_logits(fit, mode.step.model.basis)


def of_logits(fit: Linearized, basis: SoftmaxBasis | None) -> Linearized:
    """Rewrite a linearised fit for the logits, where it is of other coordinates of them."""
    if basis is None:
        return fit

    def product(x: Tensor) -> Tensor:
        return matmul(basis.inverse.mT, fit.precision_product(matmul(basis.inverse, x)))

    return replace(
        fit,
        residual=basis.logit_slope(fit.residual),
        precision_product=product,
        spot_precision=basis.logit_precision(fit.spot_precision),
    )


def run_batches(
    task: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    *,
    description: str,
    n_jobs: int = 1,
    show: bool = False,
) -> list[Result]:
    """Call ``task`` for every batch, in parallel processes when asked, behind a progress bar."""
    results = Parallel(n_jobs=n_jobs, return_as="generator")(delayed(task)(*call) for call in calls)
    return list(tqdm(results, total=len(calls), desc=description, unit="batch", disable=not show))


def permutation_pvalues(
    statistic: PermutedStatistic, counts: Tensor, genes: Sequence[int], null: PermutationNull
) -> tuple[Tensor, Tensor]:
    """Observed statistics of a batch of ``genes`` (their numbers seed the permutations) and p-values."""
    observed, pvalue, _ = permutation_test(
        statistic, null, n_genes=counts.shape[0], n_spots=counts.shape[1], gene_numbers=torch.tensor(list(genes))
    )
    return observed, pvalue
