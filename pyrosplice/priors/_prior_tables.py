"""Priors in words, and as JSON for files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyro.distributions as dist
import torch

from pyrosplice._io.codec import check_keys
from pyrosplice.errors import ModelFileError
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.likelihoods._counts import NegativeBinomial, Poisson
from pyrosplice.likelihoods._isoform_shares import BetaBinomial, Binomial, DirichletMultinomial
from pyrosplice.likelihoods._normal import Normal
from pyrosplice.priors._inverse_wishart import InverseWishart
from pyrosplice.priors._penalized_complexity import SpatialShare
from pyrosplice.priors._scaled_normal import ScaledNormal
from pyrosplice.priors._sites import REAL_SITES, complete_priors, is_flat
from pyrosplice.priors._symmetric_normal import SymmetricNormal

SHIPPED: dict[str, type[Likelihood]] = {
    kind.__name__: kind
    for kind in (Multinomial, Binomial, DirichletMultinomial, BetaBinomial, Poisson, NegativeBinomial, Normal)
}
OURS = {kind.__name__: kind for kind in (SpatialShare, SymmetricNormal, ScaledNormal, InverseWishart)}
MOST_SHOWN = 8  # numbers of an argument that is written out
ROLES = {
    "beta": "covariate effects on the linear predictor",
    "bias_eta": "intercepts",
    "sigma": "standard deviation of the random effect",
    "theta_logit": "logit of the spatial share of its variance",
}


def prior_table(priors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> pd.DataFrame:
    """Tabulate the priors, one row a site: shape of a gene's values, support, prior, role.

    ``priors`` are those given; ``shapes`` are those of all sites, genes first.
    """
    complete = complete_priors(priors, shapes)
    rows = [
        {
            "site": name,
            "shape": shape[1:],
            "support": "real" if name in REAL_SITES else "positive",
            "prior": "flat" if is_flat(complete[name]) else describe(priors[name]),
            "role": ROLES.get(name, "hyper-parameter of the likelihood"),
        }
        for name, shape in shapes.items()
    ]
    return pd.DataFrame(rows).set_index("site")


def describe(prior: torch.distributions.Distribution) -> str:
    """Write a distribution in one line: ``Normal(loc=0, scale=1)``."""
    if isinstance(prior, SpatialShare):
        return f"penalised complexity of θ (rate {prior.rate:.3g})"
    if isinstance(prior, torch.distributions.Independent):
        return describe(prior.base_dist)
    arguments = ", ".join(f"{key}={_short(value)}" for key, value in _arguments(prior).items())
    return f"{type(prior).__name__}({arguments})"


def prior_to_json(prior: torch.distributions.Distribution) -> dict[str, Any] | None:
    """Write a prior of ours or Pyro's as its class and arguments; None for any other, which no file brings back."""
    if isinstance(prior, SpatialShare):
        return {"class": "SpatialShare", "distance": prior.distance.tolist(), "slope": prior.slope.tolist()} | {
            "rate": prior.rate
        }
    if type(prior) is dist.Independent:
        base = prior_to_json(prior.base_dist)
        return base and {"class": "Independent", "base": base, "event": prior.reinterpreted_batch_ndims}
    kind = type(prior).__name__
    if kind in ("TransformedDistribution", "MaskedDistribution") or _class_of(kind) is not type(prior):
        return None
    return {"class": kind} | {key: torch.as_tensor(value).tolist() for key, value in _arguments(prior).items()}


def prior_from_json(content: Mapping[str, Any]) -> dist.TorchDistribution:
    """Read a prior that :func:`prior_to_json` wrote.

    Raises
    ------
    ModelFileError
        A class that is no distribution of Pyro's, or arguments that are not its own.
    """
    arguments = {key: value for key, value in content.items() if key != "class"}
    name = content.get("class")
    kind: Any = _class_of(name)
    if not (isinstance(kind, type) and issubclass(kind, torch.distributions.Distribution)):
        raise ModelFileError(f"priors: the file names {name!r}, which is no distribution of Pyro's.")
    make: Any = kind
    try:
        if make is dist.Independent:
            return make(prior_from_json(arguments["base"]), arguments["event"])
        tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in arguments.items()}
        if make is SpatialShare:
            return SpatialShare(tensors["distance"], tensors["slope"], content["rate"])
        known = make.arg_constraints  # of Wishart's, each object has its own
        known = known if isinstance(known, Mapping) else inspect.signature(make.__init__).parameters
        if not tensors.keys() <= known.keys():
            raise ValueError(f"arguments {sorted(tensors)}")
        return make(**tensors)
    except (AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ModelFileError(f"priors: the file's {name} cannot be made again ({error}).") from error


def likelihood_to_json(likelihood: Likelihood) -> dict[str, Any] | None:
    """Write a shipped likelihood as its class and plain numbers; None for any other."""
    if SHIPPED.get(type(likelihood).__name__) is not type(likelihood):
        return None
    arguments = dict(vars(likelihood))
    if not all(value is None or isinstance(value, int | float) for value in arguments.values()):
        return None
    return {"class": type(likelihood).__name__, "arguments": arguments}


def likelihood_from_json(content: Mapping[str, Any]) -> Likelihood:
    """Read what :func:`likelihood_to_json` wrote; :class:`ModelFileError` for a likelihood that is not shipped."""
    check_keys(content, ("class", "arguments"), "likelihood")
    kind, arguments = SHIPPED.get(str(content["class"])), content["arguments"]
    arguments = arguments if isinstance(arguments, dict) else {"arguments": arguments}
    numbers = all(v is None or isinstance(v, int | float) for v in arguments.values())
    if kind is None or not numbers:
        raise ModelFileError(
            f"likelihood: the file names {content.get('class')!r}, which is not one of {sorted(SHIPPED)}."
        )
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"likelihood: the file's {kind.__name__} cannot be made again ({error}).") from error


def _class_of(name: object) -> type | None:
    """The class of priors of that name, ours or Pyro's; None if there is none."""
    return OURS.get(name) or (getattr(dist, name, None) if isinstance(name, str) else None)


def _arguments(prior: torch.distributions.Distribution) -> dict[str, Any]:
    names = [name for name in inspect.signature(type(prior).__init__).parameters if name in prior.arg_constraints]
    if "scale_tril" in names:  # of normal and Wishart distributions: one of three ways to say a matrix
        names = [name for name in names if name not in ("covariance_matrix", "precision_matrix")]
    chosen = [name for name in names if name != "logits" or "probs" not in names]
    return {name: getattr(prior, name) for name in chosen}


def _short(value: object) -> str:
    tensor = torch.as_tensor(value)
    if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
        return f"{float(tensor.flatten()[0]):.4g}"
    if tensor.numel() > MOST_SHOWN:
        return f"[{'×'.join(map(str, tensor.shape))}]"
    return _nested(tensor)


def _nested(tensor: torch.Tensor) -> str:
    return f"{float(tensor):.4g}" if tensor.ndim == 0 else f"[{', '.join(map(_nested, tensor))}]"
