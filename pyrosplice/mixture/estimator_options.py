"""The options of a :class:`~pyrosplice.GaussianMixture`, checked before any work."""

from __future__ import annotations

from pyrosplice.errors import InvalidArgumentError, check_integer, check_number, check_option
from pyrosplice.guides.own_model import check_model
from pyrosplice.mixture.em.one_fit import STRATEGIES
from pyrosplice.mixture.fitted_state import MixtureState
from pyrosplice.mixture.mixture_prior import (
    COVARIANCE_TYPES,
    MixturePrior,
    check_mixture_priors,
    has_covariances,
    one_prior,
)

REGULARIZATION = 1e-6  # added to variances by default


def check_options(of: MixtureState) -> None:
    """Raise :class:`InvalidArgumentError` unless every option is possible, and none contradicts another."""
    given = vars(of)
    check_model(given["model"])
    check_option("covariance_type", given["covariance_type"], COVARIANCE_TYPES)
    check_option("init_strategy", given["init_strategy"], STRATEGIES)
    check_option("missing", given["missing"], ("error", "marginalize"))
    check_option("warm_start", given["warm_start"], (True, False))
    for name in ("num_components", "n_init", "batch_size"):
        if name != "batch_size" or given[name] is not None:
            check_integer(name, given[name])
    for name in ("convergence_tolerance", "covariance_regularization"):
        check_number(name, given[name])
    prior, priors, floor = given["prior"], given["priors"], given["covariance_regularization"]
    if not (prior is None or isinstance(prior, MixturePrior)):
        raise InvalidArgumentError(f"prior: expected None or a MixturePrior, found {prior!r}.")
    one_prior(prior, priors)
    check_mixture_priors(priors, given["covariance_type"])
    if has_covariances(priors) and floor not in (0.0, REGULARIZATION):
        raise InvalidArgumentError(
            f"covariance_regularization: found {floor} beside priors of covariances, which take its place; leave one "
            "of the two out."
        )
    if not (given["use_rep"] is None or isinstance(given["use_rep"], str)):
        raise InvalidArgumentError(f"use_rep: expected a key of obsm or None, found {given['use_rep']!r}.")
