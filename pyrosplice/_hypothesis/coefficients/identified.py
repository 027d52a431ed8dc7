"""What the spots of one gene say of covariates: a gene need not be seen wherever they vary.

Columns that are independent over all spots may depend on each other over the spots where a gene has counts: levels of a
factor in which it is not seen, a covariate that varies elsewhere only. What such a gene identifies is tested, with its
own degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SUSPECT = 1e-9  # relative eigenvalue of a Gram matrix below which a gene is looked at closely
_DEPENDENT = 1e-7  # relative length below which what is left of a column over a gene's spots counts as nothing
TOUCHED = 1e-6  # share of a combination along what is not identified above which it is not identified either


@dataclass(frozen=True)
class Coverage:
    """Which directions of some columns the genes do not identify.

    Attributes
    ----------
    columns
        Columns over all spots, orthogonal to each other and of mean square one or less, ``(N, C)``.
    informed
        Spots that inform about each gene, ``(B, N)``.
    deficient
        Genes for which the columns depend on each other.
    """

    columns: Tensor
    informed: Tensor
    deficient: tuple[int, ...]

    @classmethod
    def of(cls, columns: Tensor, informed: Tensor) -> Coverage:
        """Look at every gene."""
        used = columns[:, columns.square().sum(0) > 0]
        gram = torch.einsum("bn,np,nq->bpq", informed.to(columns), used, used)
        values = torch.linalg.eigvalsh(gram)
        suspect = values[:, 0] <= _SUSPECT * values[:, -1]
        return cls(columns, informed, tuple(torch.nonzero(suspect).squeeze(-1).tolist()))

    def null_space(self, gene: int) -> Tensor:
        """Orthonormal directions ``(C, d)`` along which the predictors of all the gene's spots stay as they are."""
        own = self.columns[self.informed[gene]]
        if not len(own):
            return torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
        _, values, right = torch.linalg.svd(own, full_matrices=True)
        rank = int((values > _DEPENDENT * values[:1]).sum())
        return right[rank:].T

    def identified(self, gene: int) -> tuple[Tensor, Tensor]:
        """Spots ``(N,)`` whose predictors the gene identifies, and its null space."""
        null = self.null_space(gene)
        return (self.columns @ null).norm(dim=1) <= TOUCHED * self.columns.norm(dim=1), null

    def independent(self) -> Tensor:
        """Columns that are no combination of those before them over a gene's spots, ``(B, C)``."""
        kept = torch.ones(len(self.informed), self.columns.shape[1], dtype=torch.bool, device=self.columns.device)
        for gene in self.deficient:
            kept[gene] = self._independent(gene)
        return kept

    def _independent(self, gene: int) -> Tensor:
        own = self.columns[self.informed[gene]]
        kept = torch.zeros(own.shape[1], dtype=torch.bool, device=own.device)
        size, basis = own.square().sum(0).mean().sqrt(), own[:, :0]
        for column, new in enumerate(own.T):
            rest = new
            for _ in range(2):
                rest = rest - basis @ (basis.T @ rest)
            kept[column] = bool(rest.norm() > _DEPENDENT * size)
            if kept[column]:
                basis = torch.cat([basis, (rest / rest.norm()).unsqueeze(1)], 1)
        return kept

    def basis_beside(self, gene: int, beside: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """Combinations of the columns that are orthonormal over the gene's spots: ``(C, p)`` and ``(C, r)``.

        Those of ``beside`` ``(C, P)``, and what ``group`` ``(C, R)`` adds to them.
        """
        own = self.columns[self.informed[gene]]
        size = (own.square().sum(1).mean() * len(own)).sqrt() if len(own) else own.new_zeros(())
        nuisance = _orthonormal(own, beside, size)
        rest = group
        for _ in range(2):
            rest = rest - nuisance @ ((own @ nuisance).T @ (own @ rest))
        return nuisance, _orthonormal(own, rest, size)


def _orthonormal(rows: Tensor, combinations: Tensor, size: Tensor) -> Tensor:
    """Combinations of ``combinations`` for which ``rows @ ·`` is orthonormal; lengths are compared with ``size``."""
    _, values, right = torch.linalg.svd(rows @ combinations, full_matrices=False)
    kept = values > _DEPENDENT * size
    return combinations @ (right[kept].T / values[kept])


def independent_columns(columns: Tensor, informed: Tensor, n_fixed: int, widths: Sequence[int]) -> Tensor:
    """Columns ``(B, C)`` that the spots of the genes ``(B, N)`` tell from others.

    The first ``n_fixed`` from those before them, each group of the columns that follow (``widths``) from these and the
    group's own before them.
    """
    fixed, *groups = columns.split([n_fixed, *widths], 1)
    each = [Coverage.of(torch.cat([fixed, group], 1), informed).independent() for group in groups]
    return torch.cat([each[0][:, :n_fixed], *(kept[:, n_fixed:] for kept in each)], 1)


def identified_rows(rows: Tensor, null: Tensor) -> Tensor:
    """Combinations of the orthonormal ``rows`` ``(R, C)`` that do not touch the directions ``null`` ``(C, d)``."""
    if not null.shape[1]:
        return rows
    left, values, _ = torch.linalg.svd(rows @ null, full_matrices=True)
    touched = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    touched[: len(values)] = values > TOUCHED
    return left[:, ~touched].T @ rows
