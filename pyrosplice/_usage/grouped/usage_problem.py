"""What the engine of effects fits of usage with a list of random effects, and what is kept of each gene."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._usage.fitted_gene import FittedGene, GeneEffects, stacked
from pyrosplice._usage.reading.design import Design
from pyrosplice.effects._explained import check_unexplained
from pyrosplice.effects._field import RHO
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.effects._units import Coefficients, DesignUnits
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.field_parameter import fit_field_parameter
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of
from pyrosplice.glmm._bound_effects import BoundEffects
from pyrosplice.glmm._latents import Latents
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
SPOTS = "spots"  # what observations are called
FAR = 36.0  # logit of a share of the variance that is one, or minus that of zero, as in fits without groups


@dataclass(frozen=True)
class GroupedSpec:
    """Everything of a model of usage with a list of random effects but the counts.

    Attributes
    ----------
    n_spots
        Number N of spots.
    design
        Covariates; None for an intercept only.
    effects
        Random effects: of groups, in space, of every spot.
    likelihood, isoform_effect
        Density of a spot's counts, and covariance of every effect between the logits.
    """

    n_spots: int
    design: Design | None
    effects: BoundEffects
    likelihood: Likelihood
    isoform_effect: IsoformEffect

    @property
    def groups(self) -> tuple[GroupBlock, ...]:
        """Effects of groups."""
        return self.effects.groups

    @property
    def columns(self) -> Array:
        """Fixed part ``(N, 1 + P)``: the intercept, then the covariates."""
        ones = np.ones((self.n_spots, 1))
        return ones if self.design is None else np.concatenate([ones, self.design.values], 1)

    def units(self) -> DesignUnits:
        """What the units of contrasts of intercept and covariates are."""
        design = self.design
        names = () if design is None else design.names
        terms = () if design is None else design.terms
        numeric = [] if design is None else [n for n, x in zip(names, design.values.T, strict=True) if set(x) - {0, 1}]
        coefficients = Coefficients(self.columns, ("Intercept", *names), ("Intercept", *terms), numeric)
        return DesignUnits(coefficients, self.groups, SPOTS, self.effects.sections)

    def problem(self, counts: Tensor) -> EffectsProblem:
        """What the engine fits of genes ``(B, N, K)``; where the field's ρ is estimated, that of :meth:`at`."""
        return self.effects.problem(counts, self.columns, self.likelihood, isoform_effect=self.isoform_effect)

    def alike(self, genes: Sequence[FittedGene]) -> list[list[int]]:
        """Places of genes with the same field: all of them, unless ρ was estimated."""
        coordinates = np.array([self._coordinate(gene) for gene in genes])
        return [np.flatnonzero(coordinates == value).tolist() for value in np.unique(coordinates)]

    def at(self, genes: Sequence[FittedGene]) -> GroupedSpec:
        """Specification with the field that these genes were fitted with, :meth:`alike` as they are."""
        return self.at_values(torch.stack([gene.effects.space_values for gene in genes if gene.effects is not None]))

    def at_values(self, values: Tensor) -> GroupedSpec:
        """Specification with the field whose ρ was estimated at these values ``(G, R)``, all of them one."""
        if self.effects.family is None:
            return self
        found = {self._place(value) for value in values[:, 0].tolist()}
        if len(found) > 1:
            raise InvalidArgumentError(
                f"genes: {len(values)} genes have fields of their own, whose rho was estimated; ask for one at a time."
            )
        return replace(self, effects=replace(self.effects, space=self.effects.family.solver(found.pop()), family=None))

    def _coordinate(self, gene: FittedGene) -> float:
        """Where the field of a gene is in its family; of one of which nothing is known it is the default."""
        if self.effects.family is None:
            return 0.0
        if gene.effects is None:
            raise AssertionError("genes are fits with a list of effects")
        return self._place(float(gene.effects.space_values[0]))

    def _place(self, rho: float) -> float:
        family = self.effects.family
        if family is None:
            raise AssertionError("a field's rho is estimated in a family")
        return family.coordinate(RHO if np.isnan(rho) else rho)

    def check(self, counts: Tensor) -> None:
        """Raise where covariates explain an effect, or the engine has no way: linked sections, many that cross."""
        check_unexplained(self.units().coefficients, self.groups)
        problem = self.problem(counts)
        eliminator_of(problem, SupportLayout.of(problem))

    def fit(self, counts: Tensor, *, quiet: bool = True, random_seed: int | None = None) -> list[FittedGene]:
        """Fit a batch ``(B, N, K)`` by restricted maximum likelihood; nothing is logged, and nothing is random."""
        began = time.perf_counter()
        fit = self.estimates(counts)
        return self.records(counts, fit, (time.perf_counter() - began) / len(counts))

    def estimates(self, counts: Tensor) -> EffectsFit:
        """The engine's result of a batch ``(B, N, K)``, ρ of a field estimated where that was asked for."""
        problem, family = self.problem(counts), self.effects.family
        if family is None:
            return fit_effects(problem)
        return fit_field_parameter(problem, family, default=family.coordinate(RHO)).fit

    def sites(self, counts: Tensor, fit: EffectsFit) -> dict[str, Tensor]:
        """Values of the documented sites of a fit, see :func:`sites_of`; each gene's field at its own ρ."""
        family = self.effects.family
        if family is None:
            return sites_of(self.problem(counts), fit)
        coordinates = np.array([self._place(float(value)) for value in fit.space_values[:, 0]])
        places = [np.flatnonzero(coordinates == value) for value in np.unique(coordinates)]
        parts = []
        for some in places:
            effects, own = replace(self.effects, space=family.solver(coordinates[some[0]])), torch.from_numpy(some)
            parts.append(sites_of(replace(self, effects=effects).problem(counts[own]), fit.take(own)))
        order = torch.from_numpy(np.argsort(np.concatenate(places)))
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}

    def records(self, counts: Tensor, fit: EffectsFit, seconds: float) -> list[FittedGene]:
        """What is kept of each gene of a fit."""
        sites = self.sites(counts, fit)
        return [
            FittedGene(
                values={name: value[g].clone() for name, value in sites.items()},
                converged=reason == Reason.CONVERGED,
                reason=Reason(reason),
                n_iter=int(fit.n_iter[g]),
                best_loss=-float(fit.log_likelihood[g]),
                best_epoch=int(fit.n_iter[g]),
                fitting_time_s=seconds,
                effects=GeneEffects(
                    fit.parameters[g].clone(),
                    fit.sds[g].clone(),
                    tuple(mode[g].clone() for mode in fit.group_modes),
                    tuple(error[g].clone() for error in fit.group_sds),
                    fit.covariance[g].clone(),
                    fit.space_values[g].clone(memory_format=torch.contiguous_format),
                ),
            )
            for g, reason in enumerate(fit.reason)
        ]

    def restored(self, genes: Sequence[FittedGene]) -> EffectsFit:
        """The engine's result from what was kept of it, but for the spots' standardized effects."""
        values = stacked(genes)
        coefficients = torch.cat([values["bias_eta"].unsqueeze(1), values["beta"]], 1)
        effects = [gene.effects for gene in genes if gene.effects is not None]
        empty, given, family = coefficients.new_zeros(len(genes), 0, 0), self.effects, self.effects.family
        ends = () if family is None else (family.value(family.grid[0]), family.value(family.grid[-1]))
        return EffectsFit(
            coefficients=coefficients,
            covariance=torch.stack([one.covariance for one in effects]),
            parameters=torch.stack([one.parameters for one in effects]),
            parameter_names=tuple(name for block in self.groups for name in block.parameters),
            sds=torch.stack([one.sds for one in effects]),
            inner=("space",) * (given.space is not None) + ("noise",) * given.noise,
            hyper={name: values[name] for name in self.likelihood.free},
            log_likelihood=torch.tensor([-gene.best_loss for gene in genes], dtype=torch.float64),
            restricted=True,
            group_modes=tuple(torch.stack(own) for own in zip(*(one.modes for one in effects), strict=True)),
            group_sds=tuple(torch.stack(own) for own in zip(*(one.errors for one in effects), strict=True)),
            latents=Latents(empty, empty),
            gradient_norm=torch.full((len(genes),), torch.nan, dtype=torch.float64),
            reason=np.array([gene.reason.value for gene in genes], dtype=object),
            n_iter=torch.tensor([gene.n_iter for gene in genes]),
            bases=tuple(block.basis for block in self.groups),
            space_values=torch.stack([one.space_values for one in effects]),
            space_names=() if family is None else (family.name,),
            space_range=ends,
        )

    def predictor(self, genes: Sequence[FittedGene]) -> Tensor:
        """η ``(B, N, Q)`` at the modes of all effects."""
        design = None if self.design is None else torch.from_numpy(self.design.values)
        return torch.stack([g.linear_predictor(self.n_spots, design) + g.group_predictor(self.groups) for g in genes])

    @property
    def without_space(self) -> GroupedSpec:
        """Copy without a field."""
        return replace(self, effects=replace(self.effects, field=None, space=None, space_by=None, family=None))

    def with_design(self, design: Design | None) -> GroupedSpec:
        """Copy with other covariates."""
        return replace(self, design=design)


def sites_of(problem: EffectsProblem, fit: EffectsFit) -> dict[str, Tensor]:
    """Values of the documented sites, ``(G, …)``.

    ``nu`` is the spots' own random effect, without that of groups, ``sigma`` its standard deviation and ``theta_logit``
    the part of its variance that is spatial; they are there where spots have one.
    """
    out = {"beta": fit.coefficients[:, 1:], "bias_eta": fit.coefficients[:, 0], **fit.hyper}
    if fit.inner:
        rest = torch.einsum("np,gpq->gnq", torch.as_tensor(problem.design), fit.coefficients)
        pairs = zip(problem.groups, fit.group_modes, strict=True)
        nu = fit.linear_predictor(problem) - rest - sum(block.at_levels(mode) for block, mode in pairs)
        variance = dict(zip(fit.inner, fit.sds.square().unbind(1), strict=True))
        zero = torch.zeros(len(nu), dtype=torch.float64)
        space, noise = variance.get("space", zero), variance.get("noise", zero)
        logit = (space.log() - noise.log()).nan_to_num(-FAR).clamp(-FAR, FAR)  # of no variance at all: none is spatial
        logit = torch.where(torch.isfinite(space + noise), logit, torch.nan)
        out |= {"nu": nu, "sigma": (space + noise).sqrt().unsqueeze(1), "theta_logit": logit.unsqueeze(1)}
    return out
