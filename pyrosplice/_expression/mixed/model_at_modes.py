"""The fitted model with random effects: predictors, means, densities and draws given every effect at its mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrosplice._expression.estimator import Estimator, FittedModel

Array = NDArray[np.float64]


class ModelAtModes(FittedModel):
    """A fitted model whose location predictor has the modes of all random effects in it.

    Parameters
    ----------
    estimator
        The fit.
    predictor
        Location predictor of some genes ``(N, g)``, at their positions.
    """

    def __init__(self, estimator: Estimator, predictor: Callable[[NDArray[np.intp]], Array]) -> None:
        super().__init__(estimator)
        self._predictor = predictor

    def eta_loc_j(self, genes: Any) -> Array:
        """Location predictor, size factors and modes of the random effects included, of some genes ``(N, g)``."""
        return self._predictor(self._places(genes))
