"""Draws from the posterior of a mixture by Gibbs sampling: the E- and M-step with draws in place of means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyrosplice._mixture.em.loop import QuadraticExpectation
from pyrosplice._mixture.em.m_step import Penalty, component_scatter, pulled_scatter
from pyrosplice._mixture.em.sufficient_statistics import Moments, coefficients, moments_of, responsibilities_
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice.priors._inverse_wishart import inverse_wishart_of, wishart_factor


class ChainNoise:
    """Random numbers of chains, each from a generator of its own, so that a chain is the same beside any others.

    Parameters
    ----------
    seeds
        One a chain.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers ``(J, *shape)``."""
        return torch.stack([torch.rand(shape, dtype=torch.float64, generator=own) for own in self._generators])

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers ``(1, J, *shape)``."""
        return torch.stack([torch.randn(shape, dtype=torch.float64, generator=own) for own in self._generators])[None]

    def gamma(self, concentration: Tensor) -> Tensor:
        """Gamma numbers of rate one, one for each of the concentrations ``(1, J, ...)``."""
        return self._each(lambda own, generator: torch._standard_gamma(own, generator=generator), concentration)

    def wishart(self, dof: Tensor, dim: int) -> Tensor:
        """Factors ``(1, J, ..., D, D)`` of standard Wishart matrices with degrees of freedom ``(1, J, ...)``."""
        return self._each(lambda own, generator: wishart_factor(own, dim, generator), dof)

    def _each(self, draw: Callable[[Tensor, torch.Generator], Tensor], given: Tensor) -> Tensor:
        return torch.stack([draw(own, made) for own, made in zip(given[0], self._generators, strict=True)])[None]


class GibbsSampler:
    """Chains of a mixture with a proper conjugate prior, all in one batch.

    Parameters
    ----------
    expectation
        Expectations of the cells, ``B = 1``.
    penalty
        The prior in standardised units, proper.
    labels
        A reference label of each cell, ``(N,)``; draws report how their labels overlap with it.
    noise
        Random numbers of the chains.
    n_components
        M.
    """

    def __init__(
        self,
        expectation: QuadraticExpectation,
        penalty: Penalty,
        labels: Tensor,
        noise: ChainNoise,
        n_components: int,
    ) -> None:
        self._expectation, self._penalty = expectation, penalty
        self._noise = noise
        self._reference = torch.nn.functional.one_hot(labels, n_components).to(torch.float64)

    def sweep(self, parameters: MixtureParameters) -> tuple[MixtureParameters, Tensor, Tensor]:
        """Labels given parameters ``(1, J, M, ...)``, then parameters given labels.

        Returns the new parameters, the log likelihood of the old ones ``(J,)``, and the number of cells ``(J, M, M)``
        with each drawn (row) and reference (column) label.
        """
        table, _, _ = coefficients(parameters)
        kind = parameters.covariance_type
        chains, components, width = table.shape[1:]
        flat = table.view(chains * components, width)
        sums, total = torch.zeros_like(flat), table.new_zeros(chains)
        overlap = table.new_zeros(chains, components, self._reference.shape[1])
        start = 0
        for features, _ in self._expectation.features():
            block = features[0, :width]
            stop = start + block.shape[1]
            scores = (flat @ block).view(chains, components, -1)
            total += responsibilities_(scores).sum(-1)
            drawn = self._draw_labels(scores)
            sums += drawn.view(chains * components, -1) @ block.mT
            overlap += drawn @ self._reference[start:stop]
            start = stop
        squares = self._expectation.total_squares(chains)
        if kind == "tied":
            solved = torch.linalg.solve(parameters.covariances[0], squares[0])
            total = total - 0.5 * solved.diagonal(dim1=-2, dim2=-1).sum(-1)
        moments = moments_of(sums.view_as(table), self._expectation.rows.dim, kind, squares)
        total = total + self._expectation.log_det[0]
        return self._draw_parameters(moments, parameters), total, overlap

    def _draw_labels(self, resp: Tensor) -> Tensor:
        """One-hot labels ``(J, M, n)`` from responsibilities of the same shape."""
        uniform = self._noise.uniform(1, resp.shape[2])
        label = (resp.cumsum(1) < uniform).sum(1).clamp_max(resp.shape[1] - 1)
        return torch.zeros_like(resp).scatter_(1, label[:, None], 1)

    def _draw_parameters(self, moments: Moments, previous: MixtureParameters) -> MixtureParameters:
        """Weights, covariances (given the previous means where the prior of means does not scale), means."""
        penalty, kind, dim = self._penalty, previous.covariance_type, previous.means.shape[-1]
        assert penalty.pull is not None and penalty.scale is not None
        counts, center, scatter = component_scatter(moments, previous)
        scatter = pulled_scatter(scatter, penalty.pull, counts, center, previous.means, kind)
        concentration = 1.0 if penalty.concentration_excess is None else penalty.concentration_excess + 1
        gamma = self._noise.gamma(counts + concentration)
        posterior_scale = scatter + penalty.scale
        if kind in ("full", "tied"):
            cells = counts if kind == "full" else counts.sum(-1)
            covariances = inverse_wishart_of(posterior_scale, self._noise.wishart(penalty.dof + cells, dim))
        else:
            cells = counts[..., None].expand(scatter.shape) if kind == "diag" else counts * dim
            half = (penalty.dof + cells) / 2
            covariances = posterior_scale / 2 / self._noise.gamma(half)
        drawn = replace(previous, weights=gamma / gamma.sum(-1, keepdim=True), covariances=covariances)
        root = penalty.pull.roots(counts, drawn)
        noise = self._noise.normal(*center.shape[2:])
        return replace(drawn, means=penalty.pull.means(counts, center, drawn) + (root @ noise[..., None])[..., 0])
