"""The solver that is fastest for a spatial covariance, whatever describes it."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrosplice._linalg.lowrank import LowRankSolver
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice._overrides import depth, is_ours
from pyrosplice.errors import InvalidArgumentError

MAX_BLOCKS_PER_SPOT = 33  # a k-NN graph has far fewer neighbours than this, a dense covariance far more
RELATIVE_ZERO = 1e-9  # entries of an inverse this small, relative to its diagonal, are rounding


def solver_for(
    covariance: object = None,
    *,
    eigenvalues: Tensor | None = None,
    eigenvectors: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> SpatialSolver:
    """Solver for a spatial covariance V given by its sparse precision, densely, or by eigenpairs.

    Parameters
    ----------
    covariance
        An object with a sparse ``precision`` (such as :class:`~pyrosplice.spatial.car.CarCovariance`) or a method
        ``dense()``, or a dense (N, N) tensor. On the CPU, a dense V whose inverse is sparse is recognised and takes
        the sparse path.
    eigenvalues, eigenvectors
        Eigenpairs of V, (r,) and (N, r), instead of or beside it. With r < N the rest of V's diagonal (ones, where V
        itself is not given: it is a correlation matrix) is kept as independent variance.
    device
        Where fits run. The sparse path is on the CPU; elsewhere V is dense.

    Raises
    ------
    InvalidArgumentError
        Nothing given, wrong shapes, an asymmetric, non-finite or indefinite covariance.
    """
    if eigenvalues is not None or eigenvectors is not None:
        return _from_eigenpairs(covariance, eigenvalues, eigenvectors, device)
    if covariance is None:
        raise InvalidArgumentError("corr_sp: expected a spatial covariance or its eigenpairs, found neither.")
    on_cpu = torch.device(device).type == "cpu"
    precision = sparse_precision(covariance)
    if on_cpu and precision is not None:
        return SparseSolver(precision)
    if not isinstance(covariance, Tensor | np.ndarray) and hasattr(covariance, "dense"):
        covariance = covariance.dense()
    try:
        values = torch.as_tensor(covariance, dtype=torch.float64, device=device)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"corr_sp: expected a covariance, or a square matrix of numbers, found {type(covariance).__name__}."
        ) from error
    dense = _checked(values)
    precision = sparse_inverse(dense) if on_cpu else None
    return LowRankSolver.from_dense(dense) if precision is None else SparseSolver(precision)


def sparse_precision(covariance: object) -> sp.csc_matrix | None:
    """The sparse V⁻¹ that a covariance has; None without one, and where its class gives another ``dense()`` instead.

    A subclass that overrides ``dense`` and leaves ``precision`` to its parent is the covariance of ``dense``.

    Raises
    ------
    InvalidArgumentError
        A subclass that overrides ``dense`` and also has a constructor of its own, if the two do not agree.
    """
    precision = getattr(covariance, "precision", None)
    if precision is None or not hasattr(covariance, "dense"):
        return precision
    kind = type(covariance)
    own, given = depth(kind, "dense"), min(depth(kind, "precision"), depth(kind, "__init__"))
    if own < given:
        return None
    inherited = any("dense" in vars(ancestor) for ancestor in kind.__mro__[own + 1 :])
    if own == given and inherited and not is_ours(kind):
        probe = np.random.default_rng(0).standard_normal(precision.shape[0])
        product = precision @ (np.asarray(covariance.dense()) @ probe)
        if not np.allclose(product, probe, rtol=1e-5, atol=1e-5):
            raise InvalidArgumentError(
                f"covariance: {kind.__name__} overrides dense(), and its precision is not the inverse of that. Set "
                "precision too, or to None."
            )
    return precision


def sparse_inverse(covariance: Tensor) -> sp.csc_matrix | None:
    """Inverse of a dense (N, N) covariance if it is sparse, else None."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info) > 0:
        return None
    inverse = torch.cholesky_inverse(factor).cpu().numpy()
    scale = np.sqrt(np.diag(inverse))
    kept = np.abs(inverse) > RELATIVE_ZERO * scale[:, None] * scale
    if kept.sum() > MAX_BLOCKS_PER_SPOT * len(inverse) or kept.sum() > 0.5 * inverse.size:
        return None
    rows, columns = np.nonzero(kept)
    precision = sp.csc_matrix((inverse[rows, columns], (rows, columns)), shape=inverse.shape)
    return sp.csc_matrix((precision + precision.T) / 2)


def _checked(covariance: Tensor) -> Tensor:
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1]:
        raise InvalidArgumentError(f"corr_sp: expected a square matrix, found shape {tuple(covariance.shape)}.")
    if not bool(torch.isfinite(covariance).all()):
        raise InvalidArgumentError("corr_sp: expected finite entries, found NaN or infinity.")
    gap = float((covariance - covariance.T).abs().max())
    if gap > 1e-6 * float(covariance.abs().max()):
        raise InvalidArgumentError(f"corr_sp: expected a symmetric matrix, found entries {gap:.2g} apart.")
    covariance = (covariance + covariance.T) / 2
    if float(torch.diagonal(covariance).min()) <= 0:
        raise InvalidArgumentError("corr_sp: expected positive variances on the diagonal.")
    return covariance


def _from_eigenpairs(
    covariance: object, eigenvalues: Tensor | None, eigenvectors: Tensor | None, device: torch.device | str
) -> SpatialSolver:
    if eigenvalues is None or eigenvectors is None:
        raise InvalidArgumentError("corr_sp_eigvals and corr_sp_eigvecs: expected both or neither.")
    values = torch.as_tensor(eigenvalues, dtype=torch.float64, device=device)
    vectors = torch.as_tensor(eigenvectors, dtype=torch.float64, device=device)
    if vectors.dim() != 2 or values.shape != vectors.shape[1:]:
        raise InvalidArgumentError(
            f"corr_sp_eigvals, corr_sp_eigvecs: expected shapes (r,) and (N, r), found {tuple(values.shape)} and "
            f"{tuple(vectors.shape)}."
        )
    if float(values.min()) < -1e-8 * float(values.abs().max()):
        raise InvalidArgumentError(
            f"corr_sp_eigvals: expected no negative eigenvalue, found {float(values.min()):.3g}."
        )
    if vectors.shape[0] == vectors.shape[1]:
        return solver_for((vectors * values) @ vectors.T, device=device)
    variances = torch.ones_like(vectors[:, 0])
    if isinstance(covariance, Tensor):
        variances = torch.diagonal(covariance).to(variances)
    return LowRankSolver(values, vectors, variances=variances)
