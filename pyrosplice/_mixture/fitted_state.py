"""What the readers, criteria and files of mixtures ask of an estimator: its options and its fit."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._mixture.density_module import GaussianMixtureModel
from pyrosplice._mixture.mixture_prior import CovarianceType
from pyrosplice._mixture.trainer import TrainerOptions
from pyrosplice.guides._own_fit import SavedSites
from pyrosplice.reasons import Reason


class MixtureState(Protocol):
    """A mixture with its options, as :class:`pyrosplice.GaussianMixture` documents them, and its fit.

    Attributes
    ----------
    named_by_anndata_
        Whether the names of the features come from an AnnData, whose matrix alone has none.
    """

    num_components: int
    covariance_type: CovarianceType
    init_means: Tensor | None
    init_weights: Tensor | None
    init_covariances: Tensor | None
    batch_size: int | None
    missing: Literal["error", "marginalize"]
    warm_start: bool
    use_rep: str | None
    model_: GaussianMixtureModel
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]
    named_by_anndata_: bool
    converged_: bool
    num_iter_: int
    nll_: float

    def trainer(self) -> TrainerOptions:
        """The options with which EM is run."""

    def saved_sites(self) -> SavedSites | None:
        """What a file holds of a model of a person's own."""

    @property
    def reason_(self) -> Reason:
        """How the fit ended."""

    def take_saved(self, saved: SavedSites | None, reason: Reason | None = None) -> None:
        """Take it."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments."""
