"""Gaussian sites whose precision is known from the distribution, so that no Hessian of theirs is computed.

Another distribution is added by :func:`precision`'s ``register``::

    @precision.register(MyField)
    def _(fn: MyField) -> MatrixPrecision:
        return MatrixPrecision(fn.precision_matrix)

What is registered is checked at every fit against the site's own log density, and not used where it is not its
curvature (a mean that depends on another integrated site, a wrong matrix).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from pyrosplice.effects._isoform_effect import SoftmaxBasis
from pyrosplice.glmm._distributions import SpatialEffect
from pyrosplice.guides._latent_sites import LatentSite


@dataclass(frozen=True)
class DiagonalPrecision:
    """Independent numbers: ``values`` broadcasts to the shape of the site.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> import torch
    >>> from pyrosplice.guides import precision
    >>> precision(dist.Normal(torch.zeros(3), 0.5)).values.tolist()
    [4.0, 4.0, 4.0]
    """

    values: Tensor


@dataclass(frozen=True)
class MatrixPrecision:
    """Precision as one matrix ``(..., k, k)`` for the k numbers of an event, in the order of its flattened value.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> import torch
    >>> from pyrosplice.guides import precision
    >>> precision(dist.MultivariateNormal(torch.zeros(2), 4 * torch.eye(2))).matrix
    tensor([[0.2500, -0.0000],
            [-0.0000, 0.2500]])
    """

    matrix: Tensor


Precision = DiagonalPrecision | MatrixPrecision


@singledispatch
def precision(fn: object) -> Precision | None:
    """Precision of a Gaussian distribution, differentiable in its parameters; None where it is not known.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> import torch
    >>> from pyrosplice.guides import precision
    >>> type(precision(dist.Normal(torch.zeros(3), 0.5))).__name__, precision(dist.StudentT(3.0))
    ('DiagonalPrecision', None)
    """
    return None


@precision.register(torch.distributions.Normal)
def _normal(fn: torch.distributions.Normal) -> Precision:
    return DiagonalPrecision(fn.scale.expand(fn.batch_shape) ** -2)


@precision.register(torch.distributions.Independent)
def _independent(fn: torch.distributions.Independent[Any]) -> Precision | None:
    inner = precision(fn.base_dist)
    return inner if isinstance(inner, DiagonalPrecision) else None


@precision.register(torch.distributions.MultivariateNormal)
def _multivariate(fn: torch.distributions.MultivariateNormal) -> Precision:
    return MatrixPrecision(fn.precision_matrix)


@precision.register(SpatialEffect)
def _spatial(fn: SpatialEffect) -> Precision:
    vectors, n_logits = fn.covariance.eigenvectors, fn.event_shape[1]
    by_logit = torch.einsum("ik,...kq,jk->...qij", vectors, 1 / fn.eigen_variances, vectors)
    turn = torch.eye(n_logits, dtype=vectors.dtype)
    if fn.isoform_effect == "symmetric":
        turn = SoftmaxBasis.plain(n_logits, fn.sigma).inverse
    whole = torch.einsum("qa,...qij,qb->...iajb", turn, by_logit, turn)
    size = whole.shape[-1] * whole.shape[-2]
    return MatrixPrecision(whole.reshape(*whole.shape[:-4], size, size))


@dataclass(frozen=True)
class SiteEntries:
    """Entries of the precision of a site's packed unknowns, of every unit.

    Attributes
    ----------
    diagonal
        ``(G, size)``, or None.
    blocks
        ``(G, n, k, k)``, n events of k numbers, or None.
    """

    diagonal: Tensor | None
    blocks: Tensor | None

    @classmethod
    def of(cls, site: LatentSite, fn: torch.distributions.Distribution) -> SiteEntries | None:
        """Read the precision of a site with distribution ``fn``; None where it is not known."""
        known = precision(fn)
        if known is None or len(fn.batch_shape) > site.batch_dim or not site.is_real():
            return None
        if isinstance(known, DiagonalPrecision):
            return cls(site.pack(known.values.expand(site.shape)), None)
        batch, size = site.shape[: site.batch_dim], known.matrix.shape[-1]
        matrix = known.matrix.expand(*batch, size, size)
        if site.axis is None:
            return cls(None, matrix.reshape(1, -1, size, size))
        n_units = batch[site.axis]
        return cls(None, matrix.movedim(site.axis, 0).reshape(n_units, -1, size, size))

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries ``(G, *rows.shape)``; zero where row or column is negative."""
        inside = (rows >= 0) & (columns >= 0)
        rows, columns = rows.clamp_min(0), columns.clamp_min(0)
        if self.diagonal is not None:
            return self.diagonal[:, rows] * (inside & (rows == columns))
        assert self.blocks is not None
        size = self.blocks.shape[-1]
        event = rows // size
        return self.blocks[:, event, rows % size, columns % size] * (inside & (event == columns // size))

    def matrix(self) -> Tensor:
        """Full precision matrix, ``(G, size, size)``."""
        if self.diagonal is not None:
            return torch.diag_embed(self.diagonal)
        assert self.blocks is not None
        if self.blocks.shape[1] == 1:
            return self.blocks[:, 0]
        size = torch.arange(self.blocks.shape[1] * self.blocks.shape[2])
        return self.at(size[:, None].expand(-1, len(size)), size[None].expand(len(size), -1))

    def product(self, vector: Tensor) -> Tensor:
        """Precision times ``(G, size)``."""
        if self.diagonal is not None:
            return self.diagonal * vector
        assert self.blocks is not None
        parts = vector.reshape(*self.blocks.shape[:3], 1)
        return (self.blocks @ parts).reshape(vector.shape)

    def pattern(self) -> tuple[Tensor, Tensor]:
        """Rows and columns that are not zero in some unit."""
        if self.blocks is None:
            none = torch.zeros(0, dtype=torch.long)
            return none, none
        event, row, column = (self.blocks != 0).any(0).nonzero(as_tuple=True)
        size = self.blocks.shape[-1]
        return event * size + row, event * size + column
