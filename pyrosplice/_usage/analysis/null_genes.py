"""Genes like a person's own, of which is known what is true: drawn from fits, at their depths and coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._linalg.select import sparse_precision
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice._usage.grouped.usage_problem import GroupedSpec
from pyrosplice.errors import NoResultsError
from pyrosplice.glmm._arrow.simulated_counts import simulated_counts
from pyrosplice.glmm._random_effect import LARGEST_LOGIT
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.reasons import Reason
from pyrosplice.spatial._domains import Domains, graph_domains


@dataclass(frozen=True)
class Space:
    """Where spatial variation comes from.

    Attributes
    ----------
    solver
        Solver for the exact covariance V; None where the model has none.
    adjacency
        The graph that domains are of; None where they are not asked for.
    domains
        None for the Gaussian field of the model.
    """

    solver: SpatialSolver | None
    adjacency: Any = None
    domains: Domains | None = None

    def draw(self, scale: Tensor, n_spots: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Spatial effects ``(N, Q)`` of one gene, of standard deviation ``scale`` ``(Q,)``."""
        if not bool((scale > 0).any()):
            return torch.zeros(n_spots, len(scale), dtype=torch.float64)
        if self.domains is not None:
            labels = torch.from_numpy(graph_domains(self.adjacency, self.domains.number, rng))
            levels = torch.randn(int(labels.max()) + 1, len(scale), generator=generator, dtype=torch.float64)
            return scale * levels[labels]
        if self.solver is None:
            raise AssertionError("a model without space has no spatial variance")
        noise = torch.randn(1, self.solver.n_latent, len(scale), generator=generator, dtype=torch.float64)
        return scale * self.solver.color(noise)[0]


@dataclass(frozen=True)
class Truth:
    """What is true of the genes that are drawn.

    Attributes
    ----------
    genes
        Fits of the person's own genes: intercepts, effects of covariates, σ, θ, hyper-parameters.
    totals
        Molecules of each own gene at each spot, ``(N,)``.
    design
        The covariates of ``genes``, ``(N, P)``; None where they were fitted without.
    likelihood
        Noise of the counts.
    space
        What the spatial part of the random effect is.
    spatial_sd
        Spatial standard deviation in place of the fitted one, σ√θ.
    shift
        What is added to the first logit, ``(N,)``: the effect of a covariate.
    listed
        The model with a list of random effects that ``genes`` are fits of, and the counts of every own gene; these are
        drawn anew then, as they were fitted. None without a list.
    """

    genes: Sequence[FittedGene]
    totals: Sequence[Tensor]
    design: Tensor | None
    likelihood: Likelihood
    space: Space
    spatial_sd: float | None = None
    shift: Tensor | None = None
    listed: tuple[GroupedSpec, Sequence[Tensor]] | None = None

    @property
    def left_out(self) -> dict[int, str]:
        """Own genes that no gene can be drawn from, by position, and how their fits ended."""
        return {
            position: gene.reason
            for position, gene in enumerate(self.genes)
            if gene.reason == Reason.NO_COUNTS
            or not all(bool(torch.isfinite(value).all()) for value in gene.values.values())
        }

    def sources(self, n_genes: int, seed: int) -> NDArray[np.intp]:
        """Which own gene each new one is like, ``(n_genes,)``: each as often as the others, the rest at random."""
        lost = self.left_out
        kept = np.array([gene for gene in range(len(self.genes)) if gene not in lost], dtype=np.intp)
        if not len(kept):
            raise NoResultsError("check_calibration: none of the genes has a finite fit to draw from.")
        times, rest = divmod(n_genes, len(kept))
        return np.concatenate([np.tile(kept, times), np.random.default_rng(seed).choice(kept, rest, replace=False)])

    def counts(self, sources: NDArray[np.intp], seed: Sequence[int]) -> list[Tensor]:
        """Counts ``(N, K)`` of new genes, each like the own gene whose position is given."""
        rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):  # a likelihood of a person's own may draw from the global generator
            torch.manual_seed(int(rng.integers(2**31)))
            return [self._gene(source, rng) for source in sources.tolist()]

    def _gene(self, source: int, rng: np.random.Generator) -> Tensor:
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        if self.listed is not None:
            return self._with_list(source, *self.listed, generator)
        gene, totals = self.genes[source], self.totals[source]
        own = {name: gene.values[name].reshape(1, 1) for name in self.likelihood.free}
        eta = gene.fixed_predictor(len(totals), self.design) + self._effect(gene, len(totals), rng, generator)
        if self.shift is not None:
            eta = eta + torch.nn.functional.pad(self.shift[:, None], (0, gene.n_logits - 1))
        return self.likelihood.bind(own).draw(totals[None], eta[None], generator=generator)[0]

    def _with_list(
        self, source: int, spec: GroupedSpec, tables: Sequence[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Counts of a gene with levels, a field and effects of spots of its own, as variable as they were found."""
        own = [self.genes[source]]
        problem = spec.at(own).problem(tables[source].unsqueeze(0))
        if self.shift is not None:
            shift = torch.nn.functional.pad(self.shift[:, None], (0, own[0].n_logits - 1))
            problem = replace(problem, offset=shift.unsqueeze(0).numpy())
        return simulated_counts(problem, spec.restored(own), 1, generator)[0]

    def _effect(
        self, gene: FittedGene, n_spots: int, rng: np.random.Generator, generator: torch.Generator
    ) -> Tensor | float:
        sigma, logit = (gene.values.get(name, torch.zeros(1)).double() for name in ("sigma", "theta_logit"))
        sigma, logit = (value.expand(gene.n_logits) for value in (sigma, logit))
        noise = torch.randn(n_spots, gene.n_logits, generator=generator, dtype=torch.float64)
        scale = sigma * torch.sigmoid(logit).sqrt()
        if self.space.solver is None:
            scale = torch.zeros_like(scale)
        scale = torch.where(logit > -LARGEST_LOGIT, scale, 0.0)
        if self.spatial_sd is not None:
            scale = torch.full_like(scale, self.spatial_sd)
        return sigma * torch.sigmoid(-logit).sqrt() * noise + self.space.draw(scale, n_spots, rng, generator)


def graph_of(covariance: object) -> sp.csr_matrix | None:
    """Edges of a covariance's graph: pairs whose effects are dependent given all others; None if it has none."""
    precision = None if covariance is None else sparse_precision(covariance)
    if precision is None:
        return None
    graph = sp.csr_matrix(precision)
    graph = sp.csr_matrix(abs(graph - sp.diags(graph.diagonal())))
    graph.eliminate_zeros()
    return graph if graph.nnz else None


def observed_isoforms(counts: Tensor, likelihood: Likelihood) -> Tensor:
    """Counts without the isoforms that were never drawn, which ``setup_data`` would not have let through either."""
    seen = counts.sum(0) > 0
    least, _ = likelihood.n_categories
    return counts[:, seen] if int(seen.sum()) >= max(2, least) else counts
