"""A user's own likelihood, priors and covariance in files: what can be brought back, and what has to be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyrosplice.errors import ModelFileError
from pyrosplice.models.likelihoods import Likelihood
from pyrosplice.models.prior_tables import (
    describe,
    likelihood_from_json,
    likelihood_to_json,
    prior_from_json,
    prior_to_json,
)
from pyrosplice.overrides import is_ours

SHIPPED_COVARIANCES = ("CarCovariance", "IdentityCovariance", "GraphMatern")


def pack(likelihood: Likelihood, priors: Mapping[str, Any], covariance: Any) -> dict[str, Any]:
    """Names of everything, and the arguments of what can be brought back."""
    return {
        "likelihood": {"name": repr(likelihood), "content": likelihood_to_json(likelihood)},
        "priors": {
            name: {"name": describe(prior), "content": prior_to_json(prior)}
            for name, prior in priors.items()
            if prior is not None
        },
        "covariance": name_of(covariance),
    }


def name_of(covariance: Any) -> str | None:
    """Name of a covariance's class, which is a shipped one's only if it is that."""
    if covariance is None:
        return None
    name = type(covariance).__name__
    return name if is_ours(type(covariance)) or name not in SHIPPED_COVARIANCES else f"own {name}"


def unpack(
    content: Mapping[str, Any] | None,
    likelihood: Likelihood | None,
    priors: Mapping[str, Any] | None,
    covariance: Any,
    *,
    path: str,
) -> dict[str, Any]:
    """Constructor arguments ``likelihood`` and ``priors``.

    Raises
    ------
    ModelFileError
        Something that the file cannot bring back was not given, or something was that it was saved without.
    """
    if content is None:
        return {"likelihood": likelihood, "priors": priors}
    missing, stored = [], content["likelihood"]
    if likelihood is None and stored["content"] is not None:
        likelihood = likelihood_from_json(stored["content"])
    elif likelihood is None:
        missing.append(f"likelihood={stored['name']}")
    elif stored["name"].partition("(")[0] != repr(likelihood).partition("(")[0]:
        raise ModelFileError(f"likelihood: {path!r} was saved with {stored['name']}, found {likelihood!r}.")
    found: dict[str, Any] = {}
    for name, prior in content["priors"].items():
        if name in (priors or {}):
            found[name] = (priors or {})[name]
        elif prior["content"] is not None:
            found[name] = prior_from_json(prior["content"])
        else:
            missing.append(f"priors={{{name!r}: {prior['name']}}}")
    own_space = content["covariance"] not in (None, *SHIPPED_COVARIANCES)
    if own_space and covariance is None:
        missing.append(f"covariance=<the {content['covariance']} of its spots>")
    unused = {f"priors[{name!r}]" for name in priors or {} if name not in content["priors"]}
    unused |= {"covariance"} if covariance is not None and content["covariance"] is None else set()
    if unused:
        raise ModelFileError(f"{', '.join(sorted(unused))}: {path!r} was saved without; leave it out.")
    if missing:
        raise ModelFileError(
            f"{path!r} was saved with classes that are not pyrosplice's or Pyro's, and files hold no code: call "
            f"load(path, {', '.join(missing)})."
        )
    return {"likelihood": likelihood, "priors": found}
