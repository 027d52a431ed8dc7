"""Minus the Hessian of a :class:`UnitDensity` in some of its sites: known precisions, coloured products, blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from pyrosplice._optimize.newton import solve_curvature
from pyrosplice.errors import RefusedModelError
from pyrosplice.guides._first_points import ModelTrace, normal_numbers
from pyrosplice.guides._precisions import SiteEntries
from pyrosplice.guides._separate_units import probe
from pyrosplice.guides._sparsity import TooCoupledError, colors, components, dependence, meeting, vector_products
from pyrosplice.guides._unit_density import Terms, UnitDensity

MOST_NUMBERS = 500_000_000  # of the Hessians of all units: 4 GB
AGREEMENT = 1e-7  # relative, of two ways to one product with a Hessian


@dataclass(frozen=True)
class Expansion:
    """A density to second order at unknowns of its units.

    ``value`` ``(G,)``, ``gradient`` ``(G, m)`` and ``hessian`` ``(G, B, k, k)``, of *minus* the density, B blocks of k.
    """

    value: Tensor
    gradient: Tensor
    hessian: Tensor


@dataclass(frozen=True)
class Layout:
    """How the Hessian of a unit is found and stored.

    Attributes
    ----------
    known
        Sites whose precision is taken from their distribution.
    reasons
        Why it is not, by site.
    colour
        Product that gives each column, ``(m,)``.
    blocks
        Unknowns of each block, ``(B, k)``, m where a block is shorter than the longest.
    meets
        Whether a product is an entry, ``(B, k, k)``.
    """

    known: tuple[str, ...]
    reasons: dict[str, str]
    color: Tensor
    blocks: Tensor
    meets: Tensor = field(repr=False)

    @property
    def n_products(self) -> int:
        """Products with the Hessian that give all of it."""
        return int(self.color.max()) + 1 if len(self.color) else 0


class Curvature:
    """Second-order expansion of a density in the ``inner`` sites, the others (``outer``) given.

    Parameters
    ----------
    density
        Density of the model.
    inner
        Names of the sites.
    use_structure
        False: one product a column, no known precision, one block; what the rest is checked against.
    """

    def __init__(self, density: UnitDensity, inner: Sequence[str], *, use_structure: bool = True) -> None:
        self.density, self.inner = density, tuple(name for name in density.latents if name in inner)
        self.outer = tuple(name for name in density.latents if name not in inner)
        self.columns = _columns(density, self.inner)
        self.rest = _columns(density, self.outer)
        self._order = torch.cat([self.rest, self.columns]).argsort()
        self._first = dict(
            zip(self.inner, np.cumsum([0, *(density.latents[n].size for n in self.inner)]), strict=False)
        )
        self.layout = self._structured() if use_structure else self._plain({})
        if use_structure and not self._agrees():
            self.layout = self._plain({"all": "the products disagree with autograd"})
        self._check_size()
        blocks = self.layout.blocks
        self._padding = torch.diag_embed((blocks == self.size).to(density.start))
        self._place = torch.empty(self.size, dtype=torch.long)
        inside = blocks.flatten() < self.size
        self._place[blocks.flatten()[inside]] = inside.nonzero()[:, 0]

    @property
    def size(self) -> int:
        """Number m of unknowns of a unit."""
        return len(self.columns)

    def join(self, outer: Tensor, inner: Tensor) -> Tensor:
        """Join all unknowns ``(..., G, d)`` from those of the outer and of the inner sites."""
        return torch.cat([outer, inner], -1)[..., self._order]

    def expand(self, outer: Tensor, inner: Tensor, *, create_graph: bool = False) -> Expansion:
        """Value, gradient and Hessian; differentiable in both arguments with ``create_graph``."""
        with torch.enable_grad():
            if not inner.requires_grad:
                inner = inner.detach().requires_grad_(True)
            values, volume = self.density.constrain(self.join(outer, inner))
            trace = self.density.trace(values)
            terms = self.density.terms(trace)
            value = self.density.total(terms, volume)
            (gradient,) = torch.autograd.grad(value.sum(), inner, create_graph=True)
            others = gradient
            if self.layout.known:
                others = _slope(_without(terms, self.layout.known, volume), inner)
            hessian = self._hessian(others, inner, trace, create_graph=create_graph)
            if not create_graph:
                value, gradient, hessian = value.detach(), gradient.detach(), hessian.detach()
            return Expansion(-value, -gradient, hessian)

    def solve(self, hessian: Tensor, right: Tensor) -> Tensor:
        """Solve with ``|H|`` for some units: ``(A, B, k, k)`` and ``(A, m, R)`` to ``(A, m, R)``."""
        folded = self.fold(right)
        solved = solve_curvature(hessian.flatten(0, 1), folded.flatten(0, 1))
        return self.unfold(solved.reshape(folded.shape))

    def fold(self, right: Tensor) -> Tensor:
        """Split ``(A, m, R)`` into blocks: ``(A, B, k, R)``, zero where a block is shorter."""
        padded = torch.cat([right, right.new_zeros(right.shape[0], 1, right.shape[2])], 1)
        return padded[:, self.layout.blocks]

    def unfold(self, folded: Tensor) -> Tensor:
        """Join blocks ``(..., B, k, R)`` to ``(..., m, R)``."""
        return folded.flatten(-3, -2)[..., self._place, :]

    def dense(self, hessian: Tensor) -> Tensor:
        """Write the blocks ``(G, B, k, k)`` as full matrices ``(G, m, m)``."""
        blocks = self.layout.blocks
        out = hessian.new_zeros(len(hessian), self.size + 1, self.size + 1)
        out[:, blocks[:, :, None], blocks[:, None, :]] = hessian
        return out[:, : self.size, : self.size]

    def _hessian(self, gradient: Tensor, inner: Tensor, trace: ModelTrace, *, create_graph: bool) -> Tensor:
        layout, blocks = self.layout, self.layout.blocks
        if layout.n_products:
            seeds = torch.nn.functional.one_hot(layout.color, layout.n_products).T.to(inner)
            seeds = seeds[:, None].expand(-1, *inner.shape)
            products = vector_products(gradient, inner, seeds, create_graph=create_graph)
            block, row, column = layout.meets.nonzero(as_tuple=True)
            entries = products[layout.color[blocks[block, column]], :, blocks[block, row]].T
            units = torch.arange(len(inner))[:, None]
            hessian = inner.new_zeros(len(inner), *layout.meets.shape).index_put((units, block, row, column), -entries)
        else:
            hessian = inner.new_zeros(len(inner), *layout.meets.shape)
        for name in layout.known:
            site, first = self.density.latents[name], int(self._first[name])
            found = SiteEntries.of(site, trace.nodes[name]["fn"])
            assert found is not None
            if len(blocks) == 1:
                after = self.size - first - site.size
                hessian = hessian + torch.nn.functional.pad(found.matrix(), (first, after, first, after))[:, None]
                continue
            local = torch.where((blocks >= first) & (blocks < first + site.size), blocks - first, -1)
            shape = (*blocks.shape, blocks.shape[1])
            hessian = hessian + found.at(local[:, :, None].expand(shape), local[:, None, :].expand(shape))
        return 0.5 * (hessian + hessian.mT) + self._padding

    # structure

    def _plain(self, reasons: dict[str, str]) -> Layout:
        every = torch.arange(self.size)
        self._padding = self.density.start.new_zeros(1, self.size, self.size)
        return Layout((), reasons, every, every[None], torch.ones(1, self.size, self.size, dtype=torch.bool))

    def _structured(self) -> Layout:
        point = probe(self.density).requires_grad_(True)
        values, _ = self.density.constrain(point)
        trace = self.density.trace(values)
        terms = self.density.terms(trace)
        known, reasons = self._known(point, trace, terms)
        found = {n: dependence(term, point, self.columns) for n, term in terms.items() if n not in known}
        try:
            pattern = meeting(list(found.values()), self.size)
        except TooCoupledError as error:
            raise RefusedModelError(
                f"{', '.join(self.inner)}: {error} meet in one log density, too many for a dense Hessian. Give the "
                "plate of units that are problems apart (``units``), or a distribution of the site with a registered "
                "precision (pyrosplice.guides.precision)."
            ) from error
        rows, columns = self._dense_pairs(known, trace)
        groups = components(pattern, rows, columns)
        longest = max(map(len, groups))
        blocks = torch.full((len(groups), longest), self.size)
        for place, group in enumerate(groups):
            blocks[place, : len(group)] = torch.from_numpy(group)
        self._padding = torch.zeros(len(groups), longest, longest, dtype=torch.float64)
        none = not any(jacobian.nnz for jacobian in found.values())
        color = torch.zeros(0, dtype=torch.long) if none else torch.from_numpy(colors(pattern))
        return Layout(tuple(known), reasons, color, blocks, self._meets(pattern, groups, longest))

    def _known(self, point: Tensor, trace: ModelTrace, terms: Terms) -> tuple[list[str], dict[str, str]]:
        """Sites whose known precision is the curvature of their own term, and why those of others are not used."""
        known, reasons = [], dict[str, str]()
        vector = torch.zeros_like(point)
        vector[:, self.columns] = normal_numbers(vector[:, self.columns], 11)
        for name in self.inner:
            site, fn = self.density.latents[name], trace.nodes[name]["fn"]
            entries = SiteEntries.of(site, fn) if name in terms else None
            if entries is None:
                reasons[name] = f"the precision of {type(fn).__name__} is not registered"
                continue
            (slope,) = torch.autograd.grad(terms[name].sum(), point, create_graph=True)
            (bent,) = torch.autograd.grad((slope * vector).sum(), point, retain_graph=True)
            wanted = torch.zeros_like(bent)
            wanted[:, site.columns] = -entries.product(vector[:, site.columns])
            if _close(bent[:, self.columns], wanted[:, self.columns]):
                known.append(name)
            else:
                reasons[name] = f"the registered precision of {type(fn).__name__} is not the curvature of the site"
        return known, reasons

    def _dense_pairs(self, known: Sequence[str], trace: ModelTrace) -> tuple[Any, Any]:
        rows, columns = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for name in known:
            entries = SiteEntries.of(self.density.latents[name], trace.nodes[name]["fn"])
            assert entries is not None
            row, column = entries.pattern()
            rows.append(row.numpy() + self._first[name])
            columns.append(column.numpy() + self._first[name])
        return np.concatenate(rows), np.concatenate(columns)

    def _meets(self, pattern: csr_matrix, groups: list[Any], longest: int) -> Tensor:
        label, position = np.empty(self.size, dtype=np.int64), np.empty(self.size, dtype=np.int64)
        for number, group in enumerate(groups):
            label[group], position[group] = number, np.arange(len(group))
        row, column = pattern.nonzero()
        out = torch.zeros(len(groups), longest, longest, dtype=torch.bool)
        out[label[row], position[row], position[column]] = True
        return out

    def _agrees(self) -> bool:
        """Whether the Hessian is autograd's, by one product at a point near the first."""
        point = probe(self.density)
        inner = point[:, self.columns].requires_grad_(True)
        outer = point[:, self.rest]
        vector = normal_numbers(inner, 13)
        (slope,) = torch.autograd.grad(self.density(self.join(outer, inner)).sum(), inner, create_graph=True)
        if not slope.requires_grad:
            return True
        (bent,) = torch.autograd.grad((slope * vector).sum(), inner, allow_unused=True)
        found = self.expand(outer, inner).hessian @ self.fold(vector[..., None])
        blocks = self.layout.blocks.flatten()
        mine = torch.zeros(len(vector), self.size + 1, dtype=vector.dtype)
        mine[:, blocks] = found.flatten(1)
        return bent is None or _close(-bent, mine[:, : self.size])

    def _check_size(self) -> None:
        shape = (self.density.n_units, *self.layout.meets.shape)
        if np.prod(shape, dtype=np.float64) > MOST_NUMBERS:
            raise RefusedModelError(
                f"{', '.join(self.inner)}: {shape[2]} unknowns of a unit hang together, {shape[0]} units: Hessians of "
                f"{np.prod(shape, dtype=np.float64) * 8e-9:.0f} GB. Fit fewer units at a time, or give a distribution "
                "that keeps them apart."
            )

    def describe(self) -> str:
        """Say in words how large the Hessian is and how it is found."""
        layout = self.layout
        parts = f", {len(layout.blocks)} blocks of up to {layout.blocks.shape[1]}" if len(layout.blocks) > 1 else ""
        known = f", precision of {', '.join(layout.known)} known" if layout.known else ""
        false = [f"{name}: {why}" for name, why in layout.reasons.items() if "not registered" not in why]
        return f"{self.size} unknowns a unit, {layout.n_products} products a Hessian{parts}{known}" + "".join(
            f"; {reason}" for reason in false
        )


def _columns(density: UnitDensity, names: Sequence[str]) -> Tensor:
    every = torch.arange(density.size)
    return torch.cat([every[:0], *(every[density.latents[name].columns] for name in names)])


def _without(terms: Terms, names: Sequence[str], volume: Tensor) -> Tensor:
    return volume + sum((term.sum(1) for name, term in terms.items() if name not in names), torch.zeros_like(volume))


def _slope(value: Tensor, inner: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(inner)
    (found,) = torch.autograd.grad(value.sum(), inner, create_graph=True, allow_unused=True)
    return torch.zeros_like(inner) if found is None else found


def _close(first: Tensor, second: Tensor) -> bool:
    if not first.numel():
        return True
    first, second = first.detach(), second.detach()
    scale = first.abs().amax() + second.abs().amax()
    return bool(((first - second).abs() <= AGREEMENT * scale).all())
