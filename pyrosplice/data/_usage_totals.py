"""Simulated numbers of molecules: how deep a gene is seen, how unevenly over the spots, and in how many of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyrosplice._tables.containers import of_shape
from pyrosplice.errors import (
    InvalidArgumentError,
    check_integer,
    check_number,
    check_share,
    check_switches,
    is_whole,
)

Array = NDArray[np.float64]
OWN = 1  # of the seed: numbers of molecules share no random numbers with usage that is drawn from the same seed


class Fields(Protocol):
    """A spatial covariance that can be drawn from, such as :class:`~pyrosplice.spatial.car.CarCovariance`."""

    @property
    def n_spots(self) -> int:
        """Number N of spots."""
        ...

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` fields over the spots, ``(n, N)``."""
        ...


def spots_of(covariance: Fields) -> int:
    """Read the number of spots; :class:`InvalidArgumentError` for what no fields can be drawn from."""
    if not callable(getattr(covariance, "sample", None)) or not is_whole(getattr(covariance, "n_spots", None), 1):
        raise InvalidArgumentError(
            "covariance: expected one that fields can be drawn from, such as CarCovariance(knn_graph(coords)), "
            f"found {type(covariance).__name__}."
        )
    return covariance.n_spots


def simulate_totals(  # noqa: PLR0913 (a documented interface)
    covariance: Fields,
    *,
    n_genes: int,
    seed: int,
    depth: float | ArrayLike | None = None,
    molecules: int | None = None,
    spread: float = 0.0,
    theta: float = 0.0,
    covered: int | None = None,
    exact: bool = False,
) -> Tensor:
    """Draw molecules ``(G, N)`` of each gene at each spot: how many, how uneven, and in how many spots.

    Parameters
    ----------
    covariance
        V, whose fields depth follows as far as ``theta`` says; with ``theta=0`` only its number of spots matters.
    n_genes
        G.
    seed
        Seed of everything random.
    depth
        Mean number of molecules of a spot, Poisson: a number, ``(N,)`` or ``(G, N)``.
    molecules
        Molecules of each gene in all, in place of ``depth``; each falls on a spot at random.
    spread
        Standard deviation, between spots, of the log of what is expected there, anew for each gene. ``depth`` stays
        the mean over the spots.
    theta
        Spatial share of the variance of this log.
    covered
        Spots that a gene is seen in, drawn anew for each gene; it has no molecules elsewhere, and ``depth`` is of these
        spots. All by default.
    exact
        Exactly ``depth`` molecules at every such spot.

    Raises
    ------
    InvalidArgumentError
        Both of depth and molecules or neither; more spots than there are; numbers that are negative; ``exact`` where
        depth is no whole number, or beside molecules or a spread.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice.data import simulate_totals
    >>> from pyrosplice.spatial import CarCovariance
    >>> line = CarCovariance(np.eye(20, k=1))
    >>> simulate_totals(line, n_genes=3, molecules=30, covered=8, spread=1.0, seed=0).sum(1).tolist()
    [30.0, 30.0, 30.0]
    """
    shape = (check_integer("n_genes", n_genes), spots_of(covariance))
    rng = np.random.default_rng([check_integer("seed", seed, least=0), OWN])
    check_number("spread", spread)
    check_share("theta", theta, ends=True)
    check_switches(exact=exact)
    if (depth is None) == (molecules is None):
        raise InvalidArgumentError("depth, molecules: expected one of the two.")
    if exact and (molecules is not None or spread):
        raise InvalidArgumentError("exact: expected a depth, and spread=0; otherwise numbers of molecules are random.")
    share = _uneven(covariance, shape, spread, theta, rng)
    if covered is not None:
        share = share * _covered(check_integer("covered", covered), shape, rng)
    if molecules is not None:
        found = rng.multinomial(check_integer("molecules", molecules, least=0), share / share.sum(1, keepdims=True))
    else:
        mean = mean_depth(depth, shape) * share * (covered or shape[1]) / share.sum(1, keepdims=True)
        found = as_totals("depth", mean.round(9)) if exact else rng.poisson(mean)
    return torch.from_numpy(found.astype(np.float64))


def _uneven(covariance: Fields, shape: tuple[int, int], spread: float, theta: float, rng: np.random.Generator) -> Array:
    """What is expected of each spot ``(G, N)``, up to a factor."""
    noise, generator = rng.standard_normal(shape), torch.Generator().manual_seed(int(rng.integers(2**31)))
    fields = covariance.sample(shape[0], generator).numpy() if theta else 0.0
    return np.exp(spread * (np.sqrt(theta) * fields + np.sqrt(1 - theta) * noise))


def _covered(number: int, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    if number > shape[1]:
        raise InvalidArgumentError(f"covered: expected at most {shape[1]}, the number of spots, found {number}.")
    return rng.permuted(np.broadcast_to(np.arange(shape[1]) < number, shape), axis=1)


def mean_depth(depth: object, shape: tuple[int, int]) -> Array:
    """Read mean numbers of molecules ``(G, N)``, given as a number, ``(N,)``, ``(G, 1)`` or ``(G, N)``."""
    value = of_shape("depth", depth, ((), shape[1:], (shape[0], 1), shape))
    if not ((value >= 0) & (value < np.inf)).all():
        raise InvalidArgumentError("depth: expected numbers of at least 0.")
    return np.broadcast_to(value, shape)


def as_totals(name: str, value: Array) -> NDArray[np.int64]:
    """Read ``value`` as integers; refused where it is not whole, or negative."""
    if not ((value >= 0) & (value < np.inf) & (value == np.floor(value))).all():
        raise InvalidArgumentError(f"{name}: expected whole numbers of at least 0.")
    return value.astype(np.int64)
