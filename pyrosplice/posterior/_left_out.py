r"""Log likelihood of each spot with its own random effect integrated out, at draws of everything else.

.. math::
    \log p(y_i \mid \nu_{-i}, \beta, \varphi) = \log \int p(y_i \mid \eta_i)\, p(\nu_i \mid \nu_{-i}, \varphi)\, d\nu_i

A spot holds much of what is known of its own effect, so that :math:`1 / p(y_i \mid \nu_i)` has a heavy tail over the
draws; this density hardly varies, and leaves out the same spot as well (integrated importance sampling: Vehtari,
Mononen, Tolvanen, Sivula and Winther 2016, JMLR 17:103, section 3.6).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrosplice.glmm._effect_posterior import bounded_away_from_zero
from pyrosplice.glmm._given_others import left_out_effect
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._mode import MixedModel
from pyrosplice.glmm._predictive_density import ROUGH, SpotGroups, log_predictive
from pyrosplice.glmm._random_effect import unit_deviations
from pyrosplice.posterior._problem import PosteriorProblem
from pyrosplice.posterior._progress import bar

AT_ONCE = 2**21  # numbers of the predictors of a chunk


def integrated_log_likelihood(problem: PosteriorProblem, sites: Mapping[str, Tensor], genes: Tensor) -> Tensor:
    """Log density ``(C, S, G, N)`` at draws ``(C, S, G, ...)`` of some genes; NaN for one whose draws are."""
    n_chains, n_draws, n_genes, n_spots, q = sites["nu"].shape
    flat = {name: value.flatten(0, 1) for name, value in sites.items()}
    fixed = all(bool((flat[name] == flat[name][:1]).all()) for name in problem.hyper_sites)
    out, size = [], max(AT_ONCE // (n_genes * n_spots * q), 1)
    with bar(n_chains * n_draws, "left out", "draw") as shown:
        for rows in torch.arange(n_chains * n_draws).split(size):
            out.append(_density(problem, {name: value[rows] for name, value in flat.items()}, genes, fixed=fixed))
            shown.update(len(rows))
    density = torch.cat(out).unflatten(0, (n_chains, n_draws))
    if problem.likelihood.conditional:
        density = density.masked_fill(problem.counts[genes].sum(-1) == 0, 0.0)  # but for rounding
    return density


def _density(problem: PosteriorProblem, sites: Mapping[str, Tensor], genes: Tensor, *, fixed: bool) -> Tensor:
    """Log density (S, G, N) at draws (S, G, ...); ``fixed`` where these have the same hyper-parameters."""
    n_draws, n_genes, _, q = sites["nu"].shape
    lanes = {name: value.flatten(0, 1) for name, value in sites.items()}
    own = torch.arange(n_genes).repeat(n_draws)
    model = problem.engine.model(genes).select(own).bound({name: lanes[name] for name in problem.likelihood.free})
    coefficients = problem.engine.coefficients(lanes["beta"], lanes["bias_eta"], genes[own])
    deviations = unit_deviations(lanes["sigma"], lanes["theta_logit"], q, problem.engine.solver)
    parameters = bounded_away_from_zero(Parameters(coefficients, *deviations))
    effect = lanes["nu"] if model.basis is None else model.basis.coordinates(lanes["nu"])
    if fixed:  # one factor a gene
        first = torch.arange(n_genes)
        columns = effect.unflatten(0, (n_draws, n_genes)).permute(1, 2, 3, 0)
        mean, variance = left_out_effect(model.select(first), parameters.select(first), columns)
        mean, variance = mean.permute(3, 0, 1, 2).flatten(0, 1), variance.repeat(n_draws, 1, 1)
    else:
        mean, variance = left_out_effect(model, parameters, effect.unsqueeze(-1))
        mean = mean.squeeze(-1)
    return _integrated(model, model.fixed_part(coefficients) + mean, variance).unflatten(0, (n_draws, n_genes))


def _integrated(model: MixedModel, mean: Tensor, variance: Tensor) -> Tensor:
    spots = SpotGroups(model.likelihood, model.counts.unsqueeze(2))
    return log_predictive(spots, mean.unsqueeze(2), torch.diag_embed(variance.sqrt()), nodes=ROUGH)
