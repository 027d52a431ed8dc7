"""Size and power of the tests that rest on the GLMM's marginal fit without covariates: the score test of differential
usage given the estimated spatial covariance, and the likelihood ratio of spatial variability (θ = 0).

    python -m tests.studies.glmm_tests size  [--genes 2000]
    python -m tests.studies.glmm_tests power [--genes 500]

Covariates: eight independent, eight spatially smooth (drawn from the CAR field), four binary; a rate is the mean over
genes and the covariates of a kind, its standard error that of the genes' own means.
"""

from __future__ import annotations

import argparse
import zlib

import numpy as np
import torch
from torch import Tensor

from pyrosplice._hypothesis.coefficients.score import CovariateTest, score_test
from pyrosplice._hypothesis.likelihood_ratio import spatial_likelihood_ratio_test
from pyrosplice._hypothesis.variance.ratio_null import spatial_ratio_null
from pyrosplice._hypothesis.variance.spatial_kernel import spatial_kernel
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice._usage.gene_tests.linearized import linearized_at
from pyrosplice.glmm._latents import Parameters
from pyrosplice.glmm._marginal import MarginalFit, fit_marginal
from pyrosplice.glmm._mode import MixedModel, Mode
from pyrosplice.likelihoods._contract import Multinomial
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import commit, save_row, simulate_counts
from tests.studies.sv_score import DEPTHS, layouts

KINDS = {"iid": slice(0, 8), "smooth": slice(8, 16), "binary": slice(16, 20)}
NULLS = {"no random effect": (0.0, 0.0), "over-dispersion": (0.7, 0.0), "spatial": (0.7, 0.7)}
_BATCH = 128


def covariates(covariance: CarCovariance) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(covariance.n_spots, 12, generator=generator, dtype=torch.float64)
    smooth = covariance.sample(8, generator).T
    smooth = (smooth - smooth.mean(0)) / smooth.std(0)
    return torch.cat([noise[:, :8], smooth, (noise[:, 8:] > 0).double()], 1)


def null_fit(counts: Tensor, covariance: CarCovariance) -> tuple[MarginalFit, Mode]:
    """Marginal optimum without covariates, and the mode there."""
    model = MixedModel(counts, torch.ones_like(counts[0, :, :1]), SparseSolver(covariance.precision), Multinomial())
    fit = fit_marginal(model)
    spatial, white = fit.sigma * fit.theta.sqrt(), fit.sigma * (1 - fit.theta).sqrt()
    q = model.n_predictors
    parameters = Parameters(fit.coefficients, spatial.expand(-1, q), white.expand(-1, q).unsqueeze(1))
    return fit, model.mode(parameters, fit.latents)


def pvalues(counts: Tensor, covariance: CarCovariance, design: Tensor) -> tuple[Tensor, Tensor]:
    """P-values of the score tests ``(genes, covariates)`` and of the spatial ratio by both null laws ``(genes, 2)``."""
    usage, variability = [], []
    kernel = spatial_kernel(covariance, damping=0.0)
    for some in counts.split(_BATCH):
        fit, mode = null_fit(some, covariance)
        usage.append(score(mode, design).pvalue)
        ratio, boundary = spatial_likelihood_ratio_test(fit.log_marginal, fit.log_marginal_null)
        white = fit_marginal(mode.step.model.without_field())
        information = Multinomial().information(some, white.coefficients.expand_as(some[..., :-1]))
        law = spatial_ratio_null(information, white.sigma, kernel)
        variability.append(torch.stack([boundary, law.sf(ratio)], -1))
    return torch.cat(usage), torch.cat(variability)


def score(mode: Mode, design: Tensor) -> CovariateTest:
    return score_test(linearized_at(mode), design, robust=True)


def rates(pvalue: Tensor, ratio: Tensor) -> dict[str, float]:
    row: dict[str, float] = {"genes": len(pvalue)}
    for level in (0.05, 0.01):
        row[f"LLR boundary {level:g}"], row[f"LLR {level:g}"] = (ratio < level).double().mean(0).tolist()
    for kind, columns in KINDS.items():
        for level in (0.05, 0.01):
            each = (pvalue[:, columns] < level).double().mean(1)
            row[f"{kind} {level:g}"] = float(each.mean())
            row[f"SE {kind} {level:g}"] = float(each.std() / len(each) ** 0.5)
    return row


def size_table(n_genes: int, only: str | None, at: str) -> None:
    for layout, covariance in layouts().items():
        if only and only not in layout:
            continue
        design = covariates(covariance)
        for name, (sigma, theta) in NULLS.items():
            for depth in DEPTHS:
                seed = zlib.crc32(f"du {layout} {name} {depth}".encode()) % 2**31
                counts = simulate_counts(covariance, n_genes=n_genes, depth=depth, sigma=sigma, theta=theta, seed=seed)
                row = {"layout": layout, "null": name, "depth": depth} | rates(*pvalues(counts, covariance, design))
                save_row("glmm_tests_size", row | {"seed": seed, "commit": at}, ["layout", "null", "depth"])
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


def power_table(n_genes: int, only: str | None, at: str) -> None:
    """β = .3 on the first logit, for the first covariate of each kind, σ = θ = .7."""
    for layout, covariance in layouts().items():
        if only and only not in layout:
            continue
        design = covariates(covariance)
        for kind, columns in KINDS.items():
            column = design[:, columns][:, :1]
            effect = np.concatenate([0.3 * column.numpy(), np.zeros_like(column)], 1)
            for depth in DEPTHS:
                counts = simulate_counts(
                    covariance, n_genes=n_genes, depth=depth, sigma=0.7, theta=0.7, seed=2, effect=effect
                )
                batches = counts.split(_BATCH)
                pvalue = torch.cat([score(null_fit(some, covariance)[1], column).pvalue[:, 0] for some in batches])
                power = {f"power {level:g}": float((pvalue < level).double().mean()) for level in (0.05, 0.01)}
                row = {"layout": layout, "covariate": kind, "depth": depth, **power, "seed": 2, "commit": at}
                save_row("glmm_tests_power", row, ["layout", "covariate", "depth"])
                print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=["size", "power"])
    parser.add_argument("--genes", type=int)
    parser.add_argument("--layout", help="only layouts whose name holds this")
    given = parser.parse_args()
    if given.study == "size":
        size_table(given.genes or 2_000, given.layout, commit())
    else:
        power_table(given.genes or 500, given.layout, commit())
