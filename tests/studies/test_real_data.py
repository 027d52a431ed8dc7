"""Reduced study of real counts whose rows are permuted: p-values are uniform, and what explains them is right."""

import numpy as np
import pytest
from scipy.stats import kstest

from tests.paths import shared
from tests.studies import bulb
from tests.studies.bulb_explained import explanation

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
