r"""The linear mixed model that a fitted count model is near its mode, as a function of its variances.

With W the information of the likelihood at the mode of the random effects (a Q × Q block a spot) and s its score there,
the working response :math:`y = \hat\eta + W^{-1} s` is, to second order, normal:

.. math:: y \sim N(X b,\; S), \qquad S = W^{-1} + a^2\, D V_g D + c^2 I,

for the spectrum :math:`V_g`, the field's standard deviation a, D (a relative one for each spot, one by default) and the
standard deviation c of what is independent between spots. Everything is of the coordinates in which the random effect
is independent (:mod:`pyrosplice.effects._isoform_effect`). W may be singular: spots without counts have none.

Spectra: :math:`V_1 = V` by its own solver, exact; steeper ones, :math:`V_g \propto V^g` with mean variance one around
the field's mean, by the leading eigenvectors of V, beyond which little is left of them and the independent part stands
for it. They may be those of another V than the model's: one whose smoothest patterns are waves over the tissue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from pyrosplice._linalg.blocks import (
    inverse_and_logdet,
    matmul,
    matvec,
    planar,
    positive_part,
    sandwich,
)
from pyrosplice._linalg.lowrank import LowRankSolver, quadratic_forms
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._linalg.sparse import SparseSolver, smallest_eigenpairs
from pyrosplice.glmm._mode import Mode

STEEPER = (1.5, 2.0, 3.0)
"""Powers of V beside V itself: spectra that fall as that of domains with sharp edges does, and that are smoother."""
SQUARE = STEEPER.index(2.0)
RANK = 64  # leading eigenvectors of V that the steeper spectra are made of
KEPT = 0.99  # share of a steeper spectrum within them that its own leading ones must have
COLUMNS = 400  # eigenvectors times predictors that are used, at most; of 24 eigenvectors at least
_EQUAL = 1e-7  # share of the largest eigenvalue of V by which eigenvalues differ, at least
_DENSE = 1_500  # spots up to which eigenvectors come from a dense decomposition
_NEVER = 1e-10  # share of the largest information that is added before dividing by it


@dataclass(frozen=True)
class Spectra:
    """Leading eigenvectors of V, ``(N, r)``, eigenvalues of the steeper :math:`V_g`, ``(S, r)``, and of V, ``(r,)``."""

    vectors: Tensor
    values: Tensor
    leading: Tensor

    @classmethod
    def of(cls, solver: SpatialSolver | None, n_spots: int) -> Spectra:
        """Find the spectra of a spatial covariance; without one there are none."""
        if solver is None:
            none = torch.zeros(0, dtype=torch.float64)
            return cls(none.new_zeros(n_spots, 0), none.new_zeros(0, 0), none)
        values, vectors = _leading(solver, min(RANK, n_spots))
        powers = torch.stack([_leading_share(values**power) for power in STEEPER])
        around_mean = 1 - vectors.sum(0).square() / n_spots  # a constant is the intercept's
        return cls(vectors, powers * n_spots / (powers @ around_mean)[:, None], values)

    def for_predictors(self, n_predictors: int) -> Spectra:
        """Keep as many of the leading eigenvectors as that number of predictors leaves time for."""
        return self._first(max(24, COLUMNS // n_predictors))

    def leading_along(self, steeper: int) -> Spectra:
        """The eigenvectors that one of the steeper spectra has anything of."""
        return self._first(int((self.values[steeper] > 0).sum()))

    def _first(self, rank: int) -> Spectra:
        return Spectra(self.vectors[:, :rank], self.values[:, :rank], self.leading[:rank])

    def effective_modes(self, columns: Tensor) -> float:
        """Count the patterns of space (eigenspaces of V) that columns ``(N, C)`` are spread over, constant left out.

        The inverse participation ratio of the energy of orthonormal columns of the same span. Neither the coding and
        units of the columns make a difference, nor which eigenvectors of equal eigenvalues were found: a column has one
        direction in each eigenspace. What is beyond the leading ones counts as spread evenly.
        """
        left, sizes, _ = torch.linalg.svd(columns - columns.mean(0), full_matrices=False)
        span = left[:, sizes > _NEVER * sizes.amax(0, keepdim=True).clamp_min(1e-300)]
        spaces = list(self.vectors.T.tensor_split(eigenspaces(self.leading)))
        if self.vectors.shape[1] < len(columns):
            spaces.pop()  # it may go on beyond the leading ones
        grams = [(space @ span).T @ (space @ span) for space in spaces]
        energy = torch.stack([torch.trace(gram) for gram in grams]).sum() if grams else span.new_zeros(())
        rest = (span.shape[1] - energy).clamp_min(0.0)
        others = len(columns) - sum(len(space) for space in spaces)
        squares = sum((gram.square().sum() for gram in grams), rest.square() / others if others else rest * 0)
        return float((energy + rest).square() / squares.clamp_min(1e-300))


def eigenspaces(values: Tensor) -> Tensor:
    """Where eigenvalues ``(r,)``, descending, become others: the positions at which their eigenvectors are split."""
    return torch.nonzero(values[:-1] - values[1:] > _EQUAL * values[:1]).squeeze(-1) + 1


def _leading_share(values: Tensor) -> Tensor:
    """Eigenvalues ``(r,)``, descending, with zero for the last ones, which have next to nothing of their sum."""
    before = values.cumsum(0) - values
    return torch.where(before < KEPT * values.sum(), values, 0.0)


def _leading(solver: SpatialSolver, rank: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvalues ``(r,)``, descending, and eigenvectors ``(N, r)`` of a solver's covariance."""
    n_spots = solver.n_spots
    if isinstance(solver, LowRankSolver):
        vectors, roots, _ = torch.linalg.svd(solver.root, full_matrices=False)
        rank = min(rank, len(roots))
        return roots[:rank].square(), vectors[:, :rank]
    if n_spots <= _DENSE or not isinstance(solver, SparseSolver):
        some = (n_spots - rank, n_spots - 1)
        values, found = scipy.linalg.eigh(solver.dense_covariance().numpy(), subset_by_index=some)
        return torch.from_numpy(values[::-1].copy()), torch.from_numpy(np.ascontiguousarray(found[:, ::-1]))
    least, found = smallest_eigenpairs(solver.precision, rank)
    return torch.from_numpy(1.0 / least), torch.from_numpy(np.ascontiguousarray(found))


@dataclass(frozen=True)
class WorkingModel:
    """The working responses of a batch of genes.

    Attributes
    ----------
    weight
        W, ``(B, N, Q, Q)``.
    response
        y, ``(B, N, Q)``.
    design
        Columns X that are common to all predictors, ``(N, C)``.
    solver
        Solver for V; None where nothing is spatial.
    spectra
        The steeper spectra of the same field.
    logit_scale
        Standard deviations of the predictors' random effects relative to each other, ``(B, 1, Q)``.
    kept
        Columns of the design that a gene's spots tell from others, ``(B, C)``; the rest are not in its model.
    spot_scale
        D, ``(B, N, 1)`` or ``(1, N, 1)``: those of the field at each spot; None for one everywhere.
    """

    weight: Tensor
    response: Tensor
    design: Tensor
    solver: SpatialSolver | None
    spectra: Spectra
    logit_scale: Tensor
    kept: Tensor
    spot_scale: Tensor | None = None

    @classmethod
    def at(cls, mode: Mode, design: Tensor, spectra: Spectra, kept: Tensor) -> WorkingModel:
        """Make the working model at the mode of the random effects of a fit."""
        step, parameters = mode.step, mode.step.parameters
        weight = planar(positive_part(step.information))
        size = torch.diagonal(weight, dim1=-2, dim2=-1)
        floor = _NEVER * size.amax((1, 2), keepdim=True).clamp_min(1e-200)
        inverse, _ = inverse_and_logdet(weight + torch.diag_embed(floor.expand(size.shape)))
        response = planar(mode.eta + matvec(inverse, mode.score))
        variance = parameters.spatial.square().unsqueeze(1) + parameters.white.square().mean(1, keepdim=True)
        relative = (variance / variance.mean(-1, keepdim=True).clamp_min(1e-12)).clamp_min(0.05)
        same = variance.amax(-1) <= (1 + 1e-9) * variance.amin(-1)
        relative = torch.where(same.unsqueeze(-1), 1.0, relative)
        some = spectra.for_predictors(weight.shape[-1])
        return cls(weight, response, design, step.model.solver, some, relative.sqrt(), kept)

    @property
    def n_logits(self) -> int:
        """Number Q of logits of a gene."""
        return self.response.shape[-1]

    def scaled(self, spot_scale: Tensor) -> WorkingModel:
        """Copy with a field whose standard deviation at the spots is in this proportion, ``(N, 1)``."""
        return replace(self, spot_scale=spot_scale.unsqueeze(0))

    def field_scale(self, deviation: Tensor) -> Tensor:
        """Standard deviation a of the field by spot and predictor for ``deviation`` ``(B,)``: ``(B, N or 1, Q)``."""
        scale = deviation[:, None, None] * self.logit_scale
        return scale if self.spot_scale is None else scale * self.spot_scale

    def noisy_precision(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """Precision ``W̃ = (W⁻¹ + c²)⁻¹`` ``(B, N, Q, Q)``, and ``log |I + c W c|`` of spots, for c ``(B,)``."""
        c = white[:, None, None] * self.logit_scale
        scaled = sandwich(c, self.weight, c)
        torch.diagonal(scaled, dim1=-2, dim2=-1).add_(1.0)
        inverse, logdet = inverse_and_logdet(scaled)
        lost = matmul(matmul(self.weight, sandwich(c, inverse, c)), self.weight)
        return self.weight - lost, logdet.sum(-1)

    def with_noise(self, white: Tensor) -> GivenNoise:
        """Fix c ``(B,)``, the standard deviation of the independent part."""
        return GivenNoise(self, white)


class GivenNoise:
    r"""A working model whose independent variance is given: ``(W⁻¹ + c²)⁻¹`` and what it is made of.

    Attributes
    ----------
    precision
        :math:`\tilde W = (W^{-1} + c^2)^{-1}`, ``(B, N, Q, Q)``.
    logdet
        ``log |I + c W c|`` over the spots, ``(B,)``.
    images
        ``W̃ T`` for the columns ``T = [X ⊗ I, y]``, logits fastest, ``(B, N, Q, R)``; zero of columns not kept.
    products
        ``T' W̃ T``, ``(B, R, R)``; columns that are not kept are independent of the others and of variance one.
    """

    def __init__(self, model: WorkingModel, white: Tensor):
        self.model = model
        self.precision, self.logdet = model.noisy_precision(white)
        columns = torch.einsum("nc,bnqr->bnqcr", model.design, self.precision).flatten(3)
        images = torch.cat([columns, matvec(self.precision, model.response).unsqueeze(-1)], -1)
        kept = model.kept.to(images).repeat_interleave(model.n_logits, 1)
        kept = torch.cat([kept, kept.new_ones(len(kept), 1)], 1)
        self.images = images * kept[:, None, None]
        self.products = self._against_columns(self.images) * kept.unsqueeze(-1) + torch.diag_embed(1 - kept)

    def _against_columns(self, images: Tensor) -> Tensor:
        """Products of the model's columns with ``images``, ``T' images``: ``(B, R, R')``."""
        model = self.model
        rows = torch.einsum("nc,bnqr->bcqr", model.design, images).flatten(1, 2)
        last = torch.einsum("bnq,bnqr->br", model.response, images)
        return torch.cat([rows, last.unsqueeze(1)], 1)

    def through_field(self, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Products ``T' S⁻¹ T`` and ``log |S| + log |W|`` with the field of V itself, for a ``(B,)``."""
        solver = self.model.solver
        if solver is None:
            return self.products, self.logdet
        a = self.model.field_scale(deviation)
        factor = solver.factorize(sandwich(a, self.precision, a))
        pulled = a.unsqueeze(-1) * self.images
        shape = pulled.shape[2:]
        latent = solver.gather(pulled.flatten(2)).unflatten(2, shape)
        lost = torch.einsum("bnqr,bnqs->brs", latent, factor.solve(latent))
        return self.products - lost, self.logdet + factor.logdet() - self.model.n_logits * solver.prior_logdet

    def in_modes(self) -> Modes:
        """View of the model through the leading eigenvectors of V."""
        return Modes(self)


class Modes:
    """A working model of fixed independent variance, along the leading eigenvectors U of V.

    ``information`` is ``(D U)' W̃ D U``, ``(B, r Q, r Q)``, predictors fastest, and ``images`` ``(D U)' W̃ T``.
    """

    def __init__(self, noise: GivenNoise):
        self.noise, model = noise, noise.model
        scale = model.field_scale(torch.ones(len(model.response), dtype=torch.float64))
        self.images = _project(model.spectra.vectors, scale.unsqueeze(-1) * noise.images)
        self.information = quadratic_forms(model.spectra.vectors, sandwich(scale, noise.precision, scale))

    def through_field(self, values: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Products ``T' S⁻¹ T`` and ``log |S| + log |W|`` with a field of eigenvalues ``(r,)``, for a ``(B,)``."""
        values = values[values > 0]
        root = deviation[:, None] * values.sqrt().repeat_interleave(self.noise.model.n_logits)
        size = root.shape[1]
        system = self.information[:, :size, :size] * root[:, :, None]
        system *= root[:, None]
        torch.diagonal(system, dim1=-2, dim2=-1).add_(1.0)
        factor, info = torch.linalg.cholesky_ex(system)
        half = torch.linalg.solve_triangular(factor, root.unsqueeze(-1) * self.images[:, :size], upper=False)
        logdet = 2 * torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
        logdet = logdet.masked_fill(info > 0, torch.nan)
        return self.noise.products - half.mT @ half, self.noise.logdet + logdet


def _project(vectors: Tensor, fields: Tensor) -> Tensor:
    """Coordinates ``U' x`` of ``(B, N, Q, R)`` in the eigenvectors: ``(B, r Q, R)``."""
    n_genes, n_spots, q, width = fields.shape
    found = vectors.T @ fields.reshape(n_genes, n_spots, q * width)
    return found.reshape(n_genes, -1, width)
