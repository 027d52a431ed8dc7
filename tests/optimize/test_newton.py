"""Newton's method: quadratic problems in one step, hard ones with step control, one gene never another's trouble."""

import pytest
import torch

from pyrosplice._optimize.newton import NewtonOptions, newton, solve_curvature


class Sum:
    """Separate losses, one function a gene, with autograd derivatives."""

    def __init__(self, functions):
        self.functions = functions

    def rounding(self):
        return torch.full((len(self.functions),), 1e-12, dtype=torch.float64)

    def loss(self, point):
        return torch.stack([f(x) for f, x in zip(self.functions, point, strict=True)])

    def derivatives(self, point):
        gradients = [torch.func.grad(f)(x) for f, x in zip(self.functions, point, strict=True)]
        hessians = [torch.func.hessian(f)(x) for f, x in zip(self.functions, point, strict=True)]
        return torch.stack(gradients), torch.stack(hessians)

    def select(self, rows):
        return Sum([self.functions[i] for i in rows.tolist()])


def quadratic(x):
    return (x[0] - 1) ** 2 + 3 * (x[1] + 2) ** 2 + x[0] * x[1]


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def log_cosh(x):
    return torch.log(torch.cosh(x)).sum()  # plain Newton diverges from |x| > 1.1


def ridge(x):
    return (x[0] + x[1] - 3).square() + (x[0] + x[1] - 3) ** 4  # flat along (1, -1)


def broken(x):
    return x.sum() * float("nan")


def start(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_reaches_the_optimum_of_every_gene():
    result = newton(Sum([quadratic, rosenbrock, log_cosh]), start([5, 5], [-1.2, 1], [4, -6]))
    expected = start([24 / 11, -26 / 11], [1, 1], [0, 0])
    torch.testing.assert_close(result.point, expected, atol=1e-7, rtol=0)
    assert result.convergence.reason == ["converged"] * 3
    assert result.convergence.n_iter[0] == 2  # one step, one to see that it was enough


def test_losses_never_rise():
    history = newton(Sum([rosenbrock, log_cosh]), start([-1.2, 1], [4, -6])).convergence.loss_history
    assert (history.diff(dim=0) <= 1e-12).all()


def test_flat_direction_is_left_alone():
    result = newton(Sum([ridge]), start([5, 0]))
    torch.testing.assert_close(result.point, start([4, -1]), atol=1e-4, rtol=0)
    assert result.convergence.reason == ["converged"]


def test_a_broken_gene_is_named_and_changes_no_other():
    alone = newton(Sum([quadratic, rosenbrock]), start([5, 5], [-1.2, 1]))
    beside = newton(Sum([quadratic, broken, rosenbrock]), start([5, 5], [0, 0], [-1.2, 1]))
    assert beside.convergence.reason == ["converged", "not_finite", "converged"]
    assert torch.equal(beside.point[[0, 2]], alone.point)
    assert beside.convergence.converged.tolist() == [True, False, True]


def test_running_out_of_epochs_is_said_and_history_kept():
    result = newton(Sum([rosenbrock]), start([-1.2, 1]), options=NewtonOptions(max_epochs=3, keep_history=True))
    assert result.convergence.reason == ["max_epochs"]
    assert len(result.history) == 4
    assert result.convergence.loss_history.shape == (4, 1)
    assert result.convergence.best_epoch.item() == 3


def test_indefinite_curvature_gives_a_descent_direction():
    hessian = torch.diag(torch.tensor([2.0, -4.0, 0.0], dtype=torch.float64)).unsqueeze(0)
    solution = solve_curvature(hessian, torch.ones(1, 3, 1, dtype=torch.float64))
    torch.testing.assert_close(solution.flatten(), torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_solve_does_not_depend_on_units(scale):
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(4, 5, 5, generator=rng, dtype=torch.float64)
    hessian, right = root @ root.mT, torch.randn(4, 5, 2, generator=rng, dtype=torch.float64)
    unit = torch.tensor([1.0, scale, 1.0, scale, 1.0], dtype=torch.float64)
    solution = solve_curvature(unit[:, None] * hessian * unit, unit[:, None] * right)
    torch.testing.assert_close(unit[:, None] * solution, torch.linalg.solve(hessian, right), rtol=1e-6, atol=1e-8)


def test_a_curvature_that_is_not_finite_has_no_solution_and_harms_no_other():
    eye = torch.eye(3, dtype=torch.float64)
    hessian = torch.stack([eye, torch.where(eye > 0, torch.nan, eye), torch.full_like(eye, torch.inf), -eye])
    solution = solve_curvature(hessian, torch.ones(4, 3, 1, dtype=torch.float64))
    assert torch.isnan(solution).flatten(1).all(1).tolist() == [False, True, True, False]
    torch.testing.assert_close(solution[[0, 3]], torch.ones(2, 3, 1, dtype=torch.float64))
