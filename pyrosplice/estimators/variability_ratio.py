"""Likelihood ratios of spatial variance beyond Laplace's approximation and asymptotic laws, a batch of genes at once.

*Importance sampling* replaces both log marginal likelihoods by corrected ones, each at its own corrected optimum. That
of the null model is evaluated as the spatial model at θ = 0, with the same random numbers, so that the errors of the
two largely cancel where θ is small. The *parametric bootstrap* draws counts from the fitted null model,
with the totals of the spots as they are, and refits both models to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyrosplice.estimators.fitted import FittedGene, ModelSpec, stacked
from pyrosplice.estimators.gene_tests import variability_ratio
from pyrosplice.estimators.multinomial_mixed import MultinomGLMM
from pyrosplice.estimators.random_effect import LARGEST_LOGIT
from pyrosplice.hypothesis.likelihood_ratio import spatial_likelihood_ratio_test

BOOTSTRAP_BATCH = 128  # simulated genes that are fitted at a time
ZERO = 2e-6  # nats up to which a ratio is zero


def corrected_ratio(
    counts: Tensor,
    spec: ModelSpec,
    null_spec: ModelSpec,
    full: Sequence[FittedGene],
    null: Sequence[FittedGene],
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
    n_components = found["sigma"].shape[1]
    spatial.update_params_from_dict({**found, "theta_logit": torch.full_like(found["sigma"], -LARGEST_LOGIT)})
    at_null = spatial.importance(n_draws, seed)
    best = torch.maximum(at_full.value, at_null.value)  # θ = 0 is among the full model's parameters
    statistic, pvalue = spatial_likelihood_ratio_test(best, at_null.value, n_components=n_components)
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
    observed, _ = variability_ratio(full, null, shared=True)
    floor = torch.where(observed <= ZERO, 0.0, observed)
    generators = [_generator(seed, gene) for gene in genes]
    size = max(1, BOOTSTRAP_BATCH // len(genes))
    reached = torch.zeros(len(genes), dtype=torch.int64)
    for first in range(0, n_bootstrap, size):
        count = min(size, n_bootstrap - first)
        drawn = torch.cat([_draw(counts, null_spec, null, generators) for _ in range(count)])
        ratio, _ = variability_ratio(spec.fit(drawn), null_spec.fit(drawn), shared=True)
        ratio = torch.where(ratio <= ZERO, 0.0, ratio).reshape(count, -1)
        reached += (~(ratio < floor)).sum(0)
    pvalue = (1.0 + reached.to(torch.float64)) / (n_bootstrap + 1)
    return observed, torch.where(torch.isnan(observed), torch.nan, pvalue)


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
        fixed = gene.with_values(nu=torch.zeros(1, dtype=torch.float64)).linear_predictor(n_spots, design)
        noise = torch.randn(fixed.shape, generator=generator, dtype=torch.float64)
        bound = likelihood.bind(gene.values)
        drawn.append(bound.sample(table.sum(-1), fixed + deviation * noise, generator=generator))
    return torch.stack(drawn)


def _generator(seed: int, gene: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, gene]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
