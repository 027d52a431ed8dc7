"""What a check of calibration is asked for, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyrosplice._tables.coordinates import has_coordinates, spatial_key_of
from pyrosplice._tables.names import text_names
from pyrosplice._usage.analysis.null_genes import graph_of
from pyrosplice._usage.analysis.prepare import Prepared
from pyrosplice.errors import (
    InvalidArgumentError,
    NoResultsError,
    UnknownOptionError,
    check_integer,
    check_option,
    check_share,
    is_number,
)
from pyrosplice.spatial._domains import Domains

METHODS = {"sv": ("score", "llr"), "du": ("score", "wald", "lrt")}
TRUTHS = ("null", "fitted", "domains")
OURS = ("return_results",)  # options of a test that the check gives itself


@dataclass(frozen=True)
class Request:
    """What a check of calibration is asked for, as ``check_calibration`` documents it; checked where it is made.

    Attributes
    ----------
    methods
        Methods of each test that is asked for.
    truth, domains
        Name of the truth, and the domains if it is they.
    options
        Options of the test methods.
    """

    methods: Mapping[str, Sequence[str]]
    truth: str
    domains: Domains | None
    n_genes: int
    effect: float | None
    confidence: float
    seed: int
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_share("confidence", self.confidence)
        own = next((name for name in OURS if name in self.options), None)
        if own is not None:
            raise UnknownOptionError(f"check_calibration: no option {own!r} of the test; the check gives it itself.")
        _check_effect(self.effect, self.methods)
        if self.options.get("contrasts") is not None and (self.truth == "fitted" or self.effect is not None):
            raise InvalidArgumentError(
                "contrasts: which effects a true (or a false) hypothesis leaves is not known for them; expected "
                "truth='null' or 'domains', and no effect."
            )
        check_integer("n_genes", self.n_genes)
        check_integer("seed", self.seed, least=0)


def methods_of(
    test: str | None, method: str | Sequence[str], prepared: Prepared, model_type: str
) -> dict[str, list[str]]:
    """Methods of each test that is asked for, by its kind."""
    kinds = [kind for kind, has in (("sv", model_type == "glmm-full"), ("du", prepared.design is not None)) if has]
    if test is not None:
        check_option("test", test, METHODS)
        kinds = [test]
    elif not kinds:
        raise NoResultsError("test: the model has neither space nor covariates, so that there is nothing to test.")
    names = text_names(method, "method")
    if not names:
        raise InvalidArgumentError("method: expected one or more, found none.")
    for kind in kinds:
        for name in names:
            check_option("method" if test else f"method, for test={kind!r}", name, METHODS[kind])
    return {kind: list(dict.fromkeys(names)) for kind in kinds}


def _check_effect(effect: object, kinds: Mapping[str, Any]) -> None:
    if effect is None:
        return
    if not (is_number(effect) and abs(effect) < np.inf and effect != 0):
        raise InvalidArgumentError(f"effect: expected a number other than zero, or None, found {effect!r}.")
    if len(kinds) > 1:
        raise InvalidArgumentError("effect: it is another thing for each test; give test='sv' or test='du' with it.")
    if effect < 0 and "sv" in kinds:
        raise InvalidArgumentError(f"effect: expected a positive standard deviation for test='sv', found {effect!r}.")


def domains_of(truth: object, prepared: Prepared, model_type: str) -> Domains | None:
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
        key, adata = spatial_key_of(domains.spatial_key), prepared.data.adata
        if not has_coordinates(key, adata.obsm, adata.obs):
            known = list(adata.obsm) if isinstance(key, str) else list(adata.obs)
            raise InvalidArgumentError(f"Domains(spatial_key): expected one of {known}, found {key!r}.")
    elif graph_of(prepared.covariance) is None:
        raise InvalidArgumentError(
            "truth='domains': the model has no graph of its spots; give truth=Domains(spatial_key=…), where their "
            "coordinates are in obsm."
        )
    if domains.number > prepared.n_spots:
        raise InvalidArgumentError(f"Domains(number): {domains.number} domains of {prepared.n_spots} spots.")
    return domains
