"""Small problems with a random list of effects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch

from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.likelihoods._counts import NegativeBinomial, Poisson
from pyrosplice.likelihoods._isoform_shares import DirichletMultinomial
from tests.glmm.test_laplace import grid

LIKELIHOODS: tuple[tuple[Likelihood, int], ...] = (
    (NegativeBinomial(), 1),
    (Poisson(), 1),
    (Multinomial(), 2),
    (Multinomial(), 3),
    (DirichletMultinomial(), 3),
)
SIDES = (3, 4)  # of the grids that sections are
SECTION = np.repeat(np.arange(len(SIDES)), np.square(SIDES))


def lower_triangle(q: int) -> np.ndarray:
    """One matrix for each entry of a lower triangle, ``(q (q + 1) / 2, q, q)``."""
    rows, columns = np.tril_indices(q)
    out = np.zeros((len(rows), q, q))
    out[np.arange(len(rows)), rows, columns] = 1.0
    return out


def group(name: str, levels: Sequence[int], columns: np.ndarray, *, kind: str = "full") -> GroupBlock:
    """An effect of groups with a full or diagonal covariance of its columns, or one variance for all of them."""
    q = columns.shape[1]
    basis = {
        "full": lower_triangle(q),
        "diagonal": np.stack([np.diag(row) for row in np.eye(q)]),
        "one": np.eye(q)[None],
    }
    levels = np.asarray(levels)
    return GroupBlock(
        name,
        levels,
        columns,
        basis[kind],
        tuple(f"psi{j}" for j in range(len(basis[kind]))),
        tuple(map(str, range(levels.max() + 1))),
        tuple(f"z{k}" for k in range(q)),
    )


def field_of_sections() -> SparseSolver:
    """A field on a grid for each section."""
    return SparseSolver(sp.block_diag([grid(side).precision for side in SIDES]))


def random_problem(seed: int, *, n_genes: int = 2) -> EffectsProblem:
    """A likelihood, groups, a field or not, noise or not, drawn by the seed."""
    rng = np.random.default_rng(seed)
    likelihood, n_isos = LIKELIHOODS[seed % len(LIKELIHOODS)]
    n = len(SECTION)
    design = np.stack([np.ones(n), rng.standard_normal(n)], 1)
    donor = rng.integers(-1, 3, n)
    donor[:3] = 0, 1, 2
    choices = [
        group("1 | section", SECTION, design[:, :1]),
        group("1 + x | donor", donor, design, kind=str(rng.choice(["full", "diagonal", "one"]))),
        group("x | batch", rng.permutation(np.arange(n) % 4), design[:, 1:]),
    ]
    kept = rng.permutation(3)[: rng.integers(0, 4)]
    space = bool(rng.integers(0, 2))
    return EffectsProblem(
        counts=torch.tensor(rng.poisson(3.0, (n_genes, n, n_isos)), dtype=torch.float64),
        design=design,
        likelihood=likelihood,
        offset=[None, 0.3 * rng.standard_normal(n)][rng.integers(0, 2)],
        groups=tuple(choices[k] for k in kept),
        space=field_of_sections() if space else None,
        space_by=rng.standard_normal(n) if space and rng.integers(0, 2) else None,
        noise=bool(rng.integers(0, 2)),
        isoform_effect="symmetric" if n_isos > 1 and rng.integers(0, 2) else "independent",
    )
