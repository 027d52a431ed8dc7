"""What an estimator says about itself, as text and as HTML: data, space, model, fit, tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from pyrosplice.data.isoforms import matrix_name
from pyrosplice.inference.nb_newton import FitCode
from pyrosplice.models.prior_tables import describe
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance
from pyrosplice.spatial.graph import component_labels

if TYPE_CHECKING:
    from pyrosplice.estimators.fitted import FittedGene
    from pyrosplice.estimators.prepare import Prepared

FDR = 0.05


class Described:
    """Shows itself as text and as HTML; override ``_rows``, and ``_title`` where the class's name says too little."""

    def _title(self) -> str:
        return type(self).__name__

    def _rows(self) -> dict[str, str]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return as_text(self._title(), self._rows())

    def _repr_html_(self) -> str:
        return as_html(self._title(), self._rows())


def as_text(title: str, rows: Mapping[str, str]) -> str:
    """Title and one line a row."""
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def as_html(title: str, rows: Mapping[str, str]) -> str:
    """The same as a small table, in the colours of the page that it is on."""
    cell = "text-align:left;vertical-align:top;padding:1px 12px 1px 0"
    body = "".join(
        f"<tr><th style='{cell};white-space:nowrap'>{escape(name)}</th><td style='{cell}'>{escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<div><b>{escape(title)}</b><table>{body}</table></div>"


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


def describe_genes(pval: Any, names: Any, *, shown: int = 5) -> dict[str, str]:
    """Rows on the p-values (G,) of a test: how many, how many found, the smallest."""
    from pyrosplice.hypothesis.expression_statistics import adjust_jointly

    found, asked = int((adjust_jointly(pval) <= FDR).sum()), int(np.isfinite(pval).sum())
    order = np.argsort(np.where(np.isfinite(pval), pval, np.inf))[: min(shown, asked)]
    smallest = ", ".join(f"{names[i]} ({pval[i]:.2g})" for i in order)
    return {
        "tested": f"{asked} of {len(pval)} genes",
        "found": f"{found} at FDR {FDR:.0%}",
        "smallest p": smallest or "none",
    }


def describe_codes(codes: Any) -> str:
    """How the fits of expression ended: ``298 converged, 2 separated``."""
    kinds, counts = np.unique(np.asarray(codes), return_counts=True)
    order = np.argsort(-counts)
    return ", ".join(f"{counts[i]} {FitCode(kinds[i]).name.lower().replace('_', ' ')}" for i in order)


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
