r"""Columns of the design and of effects as the engine works with them: uncorrelated and of one size.

With :math:`\tilde Z = Z T` of mean square 1, an effect is :math:`u = T \tilde u`, so that neither the scale nor the
zero of a covariate matters to where a search starts and how far it steps. Covariances without restriction stay so
under any T: it is triangular, of a QR decomposition, and L comes back as the root of :math:`T L L' T'`. Where each
matrix of a basis has one row, T is diagonal; of any other basis it is one number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._level_spaces import orthogonal_turn, scaling_turn
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StandardColumns:
    """Turns T of a problem's columns, and the maps between a person's parameters and those of the engine.

    Attributes
    ----------
    fixed : (P, P)
        T of the design: coefficients are ``fixed`` times the engine's.
    effects : (q, q) each
        T of the effects of groups.
    n_predictors
        Q.
    bases
        E of each effect.
    """

    fixed: Array
    effects: tuple[Array, ...]
    n_predictors: int
    bases: tuple[Array, ...]

    @classmethod
    def of(cls, problem: EffectsProblem, *, linear: bool = False) -> StandardColumns:
        """Turns of a problem's columns; ``linear`` for those alone under which ψ is multiplied by numbers."""
        q = problem.likelihood.n_predictors(problem.counts.shape[-1])
        fixed, bases = orthogonal_turn(np.asarray(problem.design)), tuple(block.basis for block in problem.groups)
        fixed = scaling_turn(problem.design) if fixed is None else fixed
        return cls(fixed, tuple(_turn(block, linear=linear) for block in problem.groups), q, bases)

    @property
    def log_volume(self) -> float:
        """What flat priors of a person's coefficients add to a restricted log likelihood of the engine's."""
        return self.n_predictors * float(np.linalg.slogdet(self.fixed)[1])

    def expanded(self, turn: Array) -> Array:
        """A turn of all predictors, ``T ⊗ I``."""
        return np.asarray(np.kron(turn, np.eye(self.n_predictors)), dtype=np.float64)

    def coefficients(self, engine: Array) -> Array:
        """A person's coefficients (..., P Q)."""
        return engine @ self.expanded(self.fixed).T

    def engine_coefficients(self, own: Array) -> Array:
        """The engine's coefficients (..., P Q)."""
        return own @ np.linalg.inv(self.expanded(self.fixed)).T

    def covariance(self, engine: Array) -> Array:
        """Covariance (..., P Q, P Q) of a person's coefficients."""
        turn = self.expanded(self.fixed)
        return turn @ engine @ turn.T

    def score(self, engine: Array) -> Array:
        """Derivatives (..., P Q) in a person's coefficients."""
        return engine @ np.linalg.inv(self.expanded(self.fixed))

    def parameters(self, engine: Array) -> Array:
        """A person's parameters (b, J) of effects of groups."""
        return self._mapped(engine, list(self.effects))

    def engine_parameters(self, own: Array) -> Array:
        """The engine's parameters (b, J) of effects of groups."""
        return self._mapped(own, [np.asarray(np.linalg.inv(turn), dtype=np.float64) for turn in self.effects])

    def _mapped(self, parameters: Array, turns: list[Array]) -> Array:
        out, first = [parameters[:, :0]], 0
        for turn, basis in zip(turns, self.bases, strict=True):
            own = parameters[:, first : first + len(basis)]
            out.append(_turned(own, turn, basis))
            first += len(basis)
        return np.concatenate(out, 1)

    def log_prior(self, own: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """A log prior of a person's parameters as one of the engine's, whose turns are linear."""
        factors = self.parameters(np.ones((1, sum(map(len, self.bases)))))[0]

        def of_engine(psi: Tensor, sds: Tensor, log_hyper: Tensor) -> Tensor:
            return own(psi * psi.new_tensor(factors), sds, log_hyper)

        return of_engine


def _turn(block: GroupBlock, *, linear: bool) -> Array:
    """T of an effect's columns, by the observations that have a level."""
    columns = np.asarray(block.columns, dtype=np.float64)[block.levels >= 0]
    if _is_triangle(block.basis) and not linear:
        turn = orthogonal_turn(columns)
        if turn is not None:
            return turn
    scales = scaling_turn(columns)
    if all((matrix != 0).any(1).sum() == 1 for matrix in block.basis):
        return scales
    return np.eye(len(scales)) * math.exp(np.log(np.diag(scales)).mean())


def _is_triangle(basis: Array) -> bool:
    """Whether a basis is the entries of a lower triangle, each once."""
    q = basis.shape[1]
    entries = {tuple(map(int, at)) for matrix in basis for at in np.argwhere(matrix)}
    single = all(np.count_nonzero(matrix) == 1 for matrix in basis)
    lower = {(int(r), int(c)) for r, c in zip(*np.tril_indices(q), strict=True)}
    return single and len(basis) == len(lower) and entries == lower


def _turned(parameters: Array, turn: Array, basis: Array) -> Array:
    """Parameters (b, J) of ``T L``."""
    if not np.array_equal(turn, np.diag(np.diag(turn))):
        root = turn @ np.einsum("bj,jkl->bkl", parameters, basis)
        finite = np.isfinite(root).all((1, 2))
        sound = np.where(finite[:, None, None], root, 0.0)
        triangle: Array = np.asarray(np.linalg.qr(np.swapaxes(sound, 1, 2), mode="r"), dtype=np.float64)
        diagonal = np.diagonal(triangle, axis1=1, axis2=2)
        triangle = np.swapaxes(triangle * np.where(diagonal < 0, -1.0, 1.0)[:, :, None], 1, 2)
        size = basis.sum((1, 2))
        out = np.stack([triangle[:, *np.argwhere(matrix)[0]] for matrix in basis], 1) / size
        return np.where(finite[:, None], out, np.nan)
    rows = [int(np.flatnonzero(matrix.any(1))[0]) for matrix in basis]
    return parameters * np.diag(turn)[rows]
