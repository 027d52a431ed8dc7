"""A field times a covariate: by the field's solver, and by that of its whole covariance."""

import torch

from pyrosplice._linalg.lowrank import LowRankSolver
from pyrosplice._linalg.scaled import ScaledSolver
from pyrosplice._linalg.sparse import SparseSolver
from tests.glmm.test_laplace import grid


def test_scaled_solver_is_the_solver_of_the_scaled_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    covariance, x = grid(5), torch.randn(25, generator=generator, dtype=torch.float64)
    x[3] = 0.0
    scaled = ScaledSolver(SparseSolver(covariance.precision), x)
    whole = LowRankSolver.from_dense(x[:, None] * covariance.dense() * x)
    torch.testing.assert_close(scaled.dense_covariance(), whole.dense_covariance())
    root = torch.randn(2, 25, 2, 2, generator=generator, dtype=torch.float64)
    blocks = root @ root.mT
    one, other = scaled.factorize(blocks), whole.factorize(blocks)
    torch.testing.assert_close(one.spot_covariance(), other.spot_covariance())
    torch.testing.assert_close(one.logdet() - 2 * scaled.prior_logdet, other.logdet())
    rhs = torch.randn(2, 25, 2, generator=generator, dtype=torch.float64)
    solved = [s.spread(f.solve(s.gather(rhs))) for s, f in ((scaled, one), (whole, other))]
    torch.testing.assert_close(solved[0], solved[1])
    noise = torch.randn(4000, 25, 1, generator=generator, dtype=torch.float64)
    draws = scaled.color(noise)[..., 0]
    torch.testing.assert_close(draws.T @ draws / 4000, whole.dense_covariance(), rtol=0.2, atol=0.2)
