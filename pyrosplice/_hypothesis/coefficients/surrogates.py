r"""Redrawn covariates: would others that vary in space as this one does go along with usage as well?

A covariate z is a sum of the patterns :math:`u_j` of a tissue, the eigenvectors of its spatial covariance from the
smoothest on. A surrogate has the same energy at every scale and is independent of the counts,

.. math:: z^* = \sum_j u_j \sqrt{m_j}\, \epsilon_j, \qquad
          m_j = \sum_k K_{jk} (u_k' z)^2, \qquad \epsilon_j \sim N(0, 1),

with m the energy smoothed over the logarithm of the rank. The p-value of a statistic is its rank among those of the
surrogates: no model of usage stands behind it, only that the covariate is one draw of what varies like it. Several
columns (levels of a factor) are drawn together, their energies matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from pyrosplice._hypothesis.coefficients.restricted_posterior import regular_factor
from pyrosplice._hypothesis.coefficients.score import Linearized
from pyrosplice._hypothesis.coefficients.working_model import eigenspaces
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice.errors import InvalidArgumentError

SMOOTHING = 0.35  # standard deviation in log rank; with .7 or without any, sizes under domains differ by less than 1 %
MOST_SPOTS = 4_000  # whose patterns are all worked out: 4,000 take half a minute, and time goes with the cube
_AT_ONCE = 2**24  # numbers that the images of some surrogates may have
_TIE = 1e-9


@dataclass(frozen=True)
class Patterns:
    """Patterns of a tissue around their mean, ``(N, N − 1)``, the smoothest first, and their variances."""

    vectors: Tensor
    values: Tensor

    @classmethod
    def of(cls, solver: SpatialSolver) -> Patterns:
        """Eigenvectors of the solver's covariance, centred over the spots."""
        n_spots = solver.n_spots
        if n_spots > MOST_SPOTS:
            raise InvalidArgumentError(
                f"law='surrogates': expected at most {MOST_SPOTS} spots, whose patterns are all worked out, found "
                f"{n_spots}; law='averaged' is for any number."
            )
        covariance = solver.dense_covariance()
        centered = covariance - covariance.mean(0) - covariance.mean(1, keepdim=True) + covariance.mean()
        values, vectors = scipy.linalg.eigh(centered.numpy(), subset_by_index=(1, n_spots - 1))
        reversed_order = np.ascontiguousarray(vectors[:, ::-1])
        return cls(torch.from_numpy(reversed_order), torch.from_numpy(values[::-1].copy()))

    def energy(self, columns: Tensor) -> Tensor:
        """Energy of columns ``(N, C)`` in each pattern, ``(N − 1, C, C)``, even over patterns of equal variance."""
        along = self.vectors.T @ columns
        energy = along.unsqueeze(-1) * along.unsqueeze(-2)
        same = energy.tensor_split(eigenspaces(self.values))
        return torch.cat([space.mean(0, keepdim=True).expand_as(space) for space in same])

    def smoothed(self, energy: Tensor) -> Tensor:
        """Smooth ``energy`` over the logarithm of the rank, its sum kept."""
        log_rank = torch.log(torch.arange(len(energy), dtype=torch.float64) + 3.0)
        kernel = torch.exp(-0.5 * ((log_rank[:, None] - log_rank) / SMOOTHING).square())
        kernel /= kernel.sum(0)
        return (kernel @ energy.flatten(1)).unflatten(1, energy.shape[1:])


@dataclass(frozen=True)
class Surrogates:
    """How covariates are redrawn: from which patterns, how many times, and the seed of the draws."""

    patterns: Patterns
    number: int
    seed: int

    def draw(self, columns: Tensor, name: str = "") -> Tensor:
        """Surrogates ``(S, N, C)`` of columns ``(N, C)``; the same ones for the same columns, ``name`` and seed."""
        energy = self.patterns.smoothed(self.patterns.energy(columns))
        values, vectors = torch.linalg.eigh(energy)
        root = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
        generator = torch.Generator().manual_seed(crc32(name.encode(), self.seed & 0xFFFFFFFF))
        noise = torch.randn(self.number, *root.shape[:2], dtype=torch.float64, generator=generator)
        return torch.einsum("nj,jcd,sjd->snc", self.patterns.vectors, root, noise)


def surrogate_test(
    fit: Linearized, fixed: Tensor, columns: Mapping[str, Tensor], surrogates: Surrogates
) -> tuple[Tensor, Tensor]:
    r"""Score statistics of covariates and their ranks among those of surrogates.

    Parameters
    ----------
    fit
        The null fit, whose residual is orthogonal to ``fixed``.
    fixed
        Columns of the null fit, intercept included, ``(N, F)``.
    columns
        Each covariate by its name, what ``fixed`` explains of it taken away, ``(N, C_t)``. The name seeds its draws.
    surrogates
        How to redraw them.

    Returns
    -------
    tuple of Tensor
        Statistics :math:`U' (I_{tt} - I_{tn} I_{nn}^{-1} I_{nt})^{-1} U` with the variance of the model, and p-values
        ``(1 + n larger or equal) / (1 + S)``, ``(B, T)`` each.
    """
    beside, projector, found = _Beside(fit, fixed), torch.linalg.qr(fixed)[0], []
    for name, own in columns.items():
        drawn = surrogates.draw(own, name)
        drawn = drawn - projector @ (projector.T @ drawn)
        whole = torch.cat([own.unsqueeze(0), drawn])
        width = fit.residual.numel() * fit.residual.shape[-1] * own.shape[1]
        statistic = torch.cat([beside.statistics(some) for some in whole.split(max(1, _AT_ONCE // width))], -1)
        at_least = statistic[:, 1:] >= statistic[:, :1] * (1 - _TIE)
        pvalue = (1.0 + at_least.sum(-1).double()) / (1 + surrogates.number)
        known = torch.isfinite(statistic).all(-1)
        found.append((statistic[:, 0], torch.where(known, pvalue, torch.nan)))
    statistic, pvalue = (torch.stack(values, -1) for values in zip(*found, strict=True))
    return statistic, pvalue


class _Beside:
    """Score statistics beside the columns of a null fit."""

    def __init__(self, fit: Linearized, fixed: Tensor):
        self.fit, self.n_genes = fit, len(fit.residual)
        self.eye = torch.eye(fit.residual.shape[-1], dtype=torch.float64)
        self.fixed = fixed
        self.factor = regular_factor(self._against_fixed(self._images(fixed)))

    def statistics(self, columns: Tensor) -> Tensor:
        """Score statistic ``(B, S)`` of each set of columns ``(S, N, C)``."""
        n_sets, _, width = columns.shape
        images = self._images(columns.movedim(0, 1).flatten(1))
        size = width * len(self.eye)
        sets = images.unflatten(-1, (n_sets, size))
        own = torch.einsum("snc,bnqsi->bscqi", columns, sets).flatten(2, 3)
        half = torch.linalg.solve_triangular(self.factor, self._against_fixed(images), upper=False)
        half = half.unflatten(-1, (n_sets, size)).movedim(1, 2)
        information = own - half.mT @ half
        score = torch.einsum("snc,bnq->bscq", columns, self.fit.residual).flatten(2)
        solved = torch.cholesky_solve(score.unsqueeze(-1), regular_factor(information)).squeeze(-1)
        return (score * solved).sum(-1)

    def _images(self, columns: Tensor) -> Tensor:
        """Products ``V⁻¹ (z ⊗ I)`` with columns ``(N, R)``, logits fastest, ``(B, N, Q, R Q)``."""
        fields = torch.einsum("nc,qr->nqcr", columns, self.eye).flatten(2)
        return self.fit.precision_product(fields.expand(self.n_genes, -1, -1, -1))

    def _against_fixed(self, images: Tensor) -> Tensor:
        """Products of the fixed columns with ``images``, ``(X ⊗ I)' images``: ``(B, F Q, R)``."""
        return torch.einsum("nc,bnqr->bcqr", self.fixed, images).flatten(1, 2)
