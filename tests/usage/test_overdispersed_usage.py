"""Likelihoods with more variation than the multinomial, through every test."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from pyrosplice import MultinomGLMM, SplisosmGLMM
from pyrosplice._usage.fitted_gene import FittedGene
from pyrosplice._usage.gene_tests import variability_ratio
from pyrosplice._usage.records import ModelSpec
from pyrosplice.likelihoods import BetaBinomial, DirichletMultinomial
from pyrosplice.spatial.car import IdentityCovariance
from tests.studies.overdispersion import COVARIATES, fitted, overdispersed
from tests.studies.simulation import grid

QUIET = {"print_progress": False, "return_results": True}


@pytest.mark.slow
@pytest.mark.parametrize(("likelihood", "n_isos"), [(DirichletMultinomial(), 3), (BetaBinomial(), 2)])
def test_every_test_takes_it(likelihood, n_isos):
    adata = overdispersed(n_genes=2, n_isos=n_isos, n_spots=36, seed=1)
    adata.obs["kind"] = np.array(["a", "b", "c"])[np.arange(36) % 3]
    model = SplisosmGLMM(likelihood=likelihood, fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(adata, design_mtx=["smooth", "kind"])
    model.fit(batch_size=2, from_null=True, **{"print_progress": False})
    ask = ({}, {"use_perm_null": True, "n_perms_per_gene": 2}, {"n_bootstrap": 2}, {"importance": True, "n_draws": 50})
    found = [model.test_spatial_variability(**one, **QUIET)["pvalue"] for one in ask]
    found += [model.test_differential_usage(one, by=by, **QUIET)["pvalue"] for one in ("score", "lrt") for by in BY]
    model.fit(batch_size=2, with_design_mtx=True, **{"print_progress": False})
    found += [model.test_differential_usage("wald", by=by, **QUIET)["pvalue"] for by in BY]
    for pvalue in found:
        assert ((pvalue > 0) & (pvalue <= 1)).all()
    effects = model.get_effects()
    assert (effects["usage_points_se"] > 0).all() and len(effects) == 2 * 4 * n_isos
    plain = SplisosmGLMM()
    plain.setup_data(adata, design_mtx=["smooth", "kind"])
    model.fit(batch_size=2, **{"print_progress": False})
    scores = [one.test_spatial_variability("score", **QUIET)["pvalue"] for one in (model, plain)]
    np.testing.assert_array_equal(*scores)  # of the counts alone


BY = ("covariate", "factor")


@pytest.mark.slow
def test_size_with_and_without_the_right_likelihood():
    """Score tests of 300 null genes in the GLM; its multinomial, taken at its word, rejects six times too often."""
    adata = overdispersed(n_genes=300, n_isos=3, n_spots=64, seed=4)
    rejected = {}
    for likelihood, variance in ((None, "model"), (None, "robust"), (DirichletMultinomial(), "robust")):
        model = fitted(adata, "glm", likelihood, with_design=False)
        pvalue = model.test_differential_usage(variance=variance, **QUIET)["pvalue"]
        rejected[likelihood, variance] = (pvalue < 0.05).sum(0)
    wrong, *right = rejected.values()
    low, high = binom.ppf([0.0005, 0.9995], 300, 0.05)
    for one in right:
        assert len(one) == len(COVARIATES)
        assert ((one >= low) & (one <= high)).all()
    assert (wrong > 3 * 0.05 * 300).all()


@pytest.mark.slow
def test_importance_sampling_is_at_the_fitted_concentration():
    covariance = grid(6)
    generator = torch.Generator().manual_seed(2)
    totals = torch.full((2, 36), 12.0, dtype=torch.float64)
    counts = DirichletMultinomial(2.0).sample(totals, torch.zeros(2, 36, 1, dtype=torch.float64), generator=generator)
    options = {"fitting_method": "marginal_newton", "var_fix_sigma": False}
    free = MultinomGLMM(likelihood=DirichletMultinomial(), **options)
    free.setup_data(counts, corr_sp=covariance)
    free.fit(quiet=True)
    concentration = free.concentration.detach()
    assert (concentration < 6).all()  # far from where searches start
    fixed = MultinomGLMM(likelihood=DirichletMultinomial(concentration), **options)
    fixed.setup_data(counts, corr_sp=covariance)
    sites = {name: getattr(free, name).detach().clone() for name in ("beta", "bias_eta", "sigma", "theta_logit")}
    fixed.update_params_from_dict(sites)
    torch.testing.assert_close(free.importance(100).value, fixed.importance(100).value)
    refined, same = free.refine(100), fixed.refine(100)
    torch.testing.assert_close(refined.value, same.value)
    torch.testing.assert_close(free.sigma, fixed.sigma)
    torch.testing.assert_close(free.concentration, concentration)


def test_the_bootstrap_draws_with_the_gene_s_own_concentration():
    """Without random effect the variance of a count is the multinomial's times (n + A) / (1 + A)."""
    n_spots, total, own = 4000, 10.0, (0.5, 50.0)
    counts = torch.tensor([total, 0.0], dtype=torch.float64).expand(2, n_spots, 2)
    spatial = {"corr_sp": IdentityCovariance(n_spots)}
    spec = ModelSpec("glmm-null", {"likelihood": DirichletMultinomial()}, spatial, None, "cpu")
    genes = [
        FittedGene(
            {
                "beta": torch.zeros(0, 1, dtype=torch.float64),
                "bias_eta": torch.zeros(1, dtype=torch.float64),
                "sigma": torch.zeros(1, dtype=torch.float64),
                "concentration": torch.tensor([concentration], dtype=torch.float64),
            },
            *(True, "converged", 1, 0.0, 1, 0.0),
        )
        for concentration in own
    ]
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    pair = variability_ratio.FittedPair([0, 1], counts, spec, spec, genes, genes)
    drawn = variability_ratio._draw(pair, generators)
    assert (drawn.sum(-1) == total).all()
    for gene, concentration in zip(drawn, own, strict=True):
        expected = total / 4 * (total + concentration) / (1 + concentration)
        assert float(gene[:, 0].var()) == pytest.approx(expected, rel=0.1)
