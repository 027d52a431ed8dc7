"""Simulated isoform counts as arrays: many genes of one truth on a given covariance of the spots."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError, check_integer, check_number


class Fields(Protocol):
    """A spatial covariance that can be drawn from, such as :class:`~pyrosplice.spatial.car.CarCovariance`."""

    @property
    def n_spots(self) -> int:
        """N."""
        ...

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``(n, N)``."""
        ...


def simulate_counts(
    covariance: Fields,
    *,
    n_genes: int,
    depth: float | ArrayLike,
    sigma: float,
    theta: float,
    seed: int,
    n_isos: int = 3,
    bias: ArrayLike | None = None,
    effect: ArrayLike | None = None,
) -> Tensor:
    """Multinomial counts ``(G, N, K)`` of genes that share depth, σ and θ; for an AnnData see ``simulate_isoforms``.

    Parameters
    ----------
    covariance
        V of the spatial part of the random effect.
    n_genes, n_isos
        G and K.
    depth
        Mean of a spot's Poisson number of molecules: a number, ``(N,)`` or ``(G, N)``.
    sigma, theta
        Standard deviation (logits) of the random effect, and spatial share of its variance.
    seed
        Of everything random.
    bias, effect
        Added to the logits: ``(Q,)`` and ``(N, Q)``.

    Raises
    ------
    InvalidArgumentError
        Sizes below 1 (isoforms below 2), depth or σ negative, θ outside [0, 1].
    """
    check_integer("n_genes", n_genes)
    check_integer("n_isos", n_isos, least=2)
    check_integer("seed", seed, least=0)
    check_number("sigma", sigma)
    if check_number("theta", theta) > 1:
        raise InvalidArgumentError(f"theta: expected a number in [0, 1], found {theta!r}.")
    if not (np.asarray(depth, dtype=np.float64) >= 0).all():
        raise InvalidArgumentError("depth: expected numbers of at least 0.")
    rng = np.random.default_rng(seed)
    n, q = covariance.n_spots, n_isos - 1
    generator = torch.Generator().manual_seed(int(seed))
    fields = covariance.sample(n_genes * q, generator).reshape(n_genes, q, n).transpose(1, 2).numpy() if theta else 0.0
    noise = rng.standard_normal((n_genes, n, q))
    eta = sigma * (np.sqrt(theta) * fields + np.sqrt(1 - theta) * noise)
    eta = eta + (0 if bias is None else np.asarray(bias)) + (0 if effect is None else np.asarray(effect))
    odds = np.exp(np.concatenate([eta, np.zeros((n_genes, n, 1))], -1))
    totals = rng.poisson(np.broadcast_to(depth, (n_genes, n)))
    return torch.from_numpy(rng.multinomial(totals, odds / odds.sum(-1, keepdims=True)).astype(np.float64))
