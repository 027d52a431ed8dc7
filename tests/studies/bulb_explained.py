"""What a disagreement between tests of the olfactory bulb's families comes from: the score test with one thing changed
at a time into what another method does."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.stats import chi2, norm

from pyrosplice import MultinomGLMM, SplisosmGLMM
from pyrosplice._hypothesis.coefficients.score import (
    information_product,
    score_test,
)
from pyrosplice._hypothesis.variance.score_test import variance_component_test
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice._usage.gene_tests.linearized import linearized
from pyrosplice.glmm._design_information import covariate_information
from tests.studies.bulb import COVARIATES, METHODS, QUIET, model_of, rows_of
from tests.studies.chi2_mixture import chi2_mixture_sf

UNDAMPED, NO_SPACE = "score, undamped kernel", "score, no space"
WITH_COVARIATE = "score, variances of the fit with the covariate"
THEIR_VARIANCE, UNADJUSTED = "score, peer's variances", "score, peer's variances and information"
EQUAL, RESIDUAL, EQUAL_RESIDUAL = "ratios of equal weight", "score, GP residual", "ratios of equal weight, GP residual"
SUM, SUM_RESIDUAL = "ratios of equal weight, summed", "ratios of equal weight, summed, GP residual"
REFERENCE, EACH_LOGIT, AT_PEER = "llr, other reference", "llr, a variance each logit", "llr, peer's variances"
MARGIN = 0.5
NOTHING = 1e-3  # of a covariate's variance


def instead(adata: ad.AnnData, peer: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """P-values if one thing were another, the explanations that are tried; and ``descriptions``.

    ``UNDAMPED``: our score test of space with HSIC-IR's kernel. ``NO_SPACE``: our score test of a covariate without
    spatial random effect. ``WITH_COVARIATE``: our score test at the σ and θ of the fits with the covariate, which
    ``own`` tests rest on too. ``THEIR_VARIANCE``: our score test at the peer's σ and θ. ``UNADJUSTED``: there, with the
    information ``x' W x``, out of which neither intercept nor random effect are projected. ``EQUAL``: the score
    test of a linear model of the ratios, in which all spots with counts weigh the same; ``SUM``: there, with the
    isoforms' squared scores added up as they are, as HSIC does. ``RESIDUAL``, ``EQUAL_RESIDUAL``, ``SUM_RESIDUAL``:
    ``NO_SPACE``, ``EQUAL`` and ``SUM`` of the covariate that is left by HSIC-GP's Gaussian process. Of our likelihood
    ratio of space: ``REFERENCE``, the largest p-value if the random effect is about another isoform; ``EACH_LOGIT``,
    with a variance of each logit; ``AT_PEER``, with the peer's σ and θ in the spatial model.
    """
    model = model_of(adata)
    model.fit(batch_size=32, from_null=True, **QUIET)
    white = model_of(adata, model_type="glmm-null")
    white.fit(batch_size=32, **QUIET)
    theirs = peer.query("method == 'peer llr'").set_index("gene")
    ratios = {UNDAMPED: undamped_score(model), REFERENCE: other_references(adata), EACH_LOGIT: each_logit(adata)}
    if len(theirs):
        ratios[AT_PEER] = ratio_at(model, theirs)
    found = [rows_of(ratios).assign(covariate="")]
    for covariate in COVARIATES:
        column = torch.tensor(adata.obs[covariate].to_numpy())[:, None]
        results = {NO_SPACE: own_score(white, column)} | scores_of_ratios(model, column, (EQUAL, SUM))
        larger = own.query("method == 'score' and covariate == @covariate").set_index("gene")
        larger = larger[["sigma with", "theta with"]].set_axis(["sigma", "theta"], axis=1)
        results[WITH_COVARIATE] = score_at(model, larger, column)[THEIR_VARIANCE]
        if len(theirs):
            results |= score_at(model, theirs, column)
            left = peer.query("method == 'GP residual' and covariate == @covariate")["statistic"].to_numpy()
            column = torch.tensor(left)[:, None]
            results |= {RESIDUAL: own_score(white, column)}
            results |= scores_of_ratios(model, column, (EQUAL_RESIDUAL, SUM_RESIDUAL))
        found.append(rows_of(results).assign(covariate=covariate))
    return pd.concat([*found, descriptions(model).assign(method="description", covariate="")])


def own_score(model: SplisosmGLMM, column: torch.Tensor) -> dict[str, object]:
    """The score test of one covariate at the fits of a model that knows none."""
    tests = [score_test(linearized(model.get_gene_model(name)), column, robust=True) for name in model.gene_names]
    found = {key: [float(getattr(test, key)) for test in tests] for key in ("statistic", "pvalue")}
    return {"gene": model.gene_names, **found}


def undamped_score(model: SplisosmGLMM) -> dict[str, object]:
    """The score test with the kernel that HSIC-IR has."""
    kernel = spatial_kernel(model.sp_kernel, damping=0.0)
    tests = [variance_component_test(torch.from_numpy(counts)[None], kernel) for counts in tables_of(model)]
    found = {key: [float(getattr(test, key)) for test in tests] for key in ("statistic", "pvalue")}
    return {"gene": model.gene_names, **found}


def score_at(model: SplisosmGLMM, variances: pd.DataFrame, column: torch.Tensor) -> dict[str, dict]:
    """Our score test at other σ and θ of the genes, as it is and without projections; with our intercepts."""
    rows: dict[str, list] = {THEIR_VARIANCE: [], UNADJUSTED: []}
    names = [name for name in model.gene_names if name in variances.index]
    for name in names:
        fit = model.get_gene_model(name)
        theta = torch.tensor([[float(variances.loc[name, "theta"])]], dtype=torch.float64)
        sigma = torch.full_like(theta, float(variances.loc[name, "sigma"]))
        fit.update_params_from_dict({"sigma": sigma, "theta_logit": torch.logit(theta, eps=1e-15)})
        linear = linearized(fit)
        residual, test = linear.residual, score_test(linear, column, robust=True)
        rows[THEIR_VARIANCE].append((float(test.statistic), float(test.pvalue)))
        weight = information_product(fit.posterior_mode().step.information)
        n_logits = residual.shape[-1]
        information = covariate_information(weight, column, 1, n_logits)[0]
        score = (column.T @ residual[0]).flatten()
        statistic = float(score @ torch.linalg.solve(information, score))
        rows[UNADJUSTED].append((statistic, float(chi2.sf(statistic, n_logits))))
    return {key: as_result(names, found) for key, found in rows.items()}


def scores_of_ratios(model: SplisosmGLMM, column: torch.Tensor, names: tuple[str, str]) -> dict[str, dict]:
    """Scores in a linear model of the ratios of spots that have counts, and of all isoforms' squares added up."""
    rows: dict[str, list] = {name: [] for name in names}
    for counts in tables_of(model):
        seen = counts.sum(1) > 0
        ratios, x = counts[seen] / counts[seen].sum(1, keepdims=True), column.numpy()[seen, 0]
        ratios, x = ratios - ratios.mean(0), x - x.mean()
        slope, covariance = x @ ratios, ratios.T @ ratios * float(x @ x) / len(x)
        statistic = float(slope[:-1] @ np.linalg.solve(covariance[:-1, :-1], slope[:-1]))
        rows[names[0]].append((statistic, float(chi2.sf(statistic, len(slope) - 1))))
        total = torch.tensor([slope @ slope])
        weights = torch.from_numpy(np.linalg.eigvalsh(covariance)[None, 1:])
        rows[names[1]].append((float(total), float(chi2_mixture_sf(total, weights))))
    return {name: as_result(model.gene_names, found) for name, found in rows.items()}


def other_references(adata: ad.AnnData) -> dict[str, object]:
    """The likelihood ratio of space of each family with the reference isoform of which its p-value is largest."""
    names = adata.var["gene_symbol"].to_numpy()
    own = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    found = []
    for shift in range(1, max(map(len, own))):
        turned = adata[:, np.concatenate([np.roll(columns, shift) for columns in own])].copy()
        found.append(pd.DataFrame(ratio_of_space(model_of(turned))))
    return pd.concat(found).sort_values("pvalue").groupby("gene", sort=False).tail(1).to_dict("list")


def each_logit(adata: ad.AnnData) -> dict[str, object]:
    """The likelihood ratio of space with a σ and θ of each logit."""
    return ratio_of_space(model_of(adata, share_variance=False))


def ratio_of_space(model: SplisosmGLMM) -> dict[str, object]:
    model.fit(batch_size=32, from_null=True, **QUIET)
    found = model.test_spatial_variability("llr", return_results=True, **QUIET)
    return {key: found[key] for key in ("gene", "statistic", "pvalue")}


def ratio_at(model: SplisosmGLMM, variances: pd.DataFrame) -> dict[str, object]:
    """Our marginal likelihood ratio of space if the spatial model had these σ and θ, and its limit law's p-value."""
    names, rows = [name for name in model.gene_names if name in variances.index], []
    ours = model.test_spatial_variability("llr", return_results=True, **QUIET)
    ratios = dict(zip(ours["gene"], ours["statistic"], strict=True))
    for name in names:
        fit = model.get_gene_model(name)
        null = float(fit.forward().detach()) - ratios[name] / 2
        theta = torch.tensor([[float(variances.loc[name, "theta"])]], dtype=torch.float64)
        sigma = torch.full_like(theta, float(variances.loc[name, "sigma"]))
        fit.update_params_from_dict({"sigma": sigma, "theta_logit": torch.logit(theta, eps=1e-15)})
        start = fit.bias_eta.detach().clone()

        def loss(value: np.ndarray, fit: MultinomGLMM = fit, like: torch.Tensor = start) -> tuple[float, np.ndarray]:
            fit.update_params_from_dict({"bias_eta": torch.from_numpy(value).reshape(like.shape)})
            fit.bias_eta.requires_grad_(True)
            objective = -fit.forward().sum()
            (gradient,) = torch.autograd.grad(objective, fit.bias_eta)
            return float(objective.detach()), gradient.flatten().numpy()

        statistic = 2 * (-minimize(loss, start.flatten().numpy(), jac=True).fun - null)
        rows.append((statistic, float(chi2.sf(max(statistic, 0.0), 1) / 2) if statistic > 0 else 1.0))
    return as_result(names, rows)


def as_result(names: list[str], rows: list[tuple[float, float]]) -> dict[str, object]:
    return {"gene": names, "statistic": [row[0] for row in rows], "pvalue": [row[1] for row in rows]}


def tables_of(model: SplisosmGLMM) -> list[np.ndarray]:
    """Counts of each family, spots × isoforms."""
    adata = model.filtered_adata
    counts = adata.layers["counts"].tocsc().astype(float)
    return [counts[:, (adata.var["gene_symbol"] == name).to_numpy()].toarray() for name in model.gene_names]


def descriptions(model: SplisosmGLMM) -> pd.DataFrame:
    """What a family's data are like.

    ``isoforms``; ``effective isoforms`` (exponential of the entropy of their usage); ``depth`` (mean count a spot);
    ``effective spots``, (Σ n)² / Σ n²; ``smallest`` (total of the rarest isoform); ``equal weights``, the share of
    information that is left when ratios of all spots weigh the same, (Σ w)⁻¹ over Σ w⁻¹ / S² with S spots with counts,
    w = n / (1 + (n − 1) ρ) and the over-dispersion ρ of the score test.
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
    left = parts["peer"].query("method == 'GP residual'").groupby("covariate")["statistic"].var()
    table = table.merge(described, on="gene").assign(left=lambda t: t["covariate"].map(left))
    table["explanation"] = [explanation(row) for row in table.to_dict("records")]
    return table.drop(columns=[name for name in table if name.startswith("statistic ") and "llr" not in name])


def explanation(row: dict) -> str:
    """For every method that is on the other side of .01 or .05 than the score test (by half a normal deviate or more),
    what moves the latter there.

    Empty where no method is below .01 with another above .05. An alternative explains a p-value if it takes the score
    test's at least half the way there, in normal deviates, or the method's own that much of the way to the score
    test's; what none explains is said to be so.
    """
    known = {method: row[method] for method in METHODS if method in row and np.isfinite(row[method])}
    if not known or not (min(known.values()) < 0.01 and max(known.values()) > 0.05):
        return ""
    score, found = row["score"], []
    for method, pvalue in known.items():
        apart = (pvalue < 0.01 <= score) or (pvalue > 0.05 >= score)
        if apart and abs(norm.isf(pvalue) - norm.isf(score)) > MARGIN:
            reasons = [text for text, p in alternatives(method, row) if reaches(score, pvalue, p)]
            reasons += [text for text, p in other_ratios(method, row) if reaches(pvalue, score, p)]
            found.append(
                f"{method} {pvalue:.2g}: {reasons[0] if reasons else 'not explained; ' + numbers(method, row)}"
            )
    return "; ".join(found)


def reaches(start: float, end: float, found: float) -> bool:
    """Whether a p-value is at least half the way from one to the other, in normal deviates (.99 the most)."""
    a, b, c = norm.isf(np.clip([start, end, found], 1e-300, 0.99))
    return bool((c - a) * np.sign(b - a) >= abs(b - a) / 2)


def alternatives(method: str, row: dict) -> list[tuple[str, float]]:
    """What could explain a method's p-value, simplest first, with the p-value that the score test has then."""
    keep = row["equal weights"]
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
    if method == "peer llr":
        return [(f"so is our likelihood ratio ({row['llr']:.2g})", row["llr"])]
    if method in ("llr", "llr, importance"):
        return [(f"undamped kernel (score with it {row[UNDAMPED]:.2g})", row[UNDAMPED])]
    if method in ("wald", "lrt"):
        text = f"σ {row['sigma with']:.2f} and θ {row['theta with']:.2f} once the covariate is in the model"
        text = f"{text}, {row['sigma']:.2f} and {row['theta']:.2f} before (score there {row[WITH_COVARIATE]:.2g})"
        return [(text, row[WITH_COVARIATE])]
    if method == "peer score":
        at, raw = row[THEIR_VARIANCE], row[UNADJUSTED]
        variances = (
            f"σ {row['peer sigma']:.2f} and θ {row['peer theta']:.2f} for {row['sigma']:.2f} and {row['theta']:.2f}"
        )
        return [
            (f"{variances} (score there {at:.2g})", at),
            (f"{variances}, and nothing projected out of its information (score so {raw:.2g})", raw),
        ]
    if method == "HSIC":
        return [
            (f"ignores space (score without {row[NO_SPACE]:.2g})", row[NO_SPACE]),
            (f"all spots' ratios weigh the same, {keep:.2f} of the information ({row[EQUAL]:.2g})", row[EQUAL]),
            (f"all spots' ratios weigh the same, and all isoforms' ({row[SUM]:.2g})", row[SUM]),
        ]
    if method == "HSIC-GP":
        left = f"its Gaussian process leaves {row['left']:.2g} of the covariate's variance"
        if row["left"] < NOTHING:
            return [(f"{left}, and rounding is what it tests", row["HSIC-GP"])]
        return [
            (f"{left} (score of that {row[RESIDUAL]:.2g})", row[RESIDUAL]),
            (f"{left} and all spots' ratios weigh the same ({row[EQUAL_RESIDUAL]:.2g})", row[EQUAL_RESIDUAL]),
            (
                f"{left} and all ratios of spots and isoforms weigh the same ({row[SUM_RESIDUAL]:.2g})",
                row[SUM_RESIDUAL],
            ),
        ]
    return []


def other_ratios(method: str, row: dict) -> list[tuple[str, float]]:
    """What takes a likelihood ratio of space to the score test."""
    if method in ("llr", "llr, importance"):
        other, each = row[REFERENCE], row[EACH_LOGIT]
        return [
            (f"with another isoform as the reference of its random effect {other:.2g}", other),
            (f"with a variance of each logit {each:.2g}", each),
        ]
    if method == "peer llr":
        at = row[AT_PEER]
        return [
            (f"at its σ {row['peer sigma']:.2f} and θ {row['peer theta']:.2f} our marginal ratio has p {at:.2g}", at)
        ]
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
