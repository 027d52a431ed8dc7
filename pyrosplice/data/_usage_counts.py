"""Simulated isoform counts as arrays: many genes of one truth on a given covariance of the spots."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyrosplice._tables.containers import of_shape
from pyrosplice.data._usage_totals import Fields, as_totals, mean_depth, spots_of
from pyrosplice.effects._isoform_effect import IsoformEffect, SoftmaxBasis
from pyrosplice.errors import InvalidArgumentError, check_integer, check_number, check_option, check_share


def simulate_counts(  # noqa: PLR0913 (options of a simulation, all by keyword)
    covariance: Fields,
    *,
    n_genes: int,
    depth: float | ArrayLike | None = None,
    sigma: float,
    theta: float,
    seed: int,
    n_isos: int = 3,
    bias: ArrayLike | None = None,
    effect: ArrayLike | None = None,
    totals: ArrayLike | None = None,
    isoform_effect: IsoformEffect = "independent",
) -> Tensor:
    """Draw isoform counts ``(G, N, K)`` of genes that share σ and θ, on any covariance of the spots.

    For an AnnData with coordinates, and for other likelihoods, see :func:`simulate_isoforms`, which draws the same
    model gene by gene.

    Parameters
    ----------
    covariance
        V of the spatial part of the random effect.
    n_genes, n_isos
        G and K.
    depth
        Mean of a spot's Poisson number of molecules: a number, ``(N,)`` or ``(G, N)``.
    sigma, theta
        Standard deviation of the random effect, of logits or isoforms (``isoform_effect``), and spatial share of its
        variance.
    seed
        Seed of everything random.
    bias
        Intercepts, logits against the last isoform: ``(Q,)`` or ``(G, Q)``; 0 by default.
    effect
        Added to the logits, ``(N, Q)`` or ``(G, N, Q)``: effects of covariates, or a pattern that is no random field
        (:func:`spatial_patterns`).
    totals
        Molecules of each spot, ``(N,)`` or ``(G, N)``, in place of ``depth``: your own data's, or those of
        :func:`simulate_totals`.
    isoform_effect
        As for :func:`simulate_isoforms`.

    Raises
    ------
    InvalidArgumentError
        Sizes below 1 (isoforms below 2), depth or σ negative, θ outside [0, 1], both of depth and totals or neither,
        totals that are no whole numbers, arrays of the wrong shape.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.data import simulate_counts
    >>> from pyrosplice.spatial import CarCovariance
    >>> line = CarCovariance(np.eye(20, k=1))
    >>> simulate_counts(line, n_genes=5, depth=4, sigma=0.7, theta=0.5, seed=0).shape
    torch.Size([5, 20, 3])
    """
    check_integer("n_genes", n_genes)
    check_integer("n_isos", n_isos, least=2)
    check_integer("seed", seed, least=0)
    check_number("sigma", sigma)
    check_share("theta", theta, ends=True)
    check_option("isoform_effect", isoform_effect, get_args(IsoformEffect))
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(int(seed))
    n, q = spots_of(covariance), n_isos - 1
    fields = covariance.sample(n_genes * q, generator).reshape(n_genes, q, n).transpose(1, 2).numpy() if theta else 0.0
    noise = rng.standard_normal((n_genes, n, q))
    eta = sigma * (np.sqrt(theta) * fields + np.sqrt(1 - theta) * noise)
    if isoform_effect == "symmetric":
        eta = SoftmaxBasis.plain(q, torch.zeros(1, dtype=torch.float64)).logits(torch.from_numpy(eta)).numpy()
    intercepts = of_shape("bias", bias, ((), (q,), (n_genes, q)))
    eta = eta + np.broadcast_to(intercepts, (n_genes, q))[:, None] + of_shape("effect", effect, ((n, q), eta.shape))
    odds = np.exp(np.concatenate([eta, np.zeros((n_genes, n, 1))], -1))
    molecules = _molecules(depth, totals, (n_genes, n), rng)
    return torch.from_numpy(rng.multinomial(molecules, odds / odds.sum(-1, keepdims=True)).astype(np.float64))


def _molecules(depth: object, totals: object, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
    if (depth is None) == (totals is None):
        raise InvalidArgumentError("depth, totals: expected one of the two.")
    if totals is None:
        return rng.poisson(mean_depth(depth, shape))
    return as_totals("totals", np.broadcast_to(of_shape("totals", totals, (shape[1:], shape)), shape))
