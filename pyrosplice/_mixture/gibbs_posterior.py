"""Gibbs draws from the posterior of a mixture, for ArviZ: weights, means and covariances, labels aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyrosplice._mixture.em.gibbs import ChainNoise, GibbsSampler
from pyrosplice._mixture.em.loop import block_size
from pyrosplice._mixture.em.many import log_joint_of_cells
from pyrosplice._mixture.em.one_fit import MixtureForm, Problem
from pyrosplice._mixture.em.row_blocks import RowBlocks, require_finite
from pyrosplice._mixture.gaussian_mixture import MixtureParameters, as_matrices
from pyrosplice._mixture.mixture_prior import MixturePriors, SitePriors, weak_prior
from pyrosplice._mixture.rows import as_rows
from pyrosplice.errors import InvalidArgumentError, RefusedModelError, check_integer
from pyrosplice.posterior._progress import bar
from pyrosplice.posterior._seeding import seed_of_chain

WIDER = 3.0
"""Spread of the means that chains start at, over that of a posterior of all cells."""
_SHAPES = {
    "full": ("component", "feature", "feature_other"),
    "tied": ("feature", "feature_other"),
    "diag": ("component", "feature"),
    "spherical": ("component",),
}


@dataclass(frozen=True)
class GibbsChains:
    """Draws kept of a chain, sweeps before them, chains, the seed of all, and of how many sweeps a draw is one.

    A chain's draws do not depend on how many chains there are.
    """

    n_draws: int = 500
    n_warmup: int = 200
    n_chains: int = 4
    seed: int = 0
    thin: int = 1

    def check(self) -> None:
        """Raise for numbers that no chain could have."""
        check_integer("n_draws", self.n_draws)
        check_integer("n_chains", self.n_chains)
        check_integer("n_warmup", self.n_warmup, least=0)
        check_integer("seed", self.seed, least=0)
        check_integer("thin", self.thin)


def sample_posterior(
    X: object,
    fitted: MixtureParameters,
    chains: GibbsChains,
    *,
    prior: MixturePriors | SitePriors = None,
) -> xr.DataTree:
    """Draws from the posterior given the cells, by Gibbs sampling from a fit.

    Components are exchangeable, so each draw's labels are permuted to agree best with the fit's (assignment problem on
    shared cells, Stephens 2000), unless priors tell components apart. Chains start around the fit, each at means of its
    own, :data:`WIDER` times as far apart as those of the posterior: they explore the posterior around its labelling.

    Parameters
    ----------
    X
        Cells ``(N, D)``; whatever ``GaussianMixture.fit`` takes.
    fitted
        Where to start, ``model_.parameters_of()`` of a ``GaussianMixture``.
    chains
        How many draws.
    prior
        Conjugate, with a mean and a covariance part; :func:`~pyrosplice._mixture.mixture_prior.weak_prior` when None.

    Returns
    -------
    Groups ``posterior`` (``weights``, ``means``, ``covariances``) and ``sample_stats`` (``lp``: log likelihood,
    ``relabelled``), dimensions ``chain``, ``draw`` first.

    Raises
    ------
    InvalidArgumentError
        The prior is improper or not conjugate, or a number is not positive.
    """
    chains.check()
    kind = fitted.covariance_type
    rows = as_rows(X, size=block_size(fitted.means.shape[1], kind), dtype=torch.float64)
    known = proper_prior(rows, fitted, prior)
    problem = Problem.of(rows, MixtureForm(kind, known, 0.0), features=True)
    labels = component_labels([rows.block(a, b)[0] for a, b in rows.spans()], fitted)
    noise = ChainNoise([seed_of_chain((chains.seed,), chain) for chain in range(chains.n_chains)])
    sampler = GibbsSampler(problem.starter, problem.penalty, labels, noise, fitted.n_components)
    index = (torch.zeros(1, chains.n_chains, dtype=torch.int64),) * 2
    lead = fitted.select((None, None))  # type: ignore[arg-type]
    state = problem.standardization.forward(lead).select(index)
    state = _dispersed(state, len(labels), noise)
    kept: list[tuple[MixtureParameters, Tensor, Tensor]] = []
    n_sweeps = chains.n_warmup + chains.n_draws * chains.thin
    with bar(n_sweeps, f"Gibbs, {chains.n_chains} chains", "sweep") as shown:
        for sweep in range(n_sweeps):
            state, log_likelihood, overlap = sampler.sweep(state)
            if sweep >= chains.n_warmup and (sweep + 1 - chains.n_warmup) % chains.thin == 0:
                aligned, moved = aligned_to(state, overlap, exchangeable=known.exchangeable)
                kept.append((problem.standardization.backward(aligned), log_likelihood, moved))
            shown.update()
    return as_tree(kept, kind)


def _dispersed(state: MixtureParameters, n_cells: int, noise: ChainNoise) -> MixtureParameters:
    """Means of every chain of its own, as far from the fit's as a fraction of the cells would put them."""
    roots = torch.linalg.cholesky(as_matrices(state.covariances, state.means, state.covariance_type))
    error = WIDER * (n_cells * state.weights).clamp_min(WIDER**2).rsqrt()  # an sd of the component at most
    return replace(
        state, means=state.means + error[..., None] * (roots @ noise.normal(*state.means.shape[2:])[..., None])[..., 0]
    )


def proper_prior(rows: RowBlocks, fitted: MixtureParameters, prior: MixturePriors | SitePriors) -> SitePriors:
    """The priors, weak ones for None; refused where one is improper or not conjugate, or cells have other features."""
    dim, kind = fitted.means.shape[1], fitted.covariance_type
    if rows.dim != dim:
        raise InvalidArgumentError(f"X: expected {dim} features, as the fit has, found {rows.dim}.")
    for a, b in rows.spans():
        require_finite(rows.block(a, b)[0], a)
    if prior is None or isinstance(prior, str):
        mean, covariance = rows.mean_and_covariance()
        prior = weak_prior(covariance[0], mean[0], fitted.n_components)
    known = SitePriors.of(prior, fitted.n_components, dim, kind)
    if known.not_conjugate:
        raise RefusedModelError(
            f"priors: Gibbs draws need conjugate ones, and these are not: {known.not_conjugate}. Draw by "
            "pyro.infer.NUTS of the model, or give Dirichlet weights, Normal means and inverse-Wishart (of variances: "
            "InverseGamma) covariances."
        )
    spread = known.covariances
    proper = spread is not None and (kind not in ("full", "tied") or bool((spread.dof > dim - 1).all()))
    if known.means is None or not proper:
        raise InvalidArgumentError("prior: draws need a proper prior; give it a mean and a covariance part.")
    return known


def component_labels(blocks: Sequence[Tensor], fitted: MixtureParameters) -> Tensor:
    """The likeliest component of every cell, ``(N,)``."""
    return torch.cat([log_joint_of_cells([block], [[fitted]])[0][0].argmax(1) for block in blocks])


def aligned_to(
    draws: MixtureParameters, overlap: Tensor, *, exchangeable: bool = True
) -> tuple[MixtureParameters, Tensor]:
    """Draws ``(1, J, M, ...)`` with components ordered as the reference's, and whether that moved any ``(J,)``.

    Components that are not ``exchangeable`` are told apart by their priors, and stay as they are.
    """
    if not exchangeable:
        return draws, torch.zeros(len(overlap), dtype=torch.bool)
    order = torch.stack([_permutation(own) for own in overlap])[None]
    chain = torch.arange(order.shape[1])[None, :, None]
    pick = (torch.zeros_like(chain), chain, order)
    covariances = draws.covariances if draws.covariance_type == "tied" else draws.covariances[pick]
    moved = (order[0] != torch.arange(order.shape[2])).any(1)
    return replace(draws, weights=draws.weights[pick], means=draws.means[pick], covariances=covariances), moved


def _permutation(overlap: Tensor) -> Tensor:
    """Match to each reference label (column) one drawn label (row)."""
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
