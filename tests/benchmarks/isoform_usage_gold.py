"""How far isoform usage is from independent software: TMB, exact quadrature, importance sampling, Newton-polished MLE.

Every function takes the folder of gold results and returns a table of errors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from pyrosplice import MultinomGLM, MultinomGLMM
from pyrosplice.spatial.car import CarCovariance

GLM_DESIGNS = {  # columns of the design (baseline of a factor first), columns of the counts
    "mn_sim1": ({"x1": None, "x2": None}, ["y1", "y2", "y3"]),
    "mn_lung_cd47": ({"comp": ["endothelial", "epithelial", "immune", "stromal"]}, ["j1", "j2", "j3", "j4"]),
    "mn_anes96": (
        dict.fromkeys(["logpopul", "selfLR", "age", "educ", "income"]),
        [f"pid{k}" for k in range(7)],
    ),
    "mn_haber": (
        {"condition": ["Control", "Hpoly_Day10", "Hpoly_Day3", "Salm"]},
        ["Endocrine", "Enterocyte", "Enterocyte_Progenitor", "Goblet", "Stem", "TA", "TA_Early", "Tuft"],
    ),
}


def tensor(values) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float64)


def grid_sets(gold: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Counts (N, K), covariance (N, N), covariate (N, 1) of every gold data set on a grid."""
    grid = tensor(np.load(gold / "grid16_W_K.npz")["K"])
    tiny = tensor(np.loadtxt(gold / "tiny12_K.csv", delimiter=","))
    sets = {}
    binomial = pd.read_csv(gold / "grid16_binomial.csv")
    for depth in ("low", "mid", "high"):
        first, total = binomial[f"y1_{depth}"], binomial[f"n_{depth}"]
        sets[f"grid16_{depth}"] = (np.stack([first, total - first], 1), grid, binomial[["x"]])
    small = pd.read_csv(gold / "tiny12_binomial.csv")
    sets["tiny12"] = (np.stack([small["y1"], small["n"] - small["y1"]], 1), tiny, small[["x"]])
    for name, covariance in (("grid16_multinomial3", grid), ("tiny12_multinomial3", tiny)):
        table = pd.read_csv(gold / f"{name}.csv")
        sets[name] = (table[["y1", "y2", "y3"]], covariance, table[["x"]])
    return {name: (tensor(counts), covariance, tensor(x)) for name, (counts, covariance, x) in sets.items()}


def laplace_points(gold: Path) -> pd.DataFrame:
    """Laplace log marginal likelihood at fixed parameters: ours less TMB's, and less the exact value where known."""
    binomial = pd.read_csv(gold / "b_tmb_laplace_at_points.csv")
    three = pd.read_csv(gold / "b_tmb_laplace_at_points_mn3.csv")
    exact = pd.read_csv(gold / "b_tiny12_exact.csv").assign(set="tiny12")
    sampled = pd.read_csv(gold / "b_tiny12_multinomial3.csv").assign(set="tiny12_multinomial3")
    rows = []
    for source, table, target in (
        ("TMB, 2 isoforms", binomial, "laplace_loglik"),
        ("TMB, 3 isoforms", three, "laplace_loglik"),
        ("TMB, 3 isoforms, 12 spots", sampled, "tmb_laplace"),
        ("exact quadrature, 12 spots", exact, "exact"),
        ("importance sampling, 12 spots", sampled, "is_loglik"),
    ):
        error = pd.Series(_log_marginals(gold, table)) - table[target].to_numpy()
        rows.append(
            {
                "reference": source,
                "rows": len(table),
                "largest error": error.abs().max(),
                "median error": error.median(),
            }
        )
    return pd.DataFrame(rows)


def _log_marginals(gold: Path, table: pd.DataFrame) -> np.ndarray:
    """Our Laplace value at every row: the rows of one data set are a batch of identical genes."""
    sets, values = grid_sets(gold), np.empty(len(table))
    intercepts, slopes = (["b10", "b20"], ["b11", "b21"]) if "b10" in table else (["b0"], ["b1"])
    for name, rows in table.reset_index(drop=True).groupby("set"):
        counts, covariance, x = sets[name]
        model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
        model.setup_data(counts.expand(len(rows), *counts.shape), corr_sp=covariance, design_mtx=x)
        model.update_params_from_dict(
            {
                "bias_eta": tensor(rows[intercepts]),
                "beta": tensor(rows[slopes]).unsqueeze(1),
                "sigma": tensor(rows[["sigma2"]]).sqrt(),
                "theta_logit": torch.logit(tensor(rows[["theta"]])),
            }
        )
        values[rows.index] = model().detach().numpy()
    return values


def grid_fits(gold: Path) -> pd.DataFrame:
    """Marginal fits of the grid data against TMB: log-likelihood gained over TMB's, largest difference of β."""
    sets, rows = grid_sets(gold), []
    fits = pd.read_csv(gold / "b_tmb_fits.csv")
    for (name, kind), reference in fits.groupby(["set", "model"], sort=False):
        if kind not in ("theta_free", "shared_theta_free", "separate_theta_free", "theta0", "shared_theta0"):
            continue
        counts, covariance, x = sets[name]
        if kind.endswith("theta0"):  # independent between spots: V = I
            covariance = torch.eye(len(covariance), dtype=torch.float64)
        model = MultinomGLMM(
            fitting_method="marginal_newton", var_fix_sigma=False, share_variance="separate" not in kind
        )
        model.setup_data(counts, corr_sp=covariance, design_mtx=x)
        model.fit(quiet=True)
        ours = torch.stack([model.bias_eta[0], model.beta[0, 0]], 1).detach().reshape(-1).numpy()
        theirs = reference[reference["param"].str.startswith("beta")]["est"].to_numpy()
        rows.append(
            {
                "data": name,
                "model": kind,
                "log-likelihood": float(model()[0]),
                "ours − TMB": float(model()[0]) - reference["loglik"].iloc[0],
                "largest Δβ": np.abs(ours - theirs).max(),
            }
        )
    return pd.DataFrame(rows)


def family_fits(gold: Path) -> pd.DataFrame:
    """Every paralog family and depth: ours less TMB's free optimum, and less our own θ = 0 fit."""
    edges = pd.read_csv(gold / "mob_knn4_edges.csv").to_numpy()
    members = pd.read_csv(gold / "mob_families_members.csv").groupby("family")["member"].agg(list)
    counts = {depth: pd.read_csv(gold / f"mob_families_{depth}_counts.csv") for depth in ("raw", "thinned")}
    n_spots = len(counts["raw"])
    adjacency = sp.coo_matrix((np.ones(len(edges)), edges.T), shape=(n_spots, n_spots))
    covariance = CarCovariance(adjacency + adjacency.T, rho=0.99).dense()
    independent = torch.eye(n_spots, dtype=torch.float64)
    rows = []
    for case in pd.read_csv(gold / "b_mob_families_tmb.csv").itertuples():
        y = tensor(counts[case.depth][members[case.family]])
        free, white = (_fit_marginal(y, v) for v in (covariance, independent))
        rows.append(
            {
                "depth": case.depth,
                "family": case.family,
                "ours": float(free()[0]),
                "ours − TMB": float(free()[0]) - case.ll_free,
                "ours − own θ = 0": float(free()[0]) - float(white()[0]),
            }
        )
    return pd.DataFrame(rows)


def _fit_marginal(counts: torch.Tensor, covariance: torch.Tensor) -> MultinomGLMM:
    model = MultinomGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(counts, corr_sp=covariance)
    model.fit(quiet=True)
    return model


def glm_fits(gold: Path) -> pd.DataFrame:
    """MultinomGLM against the Newton-polished MLE: coefficients, standard errors, log-likelihood."""
    coefficients = pd.read_csv(gold / "a_multinomial_coef.csv")
    summary = pd.read_csv(gold / "a_multinomial_fit.csv").set_index("set")
    rows = []
    for name, (terms, categories) in GLM_DESIGNS.items():
        data = pd.read_csv(gold / f"{name}.csv")
        columns = [
            data[term] if levels is None else data[term] == level
            for term, levels in terms.items()
            for level in ([None] if levels is None else levels[1:])
        ]
        model = MultinomGLM(fitting_method="newton")
        model.setup_data(tensor(data[categories]), design_mtx=tensor(np.stack(columns, 1).astype(float)))
        model.fit(quiet=True)
        reference = coefficients[coefficients["set"] == name]
        estimates, errors = _by_term(model)
        rows.append(
            {
                "data": name,
                "coefficients": estimates.size,
                "largest Δ coefficient": np.abs(estimates - reference["newton_coef"].to_numpy()).max(),
                "largest Δ SE": np.abs(errors - reference["newton_se"].to_numpy()).max(),
                "Δ log-likelihood": abs(float(model()[0]) - summary.loc[name, "loglik_full"]),
            }
        )
    return pd.DataFrame(rows)


def _by_term(model: MultinomGLM) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and standard errors in the gold order: category by category, intercept first."""
    errors = model.standard_errors()
    pairs = ((model.bias_eta, model.beta), (errors["bias_eta"], errors["beta"]))
    estimates, deviations = (torch.cat([b.unsqueeze(1), beta], 1)[0].T.reshape(-1).numpy() for b, beta in pairs)
    return estimates, deviations
