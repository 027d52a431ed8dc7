"""The options of ``fit_gmm``, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from pyrosplice._mixture.em.loop import EMOptions
from pyrosplice._mixture.mixture_prior import (
    COVARIANCE_TYPES,
    CovarianceType,
    MixturePrior,
    MixturePriors,
    check_mixture_priors,
    has_covariances,
    one_prior,
    without_closed_form,
)
from pyrosplice.errors import (
    InvalidArgumentError,
    check_integer,
    check_number,
    check_option,
    check_share,
    check_switches,
)

Sharing = Literal["global", "sample_specific", "auto"]
Metric = Literal["bic", "aic", "heldout_nll"]
Refit = Literal["full", "none"]
Handling = Literal["guarded", "robust", "strict"]
EPS = 1e-4  # added to variances by default, as documented


class UnknownMetricError(InvalidArgumentError, NotImplementedError):
    """An error for a ``k_selection_metric`` that this library does not have."""


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
    prior: MixturePriors | Literal["pooled"]
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
        check_share("train_size", self.train_size)
        for name in ("tol", "eps"):
            check_number(name, getattr(self, name))
        for name, least in (("max_iter", 1), ("n_init", 1), ("random_state", 0)):
            check_integer(name, getattr(self, name), least=least)
        if self.n_folds is not None:
            check_integer("n_folds", self.n_folds, least=2)

    @property
    def not_conjugate(self) -> dict[str, str]:
        """Sites whose priors an M-step has no closed form for."""
        return without_closed_form(self.prior, self.covariance_type)

    @property
    def added(self) -> float:
        """What is added to the variances that are kept: nothing where they have a prior, or are fitted by a guide."""
        return 0.0 if has_covariances(self.prior) or self.not_conjugate else float(self.eps)

    @property
    def em(self) -> EMOptions:
        """The options of EM."""
        return EMOptions(max_iter=self.max_iter, tolerance=float(self.tol), progress=self.verbose)

    @property
    def metric(self) -> Metric:
        """The criterion that decides: held-out likelihood under cross-validation."""
        return "heldout_nll" if self.n_folds is not None else self.k_selection_metric


def priors_of_patients(prior: Any, priors: Any, eps: Any, covariance_type: Any) -> Any:
    """The priors of each patient's mixture, of two options that say the same.

    Raises
    ------
    InvalidArgumentError
        Both were given, or something that is neither; ``eps`` beside priors that take its place.
    """
    check_option("covariance_type", covariance_type, COVARIANCE_TYPES)
    pooled = isinstance(prior, str) and prior == "pooled"
    if not (pooled or prior is None or isinstance(prior, MixturePrior)):
        raise InvalidArgumentError(f"prior: expected None, 'pooled' or a MixturePrior, found {prior!r}.")
    given = one_prior(prior, priors)
    if priors is None or (isinstance(priors, str) and priors == "pooled"):
        return given
    check_mixture_priors(priors, covariance_type)
    if eps not in (0.0, EPS) and (has_covariances(priors) or without_closed_form(priors, covariance_type)):
        raise InvalidArgumentError(
            f"eps: found {eps!r} beside priors of covariances, or priors that EM has no closed form for, with which "
            "nothing is added to variances; leave one of the two out."
        )
    return given


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
