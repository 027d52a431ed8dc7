"""The families of the mouse olfactory bulb for the studies: data, our tests of them, and the peer package's.

Covariates: ``x``, a coordinate; ``Penk``, log expression of a marker of the granule layer; ``granule``, 0 or 1, the
spots that are of that layer by their neighbourhood's markers.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import zscore

from pyrosplice import SplisosmGLMM
from pyrosplice.spatial._graph import knn_graph
from tests.paths import SHARED

LAYERS = {"raw": "counts", "thinned": "counts_thinned"}
COVARIATES = ("x", "Penk", "granule")
INNER, OUTER = ("Penk", "Pcp4"), ("Doc2g", "Cdhr1", "Kctd12")
OURS_SV, OURS_DU = ("score", "score, permutation", "llr", "llr, importance"), ("score", "wald", "lrt")
METHODS = (*dict.fromkeys(OURS_SV + OURS_DU), "HSIC-IR", "peer llr", "HSIC", "HSIC-GP", "peer score")
NO_PEER = pd.DataFrame(columns=["gene", "method", "covariate", "pvalue", "statistic", "sigma", "theta", "peer"])
QUIET = {"print_progress": False}


def olfactory_bulb(depth: str) -> ad.AnnData:
    """Families × spots at one depth: ``counts``, the graph in ``obsp`` and the covariates in ``obs``."""
    families = ad.read_h5ad(SHARED / "data" / "mob_rep11_families.h5ad")
    genes = ad.read_h5ad(SHARED / "data" / "mob_rep11_genes.h5ad")
    graph = knn_graph(families.obsm["spatial"], k_neighbors=4, graph="union")
    total = genes.obs["total_counts"].to_numpy()[:, None]
    markers = np.log1p(1e4 * genes[:, [*INNER, *OUTER]].layers["counts"].toarray() / total)
    smooth = markers + graph @ markers / np.asarray(graph.sum(1)).reshape(-1, 1)
    region = zscore(smooth)[:, : len(INNER)].mean(1) > zscore(smooth)[:, len(INNER) :].mean(1)
    obs = pd.DataFrame(
        {"x": zscore(families.obsm["spatial"][:, 0]), "Penk": zscore(markers[:, 0]), "granule": region.astype(float)},
        index=families.obs_names,
    )
    counts = sp.csc_matrix(families.layers[LAYERS[depth]])
    found = ad.AnnData(counts.tocsr(), obs=obs, var=families.var[["gene_symbol"]].astype(str))
    found.layers["counts"], found.obsm["spatial"], found.obsp["graph"] = found.X, families.obsm["spatial"], graph
    return found


def permuted(adata: ad.AnnData, n_replicates: int, seed: int) -> ad.AnnData:
    """Families ``name/replicate`` whose rows of counts are those of other spots, a new order for each of them."""
    rng, counts, parts, names = np.random.default_rng(seed), adata.layers["counts"].tocsc(), [], []
    for replicate in range(n_replicates):
        for family in adata.var["gene_symbol"].unique():
            own = np.flatnonzero(adata.var["gene_symbol"] == family)
            parts.append(counts[:, own][rng.permutation(adata.n_obs)])
            names += [f"{family}/{replicate}"] * len(own)
    var = pd.DataFrame({"gene_symbol": names}, index=[f"{name}/{i}" for i, name in enumerate(names)])
    found = ad.AnnData(sp.csr_matrix(sp.hstack(parts)), obs=adata.obs.copy(), var=var)
    found.layers["counts"], found.obsm["spatial"], found.obsp["graph"] = (
        found.X,
        adata.obsm["spatial"],
        adata.obsp["graph"],
    )
    return found


def model_of(
    adata: ad.AnnData,
    covariate: str | list[str] | None = None,
    *,
    model_type: str = "glmm-full",
    share_variance: bool = True,
) -> SplisosmGLMM:
    """Data set up as for all tests here."""
    model = SplisosmGLMM(
        model_type, fitting_method="marginal_newton", var_fix_sigma=False, share_variance=share_variance
    )
    model.setup_data(adata, adj_key="graph", group_gene_by_n_iso=True, design_mtx=covariate)
    return model


def variability(adata: ad.AnnData, *, everything: bool) -> pd.DataFrame:
    """P-values and statistics of θ = 0 by each method, and σ̂, θ̂; see ``rows_of``. ``everything``: slow ones too."""
    model = model_of(adata)
    tests = {"score": {"method": "score"}, "llr": {"method": "llr"}}
    if everything:
        tests["score, permutation"] = {"method": "score", "use_perm_null": True, "n_perms_per_gene": 999}
        tests["llr, importance"] = {"method": "llr", "importance": True}
    model.fit(batch_size=32, from_null=True, **QUIET)
    results = {name: model.test_spatial_variability(return_results=True, **ask, **QUIET) for name, ask in tests.items()}
    return rows_of(results).assign(covariate="").merge(estimates_of(model), on="gene")


def differential(adata: ad.AnnData, covariates: Sequence[str] = COVARIATES) -> pd.DataFrame:
    """Tests of β = 0, each covariate by itself. ``sigma with``, ``theta with``: estimates with it in the model."""
    tables = []
    for covariate in covariates:
        model = model_of(adata, covariate)
        model.fit(batch_size=32, with_design_mtx=True, **QUIET)
        found = {"wald": usage_test(model, "wald")}
        larger = estimates_of(model).rename(columns={"sigma": "sigma with", "theta": "theta with"})
        model.fit(batch_size=32, **QUIET)
        found |= {method: usage_test(model, method) for method in ("score", "lrt")}
        table = rows_of(found).assign(covariate=covariate)
        tables.append(table.merge(estimates_of(model), on="gene").merge(larger, on="gene"))
    return pd.concat(tables, ignore_index=True)


def usage_test(model: SplisosmGLMM, method: str) -> dict[str, object]:
    """Test of the one covariate, flat, at the estimated covariance as the peer's tests are."""
    result = model.test_differential_usage(method, law="plugin", return_results=True, **QUIET)
    return {"gene": result["gene"], **{key: np.ravel(result[key]) for key in ("statistic", "pvalue")}}


def together(
    adata: ad.AnnData, methods: Sequence[str], *, share_variance: bool = True, law: str = "plugin"
) -> pd.DataFrame:
    """Tests of the covariates, each beside the others, for many families at once; with one σ or one a logit."""
    model, tables = model_of(adata, list(COVARIATES), share_variance=share_variance), []
    for method in methods:
        model.fit(batch_size=32, with_design_mtx=method == "wald", **QUIET)
        found = model.test_differential_usage(method, law=law, return_results=True, **QUIET)
        for covariate, pvalue in zip(found["covariate"], found["pvalue"].T, strict=True):
            name = method if share_variance else f"{method}, a variance each logit"
            name += ", averaged" if law == "averaged" else ""
            tables.append(rows_of({name: {"gene": found["gene"], "pvalue": pvalue}}).assign(covariate=covariate))
    return pd.concat(tables, ignore_index=True)


def scores_of_space(adata: ad.AnnData) -> pd.DataFrame:
    """The score test of space alone, which needs no fit."""
    found = model_of(adata).test_spatial_variability("score", return_results=True, **QUIET)
    return rows_of({"score": found}).assign(covariate="")


def rows_of(results: dict[str, dict]) -> pd.DataFrame:
    """One row a family and method."""
    keys = ("gene", "statistic", "pvalue", "statistic_se", "pareto_k")
    parts = [pd.DataFrame({k: one[k] for k in keys if k in one}).assign(method=name) for name, one in results.items()]
    return pd.concat(parts, ignore_index=True)


def estimates_of(model: SplisosmGLMM) -> pd.DataFrame:
    """σ̂ and θ̂ of each family."""
    fits = [model.get_gene_model(name) for name in model.gene_names]
    sigma = [float(fit.sigma.detach().mean()) for fit in fits]
    theta = [float(fit.var_sp_prop().detach().mean()) for fit in fits]
    return pd.DataFrame({"gene": model.gene_names, "sigma": sigma, "theta": theta})


def peers(adata: ad.AnnData, python: str, *, fast: bool = False) -> pd.DataFrame:
    """The peer package's tests of the same file, by the interpreter that has it."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.h5ad", Path(folder) / "out.csv"
        adata.write_h5ad(source)
        script = Path(__file__).with_name("peer_tests.py")
        subprocess.run([python, str(script), str(source), str(target), *(["fast"] if fast else [])], check=True)
        return pd.read_csv(target).assign(covariate=lambda table: table["covariate"].fillna(""))
