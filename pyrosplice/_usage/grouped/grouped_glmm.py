"""``GroupedGLMM``: isoform usage with covariates, groups of spots, and a random effect of the spots."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import pandas as pd
import torch
from torch import Tensor

from pyrosplice._hypothesis.group_tables import table_of_variances
from pyrosplice._modes import works_in_any_mode
from pyrosplice._optimize.convergence import Convergence
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice._usage.grouped.level_table import table_of_levels
from pyrosplice._usage.grouped.usage_problem import GroupedSpec, sites_of
from pyrosplice._usage.reading.design import Design
from pyrosplice._usage.reading.inputs import as_covariance, spot_names
from pyrosplice._usage.records import FittedGene, stacked
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._effects_model import CountGLMM
from pyrosplice.glmm._random_effect import spatial_solver
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.reasons import Reason


@works_in_any_mode
class GroupedGLMM(MultinomGLMM):
    r"""Multinomial GLMM of isoform usage with random effects of groups of spots, fitted by restricted likelihood.

    .. math::
        y_i \sim \operatorname{Multinomial}(n_i, \operatorname{softmax}([\eta_i, 0])), \quad
        \eta = X\beta + 1b' + \sum_e Z_e U_e + \nu, \quad \nu_k \sim N(0, \sigma^2 (\theta V + (1 - \theta) I))

    The coefficients are integrated out with all random effects by Laplace's method (glmmTMB's ``REML = TRUE``); their
    prior is flat. Posterior draws, importance sampling and what else rests on fits without groups is refused by name.

    Parameters
    ----------
    likelihood, isoform_effect
        As for :class:`MultinomGLMM`; ``isoform_effect`` is of every effect, those of groups too.

    Attributes
    ----------
    beta, bias_eta, nu, sigma, theta_logit
        As of :class:`MultinomGLMM`. ``nu`` is the spots' own effect, without that of their groups; zero without any.
    effects : EffectsFit
        All estimates: modes of every level with their standard deviations among them.
    """

    def __init__(self, *, likelihood: Likelihood | None = None, isoform_effect: IsoformEffect = "independent") -> None:
        super().__init__(
            var_fix_sigma=False, fitting_method="marginal_newton", likelihood=likelihood, isoform_effect=isoform_effect
        )
        self._spec: GroupedSpec | None = None
        self._fitted: EffectsFit | None = None

    def setup_data(  # type: ignore[override]  # low-rank covariances are none of it, and groups are
        self,
        counts: object,
        corr_sp: object = None,
        design_mtx: object = None,
        *,
        groups: Sequence[GroupBlock],
        noise: bool = True,
    ) -> None:
        """Take the data; forgets an earlier fit.

        Parameters
        ----------
        counts, design_mtx, corr_sp
            As for :class:`MultinomGLMM`; without ``corr_sp`` there is no field.
        groups
            Effects of groups, as :meth:`pyrosplice.effects.Groups.bind` makes them of a table of the spots.
        noise
            Whether every spot has an effect of its own.

        Raises
        ------
        InvalidArgumentError
            As for :class:`MultinomGLMM`; no groups, or such as the engine has no way for.
        """
        table, design = self._checked(counts, design_mtx, "cpu")
        if not groups:
            raise InvalidArgumentError("groups: expected an effect or more, found none; MultinomGLMM needs none.")
        given = None if corr_sp is None else as_covariance(spot_names(counts), corr_sp, None, None)
        solver = None if given is None else spatial_solver(*given, n_spots=table.shape[1], device=table.device)
        names = tuple(f"factor_{k + 1}" for k in range(design.shape[1]))
        covariates = Design(design.numpy(), names, names) if names else None
        spec = GroupedSpec(covariates, tuple(groups), solver, noise, self.likelihood, self.isoform_effect)
        spec.check(table[:1])
        self._set_data(table, design)
        self._spec, self._fitted, self.pareto_k, self.log_marginal_null = spec, None, None, None
        self.gradient_norm = torch.full_like(table[:, 0, 0], torch.nan)
        shapes = self._known_shapes()
        self._set_parameters({name: table.new_zeros(shape) for name, shape in shapes.items()})

    def fit(
        self,
        store_param_history: bool = False,
        verbose: bool = False,
        quiet: bool = False,
        random_seed: int | None = None,
        diagnose: bool | None = None,
    ) -> None:
        """Fit every gene; see :class:`MultinomGLMM`. There is no history of parameters to keep."""
        self._require_data()
        if store_param_history or diagnose:
            raise InvalidArgumentError("store_param_history: fits with random effects of groups keep none.")
        began = time.perf_counter()
        found = fit_effects(self.spec.problem(self.counts))
        self._hold(found, sites_of(self.spec.problem(self.counts), found))
        self._finish(record_of_effects(found), time.perf_counter() - began, verbose=verbose, quiet=quiet)

    @property
    def spec(self) -> GroupedSpec:
        """The model but for the counts; raises before ``setup_data``."""
        if self._spec is None:
            raise NotReadyError(f"{type(self).__name__}: no data yet; call setup_data() first.")
        return self._spec

    @property
    def effects(self) -> EffectsFit:
        """All estimates; raises before ``fit``."""
        if self._fitted is None:
            raise NotReadyError(f"{type(self).__name__}: not fitted yet; call fit() first.")
        return self._fitted

    def forward(self) -> Tensor:
        """Restricted Laplace log likelihood of each gene at the estimates, ``(G,)``."""
        return self.effects.log_likelihood

    def linear_predictor(self) -> Tensor:
        """η ``(G, N, Q)`` at the estimates, all random effects included."""
        pairs = zip(self.spec.groups, self.effects.group_modes, strict=True)
        return super().linear_predictor() + sum(block.at_levels(mode) for block, mode in pairs)

    def vcov(self) -> Tensor:
        """Covariance ``(G, D, D)`` of ``beta``, then ``bias_eta``, logits fastest, given the variances."""
        q = self.bias_eta.shape[-1]
        order = torch.roll(torch.arange(self.effects.covariance.shape[-1]), -q)
        return self.effects.covariance[:, order][:, :, order]

    @property
    def sites(self) -> dict[str, Tensor]:
        """Estimates of the parameters of :attr:`model` by site; ``beta`` has the intercept first."""
        fit, names = self.effects, [f"{b.name}: {name}" for b in self.spec.groups for name in b.parameters]
        groups = dict(zip(names, fit.parameters.unsqueeze(-1).unbind(1), strict=True))
        inner = {f"{name}_sd": fit.sds[:, [k]] for k, name in enumerate(fit.inner)}
        return {"beta": fit.coefficients, **groups, **inner, **fit.hyper}

    def shipped_model(self) -> CountGLMM:  # type: ignore[override]  # whose sites are others
        """The Pyro model of the data."""
        self._require_data()
        return CountGLMM(self.spec.problem(self.counts))

    @property
    def guide(self) -> Callable[[], dict[str, Tensor]]:
        """Refused: modes of the standardized effects are not kept."""
        self._shipped_only("guide", "Pyro's own guides of estimator.model from estimator.sites")

    @property
    def engine(self) -> str:
        """Which way a fit goes."""
        return "restricted Laplace likelihood of a list of effects"

    def variance_components(self) -> pd.DataFrame:
        """Standard deviations and correlations of all random effects, a row a gene (by number) and parameter."""
        genes = [str(gene) for gene in range(self.n_genes)]
        return table_of_variances(self.effects, self.spec.groups, genes, "spot")

    def random_effects(self, effect: str | None = None) -> pd.DataFrame:
        """Effects of every level of a grouping factor on each logit, a row a gene (by number), level and isoform."""
        isoforms = [[str(k) for k in range(self.n_isos)]] * self.n_genes
        genes = [str(gene) for gene in range(self.n_genes)]
        return table_of_levels(self.effects, self.spec.groups, effect, genes, isoforms)

    def update_params_from_dict(self, params: Mapping[str, object]) -> NoReturn:
        """Refused: parameters are those of the fit."""
        self._shipped_only("update_params_from_dict")

    def _hold(self, fit: EffectsFit, sites: Mapping[str, Tensor]) -> None:
        self._fitted, self.gradient_norm = fit, fit.gradient_norm
        blank = {name: self.counts.new_zeros(shape) for name, shape in self._known_shapes().items()}
        self._set_parameters({**blank, **sites})

    @classmethod
    def of_records(cls, spec: GroupedSpec, counts: Tensor, genes: Sequence[FittedGene]) -> GroupedGLMM:
        """The model of genes ``(B, N, K)`` that were fitted before."""
        model = cls(likelihood=spec.likelihood, isoform_effect=spec.isoform_effect)
        design = None if spec.design is None else spec.design.values
        model.setup_data(counts, spec.space, design, groups=spec.groups, noise=spec.noise)
        fit = spec.restored(genes)
        model._hold(fit, stacked(genes))
        model.logger, model.fitting_time = record_of_effects(fit), sum(gene.fitting_time_s for gene in genes)
        return model

    def _rows(self) -> dict[str, str]:
        rows = super()._rows()
        terms = "" if self._spec is None else ", ".join(f"({block.name})" for block in self._spec.groups)
        return {"likelihood": rows["likelihood"], "effects": terms or "none", "status": rows["status"]}

    def _shipped_only(self, what: str, instead: str = "") -> NoReturn:
        raise RefusedModelError(
            f"{what}: it is worked out for fits without random effects of groups, and this one has "
            f"{', '.join(f'({block.name})' for block in self.spec.groups)}.{f' Use {instead}.' if instead else ''}"
        )


def record_of_effects(fit: EffectsFit) -> Convergence:
    """How the search of each gene went, as fits without groups say it."""
    reasons = [Reason(word) for word in fit.reason]
    return Convergence(reasons, fit.n_iter.clone(), -fit.log_likelihood, fit.n_iter.clone())
