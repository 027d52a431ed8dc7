"""What the engine of effects fits of usage with random effects of groups, and what is kept of each gene."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._usage.reading.design import Design
from pyrosplice._usage.records import FittedGene, GeneEffects, stacked
from pyrosplice.effects._explained import check_unexplained
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.effects._units import Coefficients, DesignUnits
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of
from pyrosplice.glmm._latents import Latents
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
SPOTS = "spots"  # what observations are called
FAR = 36.0  # logit of a share of the variance that is one, or minus that of zero, as in fits without groups


@dataclass(frozen=True)
class GroupedSpec:
    """Everything of a model of usage with random effects of groups but the counts.

    Attributes
    ----------
    design
        Covariates; None for an intercept only.
    groups
        Effects of groups.
    space
        Covariance of the field; None for none.
    noise
        Whether every spot has an effect of its own.
    likelihood, isoform_effect
        Density of a spot's counts, and covariance of every effect between the logits.
    """

    design: Design | None
    groups: tuple[GroupBlock, ...]
    space: SpatialSolver | None
    noise: bool
    likelihood: Likelihood
    isoform_effect: IsoformEffect

    @property
    def columns(self) -> Array:
        """Fixed part ``(N, 1 + P)``: the intercept, then the covariates."""
        ones = np.ones((len(self.groups[0].levels), 1))
        return ones if self.design is None else np.concatenate([ones, self.design.values], 1)

    def units(self) -> DesignUnits:
        """What the units of contrasts of intercept and covariates are."""
        design = self.design
        names = () if design is None else design.names
        terms = () if design is None else design.terms
        numeric = [] if design is None else [n for n, x in zip(names, design.values.T, strict=True) if set(x) - {0, 1}]
        coefficients = Coefficients(self.columns, ("Intercept", *names), ("Intercept", *terms), numeric)
        return DesignUnits(coefficients, self.groups, SPOTS)

    def problem(self, counts: Tensor) -> EffectsProblem:
        """What the engine fits of genes ``(B, N, K)``."""
        return EffectsProblem(
            counts=counts,
            design=self.columns,
            likelihood=self.likelihood,
            groups=self.groups,
            space=self.space,
            noise=self.noise,
            isoform_effect=self.isoform_effect,
        )

    def check(self, counts: Tensor) -> None:
        """Raise where covariates explain an effect, or the engine has no way: linked sections, many that cross."""
        check_unexplained(self.units().coefficients, self.groups)
        problem = self.problem(counts)
        eliminator_of(problem, SupportLayout.of(problem))

    def fit(self, counts: Tensor, *, quiet: bool = True, random_seed: int | None = None) -> list[FittedGene]:
        """Fit a batch ``(B, N, K)`` by restricted maximum likelihood; nothing is logged, and nothing is random."""
        began = time.perf_counter()
        problem = self.problem(counts)
        fit = fit_effects(problem)
        return self.records(problem, fit, (time.perf_counter() - began) / len(counts))

    def records(self, problem: EffectsProblem, fit: EffectsFit, seconds: float) -> list[FittedGene]:
        """What is kept of each gene of a fit."""
        sites = sites_of(problem, fit)
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
                ),
            )
            for g, reason in enumerate(fit.reason)
        ]

    def restored(self, genes: Sequence[FittedGene]) -> EffectsFit:
        """The engine's result from what was kept of it, but for the spots' standardized effects."""
        values = stacked(genes)
        coefficients = torch.cat([values["bias_eta"].unsqueeze(1), values["beta"]], 1)
        effects = [gene.effects for gene in genes if gene.effects is not None]
        empty = coefficients.new_zeros(len(genes), 0, 0)
        return EffectsFit(
            coefficients=coefficients,
            covariance=torch.stack([one.covariance for one in effects]),
            parameters=torch.stack([one.parameters for one in effects]),
            parameter_names=tuple(name for block in self.groups for name in block.parameters),
            sds=torch.stack([one.sds for one in effects]),
            inner=("space",) * (self.space is not None) + ("noise",) * self.noise,
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
            space_values=coefficients.new_zeros(len(genes), 0),
        )

    def predictor(self, genes: Sequence[FittedGene]) -> Tensor:
        """η ``(B, N, Q)`` at the modes of all effects."""
        design = None if self.design is None else torch.from_numpy(self.design.values)
        n_spots = len(self.columns)
        return torch.stack([g.linear_predictor(n_spots, design) + g.group_predictor(self.groups) for g in genes])

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
