"""The options of ``fit_gmm``, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from pyrosplice.errors import (
    InvalidArgumentError,
    check_integer,
    check_number,
    check_option,
    check_share,
    check_switches,
)
from pyrosplice.mixture.em.loop import EMOptions
from pyrosplice.mixture.mixture_prior import COVARIANCE_TYPES, CovarianceType, MixturePrior

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
    k_comps: list[int] | None
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
        try:
            check_option("k_selection_metric", self.k_selection_metric, get_args(Metric))
        except InvalidArgumentError as error:
            raise UnknownMetricError(str(error)) from None
        check_switches(verbose=self.verbose)
        check_option("component_sharing", self.component_sharing, get_args(Sharing))
        check_option("refit", self.refit, get_args(Refit))
        check_option("covariance_type", self.covariance_type, COVARIANCE_TYPES)
        check_option("singularity_handling", self.singularity_handling, get_args(Handling))
        pooled = isinstance(self.prior, str) and self.prior == "pooled"
        if not (pooled or self.prior is None or isinstance(self.prior, MixturePrior)):
            raise InvalidArgumentError(f"prior: expected None, 'pooled' or a MixturePrior, found {self.prior!r}.")
        check_share("train_size", self.train_size)
        for name in ("tol", "eps"):
            check_number(name, getattr(self, name))
        for name, least in (("max_iter", 1), ("n_init", 1), ("random_state", 0)):
            check_integer(name, getattr(self, name), least=least)
        if self.n_folds is not None:
            check_integer("n_folds", self.n_folds, least=2)

    @property
    def em(self) -> EMOptions:
        """The options of EM."""
        return EMOptions(max_iter=self.max_iter, tolerance=float(self.tol), progress=self.verbose)

    @property
    def metric(self) -> Metric:
        """The criterion that decides: held-out likelihood under cross-validation."""
        return "heldout_nll" if self.n_folds is not None else self.k_selection_metric


def candidate_numbers(k_comps: Any) -> list[int] | None:
    """Candidate numbers of components, ascending, from one integer or several of any type; None for the default."""
    if k_comps is None:
        return None
    given = k_comps.detach().cpu().numpy() if isinstance(k_comps, torch.Tensor) else k_comps
    if isinstance(given, np.ndarray) and given.ndim == 0:
        given = given[()]
    several = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
    numbers = list(given) if several else [given]
    if not numbers:
        raise InvalidArgumentError("k_comps: expected at least one number of components, found none.")
    for k in numbers:
        check_integer("k_comps", k, least=1)
    return sorted({int(k) for k in numbers})
