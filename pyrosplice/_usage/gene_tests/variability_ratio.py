"""Likelihood ratios of spatial variance, a batch of genes at once: Laplace's or corrected ones, and their null laws.

*Importance sampling* replaces both log marginal likelihoods by corrected ones, each at its own corrected optimum. That
of the null model is evaluated as the spatial model at θ = 0, with the same random numbers, so that the errors of the
two largely cancel where θ is small. The *parametric bootstrap* draws counts from the fitted null model, with the totals
of the spots as they are, and refits both models to them. *Permutations* exchange the spots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyrosplice._hypothesis.likelihood_ratio import spatial_likelihood_ratio_test
from pyrosplice._hypothesis.variance.noise_freedom import noise_freedom
from pyrosplice._hypothesis.variance.permutation import PermutationNull
from pyrosplice._hypothesis.variance.ratio_null import spatial_ratio_null
from pyrosplice._hypothesis.variance.spatial_kernel import SpatialKernel
from pyrosplice._usage.fitted_gene import FittedGene, stacked
from pyrosplice._usage.gene_tests.linearized import permutation_pvalues, permuted
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice._usage.records import ModelSpec
from pyrosplice.effects._isoform_effect import SoftmaxBasis
from pyrosplice.glmm._random_effect import LARGEST_LOGIT
from pyrosplice.likelihoods._recombined import of_every_isoform

BOOTSTRAP_BATCH = 128  # simulated genes that are fitted at a time
ZERO = 2e-6  # nats up to which a ratio is zero


@dataclass(frozen=True)
class FittedPair:
    """The models with and without spatial variance of a batch of genes.

    Attributes
    ----------
    genes
        Their numbers, which seed what is drawn for them.
    counts
        ``(B, N, K)``.
    spec, null_spec
        How the models are made.
    full, null
        Their fits, at the marginal optimum.
    """

    genes: Sequence[int]
    counts: Tensor
    spec: ModelSpec
    null_spec: ModelSpec
    full: Sequence[FittedGene]
    null: Sequence[FittedGene]


def laplace_ratio(pair: FittedPair, kernel: SpatialKernel | None) -> tuple[Tensor, Tensor]:
    """Ratio and p-value, by the finite-sample law in the space of ``kernel`` (undamped), or for None the boundary's."""
    statistic = _ratio(pair.full, pair.null)
    return statistic, _pvalues(statistic, pair, kernel)


def permuted_ratio(pair: FittedPair, permutations: PermutationNull) -> tuple[Tensor, Tensor]:
    """Ratio and permutation p-value. Without space, rows may be exchanged: only the full model is fitted again."""
    counts, spec = pair.counts, pair.spec
    log_full, log_null = _log_marginal(pair.full), _log_marginal(pair.null)

    def statistic(some: Tensor, order: Tensor) -> Tensor:
        if bool((order == torch.arange(order.shape[1])).all()):
            fitted = log_full[some]
        elif spec.design is None:
            fitted = _log_marginal(spec.fit(permuted(counts[some], order)))
        else:
            pairs = zip(some.tolist(), order, strict=True)
            each = (spec.with_rows(rows).fit(counts[gene : gene + 1, rows]) for gene, rows in pairs)
            fitted = torch.cat([_log_marginal(gene) for gene in each])
        ratio = 2 * (fitted - log_null[some])
        return torch.where(ratio <= ZERO, 0.0, ratio)  # ratios that are zero are ties, whatever their rounding

    return permutation_pvalues(statistic, counts, pair.genes, permutations)


def corrected_ratio(
    pair: FittedPair, kernel: SpatialKernel | None, n_draws: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Importance-sampling ratio: statistic, p-value, standard error of the statistic and k̂.

    The standard error is that of two independent estimates, and k̂ the larger of both models'.
    """
    spatial = _mixed(pair.spec, pair.counts, pair.full)
    white = _mixed(pair.null_spec, pair.counts, pair.null)
    at_full = spatial.refine(n_draws, seed)
    white.refine(n_draws, seed)
    own = ("beta", "bias_eta", "sigma", *white.likelihood.free)
    found = {name: getattr(white, name).detach() for name in own}
    spatial.update_params_from_dict({**found, "theta_logit": torch.full_like(found["sigma"], -LARGEST_LOGIT)})
    at_null = spatial.importance(n_draws, seed)
    best = torch.maximum(at_full.value, at_null.value)  # θ = 0 is among the full model's parameters
    statistic = 2 * (best - at_null.value)
    pvalue = _pvalues(statistic, pair, kernel)
    error = 2 * torch.hypot(at_full.standard_error, at_null.standard_error)
    return statistic, pvalue, error, torch.maximum(at_full.pareto_k, at_null.pareto_k)


def bootstrapped_ratio(pair: FittedPair, n_bootstrap: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ratio and ``(1 + #{simulated ≥ observed}) / (n_bootstrap + 1)``.

    What is drawn for a gene depends on ``seed`` and its number only.
    """
    observed = _ratio(pair.full, pair.null)
    floor = torch.where(observed <= ZERO, 0.0, observed)
    generators = [_generator(seed, gene) for gene in pair.genes]
    size = max(1, BOOTSTRAP_BATCH // len(pair.genes))
    reached = torch.zeros(len(pair.genes), dtype=torch.int64)
    for first in range(0, n_bootstrap, size):
        count = min(size, n_bootstrap - first)
        drawn = torch.cat([_draw(pair, generators) for _ in range(count)])
        ratio = _ratio(pair.spec.fit(drawn), pair.null_spec.fit(drawn))
        ratio = torch.where(ratio <= ZERO, 0.0, ratio).reshape(count, -1)
        reached += (~(ratio < floor)).sum(0)
    pvalue = (1.0 + reached.to(torch.float64)) / (n_bootstrap + 1)
    return observed, torch.where(torch.isnan(observed), torch.nan, pvalue)


def _ratio(full: Sequence[FittedGene], null: Sequence[FittedGene]) -> Tensor:
    return 2 * (_log_marginal(full) - _log_marginal(null))


def _log_marginal(genes: Sequence[FittedGene]) -> Tensor:
    return torch.tensor([-gene.best_loss for gene in genes], dtype=torch.float64)


def _pvalues(statistic: Tensor, pair: FittedPair, kernel: SpatialKernel | None) -> Tensor:
    """P-values by the law at the null fits."""
    spec, values = pair.null_spec, stacked(pair.null)
    sigma = values["sigma"]
    if kernel is None:
        return spatial_likelihood_ratio_test(statistic / 2, torch.zeros_like(statistic), n_components=sigma.shape[1])[1]
    design = None if spec.design is None else torch.from_numpy(spec.design.values)
    null = MultinomGLMM(**spec.options)
    likelihood, free = null.likelihood.bind(values), null.likelihood.free
    eta = torch.stack([gene.fixed_predictor(pair.counts.shape[1], design) for gene in pair.null])
    information = likelihood.information(pair.counts, eta)
    if null.isoform_effect == "symmetric":
        information = SoftmaxBasis.plain(eta.shape[-1], eta).information(information)
        likelihood, eta = of_every_isoform(likelihood, eta)
    freedom = noise_freedom(likelihood, free, pair.counts, eta, sigma) if free else None
    law = spatial_ratio_null(information, sigma, kernel, design=design, freedom=freedom)
    return law.sf(statistic)


def _mixed(spec: ModelSpec, counts: Tensor, genes: Sequence[FittedGene]) -> MultinomGLMM:
    model = spec.rebuild_estimable(counts, genes)
    if not isinstance(model, MultinomGLMM):
        raise AssertionError("spatial variability is tested in mixed models")
    return model


def _draw(pair: FittedPair, generators: Sequence[torch.Generator]) -> Tensor:
    """Counts of the fitted models without space, ``(B, N, K)``, totals as observed."""
    spec, n_spots = pair.null_spec, pair.counts.shape[1]
    null = MultinomGLMM(**spec.options)
    design = None if spec.design is None else torch.from_numpy(spec.design.values)
    sigma, drawn = stacked(pair.null)["sigma"], []
    for gene, deviation, table, generator in zip(pair.null, sigma, pair.counts, generators, strict=True):
        fixed = gene.fixed_predictor(n_spots, design)
        noise = torch.randn(fixed.shape, generator=generator, dtype=torch.float64)
        if null.isoform_effect == "symmetric":
            noise = SoftmaxBasis.plain(noise.shape[-1], noise).logits(noise)
        bound = null.likelihood.bind(gene.values)
        drawn.append(bound.draw(table.sum(-1), fixed + deviation * noise, generator=generator))
    return torch.stack(drawn)


def _generator(seed: int, gene: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, gene]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
