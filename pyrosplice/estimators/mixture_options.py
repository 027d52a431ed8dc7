"""The options of ``fit_gmm``, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.inference.em import EMOptions
from pyrosplice.models.gaussian_mixture import COVARIANCE_TYPES, CovarianceType, MixturePrior

Sharing = Literal["global", "sample_specific", "auto"]
Metric = Literal["bic", "aic", "heldout_nll"]
Refit = Literal["full", "none"]
Handling = Literal["guarded", "robust", "strict"]


class UnknownMetricError(InvalidArgumentError, NotImplementedError):
    """``k_selection_metric`` is not one that this library has."""


@dataclass(frozen=True, kw_only=True)
class GMMOptions:
    """The options of :func:`fit_gmm`, checked."""

    component_sharing: Sharing
    k_comps: int | Sequence[int] | None
    k_selection_metric: Metric
    refit: Refit
    covariance_type: CovarianceType
    train_size: float
    max_iter: int
    tol: float
    n_init: int
    eps: float
    singularity_handling: Handling
    verbose: bool
    prior: MixturePrior | Literal["pooled"] | None
    n_folds: int | None
    random_state: int

    def __post_init__(self) -> None:
        if self.k_selection_metric not in get_args(Metric):
            raise UnknownMetricError(
                f"k_selection_metric: expected one of {get_args(Metric)}, found {self.k_selection_metric!r}."
            )
        check_option("component_sharing", self.component_sharing, get_args(Sharing))
        check_option("refit", self.refit, get_args(Refit))
        check_option("covariance_type", self.covariance_type, COVARIANCE_TYPES)
        check_option("singularity_handling", self.singularity_handling, get_args(Handling))
        if not (isinstance(self.prior, MixturePrior) or self.prior in (None, "pooled")):
            raise InvalidArgumentError(f"prior: expected None, 'pooled' or a MixturePrior, found {self.prior!r}.")
        if not 0 < self.train_size < 1:
            raise InvalidArgumentError(f"train_size: expected a number between 0 and 1, found {self.train_size}.")
        for name, least in (("max_iter", 1), ("n_init", 1), ("tol", 0), ("eps", 0)):
            if not getattr(self, name) >= least:
                raise InvalidArgumentError(f"{name}: expected at least {least}, found {getattr(self, name)}.")
        if self.n_folds is not None and self.n_folds < 2:
            raise InvalidArgumentError(f"n_folds: expected at least 2, found {self.n_folds}.")
        for k in self.candidates or ():
            if not isinstance(k, (int, np.integer)) or k < 1:
                raise InvalidArgumentError(f"k_comps: expected positive integers, found {k!r}.")

    @property
    def candidates(self) -> list[int] | None:
        """Candidate numbers of components, ascending; None for the default range."""
        if self.k_comps is None:
            return None
        if isinstance(self.k_comps, (int, np.integer)):
            return [int(self.k_comps)]
        if len(self.k_comps) == 0:
            raise InvalidArgumentError("k_comps: expected at least one number of components, found none.")
        return sorted(set(self.k_comps))

    @property
    def em(self) -> EMOptions:
        """The options of EM."""
        return EMOptions(max_iter=self.max_iter, tolerance=self.tol, progress=self.verbose)

    @property
    def metric(self) -> Metric:
        """The criterion that decides: held-out likelihood under cross-validation."""
        return "heldout_nll" if self.n_folds is not None else self.k_selection_metric
