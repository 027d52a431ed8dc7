"""Reduced studies of real counts, rows permuted or covariates that have no effect, and what explains their p-values."""

import numpy as np
import pytest
from scipy.stats import binom, kstest

from pyrosplice.data import simulate_isoforms
from tests.paths import shared
from tests.studies import bulb, real_covariates, surrogates
from tests.studies.bulb_explained import explanation

pytestmark = pytest.mark.slow

FEW = 3  # isoforms: larger families take longer to fit


@pytest.fixture(scope="module", params=list(bulb.LAYERS))
def slide(request):
    shared("data", "mob_rep11_families.h5ad")
    shared("data", "mob_rep11_genes.h5ad")
    return bulb.olfactory_bulb(request.param)


def small_families(adata):
    sizes = adata.var["gene_symbol"].value_counts()
    return adata[:, adata.var["gene_symbol"].isin(sizes.index[sizes <= FEW])].copy()


def test_permuted_rows_keep_their_counts_and_lose_their_places(slide):
    found = bulb.permuted(slide, 2, seed=0)
    assert found.n_vars == 2 * slide.n_vars
    counts, moved = slide.layers["counts"].toarray(), found.layers["counts"].toarray()
    family = (slide.var["gene_symbol"] == "Calm").to_numpy()
    for name in ("Calm/0", "Calm/1"):
        own = moved[:, (found.var["gene_symbol"] == name).to_numpy()]
        assert sorted(map(tuple, own)) == sorted(map(tuple, counts[:, family]))
        assert (own != counts[:, family]).any()


def test_scores_of_space_are_uniform_where_rows_are_permuted(slide):
    pvalue = bulb.scores_of_space(bulb.permuted(slide, 30, seed=1))["pvalue"]
    assert len(pvalue) == 900
    assert kstest(pvalue, "uniform").pvalue > 0.01
    observed = bulb.scores_of_space(slide)["pvalue"]
    assert kstest(observed, "uniform").pvalue < 0.01  # where they are not, the tissue shows


def test_scores_of_covariates_are_uniform_where_rows_are_permuted(slide):
    found = bulb.together(bulb.permuted(small_families(slide), 3, seed=2), ("score",))
    for covariate, some in found.groupby("covariate"):
        assert len(some) == 48, covariate
        assert kstest(some["pvalue"], "uniform").pvalue > 0.01, covariate


def test_explanations_name_what_moves_the_score_test():
    row = dict.fromkeys(bulb.METHODS, np.nan) | {
        "score": 1e-4,
        "HSIC": 0.2,
        "equal weights": 0.6,
        "score, no space": 1e-4,
    }
    row |= {"ratios of equal weight": 0.15, "ratios of equal weight, summed": 0.5, "sigma": 0.4, "theta": 0.1}
    assert explanation(row) == "HSIC 0.2: all spots' ratios weigh the same, 0.60 of the information (0.15)"
    unlike = {"ratios of equal weight": 1e-3, "ratios of equal weight, summed": 1e-4}
    assert "HSIC 0.2: not explained" in explanation(row | unlike)
    ratio = {
        "llr": 0.3,
        "score, undamped kernel": 1e-4,
        "llr, other reference": 2e-4,
        "llr, a variance each logit": 0.2,
    }
    assert "llr 0.3: with another isoform as the reference" in explanation(row | unlike | ratio)
    assert explanation(row | {"HSIC": 0.04}) == ""


SIDE = 8


@pytest.fixture(scope="module")
def simulated():
    """Two sections of a square grid, the second one's spots in no order, with covariates that vary in both."""
    adata, rng = simulate_isoforms(n_spots=2 * SIDE**2, n_genes=3, n_isoforms=3, seed=1), np.random.default_rng(1)
    grid = np.stack(np.divmod(np.arange(SIDE**2), SIDE), 1).astype(float)
    adata.obsm["spatial"] = np.concatenate([grid, rng.permutation(grid)])
    adata.obs["section"] = np.repeat(["one", "two"], SIDE**2)
    expression = np.rint(np.exp(adata.obsm["spatial"] @ rng.normal(size=(2, 30)) / 20 + 2.0))
    return real_covariates.Tissue("simulated", "raw", real_covariates.with_covariates(adata, expression))


@pytest.mark.parametrize("kind", real_covariates.KINDS)
def test_surrogates_are_new_each_time_and_centered_in_each_section(simulated, kind):
    values = simulated.surrogates(*kind, 3, np.random.default_rng(0))
    sections = values.reshape(2, SIDE**2, 3)
    np.testing.assert_allclose(sections.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose((values**2).mean(0), 1)
    assert np.abs(np.corrcoef(sections.transpose(0, 2, 1).reshape(6, -1)) - np.eye(6)).max() < 0.999


def test_surrogates_keep_what_they_say(simulated):
    section = surrogates.Section(simulated.adata.obsm["spatial"][SIDE**2 :])
    values, rng = np.random.default_rng(2).normal(size=SIDE**2), np.random.default_rng(3)
    for kept in (surrogates.permuted, surrogates.shifted):
        np.testing.assert_array_equal(np.sort(kept(values, section, rng)), np.sort(values))
    places = section.xy.astype(int)
    image, moved = np.empty((SIDE, SIDE)), np.empty((SIDE, SIDE))
    image[tuple(places.T)], moved[tuple(places.T)] = values, surrogates.shifted(values, section, rng)
    np.testing.assert_allclose(np.abs(np.fft.fft2(image)).max(), np.abs(np.fft.fft2(moved)).max())
    mixed = [section.patterns.T @ one for one in (values - values.mean(), surrogates.waves(values, section, rng))]
    bands = [np.square(one).reshape(-1, surrogates.BAND).sum(1) for one in mixed]
    np.testing.assert_allclose(*bands)


def test_covariates_at_the_shared_fit_are_tested_as_each_by_itself(simulated):
    values = simulated.surrogates("drawn", "none", 2, np.random.default_rng(4))
    found = real_covariates.tested(real_covariates.null_fit(simulated, values), range(2))
    for replicate, some in found.groupby("replicate"):
        model = real_covariates.null_fit(simulated, values[:, [replicate]])
        alone = model.test_differential_usage(return_results=True, print_progress=False)
        np.testing.assert_allclose(some["pvalue"], alone["pvalue"][:, 0], rtol=1e-6)
        np.testing.assert_array_equal(some["reliable"], alone["reliable"][:, 0])


@pytest.mark.parametrize("kind", [("waves", "pc1"), ("permuted", "pc1")])
def test_few_real_families_follow_a_covariate_without_an_effect(slide, kind):
    slide = small_families(slide)
    slide.obs["section"] = "bulb"
    slide.obs["pc1"] = slide.obs["Penk"]
    tissue = real_covariates.Tissue("bulb", "", slide)
    values = tissue.surrogates(*kind, 12, np.random.default_rng(5))
    pvalue = real_covariates.tested(real_covariates.null_fit(tissue, values), range(12))["pvalue"]
    assert len(pvalue) == 16 * 12
    assert (pvalue < 0.05).sum() <= binom.isf(1e-3, len(pvalue), 0.05)
