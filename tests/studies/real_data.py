"""Every test of isoform usage on the families of the mouse olfactory bulb, beside the peer package's.

    python -m tests.studies.real_data table    [--peer /path/to/python]
    python -m tests.studies.real_data permuted [--peer /path/to/python] [--replicates 20]

``table``: p-values of each family by each method, raw and thinned, with what a disagreement comes from. ``permuted``:
rows of counts exchanged between the spots, a new order for every family and replicate; their p-values should be uniform.
Tables go to tests/studies/results/. Needs the shared data, and says so where they are not there.

Covariates: ``x``, a coordinate; ``Penk``, log expression of a marker of the granule layer; ``granule``, 0 or 1, the spots
that are of that layer by their neighbourhood's markers. Each is tested without the others.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.stats import chi2, kstest, norm, zscore

from pyrosplice import SplisosmGLMM
from pyrosplice.estimators.gene_tests import linearised
from pyrosplice.hypothesis.score import covariate_information, information_product, score_test
from pyrosplice.hypothesis.spatial_kernel import spatial_kernel
from pyrosplice.hypothesis.variance_component import variance_component_test
from pyrosplice.spatial.graph import knn_graph
from tests.paths import SHARED
from tests.studies.simulation import RESULTS, commit, save_row

LAYERS = {"raw": "counts", "thinned": "counts_thinned"}
COVARIATES = ("x", "Penk", "granule")
INNER, OUTER = ("Penk", "Pcp4"), ("Doc2g", "Cdhr1", "Kctd12")
UNDAMPED, NO_SPACE = "score, undamped kernel", "score, no space"
THEIR_VARIANCE, UNADJUSTED = "score, peer's variances", "score, peer's variances and information"
OURS_SV, OURS_DU = ("score", "score, permutation", "llr", "llr, importance"), ("score", "wald", "lrt")
METHODS = (*dict.fromkeys(OURS_SV + OURS_DU), "HSIC-IR", "peer llr", "HSIC", "HSIC-GP", "peer score")
NO_PEER = pd.DataFrame(columns=["gene", "method", "covariate", "pvalue", "statistic", "sigma", "theta"])
QUIET = {"print_progress": False}
SEED = 3


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
    adata: ad.AnnData, covariate: str | list[str] | None = None, *, model_type: str = "glmm-full"
) -> SplisosmGLMM:
    """Data set up as for all tests here."""
    model = SplisosmGLMM(model_type, fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(adata, adj_key="graph", group_gene_by_n_iso=True, design_mtx=covariate)
    return model


def variability(adata: ad.AnnData, *, everything: bool) -> pd.DataFrame:
    """P-values and statistics of θ = 0 by each method, and σ̂, θ̂; long, see ``rows_of``. ``everything``: slow ones too."""
    model = model_of(adata)
    tests = {"score": {"method": "score"}, "llr": {"method": "llr"}}
    if everything:
        tests["score, permutation"] = {"method": "score", "use_perm_null": True, "n_perms_per_gene": 999}
        tests["llr, importance"] = {"method": "llr", "importance": True}
    model.fit(batch_size=32, from_null=True, **QUIET)
    results = {name: model.test_spatial_variability(return_results=True, **ask, **QUIET) for name, ask in tests.items()}
    return rows_of(results).assign(covariate="").merge(estimates_of(model), on="gene")


def differential(adata: ad.AnnData, covariates: Sequence[str] = COVARIATES) -> pd.DataFrame:
    """The same for β = 0, each covariate by itself. ``sigma with``, ``theta with``: estimates with it in the model."""
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


def instead(adata: ad.AnnData, theirs: pd.DataFrame) -> pd.DataFrame:
    """P-values if one thing were another, the explanations that are tried; and ``descriptions``.

    ``UNDAMPED``: our score test of space with HSIC-IR's kernel. ``NO_SPACE``: our score test of a covariate without
    spatial random effect. ``THEIR_VARIANCE``: the same at the peer's σ and θ (``theirs``, by gene). ``UNADJUSTED``: there,
    with the information ``x' W x``, out of which neither intercept nor random effect are projected, as the peer's is.
    """
    model = model_of(adata)
    model.fit(batch_size=32, **QUIET)
    found = [rows_of({UNDAMPED: undamped_score(model)}).assign(covariate="")]
    for covariate in COVARIATES:
        column = torch.tensor(adata.obs[covariate].to_numpy())[:, None]
        white = model_of(adata, covariate, model_type="glmm-null")
        white.fit(batch_size=32, **QUIET)
        results = {NO_SPACE: usage_test(white, "score"), **score_at(model, theirs, column)}
        found.append(rows_of(results).assign(covariate=covariate))
    return pd.concat([*found, descriptions(model).assign(method="description", covariate="")])


def undamped_score(model: SplisosmGLMM) -> dict[str, object]:
    """The score test with the kernel that HSIC-IR has."""
    kernel = spatial_kernel(model.sp_kernel, damping=0.0)
    tests = [variance_component_test(torch.from_numpy(counts)[None], kernel) for counts in tables_of(model)]
    found = {key: [float(getattr(test, key)) for test in tests] for key in ("statistic", "pvalue")}
    return {"gene": model.gene_names, **found}


def usage_test(model: SplisosmGLMM, method: str) -> dict[str, object]:
    """Of the one covariate, flat."""
    result = model.test_differential_usage(method, return_results=True, **QUIET)
    return {"gene": result["gene"], **{key: np.ravel(result[key]) for key in ("statistic", "pvalue")}}


def score_at(model: SplisosmGLMM, variances: pd.DataFrame, column: torch.Tensor) -> dict[str, dict]:
    """Our score test at other σ and θ of the genes, as it is and without projections; with our intercepts."""
    rows: dict[str, list] = {THEIR_VARIANCE: [], UNADJUSTED: []}
    names = [name for name in model.gene_names if name in variances.index]
    for name in names:
        fit = model.get_gene_model(name)
        theta = torch.tensor([[float(variances.loc[name, "theta"])]], dtype=torch.float64)
        sigma = torch.full_like(theta, float(variances.loc[name, "sigma"]))
        fit.update_params_from_dict({"sigma": sigma, "theta_logit": torch.logit(theta)})
        residual, precision = linearised(fit)
        test = score_test(residual, precision, column)
        rows[THEIR_VARIANCE].append((float(test.statistic), float(test.pvalue)))
        weight = information_product(fit.posterior_mode().step.information)
        n_logits = residual.shape[-1]
        information = covariate_information(weight, column, 1, n_logits)[0]
        score = (column.T @ residual[0]).flatten()
        statistic = float(score @ torch.linalg.solve(information, score))
        rows[UNADJUSTED].append((statistic, float(chi2.sf(statistic, n_logits))))
    return {
        key: {"gene": names, "statistic": [row[0] for row in found], "pvalue": [row[1] for row in found]}
        for key, found in rows.items()
    }


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


def tables_of(model: SplisosmGLMM) -> list[np.ndarray]:
    """Counts of each family, spots × isoforms."""
    adata = model.filtered_adata
    counts = adata.layers["counts"].tocsc().astype(float)
    return [counts[:, (adata.var["gene_symbol"] == name).to_numpy()].toarray() for name in model.gene_names]


def descriptions(model: SplisosmGLMM) -> pd.DataFrame:
    """What a family's data are like.

    ``isoforms``; ``effective isoforms`` (exponential of the entropy of their usage); ``depth`` (mean count a spot);
    ``effective spots``, (Σ n)² / Σ n²; ``smallest`` (total of the rarest isoform); ``equal weights``, the share of
    information that is left when ratios of all spots weigh the same, (Σ w)⁻¹ over Σ w⁻¹ / S² with w = n / (1 + (n − 1) ρ),
    S spots with counts and the over-dispersion ρ of the score test.
    """
    kernel, rows = spatial_kernel(model.sp_kernel), []
    for name, counts in zip(model.gene_names, tables_of(model), strict=True):
        n, total = counts.sum(1), counts.sum(0)
        usage = total[total > 0] / total.sum()
        rho = float(variance_component_test(torch.from_numpy(counts)[None], kernel).overdispersion)
        weight = n[n > 0] / (1 + (n[n > 0] - 1) * rho)
        rows.append(
            {
                "gene": name,
                "isoforms": counts.shape[1],
                "effective isoforms": float(np.exp(-(usage * np.log(usage)).sum())),
                "depth": n.mean(),
                "effective spots": n.sum() ** 2 / (n**2).sum(),
                "smallest": total.min(),
                "equal weights": len(weight) ** 2 / (weight.sum() * (1 / weight).sum()),
            }
        )
    return pd.DataFrame(rows)


def peers(adata: ad.AnnData, python: str, *, fast: bool = False) -> pd.DataFrame:
    """The peer package's tests of the same file, by the interpreter that has it."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.h5ad", Path(folder) / "out.csv"
        adata.write_h5ad(source)
        script = Path(__file__).with_name("peer_tests.py")
        subprocess.run([python, str(script), str(source), str(target), *(["fast"] if fast else [])], check=True)
        return pd.read_csv(target).assign(covariate=lambda table: table["covariate"].fillna(""))


def wide(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a family and covariate (none for space): p-values by method, what they rest on, what explains them."""
    tests = pd.concat([parts["sv"], parts["du"], parts["peer"].query("method != 'GP residual'")])
    key = ["gene", "covariate"]
    table = tests.pivot(index=key, columns="method", values="pvalue")[[m for m in METHODS if m in set(tests["method"])]]
    statistics = tests.pivot(index=key, columns="method", values="statistic").add_prefix("statistic ")
    alternative = parts["instead"].query("method != 'description'").pivot(index=key, columns="method", values="pvalue")
    ours = tests.query("method == 'score'").set_index(key)[["sigma", "theta", "sigma with", "theta with"]]
    theirs = tests.query("method in ('peer llr', 'peer score')").set_index(key)[["sigma", "theta"]].add_prefix("peer ")
    sampled = tests.query("method == 'llr, importance'").set_index(key)[["statistic_se", "pareto_k"]]
    table = table.join([statistics, alternative, ours, theirs, sampled]).reset_index()
    columns = ["isoforms", "effective isoforms", "depth", "effective spots", "smallest", "equal weights"]
    described = parts["instead"].query("method == 'description'")[["gene", *columns]]
    left = parts["peer"].query("method == 'GP residual'").set_index("covariate")["statistic"]
    table = table.merge(described, on="gene").assign(left=lambda t: t["covariate"].map(left))
    table["explanation"] = [explanation(row) for row in table.to_dict("records")]
    return table.drop(columns=[name for name in table if name.startswith("statistic ") and "llr" not in name])


def explanation(row: dict) -> str:
    """For every method that is on the other side of .01 or .05 than the score test, what moves the latter there.

    Empty where no method is below .01 with another above .05. An alternative explains a p-value if it takes the score
    test's at least half the way there, in normal deviates; what none explains is said to be so.
    """
    known = {method: row[method] for method in METHODS if method in row and np.isfinite(row[method])}
    if not known or not (min(known.values()) < 0.01 and max(known.values()) > 0.05):
        return ""
    score, found = row["score"], []
    for method, pvalue in known.items():
        if (pvalue < 0.01 and score >= 0.01) or (pvalue > 0.05 and score <= 0.05):
            reasons = [text for text, p in alternatives(method, row) if closer(score, pvalue, p)]
            found.append(
                f"{method} {pvalue:.2g}: {reasons[0] if reasons else 'not explained; ' + numbers(method, row)}"
            )
    return "; ".join(found)


def closer(start: float, end: float, found: float) -> bool:
    """Whether a p-value is at least half the way from one to the other, in normal deviates."""
    a, b, c = norm.isf(np.clip([start, end, found], 1e-300, 1 - 1e-9))
    return bool(abs(c - b) <= abs(a - b) / 2)


def alternatives(method: str, row: dict) -> list[tuple[str, float]]:
    """What could explain a method's p-value, simplest first, with the p-value that the score test has then."""
    logits, keep = row["isoforms"] - 1, row["equal weights"]
    if method == "HSIC-IR":
        undamped, equal = row[UNDAMPED], norm.sf(keep * norm.isf(row["score"]))
        both = norm.sf(keep * norm.isf(undamped))
        return [
            (f"undamped kernel (score with it {undamped:.2g})", undamped),
            (f"all spots' ratios weigh the same, which keeps {keep:.2f} of the information (score {equal:.2g})", equal),
            (f"undamped kernel and equal weights ({keep:.2f} of the information; score {both:.2g})", both),
        ]
    if method == "peer llr" and row["statistic peer llr"] <= 0:
        return [(f"its full model ends {-row['statistic peer llr'] / 2:.1f} nats below its null model", 1.0)]
    if method in ("llr", "llr, importance", "peer llr"):
        return [(f"undamped kernel (score with it {row[UNDAMPED]:.2g})", row[UNDAMPED])]
    if method == "peer score":
        at, raw = row[THEIR_VARIANCE], row[UNADJUSTED]
        variances = (
            f"σ {row['peer sigma']:.2f} and θ {row['peer theta']:.2f} for {row['sigma']:.2f} and {row['theta']:.2f}"
        )
        return [
            (f"{variances} (score there {at:.2g})", at),
            (f"{variances}, and nothing projected out of its information (score so {raw:.2g})", raw),
        ]
    if method in ("HSIC", "HSIC-GP"):
        statistic = chi2.isf(max(row[NO_SPACE], 1e-300), logits)

        def weaker(share: float) -> float:
            return float(chi2.sf(logits + (statistic - logits) * share, logits))

        found = [
            (f"ignores space (score without {row[NO_SPACE]:.2g})", row[NO_SPACE]),
            (
                f"all spots' ratios weigh the same, which keeps {keep:.2f} of the information ({weaker(keep):.2g})",
                weaker(keep),
            ),
        ]
        if method == "HSIC-GP":
            left = row["left"]
            text = f"{left:.2f} of the covariate's variance left by its Gaussian process, {keep:.2f} by equal weights"
            found = [(f"{text} ({weaker(left * keep):.2g})", weaker(left * keep))]
        return found
    return []


def numbers(method: str, row: dict) -> str:
    """What is known of a method's fit."""
    ours = f"our σ {row['sigma']:.2f}, θ {row['theta']:.2f}"
    if method in ("wald", "lrt"):
        return f"{ours}; with the covariate {row['sigma with']:.2f}, {row['theta with']:.2f}"
    if method == "llr, importance":
        return f"{ours}, k̂ {row['pareto_k']:.2f}, standard error {row['statistic_se']:.2f}"
    if method.startswith("peer"):
        return f"{ours}, its σ {row['peer sigma']:.2f}, θ {row['peer theta']:.2f}"
    return f"{ours}, {row['equal weights']:.2f} of the information with equal weights"


def table_study(peer: str | None, folder: Path | None) -> None:
    """The table of each depth; parts that ``folder`` has already are read, the others computed and put there."""
    at = commit()
    for depth in LAYERS:
        adata, parts = olfactory_bulb(depth), {}

        def part(name: str, make: Callable[[], pd.DataFrame], depth: str = depth) -> pd.DataFrame:
            path = None if folder is None else folder / f"{name}_{depth}.csv"
            found = pd.read_csv(path, dtype={"gene": str}) if path is not None and path.exists() else make()
            if path is not None and not path.exists():
                found.to_csv(path, index=False)
            return found.assign(covariate=found["covariate"].fillna(""))

        parts["peer"] = part("peer", lambda: peers(adata, peer)) if peer else NO_PEER
        parts["sv"] = part("sv", lambda: variability(adata, everything=True))
        parts["du"] = part("du", lambda: differential(adata))
        theirs = parts["peer"].query("method == 'peer llr'").set_index("gene")[["sigma", "theta"]]
        parts["instead"] = part("instead", lambda: instead(adata, theirs))
        found = wide(parts).assign(depth_name=depth, commit=at)
        found.to_csv(RESULTS / f"real_data_{depth}.csv", index=False, float_format="%.4g")
        print(depth, len(found), "rows,", int((found["explanation"] != "").sum()), "with a disagreement", flush=True)


def together(adata: ad.AnnData, methods: Sequence[str]) -> pd.DataFrame:
    """Tests of the covariates, each beside the others, for many families at once."""
    model, tables = model_of(adata, list(COVARIATES)), []
    for method in methods:
        model.fit(batch_size=32, with_design_mtx=method == "wald", **QUIET)
        found = model.test_differential_usage(method, return_results=True, **QUIET)
        for covariate, pvalue in zip(found["covariate"], found["pvalue"].T, strict=True):
            tables.append(rows_of({method: {"gene": found["gene"], "pvalue": pvalue}}).assign(covariate=covariate))
    return pd.concat(tables, ignore_index=True)


def scores_of_space(adata: ad.AnnData) -> pd.DataFrame:
    """The score test of space alone, which needs no fit."""
    found = model_of(adata).test_spatial_variability("score", return_results=True, **QUIET)
    return rows_of({"score": found}).assign(covariate="")


def uniformity(pvalue: np.ndarray) -> dict[str, float]:
    """Kolmogorov–Smirnov p-value against the uniform law, and rates."""
    tested = pvalue[np.isfinite(pvalue)]
    rates = {f"size {level:g}": (tested < level).mean() for level in (0.05, 0.01)}
    return {
        "pvalues": len(tested),
        "KS p": kstest(tested, "uniform").pvalue,
        **rates,
        "equal to 1": (tested == 1).mean(),
    }


def permuted_study(peer: str | None, n_replicates: int) -> None:
    """The ratio tests, which fit more models, on a third of the replicates; the score test of space on ten times."""
    at, few = commit(), max(1, n_replicates // 3)
    for d, depth in enumerate(LAYERS):
        adata, seed = olfactory_bulb(depth), 10 * SEED + d
        runs = {
            "space": lambda: scores_of_space(permuted(adata, 10 * n_replicates, seed)),
            "peers": lambda: peers(permuted(adata, n_replicates, seed), peer, fast=True) if peer else NO_PEER,
            "usage": lambda: together(permuted(adata, n_replicates, seed), ("score",)),
            "ratio of space": lambda: variability(permuted(adata, few, seed), everything=False).query(
                "method == 'llr'"
            ),
            "ratios of usage": lambda: together(permuted(adata, few, seed), ("wald", "lrt")),
        }
        for run in runs.values():
            for (method, covariate), some in run().groupby(["method", "covariate"]):
                row = {"depth": depth, "method": method, "covariate": covariate or "space"}
                row |= {**uniformity(some["pvalue"].to_numpy()), "seed": seed, "commit": at}
                save_row("real_data_permuted", row, ["depth", "method", "covariate"])
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=["table", "permuted"])
    parser.add_argument("--peer", help="interpreter that has the peer package")
    parser.add_argument("--replicates", type=int, default=20)
    parser.add_argument(
        "--parts", type=Path, help="folder of p-values that are there already, and for those that are not"
    )
    given = parser.parse_args()
    if not (SHARED / "data" / "mob_rep11_families.h5ad").exists():
        parser.exit(message="The shared data are not there; nothing was done.\n")
    if given.study == "table":
        table_study(given.peer, given.parts)
    else:
        permuted_study(given.peer, given.replicates)
