"""The options of ``fit_gmm``, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from pyrosplice.errors import InvalidArgumentError, check_integer, check_number, check_option
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
        if not 0 < check_number("train_size", self.train_size) < 1:
            raise InvalidArgumentError(f"train_size: expected a number between 0 and 1, found {self.train_size}.")
        check_integer("max_iter", self.max_iter)
        check_integer("n_init", self.n_init)
        check_integer("random_state", self.random_state, least=0)
        check_number("tol", self.tol)
        check_number("eps", self.eps)
        check_option("verbose", self.verbose, (True, False))
        if self.n_folds is not None:
            check_integer("n_folds", self.n_folds, least=2)
        if np.iterable(self.k_comps) and not isinstance(self.k_comps, (str, bytes)):
            object.__setattr__(self, "k_comps", list(self.k_comps))
        _ = self.candidates

    @property
    def candidates(self) -> list[int] | None:
        """Candidate numbers of components, ascending; None for the default range."""
        if self.k_comps is None:
            return None
        if isinstance(self.k_comps, (str, bytes)) or not np.iterable(self.k_comps):
            return [check_integer("k_comps", self.k_comps)]
        every = [k.item() if isinstance(k, torch.Tensor) and k.ndim == 0 else k for k in self.k_comps]
        if not every:
            raise InvalidArgumentError("k_comps: expected at least one number of components, found none.")
        return sorted({check_integer("k_comps", k) for k in every})

    @property
    def em(self) -> EMOptions:
        """The options of EM."""
        return EMOptions(max_iter=self.max_iter, tolerance=self.tol, progress=self.verbose)

    @property
    def metric(self) -> Metric:
        """The criterion that decides: held-out likelihood under cross-validation."""
        return "heldout_nll" if self.n_folds is not None else self.k_selection_metric
