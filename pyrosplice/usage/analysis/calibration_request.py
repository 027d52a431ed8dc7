"""What a check of calibration is asked for, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrosplice.errors import (
    InvalidArgumentError,
    NoResultsError,
    UnknownOptionError,
    check_integer,
    check_option,
    check_share,
    check_switches,
    is_number,
)
from pyrosplice.spatial.domains import Domains
from pyrosplice.tables.names import text_names
from pyrosplice.usage.analysis.null_genes import graph_of
from pyrosplice.usage.analysis.prepare import Prepared

METHODS = {"sv": ("score", "llr"), "du": ("score", "wald", "lrt")}
TRUTHS = ("null", "fitted", "domains")
OURS = ("return_results",)  # options of a test that the check gives itself


@dataclass(frozen=True)
class Asked:
    """Arguments of ``check_calibration`` as they were given; see there."""

    test: Any
    n_genes: Any
    truth: Any
    method: Any
    effect: Any
    confidence: Any
    seed: Any
    print_progress: Any
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """The same, checked.

    Attributes
    ----------
    methods
        Methods of each test that is asked for.
    truth, domains
        Its name, and the domains if it is they.
    n_genes, effect, confidence, seed
        As given.
    options
        Of the test methods.
    """

    methods: Mapping[str, Sequence[str]]
    truth: str
    domains: Domains | None
    n_genes: int
    effect: float | None
    confidence: float
    seed: int
    options: Mapping[str, Any]


def read_request(asked: Asked, prepared: Prepared, model_type: str) -> Request:
    """Check everything that is known without running a test."""
    check_switches(print_progress=asked.print_progress)
    confidence = check_share("confidence", asked.confidence)
    methods = _methods(asked, prepared, model_type)
    domains = _domains(asked.truth, prepared, model_type)
    own = next((name for name in OURS if name in asked.options), None)
    if own is not None:
        raise UnknownOptionError(f"check_calibration: no option {own!r} of the test; the check gives it itself.")
    effect = _effect(asked.effect, methods)
    if asked.options.get("contrasts") is not None and (asked.truth == "fitted" or effect is not None):
        raise InvalidArgumentError(
            "contrasts: which effects a true (or a false) hypothesis leaves is not known for them; expected "
            "truth='null' or 'domains', and no effect."
        )
    return Request(
        methods=methods,
        truth="domains" if domains is not None else asked.truth,
        domains=domains,
        n_genes=check_integer("n_genes", asked.n_genes),
        effect=effect,
        confidence=confidence,
        seed=check_integer("seed", asked.seed, least=0),
        options=deepcopy(dict(asked.options)),
    )


def _methods(asked: Asked, prepared: Prepared, model_type: str) -> dict[str, list[str]]:
    kinds = [kind for kind, has in (("sv", model_type == "glmm-full"), ("du", prepared.design is not None)) if has]
    if asked.test is not None:
        check_option("test", asked.test, METHODS)
        kinds = [asked.test]
    elif not kinds:
        raise NoResultsError("test: the model has neither space nor covariates, so that there is nothing to test.")
    names = text_names(asked.method, "method")
    if not names:
        raise InvalidArgumentError("method: expected one or more, found none.")
    for kind in kinds:
        for name in names:
            check_option("method" if asked.test else f"method, for test={kind!r}", name, METHODS[kind])
    return {kind: list(dict.fromkeys(names)) for kind in kinds}


def _effect(effect: Any, kinds: Mapping[str, Any]) -> float | None:
    if effect is None:
        return None
    if not (is_number(effect) and abs(effect) < np.inf and effect != 0):
        raise InvalidArgumentError(f"effect: expected a number other than zero, or None, found {effect!r}.")
    if len(kinds) > 1:
        raise InvalidArgumentError("effect: it is another thing for each test; give test='sv' or test='du' with it.")
    if effect < 0 and "sv" in kinds:
        raise InvalidArgumentError(f"effect: expected a positive standard deviation for test='sv', found {effect!r}.")
    return float(effect)


def _domains(truth: Any, prepared: Prepared, model_type: str) -> Domains | None:
    """The domains that are the truth, if they are; raises where they have no graph to be of, or no variance."""
    domains = (
        truth if isinstance(truth, Domains) else Domains() if isinstance(truth, str) and truth == "domains" else None
    )
    if domains is None:
        if not isinstance(truth, str):
            raise InvalidArgumentError(f"truth: expected one of {TRUTHS} or Domains(…), found {truth!r}.")
        check_option("truth", truth, TRUTHS)
        return None
    if domains.sd is None and model_type != "glmm-full":
        raise InvalidArgumentError(
            f"truth='domains': model_type={model_type!r} has no fitted spatial variance that domains could have; give "
            "truth=Domains(sd=…, spatial_key=…)."
        )
    if domains.spatial_key is not None:
        check_option("Domains(spatial_key)", domains.spatial_key, list(prepared.data.adata.obsm))
    elif graph_of(prepared.covariance) is None:
        raise InvalidArgumentError(
            "truth='domains': the model has no graph of its spots; give truth=Domains(spatial_key=…), where their "
            "coordinates are in obsm."
        )
    if domains.number > prepared.n_spots:
        raise InvalidArgumentError(f"Domains(number): {domains.number} domains of {prepared.n_spots} spots.")
    return domains
