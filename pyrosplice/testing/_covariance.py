"""The contract of a spatial covariance, tested on numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyrosplice._linalg.select import solver_for
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.testing._problems import Problems

LARGEST = 3000


def check_covariance(covariance: object, *, n_spots: int | None = None) -> None:
    """Test a spatial covariance: an object with a sparse ``precision`` or a method ``dense()``, or a solver.

    Symmetry, positive definiteness, unit diagonal (σ² and θ mean variance and its share only then), ``precision``
    against ``dense()``, and the solver that fits would use against dense algebra.

    Parameters
    ----------
    covariance
        What ``setup_data`` takes as ``corr_sp`` or ``covariance``; at most 3,000 spots, since it is made dense here.
    n_spots
        Number of spots that it should have, if known.

    Raises
    ------
    ContractError
        With every finding in words (an ``AssertionError``).

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.spatial import CarCovariance, knn_graph
    >>> spots = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    >>> from pyrosplice.testing import check_covariance
    >>> check_covariance(CarCovariance(knn_graph(spots)), n_spots=100)
    """
    problems = Problems(covariance)
    precision, written = (getattr(covariance, name, None) for name in ("precision", "dense"))
    neither = precision is None and written is None
    if neither and not isinstance(covariance, SpatialSolver | Tensor | np.ndarray):
        problems.add("expected an attribute precision (sparse, N × N) or a method dense() (N × N); found neither.")
        problems.finish()
    try:
        solver = covariance if isinstance(covariance, SpatialSolver) else solver_for(covariance)
    except InvalidArgumentError as error:
        problems.add(f"no solver can be made of it: {error}")
        problems.finish()
    n = solver.n_spots
    if n > LARGEST:
        raise InvalidArgumentError(f"covariance: expected at most {LARGEST} spots to check it densely, found {n}.")
    if n_spots is not None and n != n_spots:
        problems.add(f"expected the covariance of {n_spots} spots, found {n}.")
    eye = torch.eye(n, dtype=torch.float64)
    dense = solver.covariance_product(eye.unsqueeze(0))[0]
    _matrix(problems, dense)
    if written is not None:
        problems.close("dense() and what the solver uses", torch.as_tensor(written()), dense, tolerance=1e-7)
    if written is not None and precision is not None:
        product = torch.from_numpy(precision @ torch.as_tensor(written()).numpy())
        problems.close("precision times dense() and the identity", product, eye, tolerance=1e-6)
    _solver(problems, solver, dense)
    problems.finish()


def _matrix(problems: Problems, dense: Tensor) -> None:
    problems.close("the matrix and its transpose", dense, dense.T, tolerance=1e-8)
    least = float(torch.linalg.eigvalsh((dense + dense.T) / 2)[0])
    if least < -1e-8:
        problems.add(f"expected no negative eigenvalue, found {least:.3g}.")
    diagonal = torch.diagonal(dense)
    if not bool(((diagonal - 1).abs() < 1e-6).all()):
        problems.add(
            f"expected ones on the diagonal (σ² is the variance of a spot only then), found "
            f"{float(diagonal.min()):.4g} to {float(diagonal.max()):.4g}. Divide by the standard deviations."
        )


def _solver(problems: Problems, solver: SpatialSolver, dense: Tensor) -> None:
    """Compare ``log |I + W V|`` and a solve at random weights, by the solver and densely."""
    n, generator = solver.n_spots, torch.Generator().manual_seed(0)
    weights = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    field = torch.randn(1, n, 1, generator=generator, dtype=torch.float64)
    core = dense if solver.remainder is None else dense - torch.diag(solver.remainder)
    factor = solver.factorize(weights[None, :, None, None])
    whole = torch.eye(n, dtype=torch.float64) + weights[:, None] * core
    problems.close(
        "solver: log determinant of I + W V",
        factor.logdet() - solver.prior_logdet,
        torch.linalg.slogdet(whole).logabsdet[None],
        tolerance=1e-7,
    )
    posterior = core @ torch.linalg.solve(whole, field[0])
    found = solver.spread(factor.solve(solver.gather(field)))[0]
    problems.close("solver: solve with V⁻¹ + W", found, posterior, tolerance=1e-6)
    variance = torch.diagonal(core @ torch.linalg.inv(whole))
    problems.close("solver: diagonal of (V⁻¹ + W)⁻¹", factor.spot_covariance()[0, :, 0, 0], variance, tolerance=1e-6)
