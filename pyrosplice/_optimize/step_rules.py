"""First-order step rules for many problems at once: every gene has its own step length and its own state.

``torch.optim`` steps all parameters together (its L-BFGS even shares one line search), so one gene's trouble would be
everyone's. Each rule here keeps a row per gene and never mixes rows.

===================  ==========  ==================================================================================
to override          required    for
===================  ==========  ==================================================================================
``displacement``     yes         the next step of each gene from its present point
``accepts``          no          which trial points replace the present ones (default: those with lower loss)
``moved``            no          learning from an accepted step
``refused``          no          reacting to a refused one (default: halve the step)
``plateau``          no          reacting to epochs without improvement
===================  ==========  ==================================================================================
"""

from __future__ import annotations

import torch
from torch import Tensor


class DescentRule:
    """Steps for A problems of D parameters.

    Parameters
    ----------
    curvature
        Positive scale of the second derivative in each parameter, ``(A, D)``.
    rate
        First step length; "1" is a full step for ``curvature``.
    """

    def __init__(self, curvature: Tensor, rate: float) -> None:
        self.curvature = curvature
        self.rate = torch.full_like(curvature[:, 0], rate)
        self.state: dict[str, Tensor] = {}

    def select(self, rows: Tensor) -> None:
        """Keep some of the problems."""
        self.curvature, self.rate = self.curvature[rows], self.rate[rows]
        self.state = {name: value[rows] for name, value in self.state.items()}

    def displacement(self, gradient: Tensor) -> Tensor:
        """Step ``(A, D)`` from the present points, whose gradient is given."""
        raise NotImplementedError

    def accepts(self, loss: Tensor, trial_loss: Tensor, slope: Tensor) -> Tensor:
        """Which trial points are taken; ``slope`` is gradient times step. A NaN never is."""
        return trial_loss <= loss + 1e-4 * slope.clamp_max(0.0) + 1e-13 * loss.abs()

    def moved(self, rows: Tensor, step: Tensor, change: Tensor) -> None:
        """Learn from the accepted steps of the rows ``(B,)``: the steps and changes of gradient, ``(B, D)``."""

    def refused(self, rows: Tensor) -> None:
        """Shorten the next step of the rows ``(B,)``."""
        self.rate[rows] *= 0.5

    def plateau(self, rows: Tensor) -> None:
        """Start afresh from the best point of the rows ``(B,)``."""

    def promise(self, gradient: Tensor) -> Tensor:
        """Improvement ``(A,)`` that the quadratic model with this curvature still promises."""
        return 0.5 * (gradient.square() / self.curvature).sum(-1)


class Adam(DescentRule):
    """Adam (Kingma & Ba 2015) at a rate that is cut on a plateau, where a constant one would go round in circles."""

    def __init__(self, curvature: Tensor, rate: float) -> None:
        super().__init__(curvature, rate)
        blank = torch.zeros_like(curvature)
        self.state = {"mean": blank, "square": blank.clone(), "count": torch.zeros_like(self.rate)}

    def displacement(self, gradient: Tensor) -> Tensor:
        """Bias-corrected first moment over the root of the second."""
        self.state["mean"] = 0.9 * self.state["mean"] + 0.1 * gradient
        self.state["square"] = 0.999 * self.state["square"] + 0.001 * gradient.square()
        self.state["count"] = self.state["count"] + 1
        count = self.state["count"].unsqueeze(-1)
        mean = self.state["mean"] / (1 - 0.9**count)
        root = (self.state["square"] / (1 - 0.999**count)).sqrt()
        return -self.rate.unsqueeze(-1) * mean / (root + 1e-12)

    def accepts(self, loss: Tensor, trial_loss: Tensor, slope: Tensor) -> Tensor:
        """Any finite point: Adam may go uphill for a while."""
        return torch.isfinite(trial_loss)

    def refused(self, rows: Tensor) -> None:
        """Cut the rate and forget."""
        self.plateau(rows)

    def plateau(self, rows: Tensor) -> None:
        """Cut the rate and forget."""
        self.rate[rows] *= 0.3
        for value in self.state.values():
            value[rows] = 0.0


class GradientDescent(DescentRule):
    """Scaled gradient descent with Nesterov's momentum, restarted whenever the loss would rise (``"sgd"``).

    The step length grows by a tenth while it works and is halved where it does not.
    """

    def __init__(self, curvature: Tensor, rate: float) -> None:
        super().__init__(curvature, rate)
        self.state = {"velocity": torch.zeros_like(curvature), "age": torch.zeros_like(self.rate)}

    def displacement(self, gradient: Tensor) -> Tensor:
        """Momentum times the last step, less the scaled gradient."""
        momentum = (self.state["age"] / (self.state["age"] + 3)).unsqueeze(-1)
        return momentum * self.state["velocity"] - self.rate.unsqueeze(-1) * gradient / self.curvature

    def accepts(self, loss: Tensor, trial_loss: Tensor, slope: Tensor) -> Tensor:
        """Any point that is not higher."""
        return trial_loss <= loss

    def moved(self, rows: Tensor, step: Tensor, change: Tensor) -> None:
        """Keep the velocity, lengthen the step."""
        self.state["velocity"][rows] = step
        self.state["age"][rows] += 1
        self.rate[rows] *= 1.1

    def refused(self, rows: Tensor) -> None:
        """Drop the momentum; halve the step if there was none."""
        fresh = self.state["age"][rows] == 0
        self.rate[rows] *= torch.where(fresh, 0.5, 0.9)
        self.state["age"][rows] = 0.0
        self.state["velocity"][rows] = 0.0


class Lbfgs(DescentRule):
    """Limited-memory BFGS (Nocedal 1980), backtracking; pairs without positive curvature are left out."""

    memory = 10

    def __init__(self, curvature: Tensor, rate: float) -> None:
        super().__init__(curvature, 1.0)  # quasi-Newton steps have their own length
        size = (len(curvature), self.memory, curvature.shape[-1])
        self.state = {
            "steps": curvature.new_zeros(size),
            "changes": curvature.new_zeros(size),
            "weights": curvature.new_zeros(size[:2]),
            "scale": torch.ones_like(self.rate),
        }

    def displacement(self, gradient: Tensor) -> Tensor:
        """Minus the inverse-Hessian approximation times the gradient, at the present step length."""
        return -self.rate.unsqueeze(-1) * self._inverse(gradient)

    def moved(self, rows: Tensor, step: Tensor, change: Tensor) -> None:
        """Remember the pair and go back to full steps."""
        self.rate[rows] = 1.0
        product = (step * change).sum(-1)
        scaled = (change.square() / self.curvature[rows]).sum(-1)
        useful = product > 1e-10 * (step.square() * self.curvature[rows]).sum(-1).sqrt() * scaled.sqrt()
        rows, step, change = rows[useful], step[useful], change[useful]
        product, scaled = product[useful], scaled[useful]
        for name, value in (("steps", step), ("changes", change), ("weights", 1 / product)):
            old = self.state[name][rows]
            self.state[name][rows] = torch.cat([old[:, 1:], value.unsqueeze(1)], 1)
        self.state["scale"][rows] = product / scaled

    def plateau(self, rows: Tensor) -> None:
        """Forget the pairs."""
        self.state["weights"][rows] = 0.0
        self.state["scale"][rows] = 1.0
        self.rate[rows] = 1.0

    def promise(self, gradient: Tensor) -> Tensor:
        """Decrease ``½ g' H g`` that the approximation H promises, or the given curvature's if that is more."""
        return torch.maximum(super().promise(gradient), 0.5 * (gradient * self._inverse(gradient)).sum(-1))

    def _inverse(self, gradient: Tensor) -> Tensor:
        steps, changes, weights = self.state["steps"], self.state["changes"], self.state["weights"]
        result, factors = gradient, [gradient] * self.memory
        for j in reversed(range(self.memory)):
            factors[j] = (weights[:, j] * (steps[:, j] * result).sum(-1)).unsqueeze(-1)
            result = result - factors[j] * changes[:, j]
        result = self.state["scale"].unsqueeze(-1) * result / self.curvature
        for j in range(self.memory):
            back = (weights[:, j] * (changes[:, j] * result).sum(-1)).unsqueeze(-1)
            result = result + (factors[j] - back) * steps[:, j]
        return result


RULES: dict[str, type[DescentRule]] = {"adam": Adam, "sgd": GradientDescent, "lbfgs": Lbfgs}
