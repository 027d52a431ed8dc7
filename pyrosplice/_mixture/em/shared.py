"""Components shared by all patients, weights of their own for each, both inside EM."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrosplice._mixture.em.centered import CenteredExpectation
from pyrosplice._mixture.em.loop import FLOAT64_SMALLEST, EMOptions, QuadraticExpectation, block_size
from pyrosplice._mixture.em.one_fit import MixtureForm, Problem
from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._mixture.em.sufficient_statistics import Moments, coefficients, moments_of, responsibilities_
from pyrosplice._mixture.gaussian_mixture import MixtureParameters


@dataclass(frozen=True)
class SharedFit:
    """Components ``parameters`` (their weights pooled) and the weights ``(G, M)`` of each of G groups of cells."""

    parameters: MixtureParameters
    group_weights: Tensor
    log_likelihood: float
    n_iter: int
    converged: bool
    singular: bool


class SharedExpectation:
    """E-step in which a cell's component weights are its group's; they are updated with every call."""

    def __init__(self, cells: QuadraticExpectation, groups: Tensor, n_components: int) -> None:
        self._quadratic, self._groups = cells, groups
        self.total_weight = cells.total_weight
        weights = cells.rows.weights
        self._size = torch.bincount(groups, None if weights is None else weights[0]).to(torch.float64)[:, None]
        self.used = self._next = torch.full((len(self._size), n_components), 1 / n_components, dtype=torch.float64)

    def select(self, sets: Tensor) -> SharedExpectation:
        """Return itself: there is one data set."""
        return self

    def __call__(self, parameters: MixtureParameters) -> tuple[Tensor, Moments, Tensor]:
        """Run an E-step over all cells, ``parameters`` ``(1, 1, M, ...)``."""
        self.used = self._next
        unweighted = replace(parameters, weights=torch.ones_like(parameters.weights))
        table, sound, smallest = coefficients(unweighted)
        log_weights = self.used.clamp_min(1e-300).log().mT
        counts = torch.zeros_like(log_weights)
        sums, total = torch.zeros_like(table[0, 0]), table.new_zeros(())
        start = 0
        for features, weights in self._quadratic.features():
            group = self._groups[start : start + features.shape[-1]]
            start += features.shape[-1]
            joint = table[0, 0] @ features[0].to(table.dtype) + log_weights[:, group]
            logs = responsibilities_(joint)
            if weights is not None:
                logs, joint = logs * weights[0], joint * weights
            total = total + logs.sum()
            sums += joint @ features[0].mT.to(table.dtype)
            counts.index_add_(1, group, joint)
        self._next = counts.mT / self._size
        squares = self._quadratic.total_squares(1)
        total = total + self._quadratic.log_det
        if parameters.covariance_type == "tied":
            solved, _ = torch.linalg.solve_ex(parameters.covariances, squares)
            total = total - 0.5 * solved.diagonal(dim1=-2, dim2=-1).sum((-2, -1))
        moments = moments_of(sums[None, None], self._quadratic.rows.dim, parameters.covariance_type, squares)
        return total.view(1, 1), moments, sound.all(-1) & (smallest >= FLOAT64_SMALLEST)


class CenteredSharedExpectation(SharedExpectation):
    """Expectation step about the components' own means, for variances tiny against the spread of the data."""

    def __init__(self, cells: CenteredExpectation, groups: Tensor, n_components: int) -> None:
        super().__init__(cells, groups, n_components)
        self._centered = cells

    def __call__(self, parameters: MixtureParameters) -> tuple[Tensor, Moments, Tensor]:
        """Run an E-step over all cells, ``parameters`` ``(1, 1, M, ...)``."""
        self.used = self._next
        log_weights = self.used.clamp_min(1e-300).log().mT
        counts = torch.zeros_like(log_weights)

        def add(first: int, responsibilities: Tensor) -> None:
            own = responsibilities[0, 0]
            counts.index_add_(1, self._groups[first : first + own.shape[-1]], own)

        unweighted = replace(parameters, weights=torch.ones_like(parameters.weights))
        found = self._centered.expect(unweighted, log_weights[:, self._groups], add)
        self._next = counts.mT / self._size
        return found


def fit_shared(
    cells: Tensor,
    groups: Tensor,
    start: MixtureParameters,
    form: MixtureForm,
    options: EMOptions,
    weights: Tensor | None = None,
) -> SharedFit:
    """EM for shared components from one mixture's parameters.

    Parameters
    ----------
    cells
        ``(N, D)``.
    groups
        Group of each cell, ``(N,)``, in 0..G − 1.
    start
        Start of the components.
    form, options
        As for one mixture.
    weights
        How many cells each counts as, ``(N,)``; None for 1.
    """
    size = block_size(cells.shape[1], start.covariance_type)
    rows = RowBlocks.from_tensor(cells, size=size, weights=weights)
    lead = start.select((None, None))  # type: ignore[arg-type]
    for centered, shared in ((False, SharedExpectation), (True, CenteredSharedExpectation)):
        problem = Problem.of(rows, form, n_components=start.n_components, features=not centered, centered=centered)
        expectation = shared(problem.starter, groups, start.n_components)  # type: ignore[arg-type]
        result = replace(problem, expectation=expectation).run(problem.standardization.forward(lead), options)
        if not bool(result.singular):
            break
    first = (torch.tensor(0), torch.tensor(0))
    return SharedFit(
        result.parameters.select(first),
        expectation.used,
        float(result.log_likelihood),
        int(result.n_iter),
        bool(result.converged),
        bool(result.singular),
    )
