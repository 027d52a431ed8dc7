"""What a :class:`~pyrosplice.MultinomGLMM` does where it was given groups of spots."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import pandas as pd
import torch
from torch import Tensor

from pyrosplice._optimize.convergence import Convergence
from pyrosplice._usage.configs import kept_history
from pyrosplice._usage.fitted_gene import FittedGene, stacked
from pyrosplice._usage.glm import MultinomGLM
from pyrosplice._usage.grouped.grouped_fit import GroupedFit, refuse_options, refuse_overridden
from pyrosplice._usage.grouped.usage_problem import GroupedSpec
from pyrosplice._usage.reading.design import Design
from pyrosplice._usage.reading.inputs import as_covariance, spot_names
from pyrosplice.effects._isoform_effect import IsoformEffect, check_isoform_effect
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._bound_effects import BoundEffects
from pyrosplice.glmm._random_effect import spatial_solver
from pyrosplice.guides._agreement import overridden
from pyrosplice.likelihoods._contract import Likelihood

FOLLOWED = ("forward", "linear_predictor", "model", "shipped_model")  # what a subclass may not change
OPTIONS = "MultinomGLMM(fitting_method='marginal_newton', var_fix_sigma=False)"


class WithGroups(Protocol):
    """A :class:`~pyrosplice.MultinomGLMM`, as this module sees it."""

    likelihood: Likelihood
    isoform_effect: IsoformEffect
    fitting_method: str
    fitting_configs: dict[str, Any]
    share_variance: bool
    var_fix_sigma: bool
    var_prior_model: str
    priors: dict[str, Any]
    gradient_norm: Tensor
    pareto_k: Tensor | None
    log_marginal_null: Tensor | None
    logger: Convergence
    fitting_time: float
    _grouped: GroupedFit | None
    _given: Any
    _priors_name: str | None

    def _default_configs(self) -> dict[str, Any]: ...

    def _set_data(self, counts: Tensor, design: Tensor) -> None: ...

    def _set_parameters(self, values: Mapping[str, Tensor]) -> None: ...

    def _known_shapes(self) -> dict[str, tuple[int, ...]]: ...

    def _require_data(self) -> None: ...

    def _finish(self, record: Convergence, seconds: float, *, verbose: bool, quiet: bool) -> None: ...


def set_grouped(
    self: WithGroups,
    data: tuple[Tensor, Tensor],
    space: tuple[object, object, object],
    groups: BoundEffects,
    counts: object,
) -> None:
    """Take counts and covariates with effects of groups, beside a field and an effect of every spot."""
    check_grouped_options(self)
    table, design = data
    solver = None
    if any(part is not None for part in space):
        given = as_covariance(spot_names(counts), *space)
        solver = spatial_solver(*given, n_spots=table.shape[1], device=table.device)
    names = tuple(f"factor_{k + 1}" for k in range(design.shape[1]))
    covariates = Design(design.numpy(), names, names) if names else None
    effects = replace(groups, space=solver, noise=True)
    take_spec(self, table, GroupedSpec(table.shape[1], covariates, effects, self.likelihood, self.isoform_effect))


def take_spec(self: WithGroups, table: Tensor, spec: GroupedSpec) -> None:
    """Take counts ``(G, N, K)`` and all else of the model."""
    check_isoform_effect(spec.isoform_effect, share_variance=True, likelihood=spec.likelihood, counts=table)
    spec.check(table[:1])
    design = table.new_zeros(spec.n_spots, 0) if spec.design is None else torch.from_numpy(spec.design.values)
    self._set_data(table, design)
    self._grouped, self.pareto_k, self.log_marginal_null = GroupedFit(spec, table), None, None
    self.gradient_norm = torch.full_like(table[:, 0, 0], torch.nan)
    self._set_parameters({name: table.new_zeros(shape) for name, shape in self._known_shapes().items()})


def take_records(self: WithGroups, table: Tensor, spec: GroupedSpec, genes: Sequence[FittedGene]) -> None:
    """Take genes ``(B, N, K)`` that were fitted before."""
    take_spec(self, table, spec)
    fit = GroupedFit(spec, table, spec.restored(genes))
    _hold(self, fit, stacked(genes))
    self.logger, self.fitting_time = fit.record(), sum(gene.fitting_time_s for gene in genes)


def fit_genes_of(
    self: WithGroups,
    store_param_history: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    random_seed: int | None = None,
    diagnose: bool | None = None,
) -> dict[str, Tensor] | None:
    """Fit every gene, see :meth:`pyrosplice.MultinomGLM.fit`.

    Beside groups by restricted maximum likelihood, which keeps no history of parameters.
    """
    if self._grouped is None:
        options = store_param_history, verbose, quiet, random_seed, diagnose
        return MultinomGLM.fit(cast(MultinomGLM, self), *options)
    if kept_history(store_param_history, diagnose):
        raise InvalidArgumentError("store_param_history: fits with random effects of groups keep none.")
    check_grouped_options(self)
    began, found = time.perf_counter(), grouped_of(self).run()
    _hold(self, found, found.spec.sites(found.counts, found.effects))
    self._finish(found.record(), time.perf_counter() - began, verbose=verbose, quiet=quiet)
    return None


def grouped_of(self: WithGroups) -> GroupedFit:
    """The model and its fit; raises where no groups were given."""
    self._require_data()
    if self._grouped is None:
        raise NotReadyError(
            "This is of random effects of groups: give them, as setup_data(counts, groups=labels), and call fit()."
        )
    return self._grouped


def effects(self: WithGroups) -> EffectsFit:
    """All estimates of a fit with groups: modes of every level with their standard deviations among them."""
    return grouped_of(self).effects


def variances_of_groups(self: WithGroups) -> pd.DataFrame:
    """Tabulate how much random effects vary, a row a gene (by number) and standard deviation or correlation.

    Of a fit with groups: ``gene``, ``effect`` (``"1 | donor"``, ``"space"``, ``"spot"``), ``parameter``, ``estimate``
    (of a logit) and ``reason``, "" or why there is none.

    Raises :class:`NotReadyError` before ``fit``, or without groups.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLMM
    >>> counts = torch.randint(0, 10, (1, 60, 3), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> model.setup_data(counts, groups={"section": [spot % 6 for spot in range(60)]})
    >>> model.fit(quiet=True)
    >>> model.variance_components()["effect"].tolist()
    ['1 | section', 'spot']
    """
    return grouped_of(self).variances()


def levels_of_groups(self: WithGroups, effect: str | None = None) -> pd.DataFrame:
    """Tabulate the effects of every level of a grouping factor, a row a gene (by number), level and isoform.

    Parameters
    ----------
    effect
        A term, ``"1 | donor"``, or its factor where that has one term; may be left out where there is one.

    Returns
    -------
    DataFrame
        ``gene``, ``level``, ``column``, ``isoform``, ``against``, ``effect`` (on the log odds of the two), ``se``
        (given the variances) and ``reason``.

    Raises
    ------
    NotReadyError
        Before ``fit``, or without groups.
    InvalidArgumentError
        Another name, or none of several.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLMM
    >>> counts = torch.randint(0, 10, (1, 60, 3), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    >>> model.setup_data(counts, groups={"section": [spot % 6 for spot in range(60)]})
    >>> model.fit(quiet=True)
    >>> model.random_effects("section").shape  # six levels of two logits
    (12, 8)
    """
    return grouped_of(self).level_table(effect)


def check_grouped_options(self: WithGroups) -> None:
    """Raise for options, or a subclass, that a fit with groups would not follow."""
    _, names = overridden(type(self))
    refuse_overridden(type(self), [name for name in names if name in FOLLOWED])
    priors: object = self._priors_name or self.priors
    configs = self.fitting_configs
    found = {
        "model": (self._given, self._given is not None, "None: the model is pyrosplice.glmm.CountGLMM"),
        "fitting_method": (
            self.fitting_method,
            self.fitting_method != "marginal_newton",
            "'marginal_newton', the one search that there is",
        ),
        "var_fix_sigma": (self.var_fix_sigma, bool(self.var_fix_sigma), "False: every variance is estimated"),
        "share_variance": (self.share_variance, not self.share_variance, "True, one variance for all logits"),
        "priors": (priors, bool(priors), "None: priors are not among what is maximized"),
        "fitting_configs": (configs, configs != self._default_configs(), "None: the search has no options"),
    }
    refuse_options(found, "of groups", OPTIONS)


def _hold(self: WithGroups, fit: GroupedFit, sites: Mapping[str, Tensor]) -> None:
    self._grouped, self.gradient_norm = fit, fit.effects.gradient_norm
    blank = {name: fit.counts.new_zeros(shape) for name, shape in self._known_shapes().items()}
    self._set_parameters({**blank, **sites})
