"""Patterns of tissue that a gene's usage may follow, of one size each, so that only their shapes differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyrosplice.errors import InvalidArgumentError, check_integer, check_option
from pyrosplice.spatial._domains import Domains, graph_domains
from pyrosplice.spatial._graph import check_coords, knn_graph
from pyrosplice.spatial.car import CarCovariance

Array = NDArray[np.float64]
RADIUS, WIDTH = 0.2, 0.1  # of spots and rings, in units of the tissue's longer side
STRIPE = 0.2
MIDDLE = (0.2, 0.8)  # where centres are
N_DOMAINS = Domains.number


def spatial_patterns(
    coords: ArrayLike, shape: str, *, n_genes: int, seed: int, n_logits: int = 2
) -> NDArray[np.float64]:
    """Draw patterns ``(G, N, Q)`` of logits in space, each gene's of its own place and direction.

    Each has mean 0 and mean square 1 over spots and logits: multiply it by the standard deviation that it is to have,
    and give it to :func:`simulate_counts` as ``effect``.

    Parameters
    ----------
    coords
        Places of the spots, ``(N, 2)``.
    shape
        ``"field"``: draws of the CAR field (ρ = .99) on the graph of four nearest neighbours. ``"domains"``: six
        domains, a normal level of each (:class:`~pyrosplice.testing.Domains`). ``"gradient"``: along a random
        direction. ``"stripes"``: two levels, .2 of the longer side each. ``"hot-spot"``: a disc with a radius of .2 of
        it. ``"ring"``: between radii of .2 and .3.
    n_genes, n_logits
        G and Q.
    seed
        Seed of everything random.

    Raises
    ------
    InvalidArgumentError
        An unknown shape, coordinates of other than two dimensions, or so few spots that a pattern is the same at all.

    Examples
    --------
    >>> from pyrosplice.data import spatial_patterns
    >>> grid = [(x, y) for x in range(10) for y in range(10)]
    >>> spatial_patterns(grid, "stripes", n_genes=3, seed=0).shape
    (3, 100, 2)
    """
    points = check_coords(coords, name="coords")
    check_option("shape", shape, (*LEVELS, *MASKS))
    if points.shape[1] != 2:
        raise InvalidArgumentError(f"coords: expected two dimensions, found {points.shape[1]}.")
    size = (check_integer("n_genes", n_genes), check_integer("n_logits", n_logits))
    rng = np.random.default_rng([check_integer("seed", seed, least=0), OWN])
    if shape in LEVELS:
        pattern = LEVELS[shape](points, size, rng)
    else:
        place = (points - points.min(0)) / np.ptp(points, axis=0).max()
        pattern = MASKS[shape](place, size[0], rng)[..., None] * rng.standard_normal((size[0], 1, size[1]))
    pattern = pattern - pattern.mean(1, keepdims=True)
    scale = np.sqrt(np.square(pattern).mean((1, 2), keepdims=True))
    if not (scale > 0).all():
        raise InvalidArgumentError(f"coords: {len(points)} spots are too few for shape={shape!r}; it is flat on them.")
    return pattern / scale


def _field(points: Array, size: tuple[int, int], rng: np.random.Generator) -> Array:
    covariance = CarCovariance(knn_graph(points, graph="connected"))
    fields = covariance.sample(size[0] * size[1], torch.Generator().manual_seed(int(rng.integers(2**31))))
    return fields.reshape(*size, -1).transpose(1, 2).numpy()


def _domains(points: Array, size: tuple[int, int], rng: np.random.Generator) -> Array:
    adjacency, (n_genes, n_logits) = knn_graph(points, graph="connected"), size
    labels = np.stack([graph_domains(adjacency, N_DOMAINS, rng) for _ in range(n_genes)])
    levels = rng.standard_normal((n_genes, labels.max() + 1, n_logits))
    return np.take_along_axis(levels, labels[..., None], 1)


def _along(place: Array, n_genes: int, rng: np.random.Generator) -> Array:
    angle = rng.uniform(0, 2 * np.pi, (n_genes, 1))
    return np.cos(angle) * place[:, 0] + np.sin(angle) * place[:, 1]


def _stripes(place: Array, n_genes: int, rng: np.random.Generator) -> Array:
    phase = rng.uniform(0, 2 * np.pi, (n_genes, 1))
    return (np.sin(np.pi * _along(place, n_genes, rng) / STRIPE + phase) > 0).astype(np.float64)


def _distance(place: Array, n_genes: int, rng: np.random.Generator) -> Array:
    """Distance of each spot to the one that is nearest to a point in the middle of the tissue."""
    middle = rng.uniform(*MIDDLE, (n_genes, 2)) * place.max(0)
    center = np.square(place - middle[:, None]).sum(-1).argmin(1)
    return np.sqrt(np.square(place - place[center, None]).sum(-1))


def _hot_spot(place: Array, n_genes: int, rng: np.random.Generator) -> Array:
    return (_distance(place, n_genes, rng) < RADIUS).astype(np.float64)


def _ring(place: Array, n_genes: int, rng: np.random.Generator) -> Array:
    distance = _distance(place, n_genes, rng)
    return ((distance > RADIUS) & (distance < RADIUS + WIDTH)).astype(np.float64)


OWN = 2  # of the seed: patterns share no random numbers with counts that are drawn from the same seed
LEVELS: dict[str, Callable[[Array, tuple[int, int], np.random.Generator], Array]] = {
    "field": _field,
    "domains": _domains,
}
MASKS: dict[str, Callable[[Array, int, np.random.Generator], Array]] = {
    "gradient": _along,
    "hot-spot": _hot_spot,
    "stripes": _stripes,
    "ring": _ring,
}
