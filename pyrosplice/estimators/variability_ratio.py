"""Likelihood ratios of spatial variance, a batch of genes at once: Laplace's or corrected ones, and their null laws.

All take the counts ``(B, N, K)`` of a batch, how both models are made, and their fits. *Importance sampling* replaces
both log marginal likelihoods by corrected ones, each at its own corrected optimum. That of the null model is evaluated
as the spatial model at θ = 0, with the same random numbers, so that the errors of the two largely cancel where θ is
small. The *parametric bootstrap* draws counts from the fitted null model, with the totals of the spots as they are, and
refits both models to them. *Permutations* exchange the spots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyrosplice.estimators.fitted import FittedGene, ModelSpec, stacked
from pyrosplice.estimators.gene_tests import PermutationNull, permutation_pvalues, permuted
from pyrosplice.estimators.multinomial_mixed import MultinomGLMM
from pyrosplice.estimators.random_effect import LARGEST_LOGIT
from pyrosplice.hypothesis.likelihood_ratio import spatial_likelihood_ratio_test
from pyrosplice.hypothesis.ratio_null import spatial_ratio_null
from pyrosplice.hypothesis.spatial_kernel import SpatialKernel

BOOTSTRAP_BATCH = 128  # simulated genes that are fitted at a time
ZERO = 2e-6  # nats up to which a ratio is zero


def laplace_ratio(
    counts: Tensor,
    spec: ModelSpec,
    null_spec: ModelSpec,
    full: Sequence[FittedGene],
    null: Sequence[FittedGene],
    kernel: SpatialKernel | None,
) -> tuple[Tensor, Tensor]:
    """Ratio and p-value, by the finite-sample law in the space of ``kernel`` (undamped), or for None the boundary's."""
    statistic = _ratio(full, null)
    return statistic, _pvalues(statistic, counts, null_spec, null, kernel)


def permuted_ratio(
    counts: Tensor,
    spec: ModelSpec,
    null_spec: ModelSpec,
    full: Sequence[FittedGene],
    null: Sequence[FittedGene],
    genes: Sequence[int],
    permutations: PermutationNull,
) -> tuple[Tensor, Tensor]:
    """Ratio and permutation p-value. Without space, rows may be exchanged: only the full model is fitted again."""
    log_full, log_null = _log_marginal(full), _log_marginal(null)

    def statistic(some: Tensor, order: Tensor) -> Tensor:
        if bool((order == torch.arange(order.shape[1])).all()):
            fitted = log_full[some]
        elif spec.design is None:
            fitted = _log_marginal(spec.fit(permuted(counts[some], order)))
        else:
            pairs = zip(some.tolist(), order, strict=True)
            each = (spec.with_rows(rows).fit(counts[gene : gene + 1, rows]) for gene, rows in pairs)
            fitted = torch.cat([_log_marginal(gene) for gene in each])
        return 2 * (fitted - log_null[some])

    return permutation_pvalues(statistic, counts, genes, permutations)


def corrected_ratio(
    counts: Tensor,
    spec: ModelSpec,
    null_spec: ModelSpec,
    full: Sequence[FittedGene],
    null: Sequence[FittedGene],
    kernel: SpatialKernel | None,
    n_draws: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Importance-sampling ratio of a batch ``(B, N, K)``: statistic, p-value, standard error of the statistic and k̂.

    The standard error is that of two independent estimates, and k̂ the larger of both models'.
    """
    spatial, white = _mixed(spec, counts, full), _mixed(null_spec, counts, null)
    at_full = spatial.refine(n_draws, seed)
    white.refine(n_draws, seed)
    own = ("beta", "bias_eta", "sigma", *white.likelihood.free)
    found = {name: getattr(white, name).detach() for name in own}
    spatial.update_params_from_dict({**found, "theta_logit": torch.full_like(found["sigma"], -LARGEST_LOGIT)})
    at_null = spatial.importance(n_draws, seed)
    best = torch.maximum(at_full.value, at_null.value)  # θ = 0 is among the full model's parameters
    statistic = 2 * (best - at_null.value)
    pvalue = _pvalues(statistic, counts, null_spec, null, kernel)
    error = 2 * torch.hypot(at_full.standard_error, at_null.standard_error)
    return statistic, pvalue, error, torch.maximum(at_full.pareto_k, at_null.pareto_k)


def bootstrapped_ratio(
    counts: Tensor,
    spec: ModelSpec,
    null_spec: ModelSpec,
    full: Sequence[FittedGene],
    null: Sequence[FittedGene],
    genes: Sequence[int],
    n_bootstrap: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Ratio of a batch ``(B, N, K)`` and ``(1 + #{simulated ≥ observed}) / (n_bootstrap + 1)``.

    What is drawn for a gene depends on ``seed`` and its number in ``genes`` only.
    """
    observed = _ratio(full, null)
    floor = torch.where(observed <= ZERO, 0.0, observed)
    generators = [_generator(seed, gene) for gene in genes]
    size = max(1, BOOTSTRAP_BATCH // len(genes))
    reached = torch.zeros(len(genes), dtype=torch.int64)
    for first in range(0, n_bootstrap, size):
        count = min(size, n_bootstrap - first)
        drawn = torch.cat([_draw(counts, null_spec, null, generators) for _ in range(count)])
        ratio = _ratio(spec.fit(drawn), null_spec.fit(drawn))
        ratio = torch.where(ratio <= ZERO, 0.0, ratio).reshape(count, -1)
        reached += (~(ratio < floor)).sum(0)
    pvalue = (1.0 + reached.to(torch.float64)) / (n_bootstrap + 1)
    return observed, torch.where(torch.isnan(observed), torch.nan, pvalue)


def _ratio(full: Sequence[FittedGene], null: Sequence[FittedGene]) -> Tensor:
    return 2 * (_log_marginal(full) - _log_marginal(null))


def _log_marginal(genes: Sequence[FittedGene]) -> Tensor:
    return torch.tensor([-gene.best_loss for gene in genes], dtype=torch.float64)


def _pvalues(
    statistic: Tensor, counts: Tensor, spec: ModelSpec, genes: Sequence[FittedGene], kernel: SpatialKernel | None
) -> Tensor:
    """Of ratios, given the null model and its fits."""
    values = stacked(genes)
    sigma = values["sigma"]
    if kernel is None:
        return spatial_likelihood_ratio_test(statistic / 2, torch.zeros_like(statistic), n_components=sigma.shape[1])[1]
    design = None if spec.design is None else torch.from_numpy(spec.design.values)
    likelihood = MultinomGLMM(**spec.options).likelihood.bind(values)
    eta = torch.stack([gene.fixed_predictor(counts.shape[1], design) for gene in genes])
    information = likelihood.information(counts, eta)
    law = spatial_ratio_null(information, sigma, kernel, design=design, share_variance=sigma.shape[1] == 1)
    return law.sf(statistic)


def _mixed(spec: ModelSpec, counts: Tensor, genes: Sequence[FittedGene]) -> MultinomGLMM:
    model = spec.rebuild_estimable(counts, genes)
    if not isinstance(model, MultinomGLMM):
        raise AssertionError("spatial variability is tested in mixed models")
    return model


def _draw(
    counts: Tensor, spec: ModelSpec, genes: Sequence[FittedGene], generators: Sequence[torch.Generator]
) -> Tensor:
    """Counts of the fitted model without space, ``(B, N, K)``, totals as observed."""
    n_spots, likelihood = counts.shape[1], MultinomGLMM(**spec.options).likelihood
    design = None if spec.design is None else torch.from_numpy(spec.design.values)
    sigma, drawn = stacked(genes)["sigma"], []
    for gene, deviation, table, generator in zip(genes, sigma, counts, generators, strict=True):
        fixed = gene.fixed_predictor(n_spots, design)
        noise = torch.randn(fixed.shape, generator=generator, dtype=torch.float64)
        bound = likelihood.bind(gene.values)
        drawn.append(bound.sample(table.sum(-1), fixed + deviation * noise, generator=generator))
    return torch.stack(drawn)


def _generator(seed: int, gene: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, gene]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
