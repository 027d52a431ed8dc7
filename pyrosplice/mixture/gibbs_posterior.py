"""Gibbs draws from the posterior of a mixture, for ArviZ: weights, means and covariances, labels aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm

from pyrosplice.errors import InvalidArgumentError, check_integer
from pyrosplice.mixture.em.gibbs import GibbsSampler
from pyrosplice.mixture.em.loop import block_size
from pyrosplice.mixture.em.many import log_joint_of_cells
from pyrosplice.mixture.em.one_fit import Problem
from pyrosplice.mixture.em.row_blocks import RowBlocks, require_finite
from pyrosplice.mixture.gaussian_mixture import MixtureParameters, MixturePrior
from pyrosplice.mixture.rows import as_rows

_SHAPES = {
    "full": ("component", "feature", "feature_other"),
    "tied": ("feature", "feature_other"),
    "diag": ("component", "feature"),
    "spherical": ("component",),
}


def weak_prior(covariance: Tensor, mean: Tensor, n_components: int) -> MixturePrior:
    """The weakly informative prior of Fraley & Raftery (2007): a hundredth of a cell for the mean, D + 2 degrees.

    Parameters
    ----------
    covariance, mean
        Of all cells, ``(D, D)`` and ``(D,)``.
    n_components
        M; the prior covariance is that of all cells over M^(2/D).
    """
    dim = len(mean)
    return MixturePrior(
        mean=mean,
        mean_strength=0.01,
        covariance_dof=dim + 2.0,
        covariance_scale=covariance / n_components ** (2 / dim),
    )


def sample_posterior(
    X: Any,
    fitted: MixtureParameters,
    *,
    prior: MixturePrior | None = None,
    n_draws: int = 500,
    n_warmup: int = 200,
    n_chains: int = 4,
    seed: int = 0,
    use_rep: str | None = None,
    progress: bool = False,
) -> xr.DataTree:
    """Draws from the posterior given the cells, by Gibbs sampling from a fit.

    Components are exchangeable, so each draw's labels are permuted to agree best with the fit's (assignment problem on
    shared cells, Stephens 2000). Chains start at the fit: they explore the posterior around its labelling.

    Parameters
    ----------
    X
        Cells ``(N, D)``; whatever ``GaussianMixture.fit`` takes.
    fitted
        Where to start, ``model_.parameters_of()`` of a ``GaussianMixture``.
    prior
        With a mean and a covariance part; :func:`weak_prior` when None.
    n_draws, n_warmup, n_chains
        Draws kept of a chain, sweeps before them, chains.
    seed
        Of the draws.
    use_rep
        Key of ``obsm`` for an AnnData.
    progress
        Show a progress bar.

    Returns
    -------
    Groups ``posterior`` (``weights``, ``means``, ``covariances``) and ``sample_stats`` (``lp``: log likelihood,
    ``relabelled``), dimensions ``chain``, ``draw`` first.

    Raises
    ------
    InvalidArgumentError
        The prior is improper, or a number is not positive.
    """
    check_integer("n_draws", n_draws)
    check_integer("n_chains", n_chains)
    check_integer("n_warmup", n_warmup, least=0)
    check_integer("seed", seed, least=0)
    kind = fitted.covariance_type
    rows = as_rows(X, size=block_size(fitted.means.shape[1], kind), use_rep=use_rep, dtype=torch.float64)
    prior = proper_prior(rows, fitted, prior)
    problem = Problem.of(rows, kind, prior=prior, regularization=0.0, features=True)
    labels = component_labels([rows.block(a, b)[0] for a, b in rows.spans()], fitted)
    generator = torch.Generator().manual_seed(int(seed))
    sampler = GibbsSampler(problem.starter, problem.penalty, prior, labels, generator, fitted.n_components)
    index = (torch.zeros(1, n_chains, dtype=torch.int64), torch.zeros(1, n_chains, dtype=torch.int64))
    lead = fitted.select((None, None))  # type: ignore[arg-type]
    state = problem.standardization.forward(lead).select(index)
    kept: list[tuple[MixtureParameters, Tensor, Tensor]] = []
    for sweep in tqdm(range(n_warmup + n_draws), desc="Gibbs", disable=not progress):
        state, log_likelihood, overlap = sampler.sweep(state)
        if sweep >= n_warmup:
            aligned, moved = aligned_to(state, overlap)
            kept.append((problem.standardization.backward(aligned), log_likelihood, moved))
    return as_tree(kept, kind)


def proper_prior(rows: RowBlocks, fitted: MixtureParameters, prior: MixturePrior | None) -> MixturePrior:
    """The prior, :func:`weak_prior` for None; refused where it is improper, or the cells have other features."""
    if rows.dim != fitted.means.shape[1]:
        raise InvalidArgumentError(f"X: expected {fitted.means.shape[1]} features, as the fit has, found {rows.dim}.")
    for a, b in rows.spans():
        require_finite(rows.block(a, b)[0], a)
    if prior is None:
        mean, covariance = rows.mean_and_covariance()
        prior = weak_prior(covariance[0], mean[0], fitted.n_components)
    least = fitted.means.shape[1] - 1 if fitted.covariance_type in ("full", "tied") else 0
    if prior.mean is None or prior.covariance_dof is None or prior.covariance_dof <= least:
        raise InvalidArgumentError("prior: draws need a proper prior; give it a mean and a covariance part.")
    return prior


def component_labels(blocks: Sequence[Tensor], fitted: MixtureParameters) -> Tensor:
    """The likeliest component of every cell, ``(N,)``."""
    return torch.cat([log_joint_of_cells([block], [[fitted]])[0][0].argmax(1) for block in blocks])


def aligned_to(draws: MixtureParameters, overlap: Tensor) -> tuple[MixtureParameters, Tensor]:
    """Draws ``(1, J, M, ...)`` with components ordered as the reference's, and whether that moved any ``(J,)``."""
    order = torch.stack([_permutation(own) for own in overlap])[None]
    chain = torch.arange(order.shape[1])[None, :, None]
    pick = (torch.zeros_like(chain), chain, order)
    covariances = draws.covariances if draws.covariance_type == "tied" else draws.covariances[pick]
    moved = (order[0] != torch.arange(order.shape[2])).any(1)
    return replace(draws, weights=draws.weights[pick], means=draws.means[pick], covariances=covariances), moved


def _permutation(overlap: Tensor) -> Tensor:
    """For each reference label (column) the drawn label (row) that is matched to it."""
    rows, columns = linear_sum_assignment(overlap.numpy(), maximize=True)
    return torch.from_numpy(rows[np.argsort(columns)])


def as_tree(kept: list[tuple[MixtureParameters, Tensor, Tensor]], kind: str) -> xr.DataTree:
    """Parameters, log likelihoods and label moves of every sweep, chains within, as a tree."""

    def stacked(name: str) -> np.ndarray:
        return torch.stack([getattr(p, name)[0] for p, _, _ in kept], 1).numpy()

    lead = ("chain", "draw")
    posterior = {
        "weights": ((*lead, "component"), stacked("weights")),
        "means": ((*lead, "component", "feature"), stacked("means")),
        "covariances": ((*lead, *_SHAPES[kind]), stacked("covariances")),
    }
    stats = {
        "lp": (lead, torch.stack([lp for _, lp, _ in kept], 1).numpy()),
        "relabelled": (lead, torch.stack([moved for _, _, moved in kept], 1).numpy()),
    }
    chains, draws = stats["lp"][1].shape
    coords = {"chain": np.arange(chains), "draw": np.arange(draws)}
    groups = {"posterior": xr.Dataset(posterior, coords), "sample_stats": xr.Dataset(stats, coords)}
    return xr.DataTree.from_dict(groups)
