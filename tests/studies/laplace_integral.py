"""P-values of covariates with the Laplace integral of the counts in the place of a working response.

    python -m tests.studies.laplace_integral [--genes 320]

The averaged law looks at the posterior of the variances through a working response, which is normal and holds the
weights of the fit. Here its restricted likelihood at every point of the grid is Laplace's integral of the binomial
likelihood over effects and coefficients, with a mode of its own; the rest of the test is as shipped. 60 spots, two
isoforms, usage by the model and in domains, depth 1, 2 and 5: sizes by both, and how far p-values are apart. Table
with seed and commit: tests/studies/results/laplace_integral.csv.
"""

from __future__ import annotations

import argparse
import warnings
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrosplice._hypothesis.coefficients import restricted_posterior
from pyrosplice._hypothesis.coefficients.restricted_posterior import Grid
from pyrosplice._usage.gene_tests import covariate_tests
from tests.studies.du_covariates import SET, Cell, Tissue, one_set
from tests.studies.simulation import commit, save_row

KEPT = 1e-6  # independent variance that a field of few patterns is given where it has none
STEPS = 60
KINDS = {"shipped": "pvalue", "integral": "integral"}
COVARIATES = ("iid", "smooth", "domain")


def laplace_integral(counts: Tensor, covariance: Tensor, fixed: Tensor) -> Tensor:
    """Log integrals ``(B,)`` of counts ``(B, N, 2)`` over ``N(X b, covariance)`` and b, by Laplace's method."""
    n_spots = covariance.shape[-1]
    factor = torch.linalg.cholesky(covariance + KEPT * torch.eye(n_spots, dtype=torch.float64))
    white = torch.linalg.solve_triangular(factor, fixed.expand(len(counts), -1, -1), upper=False)
    inner = torch.linalg.cholesky(white.mT @ white)
    half = torch.linalg.solve_triangular(inner, white.mT, upper=False)
    whitener = torch.linalg.inv(factor)
    precision = whitener.mT @ (torch.eye(n_spots, dtype=torch.float64) - half.mT @ half) @ whitener
    successes, totals = counts[..., 0], counts.sum(-1)
    share = (successes.sum(1, keepdim=True) + 0.5) / (totals.sum(1, keepdim=True) + 1.0)
    eta = torch.logit(share).expand_as(successes)

    def value(at: Tensor) -> Tensor:
        prior = torch.einsum("bi,bij,bj->b", at, precision, at)
        return (successes * at - totals * torch.nn.functional.softplus(at)).sum(1) - 0.5 * prior

    for _ in range(STEPS):
        share = torch.sigmoid(eta)
        hessian = torch.diag_embed(totals * share * (1 - share) + 1e-10) + precision
        slope = successes - totals * share - (precision @ eta.unsqueeze(-1)).squeeze(-1)
        step = torch.cholesky_solve(slope.unsqueeze(-1), torch.linalg.cholesky(hessian)).squeeze(-1)
        size = torch.ones(len(counts), 1, dtype=torch.float64)
        for _ in range(8):
            size = torch.where((value(eta + size * step) < value(eta) - 1e-10).unsqueeze(1), size / 2, size)
        eta = eta + size * step
        if float((size * step).abs().max()) < 1e-7:
            break
    share = torch.sigmoid(eta)
    curvature = torch.linalg.slogdet(torch.diag_embed(totals * share * (1 - share) + 1e-10) + precision)[1]
    logdets = 2 * sum(torch.diagonal(one, dim1=-2, dim2=-1).log().sum(-1) for one in (factor, inner))
    return value(eta) - 0.5 * (curvature + logdets)


class Integrated:
    """The shipped search with these integrals: what stands in the place of its values on a grid."""

    def __init__(self) -> None:
        self.counts = torch.empty(0)
        self.shipped = restricted_posterior._Search._values
        self.fit = covariate_tests.averaged_fit

    def averaged_fit(self, model, *arguments, **options):  # type: ignore[no-untyped-def]
        self.counts = model.counts
        return self.fit(model, *arguments, **options)

    def values(self, search: restricted_posterior._Search, grid: Grid) -> tuple[Tensor, Tensor]:
        _, variances = self.shipped(search, grid)
        model, counts = search.model, self.counts[search.genes]
        n_spots = counts.shape[1]
        smooth = model.solver.dense_covariance()
        vectors, fixed = model.spectra.vectors, model.design[:, : search.n_fixed]
        fields = [smooth, *((vectors * values) @ vectors.T for values in model.spectra.values)]
        eye = torch.eye(n_spots, dtype=torch.float64)
        likelihood = torch.empty(variances.shape[:-1], dtype=torch.float64)
        for s, field in enumerate(fields):
            for a in range(grid.field.shape[2]):
                for c in range(grid.white.shape[1]):
                    one, other = grid.field[:, s, a].square(), grid.white[:, c].square()
                    covariance = one[:, None, None] * field + other[:, None, None] * eye
                    likelihood[:, s, a, c] = laplace_integral(counts, covariance, fixed)
        return likelihood, variances


def tests_of(tissue: Tissue, cell: Cell, seed: list[int]) -> pd.DataFrame:
    """Default tests of one set of genes, the same for the same seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of covariates with few modes
        return one_set(tissue, cell, {"variance": "robust"}, np.random.default_rng(seed))


def run(cell: Cell, n_genes: int, seed: int) -> None:
    """One cell: a row a covariate."""
    tissue, integrated, found = Tissue(cell.layout), Integrated(), []
    for number in range(n_genes // SET):
        each = [tests_of(tissue, cell, [seed, number])]
        with (
            mock.patch.object(covariate_tests, "averaged_fit", integrated.averaged_fit),
            mock.patch.object(restricted_posterior._Search, "_values", lambda own, grid: integrated.values(own, grid)),
        ):
            each.append(tests_of(tissue, cell, [seed, number]))
        both = each[0].assign(integral=each[1]["pvalue"])
        found.append(both[both["covariate"].isin(COVARIATES)])
    for name, some in pd.concat(found).groupby("covariate", sort=False):
        own = some[some["pvalue"].notna() & some["integral"].notna()]
        apart = np.abs(np.log10(own["integral"] / own["pvalue"]))
        row = {"layout": cell.layout, "truth": cell.truth, "depth": cell.depth, "covariate": name, "genes": len(own)}
        shares = {f"{kind}_0.05": (own[column] < 0.05).mean() for kind, column in KINDS.items()}
        row |= {name: round(float(share), 4) for name, share in shares.items()}
        row |= {f"{name}_log10": round(float(apart.quantile(at)), 4) for name, at in (("median", 0.5), ("p95", 0.95))}
        row |= {"seed": seed, "commit": commit()}
        save_row("laplace_integral", row, ("layout", "truth", "depth", "covariate", "seed"))
        print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for truth in ("model", "domains"):
        for depth in (1, 2, 5):
            run(Cell("n60", truth, depth), given.genes, given.seed)
