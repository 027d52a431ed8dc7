"""What an analysis of isoform usage says about itself, in rows: data, space, model, fit, tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp

from pyrosplice.priors.prior_tables import describe
from pyrosplice.representation import FDR
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance
from pyrosplice.spatial.graph import component_labels
from pyrosplice.usage.analysis.prepare import Prepared
from pyrosplice.usage.reading.isoforms import matrix_name
from pyrosplice.usage.records import FittedGene


def describe_data(prepared: Prepared | None) -> dict[str, str]:
    """Rows on counts, space and design."""
    if prepared is None:
        return {"data": "none; call setup_data"}
    n_isos = prepared.data.n_isos
    return {
        "data": f"{prepared.n_spots} spots, {len(n_isos)} genes, {sum(n_isos)} isoforms "
        f"({min(n_isos)} to {max(n_isos)} a gene), {matrix_name(prepared.data.layer)}",
        "space": _describe_space(prepared),
        "design": f"{len(prepared.covariate_names)} covariates: {_shorten(prepared.covariate_names)}"
        if prepared.covariate_names
        else "intercept only",
    }


def describe_priors(priors: Mapping[str, object], name: str | None) -> str:
    """Priors that are not flat, in a line; their name before there are data."""
    if not priors:
        return f"{name or 'flat'} priors"
    return "priors " + ", ".join(f"{name} ~ {describe(prior)}" for name, prior in priors.items())


def describe_fit(fitted: Sequence[FittedGene] | None, *, with_design: bool, with_null: bool) -> str:
    """How many genes converged, and why the others did not."""
    if fitted is None:
        return "not fitted; call fit"
    good = sum(gene.converged for gene in fitted)
    seconds = sum(gene.fitting_time_s for gene in fitted)
    text = f"{good} of {len(fitted)} genes converged in {seconds:.3g} s"
    reasons = sorted({gene.reason for gene in fitted if not gene.converged})
    text += f" (others: {', '.join(reasons)})" if reasons else ""
    return text + (", with design" if with_design else "") + (", null models too" if with_null else "")


def describe_test(results: Mapping[str, object] | None) -> str:
    """Method and number of discoveries."""
    if not results:
        return "not run"
    adjusted = np.asarray(results["pvalue_adj"], dtype=np.float64)
    found, asked = int((adjusted < FDR).sum()), int(np.isfinite(adjusted).sum())
    return f"{results['method']}: {found} of {asked} at FDR {FDR:.0%}"


def _describe_space(prepared: Prepared) -> str:
    covariance = prepared.covariance
    if covariance is None:
        return "not used"
    if isinstance(covariance, IdentityCovariance):
        return "independent spots"
    if not isinstance(covariance, CarCovariance):
        return f"{type(covariance).__name__} of {prepared.n_spots} spots"
    edges = sp.triu(covariance.adjacency, k=1).nnz
    components = component_labels(covariance.adjacency)[0]
    sections = "" if prepared.section_key is None else f" of {prepared.n_sections} section(s)"
    return f"CAR, rho {covariance.rho:g}, {edges} edges, {components} component(s){sections}"


def _shorten(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
