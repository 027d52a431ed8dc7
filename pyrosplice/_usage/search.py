"""The search for the optimum of a model of isoform usage: of coefficients alone, or of a mixed model batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrosplice._optimize.bfgs import Minimizer, Objective, Options
from pyrosplice._optimize.convergence import Convergence
from pyrosplice._optimize.first_order import DescentOptions, descend
from pyrosplice._optimize.newton import UPWARD, has_curvature, newton
from pyrosplice._usage.configs import newton_options
from pyrosplice.glmm._batches import MixedEngine
from pyrosplice.glmm._glm_objective import GLMObjective
from pyrosplice.glmm._joint import JointFit, fit_joint
from pyrosplice.glmm._marginal import MarginalFit, fit_marginal
from pyrosplice.glmm._objective import LogPrior, ModeObjective
from pyrosplice.glmm._snapshots import Snapshots, joined
from pyrosplice.reasons import Reason


def search_coefficients(
    objective: GLMObjective, method: str, configs: Mapping[str, Any], *, keep: bool
) -> tuple[Convergence, list[dict[str, Tensor]]]:
    """Find β and the intercepts of every gene; with ``keep`` also every step on the way, the estimates last."""
    start = objective.start()
    if method == "gd":
        options = DescentOptions(**configs, keep_history=keep)
        descent = descend(objective, start, curvature=objective.curvature(start), options=options)
        point, record, history = descent.point, descent.convergence, descent.history
    else:
        result = newton(objective, start, options=newton_options(configs, keep))
        point, record, history = result.point, result.convergence, result.history
    names = ("beta", "bias_eta")
    return record, [dict(zip(names, objective.coefficients(at), strict=True)) for at in (*history, point)]


def name_saddles(objective: GLMObjective, values: Mapping[str, Tensor], record: Convergence) -> None:
    """Note the genes that converged where the loss still falls to both sides: a start between two optima."""
    genes = torch.nonzero(record.converged.to(objective.counts.device)).squeeze(-1)
    if len(genes):
        point = objective.point(values["beta"], values["bias_eta"])[genes]
        _, hessian = objective.select(genes).derivatives(point)
        finite = torch.isfinite(hessian).flatten(1).all(1)
        record.finish(genes[finite & ~has_curvature(hessian, -UPWARD)], Reason.SADDLE)


@dataclass(frozen=True)
class MixedOptimum:
    """What a search found: estimates by site, ν among them, how each gene's search went, and what else is known.

    ``log_marginal_null`` is None for joint fits; ``history``, values of the sites along the search ``(E, G, ...)``, is
    empty where it was not kept.
    """

    values: dict[str, Tensor]
    record: Convergence
    gradient_norm: Tensor
    log_marginal_null: Tensor | None
    history: dict[str, Tensor]


@dataclass(frozen=True)
class MixedSearch:
    """How to look for the optimum of every gene of a mixed model.

    Attributes
    ----------
    engine
        The data.
    marginal
        Maximise the Laplace marginal likelihood, else the joint density of counts and ν.
    share_variance, fix_sigma
        One (σ, θ) for all logits of a gene; keep σ where it is.
    log_prior
        Log prior density of the sites; None where all priors are flat.
    options, minimiser
        When the search ends, and what searches.
    """

    engine: MixedEngine
    marginal: bool
    share_variance: bool
    fix_sigma: bool
    log_prior: LogPrior | None
    options: Options
    minimizer: Minimizer[Objective]

    def run(self, sigma: Tensor, *, keep: bool) -> MixedOptimum:
        """Fit all genes, σ ``(G, 1 or Q)`` where it is held; with ``keep`` also note the way."""
        record = Convergence.start(len(sigma), device=sigma.device)
        fits, histories = [], []
        for genes in self.engine.batches():
            snapshots = Snapshots(self.minimizer) if keep else None
            fits.append(self._fit(genes, sigma[genes], snapshots or self.minimizer))
            record.absorb(fits[-1].convergence, genes)
            if snapshots is not None:
                histories.append(self._sites(snapshots.stacked(), genes))
        names = ("coefficients", "sigma", "theta", "nu", "gradient_norm")
        found = {name: torch.cat([getattr(fit, name) for fit in fits]) for name in names}
        found |= {name: torch.cat([fit.hyper[name] for fit in fits]) for name in self.engine.likelihood.free}
        nulls = [fit.log_marginal_null for fit in fits if isinstance(fit, MarginalFit)]
        return MixedOptimum(
            values=self._sites(found, torch.arange(len(sigma), device=sigma.device)),
            record=record,
            gradient_norm=found["gradient_norm"],
            log_marginal_null=torch.cat(nulls) if nulls else None,
            history=joined(histories) if keep else {},
        )

    def _fit(self, genes: Tensor, sigma: Tensor, minimizer: Minimizer[ModeObjective]) -> JointFit | MarginalFit:
        model = self.engine.model(genes)
        prior = None if self.log_prior is None else self.engine.own_prior(self.log_prior, genes)
        if not self.marginal:
            return fit_joint(
                model, sigma=sigma, fix_sigma=self.fix_sigma, log_prior=prior, options=self.options, minimizer=minimizer
            )
        return fit_marginal(
            model,
            share_variance=self.share_variance,
            fixed_sigma=sigma if self.fix_sigma else None,
            log_prior=prior,
            options=self.options,
            minimizer=minimizer,
        )

    def _sites(self, found: Mapping[str, Tensor], genes: Tensor) -> dict[str, Tensor]:
        """Estimates of the engine for some genes, with any leading dimensions, as values of the sites."""
        sites = self.engine.sites(found["coefficients"], found["sigma"], found["theta"], genes)
        return {**sites, **{name: found[name] for name in ("nu", *self.engine.likelihood.free)}}
