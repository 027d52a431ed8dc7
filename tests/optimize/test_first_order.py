"""First-order rules: the same optimum by each, honest reasons, independent genes."""

import pytest
import torch

from pyrosplice.optimize.first_order import DescentOptions, descend

OPTIMS = ["adam", "sgd", "lbfgs"]
SCALE = torch.tensor([[1.0, 40.0, 9.0], [4.0, 1.0, 30.0]], dtype=torch.float64)
CENTER = torch.tensor([[1.0, -2.0, 0.5], [0.3, 2.0, -1.0]], dtype=torch.float64)


class Quartic:
    """Coupled, convex, not quadratic; ``broken`` genes have no finite loss after the start."""

    def __init__(self, scale, center, broken=None):
        self.scale, self.center = scale, center
        self.broken = torch.zeros(len(scale), dtype=torch.bool) if broken is None else broken

    def value_and_gradient(self, point):
        with torch.enable_grad():
            point = point.detach().requires_grad_(True)
            away = point - self.center
            loss = (0.5 * self.scale * away**2 + 0.1 * away**4).sum(-1) + 0.3 * away.sum(-1) ** 2 + 100.0
            (gradient,) = torch.autograd.grad(loss.sum(), point)
        bad = self.broken & (point.detach() != 0).any(-1)
        return torch.where(bad, torch.nan, loss.detach()), gradient

    def step_limit(self, point, step):
        return torch.ones(len(point), dtype=torch.float64)

    def select(self, rows):
        return Quartic(self.scale[rows], self.center[rows], self.broken[rows])


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("optim", OPTIMS)
def test_every_rule_reaches_the_optimum(optim, scaled):
    options = DescentOptions(optim=optim, tol=1e-8, max_epochs=-1)
    curvature = SCALE if scaled else None
    result = descend(Quartic(SCALE, CENTER), torch.zeros_like(CENTER), curvature=curvature, options=options)
    assert result.convergence.reason == ["converged"] * 2
    assert (result.point - CENTER).abs().max() < 2e-3
    assert (result.convergence.best_loss - 100.0).abs().max() < 1e-6


@pytest.mark.parametrize("optim", OPTIMS)
def test_genes_are_independent(optim):
    options = DescentOptions(optim=optim, max_epochs=60)
    alone = descend(Quartic(SCALE[:1], CENTER[:1]), torch.zeros(1, 3).double(), options=options)
    beside = descend(Quartic(SCALE, CENTER, torch.tensor([False, True])), torch.zeros(2, 3).double(), options=options)
    assert torch.equal(beside.point[:1], alone.point)
    assert not beside.convergence.converged[1]
    assert torch.equal(beside.point[1], torch.zeros(3).double())  # its best and only finite point


def test_too_few_epochs_is_not_convergence_and_the_best_point_is_kept():
    result = descend(Quartic(SCALE, CENTER), 5 + torch.zeros(2, 3).double(), options=DescentOptions(max_epochs=7))
    assert result.convergence.reason == ["max_epochs"] * 2
    loss, _ = Quartic(SCALE, CENTER).value_and_gradient(result.point)
    assert torch.equal(loss, result.convergence.best_loss)
    assert torch.equal(result.convergence.loss_history.amin(0), result.convergence.best_loss)


def test_relative_tolerance_follows_the_size_of_the_loss():
    loose = DescentOptions(optim="lbfgs", tol=1e-3, tol_relative=True)
    tight = DescentOptions(optim="lbfgs", tol=1e-3)
    epochs = [
        descend(Quartic(SCALE, CENTER), torch.zeros(2, 3).double(), options=o).convergence.n_iter.sum()
        for o in (loose, tight)
    ]
    assert epochs[0] < epochs[1]


def test_history_has_a_point_for_every_epoch():
    options = DescentOptions(optim="sgd", max_epochs=20, keep_history=True)
    result = descend(Quartic(SCALE, CENTER), torch.zeros(2, 3).double(), options=options)
    assert len(result.history) == len(result.convergence.loss_history)
    loss, _ = Quartic(SCALE, CENTER).value_and_gradient(result.history[4])
    torch.testing.assert_close(loss, result.convergence.loss_history[4])
