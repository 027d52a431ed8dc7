"""How good a mixture is: criteria that fall as it gets better, and a scorer that rises."""

from __future__ import annotations

import math
from typing import Protocol

import torch

from pyrosplice._mixture.density_module import GaussianMixtureModel


class Loss(Protocol):
    """An estimator whose ``score`` is a mean negative log likelihood."""

    def score(self, X: object) -> float:
        """Mean negative log likelihood of cells."""


def log_likelihood_scorer(estimator: Loss, X: object, y: None = None) -> float:
    """Mean log likelihood of the cells, **larger is better**: what model selection of scikit-learn maximises.

    ``GaussianMixture.score`` is the negative of it (a loss), so that a search which maximises ``score`` would keep the
    worst model.

    Parameters
    ----------
    estimator
        A fitted ``GaussianMixture``, or a pipeline that ends with one.
    X
        Cells, whatever ``fit`` takes.
    y
        Ignored.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from pyrosplice import GaussianMixture, log_likelihood_scorer
    >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
    >>> model, grid = GaussianMixture(random_state=0), {"num_components": [1, 2]}
    >>> GridSearchCV(model, grid, scoring=log_likelihood_scorer).fit(x).best_params_
    {'num_components': 2}
    """
    return -estimator.score(X)


def information_criterion(nll: object, model: GaussianMixtureModel, *, per_parameter: float | None) -> float:
    """Twice the negative log likelihood ``(N,)`` and ``per_parameter`` for each free parameter; log N for None."""
    nll = torch.as_tensor(nll).double()
    price = math.log(len(nll)) if per_parameter is None else per_parameter
    return 2 * float(nll.sum()) + price * model.parameters_of().n_free()
