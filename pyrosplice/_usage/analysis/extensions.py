"""A user's own likelihood, priors and covariance in files: what can be brought back, and what has to be given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from pyrosplice._io.codec import NEW
from pyrosplice._overrides import is_ours
from pyrosplice._usage.analysis.prepare import check_size
from pyrosplice.errors import ModelFileError
from pyrosplice.guides._own_fit import SavedSites, check_saved
from pyrosplice.guides._own_model import Program, name_of
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.priors._prior_tables import (
    describe,
    likelihood_from_json,
    likelihood_to_json,
    prior_from_json,
    prior_to_json,
)
from pyrosplice.spatial._covariance import GraphMatern
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance

COVARIANCES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "CarCovariance": (CarCovariance, ("rho",)),
    "GraphMatern": (GraphMatern, ("range_", "alpha")),
    "IdentityCovariance": (IdentityCovariance, ()),
}


@dataclass(frozen=True)
class SavedObject:
    """Name of an object in words, and what makes one of ours or Pyro's again; None for a person's own."""

    name: str
    content: Any


@dataclass(frozen=True)
class Extensions:
    """The likelihood, the priors by site, the covariance of the spots if there is one, the name of an own model."""

    likelihood: SavedObject
    priors: dict[str, SavedObject]
    covariance: SavedObject | None
    model: str | None = field(default=None, metadata={NEW: True})


def pack(likelihood: Likelihood, priors: Mapping[str, Any], covariance: object, model: Program | None) -> Extensions:
    """Names of everything, and the arguments of what can be brought back."""
    return Extensions(
        SavedObject(repr(likelihood), likelihood_to_json(likelihood)),
        {k: SavedObject(describe(prior), prior_to_json(prior)) for k, prior in priors.items() if prior is not None},
        None if covariance is None else _saved_covariance(covariance),
        None if model is None else name_of(model),
    )


def own_model(saved: Extensions, model: Program | None, *, path: str) -> dict[str, Any]:
    """Constructor argument ``model``, if there is one; raises where it is not the one that was saved."""
    sites = None if saved.model is None else SavedSites(saved.model, "", {})
    check_saved(sites, model, repr(path), needed=True)
    return {} if model is None else {"model": model}


def unpack(
    saved: Extensions, likelihood: Likelihood | None, priors: Mapping[str, Any] | None, covariance: object, *, path: str
) -> dict[str, Any]:
    """Constructor arguments ``likelihood`` and ``priors``.

    Raises
    ------
    ModelFileError
        Something that the file cannot bring back was not given, or something was that it was saved without.
    """
    missing = []
    if likelihood is None and saved.likelihood.content is not None:
        likelihood = likelihood_from_json(saved.likelihood.content)
    elif likelihood is None:
        missing.append(f"likelihood={saved.likelihood.name}")
    elif saved.likelihood.name.partition("(")[0] != repr(likelihood).partition("(")[0]:
        raise ModelFileError(f"likelihood: {path!r} was saved with {saved.likelihood.name}, found {likelihood!r}.")
    found: dict[str, Any] = {}
    for name, prior in saved.priors.items():
        if name in (priors or {}):
            found[name] = (priors or {})[name]
        elif prior.content is not None:
            found[name] = prior_from_json(prior.content)
        else:
            missing.append(f"priors={{{name!r}: {prior.name}}}")
    if saved.covariance is not None and saved.covariance.content is None and covariance is None:
        missing.append(f"covariance=<the {saved.covariance.name} of its spots>")
    unused = {f"priors[{name!r}]" for name in priors or {} if name not in saved.priors}
    unused |= {"covariance"} if covariance is not None and saved.covariance is None else set()
    if unused:
        raise ModelFileError(f"{', '.join(sorted(unused))}: {path!r} was saved without; leave it out.")
    if missing:
        raise ModelFileError(
            f"{path!r} was saved with classes that are not pyrosplice's or Pyro's, and files hold no code: call "
            f"load(path, {', '.join(missing)})."
        )
    return {"likelihood": likelihood, "priors": found}


def covariance_of(saved: SavedObject | None, given: object, n_spots: int) -> object:
    """The covariance of ``n_spots`` spots; one of a person's own is the ``given``."""
    if saved is None:
        return None
    if saved.content is None:
        check_size(given, n_spots)
        return given
    kind, names = COVARIANCES[saved.name]
    if not names:
        return kind(n_spots)
    arguments = dict(saved.content)
    row, column = arguments.pop("edges")
    graph = sp.csr_matrix((arguments.pop("weights"), (row, column)), shape=(n_spots, n_spots))
    return kind(graph, **arguments)


def _saved_covariance(covariance: object) -> SavedObject:
    """The graph and the arguments of a shipped covariance; the name of another, which is never a shipped one's."""
    name = type(covariance).__name__
    if not is_ours(type(covariance)):
        return SavedObject(f"own {name}" if name in COVARIANCES else name, None)
    _, names = COVARIANCES[name]
    if not names or not hasattr(covariance, "adjacency"):
        return SavedObject(name, {})
    edges = covariance.adjacency.tocoo()
    graph = {"edges": np.stack([edges.row, edges.col]).astype(np.int64), "weights": edges.data}
    return SavedObject(name, graph | {argument: getattr(covariance, argument) for argument in names})
