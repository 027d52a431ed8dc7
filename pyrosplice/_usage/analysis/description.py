"""What an analysis of isoform usage says about itself, in rows: data, space, model, fit, tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp

from pyrosplice._representation import FDR
from pyrosplice._tables.coordinates import coordinates_name
from pyrosplice._usage.analysis.fits import UsageAnalysis
from pyrosplice._usage.analysis.options import AnalysisOptions
from pyrosplice._usage.analysis.prepare import Prepared
from pyrosplice._usage.reading.isoforms import matrix_name
from pyrosplice._usage.records import UsageFit
from pyrosplice.guides._own_model import name_of
from pyrosplice.priors._prior_tables import describe as describe_prior
from pyrosplice.spatial._connectivities import documented_edges
from pyrosplice.spatial._graph import component_labels
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance

JOINT_THETA = "not an estimate after a joint fit, whose optimum runs to 1; use fitting_method='marginal_newton'"


def analysis_rows(options: AnalysisOptions, analysis: UsageAnalysis | None) -> dict[str, str]:
    """Describe an analysis in rows, None before there are data."""
    results = {} if analysis is None else analysis.results
    return {
        **_describe_data(None if analysis is None else analysis.prepared, options),
        "model": _describe_model(options) if options.model is None else name_of(options.model),
        **_describe_estimates(options),
        "fit": _describe_fit(None if analysis is None else analysis.fitted),
        "sv test": _describe_test(results.get("sv")),
        "du test": _describe_test(results.get("du")),
    }


def _describe_model(options: AnalysisOptions) -> str:
    """Likelihood, variance and priors in a line."""
    if isinstance(options.priors, str):
        priors = f"{options.priors} priors"
    elif options.priors:
        priors = "priors " + ", ".join(f"{name} ~ {describe_prior(prior)}" for name, prior in options.priors.items())
    else:
        priors = "flat priors"
    if options.model_type == "glm":
        return f"{options.likelihood.name} GLM by {options.model_options()['fitting_method']}, {priors}"
    if not isinstance(options.priors, str) and "sigma" not in (options.priors or {}):  # else there is no other
        more = "" if options.var_prior_model == "none" else options.var_prior_model_params or ""
        priors += f", variance prior {options.var_prior_model}{more}"
    variance = "one variance" if options.share_variance else "a variance each logit"
    variance = "a variance of every isoform alike" if options.isoform_effect == "symmetric" else variance
    sigma = "sigma kept at its start" if options.var_fix_sigma else "sigma free"
    return f"{options.likelihood.name} GLMM by {options.fitting_method}, {variance}, {sigma}, {priors}"


def _describe_estimates(options: AnalysisOptions) -> dict[str, str]:
    """A row on what a joint fit gives that is no estimate."""
    if options.model is not None or options.model_type != "glmm-full" or not options.fitting_method.startswith("joint"):
        return {}
    return {"theta": JOINT_THETA}


def _describe_data(prepared: Prepared | None, options: AnalysisOptions) -> dict[str, str]:
    """Rows on counts, space and design."""
    if prepared is None:
        return {"data": "none; call setup_data"}
    n_isos = prepared.data.n_isos
    return {
        "data": f"{prepared.n_spots} spots, {len(n_isos)} genes, {sum(n_isos)} isoforms "
        f"({min(n_isos)} to {max(n_isos)} a gene), {matrix_name(prepared.data.layer)}",
        "space": _describe_space(prepared, options),
        "design": f"{len(prepared.covariate_names)} covariates: {_shorten(prepared.covariate_names)}"
        if prepared.covariate_names
        else "intercept only",
        **({} if prepared.listed is None else {"effects": str(prepared.listed)}),
    }


def _describe_fit(fitted: UsageFit | None) -> str:
    """How many genes converged, and why the others did not."""
    if fitted is None:
        return "not fitted; call fit"
    genes = fitted.genes
    good = sum(gene.converged for gene in genes)
    seconds = sum(gene.fitting_time_s for gene in genes)
    text = f"{good} of {len(genes)} genes converged in {seconds:.3g} s"
    reasons = sorted({gene.reason for gene in genes if not gene.converged})
    text += f" (others: {', '.join(reasons)})" if reasons else ""
    return text + (", with design" if fitted.with_design else "") + (", null models too" if fitted.null else "")


def _describe_test(results: Mapping[str, object] | None) -> str:
    """Method and number of discoveries."""
    if not results:
        return "not run"
    adjusted = np.asarray(results["pvalue_adj"], dtype=np.float64)
    found, asked = int((adjusted < FDR).sum()), int(np.isfinite(adjusted).sum())
    return f"{results['method']}: {found} of {asked} at FDR {FDR:.0%}"


def _describe_space(prepared: Prepared, options: AnalysisOptions) -> str:
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
    graph = "" if prepared.graph_key is None else f", of obsp[{prepared.graph_key!r}]"
    if prepared.spatial_key is not None:
        own = f"{documented_edges(options.graph)} {options.k_neighbors}-NN graph"
        graph = f", {own} of {coordinates_name(prepared.spatial_key)}"
    return f"CAR, rho {covariance.rho:g}, {edges} edges, {components} component(s){sections}{graph}"


def _shorten(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
