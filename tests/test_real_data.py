"""Real counts, from file to tables. Skipped where the shared data are not there."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency, spearmanr

from pyrosplice import SplisosmGLMM
from tests.paths import shared

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["counts", "counts_thinned"])
def bulb(request):
    """Olfactory bulb, 260 spots; paralog families stand in for the isoforms of a gene."""
    adata = anndata.read_h5ad(shared("data", "mob_rep11_families.h5ad"))
    model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(adata, layer=request.param, group_gene_by_n_iso=True, design_mtx="total_counts")
    model.fit(batch_size=32, print_progress=False)
    # the reference below knows of no covariate; the totals are spatial and take part of the effect away
    model.test_spatial_variability(method="score", adjust_for_design=False, print_progress=False)
    model.test_differential_usage(method="score", print_progress=False)
    return request.param, model


def test_every_family_of_the_bulb_is_fitted_and_tested(bulb):
    _, model = bulb
    assert model.n_genes == 30
    assert model.get_training_summary()["converged"].all()
    for name, n_rows in (("sv", 30), ("du", 30)):
        table = model.get_formatted_test_results(name)
        assert len(table) == n_rows
        assert table[["statistic", "pvalue", "pvalue_adj"]].notna().all(axis=None)
    usage = model.get_fitted_ratios_anndata()
    families = pd.Series(usage.var["gene_symbol"].astype(str).to_numpy())
    sums = pd.DataFrame(usage.layers["fitted_ratios"].T).groupby(families).sum()
    np.testing.assert_allclose(sums, 1)


def test_families_with_a_large_likelihood_ratio_elsewhere_get_small_p_values(bulb):
    layer, model = bulb
    reference = pd.read_csv(shared("gold", "b_mob_families_tmb.csv"))
    reference = reference[reference["depth"] == {"counts": "raw", "counts_thinned": "thinned"}[layer]]
    table = model.get_formatted_test_results("sv").merge(reference, left_on="gene", right_on="family")
    assert (table.loc[table["lrt_theta0"] > 10, "pvalue"] < 0.005).all()
    assert (table.loc[table["lrt_theta0"] > 5, "pvalue"] < 0.05).all()
    assert spearmanr(table["lrt_theta0"], -np.log(table["pvalue"])).pvalue < 0.01


def test_cell_types_of_the_lung_are_tested_without_coordinates():
    """With one covariate 0 or 1, the score test of the GLM is Pearson's χ² test of the pooled table."""
    adata = anndata.read_h5ad(shared("data", "lung_junctions_spliz.h5ad"))
    model = SplisosmGLMM(model_type="glm")
    model.setup_data(adata, group_iso_by="usage_group", group_gene_by_n_iso=True, design_mtx="cell_type")
    model.fit(batch_size=32, print_progress=False)
    assert model.get_training_summary()["converged"].all()
    model.test_differential_usage(method="score", print_progress=False)
    robust = model.get_formatted_test_results("du").set_index(["gene", "covariate"])
    model.test_differential_usage(method="score", variance="model", print_progress=False)
    table = model.get_formatted_test_results("du").set_index(["gene", "covariate"])
    assert len(table) == 15 * 39
    lost = robust["pvalue"].isna() & table["pvalue"].notna()  # cell types of whose junctions nothing is known
    assert lost.sum() <= 5 and (table.loc[lost, "statistic"] < 1e-6).all()
    assert robust.loc[table["pvalue"].isna(), "pvalue"].isna().all()
    kept = model.filtered_adata
    counts = np.asarray(kept.layers["counts"].todense())
    for gene in model.gene_names:
        isoforms = counts[:, (kept.var["usage_group"] == gene).to_numpy()]
        for cell_type in ("Macrophage", "Ciliated", "Artery"):
            group = (adata.obs["cell_type"] == cell_type).to_numpy()
            pooled = np.stack([isoforms[group].sum(0), isoforms[~group].sum(0)])
            expected = chi2_contingency(pooled, correction=False)
            found = table.loc[(gene, f"cell_type_{cell_type}")]
            assert found["statistic"] == pytest.approx(expected.statistic, rel=1e-6)
            assert found["pvalue"] == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-300)
