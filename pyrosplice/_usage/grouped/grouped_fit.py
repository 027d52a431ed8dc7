"""A model of counts with a list of random effects, and its fit once there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import pandas as pd
import torch
from torch import Tensor

from pyrosplice._hypothesis.group_tables import table_of_variances
from pyrosplice._optimize.convergence import Convergence
from pyrosplice._usage.grouped.level_table import table_of_levels
from pyrosplice._usage.grouped.usage_problem import GroupedSpec
from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._effects_model import CountGLMM
from pyrosplice.reasons import Reason


@dataclass(frozen=True)
class GroupedFit:
    """Counts ``(G, N, K)``, all else of the model, and the engine's result; None before a fit."""

    spec: GroupedSpec
    counts: Tensor
    fitted: EffectsFit | None = None

    @property
    def effects(self) -> EffectsFit:
        """All estimates; raises before a fit."""
        if self.fitted is None:
            raise NotReadyError("Random effects of groups are not estimated yet; call fit() first.")
        return self.fitted

    @cached_property
    def problem(self) -> EffectsProblem:
        """What the engine fits; with an estimated ρ, at the genes' own, which has to be the same."""
        spec = self.spec if self.fitted is None else self.spec.at_values(self.fitted.space_values)
        return spec.problem(self.counts)

    def run(self) -> GroupedFit:
        """Fit it."""
        return replace(self, fitted=self.spec.estimates(self.counts))

    def levels(self) -> Tensor:
        """Part of the effects of groups in η, ``(G, N, Q)``, at their modes."""
        q = self.effects.coefficients.shape[-1]
        pairs = zip(self.spec.groups, self.effects.group_modes, strict=True)
        zero = self.counts.new_zeros(*self.counts.shape[:2], q)
        return sum((block.at_levels(mode) for block, mode in pairs), zero)

    def vcov(self) -> Tensor:
        """Covariance ``(G, D, D)`` of ``beta``, then ``bias_eta``, logits fastest, given the variances."""
        covariance, q = self.effects.covariance, self.effects.coefficients.shape[-1]
        order = torch.roll(torch.arange(covariance.shape[-1]), -q)
        return covariance[:, order][:, :, order]

    @property
    def sites(self) -> dict[str, Tensor]:
        """Estimates of the parameters of :attr:`model` by site; ``beta`` has the intercept first."""
        fit, names = self.effects, [f"{b.name}: {name}" for b in self.spec.groups for name in b.parameters]
        groups = dict(zip(names, fit.parameters.unsqueeze(-1).unbind(1), strict=True))
        inner = {f"{name}_sd": fit.sds[:, [k]] for k, name in enumerate(fit.inner)}
        return {"beta": fit.coefficients, **groups, **inner, **fit.hyper}

    @property
    def model(self) -> CountGLMM:
        """The Pyro model of the counts."""
        return CountGLMM(self.problem)

    def variances(self) -> pd.DataFrame:
        """How much random effects vary, a row a gene (by number) and parameter."""
        genes = [str(gene) for gene in range(len(self.counts))]
        return table_of_variances(self.effects, self.spec.groups, genes, "spot")

    def level_table(self, effect: str | None) -> pd.DataFrame:
        """Effects of every level of a grouping factor, a row a gene (by number), level and isoform."""
        n_genes, _, n_isos = self.counts.shape
        genes, isoforms = [str(gene) for gene in range(n_genes)], [[str(k) for k in range(n_isos)]] * n_genes
        return table_of_levels(self.effects, self.spec.groups, effect, genes, isoforms)

    def record(self) -> Convergence:
        """How the search of each gene went, as fits without groups say it."""
        fit = self.effects
        reasons = [Reason(word) for word in fit.reason]
        return Convergence(reasons, fit.n_iter.clone(), -fit.log_likelihood, fit.n_iter.clone())

    def refuse(self, what: str, instead: str = "") -> NoReturn:
        """Raise for what rests on fits without a list of random effects."""
        raise RefusedModelError(
            f"{what}: it is worked out for fits without random effects of groups, and this one has "
            f"{self.spec.effects}.{f' Use {instead}.' if instead else ''}"
        )


def refuse_options(found: Mapping[str, tuple[object, bool, str]], because: str, call: str) -> None:
    """Raise for the first option that is another than those of a fit with a list of random effects.

    Parameters
    ----------
    found
        By name: what was given, whether it is refused, and what is expected.
    because
        What there are random effects in.
    call
        A constructor with options that fit.
    """
    for name, (value, refused, expected) in found.items():
        if refused:
            raise InvalidArgumentError(
                f"{name}: with random effects {because} expected {expected}; found {value!r}. Options that fit: {call}."
            )


def refuse_overridden(kind: type, names: Sequence[str]) -> None:
    """Raise where a subclass has an objective, a predictor or a model of its own, which no fit would follow."""
    if names:
        raise InvalidArgumentError(
            f"{names[0]}: {kind.__name__} overrides it, and fits with random effects of groups follow "
            "pyrosplice.glmm.CountGLMM. Leave groups out, or fit a Pyro model by pyrosplice.guides."
        )
