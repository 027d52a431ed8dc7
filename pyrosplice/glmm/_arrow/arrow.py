r"""The algebra of the arrow: Newton systems of groups and coefficients, dense only in the corner.

With b of support u a linear map :math:`F_u(\psi)` of standardized unknowns z, the Newton matrix is
:math:`H = \sum_u F_u' M_u F_u + \text{prior}`. The unknowns are *private* to one group of supports (the levels of one
primary effect, and of effects that are nested in it) or in the *border* (coefficients, effects that cross the groups or
whose levels are related): H is block diagonal but for the border, and so are all solves, determinants and covariances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow import arrow_kernels as kernels
from pyrosplice.glmm._arrow.layout import Incidence, SupportLayout

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
MOST_BORDER = 4000  # unknowns of the dense corner: 128 MB a gene


@dataclass(frozen=True)
class ArrowUnknowns:
    """Standardized unknowns of genes: the ``border`` (b, B), coefficients first, and ``private`` ones (b, D, m)."""

    border: Array
    private: Array

    def moved(self, step: ArrowUnknowns, length: Array) -> ArrowUnknowns:
        """Move by ``length`` (b,) times a step."""
        return ArrowUnknowns(
            self.border + length[:, None] * step.border, self.private + length[:, None, None] * step.private
        )

    def select(self, genes: NDArray[np.intp] | NDArray[np.bool_]) -> ArrowUnknowns:
        """Take those of some of the genes."""
        return ArrowUnknowns(self.border[genes], self.private[genes])

    def dot(self, other: ArrowUnknowns) -> Array:
        """Inner product of each gene's (b,)."""
        return (self.border * other.border).sum(1) + (self.private * other.private).sum((1, 2))


@dataclass(frozen=True)
class _Home:
    """Where the levels of an effect are: ``group`` (D,), −1 for none, of private ones, and the first ``place`` (D,)."""

    private: bool
    group: Indices
    place: Indices
    slot: Indices  # (R,) column of F of each entry


class Arrow:
    """How the unknowns of a problem hang together.

    Parameters
    ----------
    layout
        Supports and how effects enter them.
    blocks
        The effects.
    restricted
        Whether the coefficients are among the unknowns.
    """

    def __init__(self, layout: SupportLayout, blocks: tuple[GroupBlock, ...], *, restricted: bool):
        self.layout, self.blocks, self.restricted = layout, blocks, restricted
        q = layout.n_predictors
        self.bases = [np.kron(block.basis, np.eye(q)) for block in blocks]
        self.widths = [basis.shape[1] for basis in self.bases]
        self.n_coefficients = layout.fixed.shape[2] if restricted else 0
        self.n_parameters = sum(len(basis) for basis in self.bases)
        primary, inside = self._choose()
        self._set_private(primary, inside)
        self._set_border([e for e in range(len(blocks)) if e not in inside])

    def _choose(self) -> tuple[int | None, list[int]]:
        """Effect whose levels are eliminated one by one, and with it all that are private to them: the least work."""
        best: tuple[float, int | None, list[int]] = (self._work(None, []), None, [])
        for e in range(len(self.blocks)):
            inside = self._nested(e)
            if inside:
                best = min(best, (self._work(e, inside), e, inside), key=lambda choice: choice[0])
        return best[1:]

    def _work(self, primary: int | None, inside: list[int]) -> float:
        """Multiplications of a factorisation, about."""
        border = self.n_coefficients + sum(
            len(block.level_names) * self.widths[e] for e, block in enumerate(self.blocks) if e not in inside
        )
        if primary is None:
            return float(border) ** 3
        size = self._counted(primary, inside)[0]
        return float(border) ** 3 + len(self.blocks[primary].level_names) * size * float(size + border) ** 2

    def _nested(self, primary: int) -> list[int]:
        """Effects private to the levels of one, itself among them; none if it cannot be the primary one."""
        entry = self.layout.incidences[primary]
        if self.blocks[primary].root is not None or len(np.unique(entry.support)) < len(entry.support):
            return []
        group = np.full(self.layout.n_supports, -1)
        group[entry.support] = entry.level
        inside = []
        for e, other in enumerate(self.layout.incidences):
            pairs = np.unique(np.column_stack([other.level, group[other.support]]), axis=0)
            alone = len(np.unique(pairs[:, 0])) == len(pairs) and bool((pairs[:, 1] >= 0).all())
            if e == primary or (alone and self.blocks[e].root is None):
                inside.append(e)
        return inside

    def _counted(self, primary: int, inside: list[int]) -> tuple[int, Indices, dict[int, tuple[Indices, Indices]]]:
        """Private unknowns of a group, group of each support, and for each effect group and place of its levels."""
        n_groups = len(self.blocks[primary].level_names)
        own = self.layout.incidences[primary]
        group = np.full(self.layout.n_supports, n_groups, np.int64)  # the last is that of supports without a level
        group[own.support] = own.level
        size, homes = 0, {}
        for e in inside:
            entry, n_levels = self.layout.incidences[e], len(self.blocks[e].level_names)
            of_level = np.full(n_levels, -1, np.int64)
            of_level[entry.level] = group[entry.support]
            order = np.argsort(of_level, kind="stable")
            rank = np.empty(n_levels, np.int64)
            rank[order] = np.arange(n_levels) - np.searchsorted(of_level[order], of_level[order])
            homes[e] = (of_level, np.where(of_level >= 0, size + rank * self.widths[e], 0))
            size += self.widths[e] * (int(rank[of_level >= 0].max(initial=-1)) + 1)
        return size, group, homes

    def _set_private(self, primary: int | None, inside: list[int]) -> None:
        self.group = np.zeros(self.layout.n_supports, np.int64)
        self.n_groups, self.n_private = 1, 0
        self.homes: dict[int, _Home] = {}
        if primary is None:
            return
        self.n_private, self.group, homes = self._counted(primary, inside)
        self.n_groups = max(len(self.blocks[primary].level_names), int(self.group.max()) + 1)
        for e, (of_level, place) in homes.items():
            self.homes[e] = _Home(True, of_level, place, place[self.layout.incidences[e].level])

    def _set_border(self, outside: list[int]) -> None:
        """Number the unknowns of the border, and say which of them each support has where."""
        n_supports, n = self.layout.n_supports, self.n_coefficients
        index = [np.broadcast_to(np.arange(n), (n_supports, n))]
        roots: list[Array] = [np.eye(n)]
        start = slot = n
        for e in outside:
            block, width, entry = self.blocks[e], self.widths[e], self.layout.incidences[e]
            n_levels = len(block.level_names)
            place = start + np.arange(n_levels) * width
            start += n_levels * width
            if start > MOST_BORDER:
                raise InvalidArgumentError(
                    f"groups: effect {block.name!r} crosses the other effects, or has levels that are related, and has "
                    f"{n_levels} levels: expected at most {MOST_BORDER} coefficients in all of such effects, found "
                    f"{start}. Merge levels, or make it nested in another effect."
                )
            rank = _ranks(entry)
            own = np.full((n_supports, (int(rank.max(initial=-1)) + 1) * width), -1, np.int64)
            own[entry.support[:, None], rank[:, None] * width + np.arange(width)] = place[
                entry.level, None
            ] + np.arange(width)
            self.homes[e] = _Home(False, np.zeros(n_levels, np.int64), place, slot + rank * width)
            slot += own.shape[1]
            index.append(own)
            roots.append(np.asarray(np.kron(np.eye(n_levels) if block.root is None else block.root, np.eye(width))))
        self.index = np.ascontiguousarray(np.concatenate(index, 1), dtype=np.int64)
        self.n_border = start
        self.prior = (np.arange(start) >= n).astype(np.float64)
        self.root: Array | None = None
        if any(self.blocks[e].root is not None for e in outside):
            self.root = _block_diagonal(roots)
        for e, home in self.homes.items():
            if home.private:
                self.homes[e] = _Home(True, home.group, home.place, slot + home.slot)
        self.n_local = slot + self.n_private

    def zeros(self, n_genes: int) -> ArrowUnknowns:
        """ArrowUnknowns at zero."""
        return ArrowUnknowns(np.zeros((n_genes, self.n_border)), np.zeros((n_genes, self.n_groups, self.n_private)))

    def scales(self, psi: Array) -> list[Array]:
        """L of every effect, (b, q Q, q Q), at parameters (b, J)."""
        parts = np.split(psi, np.cumsum([len(basis) for basis in self.bases])[:-1], axis=1) if self.bases else []
        return [np.einsum("bj,jkl->bkl", part, basis) for part, basis in zip(parts, self.bases, strict=True)]

    def map(self, psi: Array) -> Array:
        """F at parameters (b, J): (b, U, w, c)."""
        out = np.zeros((len(psi), self.layout.n_supports, self.layout.width, self.n_local))
        out[..., : self.n_coefficients] = self.layout.fixed[..., : self.n_coefficients]
        for e, scale in enumerate(self.scales(psi)):
            entry = self.layout.incidences[e]
            kernels.place(entry.support, self.homes[e].slot, entry.select, scale, out)
        return out

    def map_gradient(self, slope: Array) -> Array:
        """Derivatives in the parameters (b, J) of what has the derivative ``slope`` (b, U, w, c) in F."""
        parts = [np.zeros((len(slope), 0))]
        for e, basis in enumerate(self.bases):
            entry, own = self.layout.incidences[e], np.zeros((len(slope), *basis.shape[1:]))
            kernels.displace(entry.support, self.homes[e].slot, entry.select, slope, own)
            parts.append(np.einsum("bkl,jkl->bj", own, basis))
        return np.concatenate(parts, 1)

    def map_derivative(self, parameter: int, n_genes: int) -> Array:
        """Derivative of F in one of the parameters, the same for all genes: (b, U, w, c)."""
        out = np.zeros((1, self.layout.n_supports, self.layout.width, self.n_local))
        for e, basis in enumerate(self.bases):
            if 0 <= parameter < len(basis):
                entry = self.layout.incidences[e]
                kernels.place(entry.support, self.homes[e].slot, entry.select, basis[parameter, None], out)
            parameter -= len(basis)
        return np.broadcast_to(out, (n_genes, *out.shape[1:])).copy()

    def product(self, map_: Array, local: Array) -> Array:
        """Product ``F z`` of every support with its unknowns (b, U, c): (b, U, w)."""
        out = np.empty(map_.shape[:3])
        kernels.through_map(map_, local, out)
        return out

    def rooted(self, border: Array) -> Array:
        """Border unknowns (..., B) as they enter supports: related levels mixed by their root."""
        return border if self.root is None else border @ self.root.T

    def local(self, unknowns: ArrowUnknowns) -> Array:
        """ArrowUnknowns of each support, (b, U, c)."""
        out = np.empty((len(unknowns.border), self.layout.n_supports, self.n_local))
        kernels.gather(self.index, self.group, self.rooted(unknowns.border), unknowns.private, out)
        return out

    def blocks_of(self, map_: Array, unknowns: ArrowUnknowns) -> Array:
        """Coefficients of each support, ``F z``: (b, U, w)."""
        return self.product(map_, self.local(unknowns))

    def pull(self, map_: Array, score: Array) -> ArrowUnknowns:
        """Right-hand side of the unknowns from that of every support's b, ``F' g``."""
        out = self.zeros(len(map_))
        kernels.pull(map_, np.ascontiguousarray(score), self.index, self.group, out.border, out.private)
        return out if self.root is None else ArrowUnknowns(out.border @ self.root, out.private)

    def prior_slope(self, unknowns: ArrowUnknowns) -> ArrowUnknowns:
        """Prior precision times unknowns."""
        return ArrowUnknowns(self.prior * unknowns.border, unknowns.private)

    def effects(self, e: int, unknowns: ArrowUnknowns) -> Array:
        """Standardized effects of every level of an effect, (b, D, q Q), roots applied."""
        home, width = self.homes[e], np.arange(self.widths[e])
        if not home.private:
            return self.rooted(unknowns.border)[:, home.place[:, None] + width]
        taken = unknowns.private[:, np.maximum(home.group, 0)[:, None], home.place[:, None] + width]
        return np.where(home.group[:, None] >= 0, taken, 0.0)

    def factor(self, map_: Array, information: Array) -> ArrowFactor:
        """Factorize the Newton matrix with F (b, U, w, c) and M (b, U, w, w)."""
        return ArrowFactor(self, map_, information)


class ArrowFactor:
    """A factorized Newton matrix of a batch of genes.

    Attributes
    ----------
    logdet : (b,)
        NaN where the matrix is not positive definite.
    """

    def __init__(self, arrow: Arrow, map_: Array, information: Array):
        self.arrow, self.map, self.information = arrow, map_, np.ascontiguousarray(information)
        b, d, m, n = len(map_), arrow.n_groups, arrow.n_private, arrow.n_border
        self.inverse, self.mixed = np.zeros((b, d, m, m)), np.zeros((b, d, m, n))
        self.through, schur, private_logdet = np.empty((b, d, m, n)), np.zeros((b, n, n)), np.empty(b)
        kernels.assemble(map_, self.information, arrow.index, arrow.group, self.inverse, self.mixed, schur)
        kernels.eliminate_private(self.inverse, self.mixed, self.through, schur, private_logdet)
        if arrow.root is not None:
            schur = arrow.root.T @ schur @ arrow.root
        schur[:, range(n), range(n)] += arrow.prior
        factor, failed = torch.linalg.cholesky_ex(_symmetric(torch.from_numpy(schur)))
        diagonal = torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
        self.logdet = private_logdet + np.where(failed.numpy() == 0, 2 * diagonal.numpy(), np.nan)
        safe = torch.where((failed == 0)[:, None, None], factor, torch.eye(n, dtype=torch.float64))
        self.border_covariance: Array = torch.cholesky_inverse(safe).numpy()

    def solve(self, rhs: ArrowUnknowns) -> ArrowUnknowns:
        """Solve for a right-hand side."""
        arrow, border, private = self.arrow, np.zeros_like(rhs.border), rhs.private.copy()
        kernels.before_border(self.inverse, self.mixed, border, private)
        border = rhs.border + (border if arrow.root is None else border @ arrow.root)
        border = (self.border_covariance @ border[..., None])[..., 0]
        kernels.after_border(self.through, arrow.rooted(border), private)
        return ArrowUnknowns(border, private)

    def moments(self) -> ArrowMoments:
        """Posterior covariances of the unknowns."""
        arrow, map_ = self.arrow, self.map
        b, d, m, n = self.mixed.shape
        border = self.border_covariance
        if arrow.root is not None:
            border = arrow.root @ border @ arrow.root.T
        mixed = -(self.through.reshape(b, d * m, n) @ border).reshape(b, d, m, n)
        private = self.inverse - mixed @ np.swapaxes(self.through, -1, -2)
        cross = np.empty((*map_.shape[:2], map_.shape[3], map_.shape[2]))
        out = np.empty((*map_.shape[:3], map_.shape[2]))
        kernels.covariances(map_, arrow.index, arrow.group, np.ascontiguousarray(border), mixed, private, cross, out)
        return ArrowMoments(arrow, border, private, cross, out)


@dataclass(frozen=True)
class ArrowMoments:
    """Posterior covariances: of ``border`` (b, B, B) and ``private`` (b, D, m, m) unknowns, and of supports.

    ``cross`` (b, U, c, w) is that of the unknowns of each support with its b, ``blocks`` (b, U, w, w) that of b.
    """

    arrow: Arrow
    border: Array
    private: Array
    cross: Array
    blocks: Array

    def effects(self, e: int) -> Array:
        """Covariance of the standardized effects of every level of an effect, (b, D, q Q, q Q), roots applied."""
        home, width = self.arrow.homes[e], np.arange(self.arrow.widths[e])
        rows = home.place[:, None, None] + width[:, None]
        columns = home.place[:, None, None] + width
        if not home.private:
            return self.border[:, rows, columns]
        taken = self.private[:, np.maximum(home.group, 0)[:, None, None], rows, columns]
        return np.where(home.group[:, None, None] >= 0, taken, np.eye(len(width)))


def _ranks(entry: Incidence) -> Indices:
    """Place (R,) of each entry among those of its support."""
    return np.arange(len(entry.support)) - np.searchsorted(entry.support, entry.support)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def _block_diagonal(parts: list[Array]) -> Array:
    size = sum(len(part) for part in parts)
    out, at = np.zeros((size, size)), 0
    for part in parts:
        out[at : at + len(part), at : at + len(part)] = part
        at += len(part)
    return out
