"""Covariates that look like one of a tissue and cannot have an effect on it.

``permuted``: the values in another order; without smoothness.
``shifted``: the section mirrored at random and moved by a uniform vector over the torus that its bounding box makes;
spots that come from where there is none take the nearest value. Keeps values, edges and smoothness, but for a seam at
the sides of the box and flat patches out of the tissue; one in about 60 is nearly not moved.
``waves``: energy in each eight successive eigenvectors of the section's covariance as in the covariate, its direction
among them uniform. Keeps the smoothness at every scale and has no seam; values become like normal ones.
``drawn``: of the CAR, whatever the covariate.

Rotations are left out: distance to the rim stays what it is, and so do layers, which usage may follow.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pyrosplice.spatial._graph import wide_graph
from pyrosplice.spatial.car import CarCovariance

Array = NDArray[np.float64]
BAND = 8  # eigenvectors among which the energy of a covariate is spread anew


class Section:
    """Positions ``(n, 2)`` of the spots of one section, in units of the distance of neighbours."""

    def __init__(self, xy: Array):
        self.xy, self.covariance = xy, CarCovariance(wide_graph(xy))
        self.patterns = self.covariance.eigen()[1].numpy()  # the smoothest first


def permuted(values: Array, section: Section, rng: np.random.Generator) -> Array:
    return rng.permutation(values)


def shifted(values: Array, section: Section, rng: np.random.Generator) -> Array:
    places = section.xy - section.xy.min(0)
    sides = places.max(0) + 1
    moved = places * rng.choice([-1, 1], 2) + rng.uniform(size=2) * sides
    return values[cKDTree(places, boxsize=sides).query(moved % sides)[1]]


def waves(values: Array, section: Section, rng: np.random.Generator) -> Array:
    energies = section.patterns.T @ (values - values.mean())
    for start in range(0, len(energies), BAND):
        own = energies[start : start + BAND]
        direction = rng.standard_normal(len(own))
        energies[start : start + BAND] = direction * np.linalg.norm(own) / np.linalg.norm(direction)
    return section.patterns @ energies


def drawn(values: Array, section: Section, rng: np.random.Generator) -> Array:
    return section.covariance.sample(1, torch.Generator().manual_seed(int(rng.integers(2**31))))[0].numpy()


SURROGATES = {"permuted": permuted, "shifted": shifted, "waves": waves, "drawn": drawn}
