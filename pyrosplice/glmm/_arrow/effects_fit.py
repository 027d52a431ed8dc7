"""What a fit with a list of effects found, for all genes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.effects._isoform_effect import basis_of
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._latents import Latents

Array = NDArray[np.float64]
OF_GENES = (
    "coefficients",
    "covariance",
    "parameters",
    "sds",
    "log_likelihood",
    "space_values",
    "gradient_norm",
    "n_iter",
)
"""Attributes that are tensors with a row a gene."""


@dataclass(frozen=True)
class EffectsFit:
    """Estimates of G genes; those of a gene without any are NaN, and its ``reason`` says why.

    Attributes
    ----------
    coefficients, covariance : (G, P, Q), (G, P Q, P Q)
        Of the predictors, and their covariance given the standard deviations (index ``p * Q + q``).
    parameters : (G, J)
        Of the effects of groups, in the order of the problem: standard deviations are not negative, nor is the diagonal
        of a triangle.
    parameter_names
        J.
    sds : (G, I)
        Standard deviations of the inner effects.
    inner
        Their I names, of ``("space", "noise")``.
    hyper
        Estimated hyper-parameters, (G, 1) each.
    log_likelihood : (G,)
        Restricted, or maximum, marginal log likelihood by Laplace's method, constants included; ``log_prior`` not.
    restricted
        Which of the two.
    group_modes, group_sds
        Modes u (G, D, q, Q) of every effect of groups, and their posterior standard deviations given the parameters.
    latents
        Modes of the standardised inner effects.
    gradient_norm : (G,)
        At the end, in sqrt(nats).
    reason : (G,)
        Why each gene's search ended.
    n_iter : (G,)
        Evaluations.
    bases
        E (J_e, q, q) of each effect of groups.
    space_values : (G, R)
        What the field of each gene depends on, where that was estimated (R = 1, else 0); NaN where nothing is known.
    space_names, space_range
        R names, and the ends of the range that was searched.
    """

    coefficients: Tensor
    covariance: Tensor
    parameters: Tensor
    parameter_names: tuple[str, ...]
    sds: Tensor
    inner: tuple[str, ...]
    hyper: dict[str, Tensor]
    log_likelihood: Tensor
    restricted: bool
    group_modes: tuple[Tensor, ...]
    group_sds: tuple[Tensor, ...]
    latents: Latents
    gradient_norm: Tensor
    reason: NDArray[np.object_]
    n_iter: Tensor
    bases: tuple[Array, ...]
    space_values: Tensor
    space_names: tuple[str, ...] = ()
    space_range: tuple[float, ...] = ()

    def take(self, genes: Tensor) -> EffectsFit:
        """Take the estimates of some of the genes."""
        return replace(
            self.changed({name: getattr(self, name)[genes] for name in OF_GENES}),
            hyper={name: value[genes] for name, value in self.hyper.items()},
            group_modes=tuple(mode[genes] for mode in self.group_modes),
            group_sds=tuple(sd[genes] for sd in self.group_sds),
            latents=self.latents.select(genes),
            reason=self.reason[genes.numpy()],
        )

    def changed(self, tensors: Mapping[str, Tensor]) -> EffectsFit:
        """Copy with other tensors, of those of :data:`OF_GENES`."""
        out = copy(self)
        vars(out).update(tensors)
        return out

    def in_logits(self, root: Tensor | None) -> EffectsFit:
        """Turn estimates in coordinates u of the predictors, ``group_sds`` covariances among them, to those of logits.

        With ``root`` (G, Q, Q) the logits are ``root @ u``; None where they are u.
        """
        n_genes, _, q = self.coefficients.shape
        own = torch.eye(q, dtype=torch.float64).expand(n_genes, q, q) if root is None else root
        n_fixed = self.coefficients.shape[1]

        def turned(covariance: Tensor, size: int) -> Tensor:
            blocks = covariance.unflatten(-1, (size, q)).unflatten(-3, (size, q))
            return torch.einsum("gkq,g...iqjr,glr->g...ikjl", own, blocks, own).flatten(-2).flatten(-3, -2)

        sds = []
        for covariance, mode in zip(self.group_sds, self.group_modes, strict=True):
            variance = torch.diagonal(turned(covariance, mode.shape[2]), dim1=-2, dim2=-1)
            sds.append(variance.clamp_min(0).sqrt().unflatten(-1, (-1, q)))
        volume = 0.0 if root is None or not self.restricted else n_fixed * 0.5 * math.log(q + 1)
        return replace(
            self,
            coefficients=torch.einsum("gkq,gpq->gpk", own, self.coefficients),
            covariance=turned(self.covariance, n_fixed),
            log_likelihood=self.log_likelihood + volume,
            group_modes=tuple(torch.einsum("gkq,gdpq->gdpk", own, mode) for mode in self.group_modes),
            group_sds=tuple(sds),
        )

    def without(self, genes: list[bool]) -> EffectsFit:
        """Copy in which the estimates of some genes are NaN."""
        rows = torch.tensor(genes)

        def blank(value: Tensor) -> Tensor:
            return torch.where(rows.reshape(-1, *[1] * (value.ndim - 1)), torch.nan, value)

        return replace(
            self.changed({name: blank(getattr(self, name)) for name in OF_GENES if name != "n_iter"}),
            hyper={name: blank(value) for name, value in self.hyper.items()},
            group_modes=tuple(map(blank, self.group_modes)),
            group_sds=tuple(map(blank, self.group_sds)),
            latents=Latents(blank(self.latents.field), blank(self.latents.noise)),
        )

    def effect_covariance(self, effect: int) -> Tensor:
        """Covariance (G, q, q) of the coefficients of one level of an effect, ``L L'``."""
        first = sum(len(basis) for basis in self.bases[:effect])
        basis = torch.as_tensor(self.bases[effect])
        scale = torch.einsum("gj,jkl->gkl", self.parameters[:, first : first + len(basis)], basis)
        return scale @ scale.mT

    def linear_predictor(self, problem: EffectsProblem) -> Tensor:
        """η (G, N, Q) at the mode, offset included, of the problem that was fitted."""
        eta = torch.einsum("np,gpq->gnq", torch.as_tensor(problem.design), self.coefficients)
        for block, mode in zip(problem.groups, self.group_modes, strict=True):
            levels = torch.as_tensor(block.levels)
            columns = torch.as_tensor(block.columns * (block.levels >= 0)[:, None])
            eta += torch.einsum("nk,gnkq->gnq", columns, mode[:, levels.clamp_min(0)])
        inner = torch.zeros_like(eta)
        for k, name in enumerate(self.inner):
            if name == "noise":
                own = self.latents.noise
            elif problem.space is not None:
                own = problem.space.spread(self.latents.field)
                own = own if problem.space_by is None else own * torch.as_tensor(problem.space_by)[:, None]
            inner += self.sds[:, k, None, None] * own
        basis = basis_of(problem.isoform_effect, problem.counts)
        eta += inner if basis is None else basis.logits(inner)
        if problem.offset is not None:
            offset = torch.as_tensor(problem.offset)
            eta += offset[:, None] if offset.ndim == 1 else offset
        return eta


def joined_fits(parts: list[EffectsFit], places: list[NDArray[np.intp]]) -> EffectsFit:
    """One fit of all genes from those of batches, which are at ``places`` of it."""
    order = torch.as_tensor(np.argsort(np.concatenate(places), kind="stable"))
    first = parts[0]
    whole = replace(
        first.changed({name: torch.cat([getattr(part, name) for part in parts]) for name in OF_GENES}),
        hyper={name: torch.cat([part.hyper[name] for part in parts]) for name in first.hyper},
        group_modes=tuple(torch.cat(own) for own in zip(*(part.group_modes for part in parts), strict=True)),
        group_sds=tuple(torch.cat(own) for own in zip(*(part.group_sds for part in parts), strict=True)),
        latents=Latents(
            torch.cat([part.latents.field for part in parts]), torch.cat([part.latents.noise for part in parts])
        ),
        reason=np.concatenate([part.reason for part in parts]),
    )
    return whole.take(order)


def with_signs(parameters: Array, bases: list[Array]) -> Array:
    """Parameters (G, J) with the signs of columns of each L such that no diagonal sum of it is negative.

    Columns that a matrix of a basis links change their sign together: L and −L are the same effect.
    """
    out, first = parameters.copy(), 0
    for basis in bases:
        own = out[:, first : first + len(basis)]
        touched = [set(np.flatnonzero(np.any(matrix != 0, axis=0)).tolist()) for matrix in basis]
        for linked in _linked(touched):
            members = [j for j, columns in enumerate(touched) if columns & linked]
            weight = np.array([np.trace(basis[j]) for j in members])
            negative = own[:, members] @ weight < 0
            own[np.ix_(negative, members)] *= -1
        first += len(basis)
    return out


def _linked(sets: list[set[int]]) -> list[set[int]]:
    """Unions of sets that share members."""
    unions: list[set[int]] = []
    for own in sets:
        apart = [other for other in unions if not other & own]
        unions = [*apart, own.union(*(other for other in unions if other & own))]
    return unions
