"""Several sections in one model."""

import anndata as ad
import numpy as np
import pytest

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.usage.analysis.splisosm import SplisosmGLMM
from tests.usage.conftest import tissue_of

MARGINAL = {"fitting_method": "marginal_newton", "var_fix_sigma": False}
QUIET = {"print_progress": False}


def with_sections(tissue, names):
    """Copies of a tissue, interleaved with each other, in the same coordinates."""
    whole = ad.concat([tissue] * len(names), index_unique="-", merge="same")
    whole.obs["section"] = np.repeat(names, tissue.n_obs)
    return whole[np.random.default_rng(0).permutation(whole.n_obs)].copy()


def fitted(adata, **setup):
    model = SplisosmGLMM("glmm-full", **MARGINAL)
    model.setup_data(adata, min_counts=0, **setup)
    model.fit(batch_size=32, from_null=True, **QUIET)
    return model


def estimates(model, name):
    return np.array([float(gene.values[name][0]) for gene in model.analysis.fit.genes])


def test_one_section_changes_nothing(tissue):
    plain, named = fitted(tissue), fitted(with_sections(tissue, ["s"])[tissue.obs_names + "-0"], section_key="section")
    assert (named.sp_kernel.precision != plain.sp_kernel.precision).nnz == 0
    for name in ("sigma", "theta_logit"):
        np.testing.assert_array_equal(estimates(named, name), estimates(plain, name))


def test_two_copies_of_a_tissue_estimate_what_one_does():
    tissue = tissue_of(seed=4, theta=0.8, sigma=1.0)
    one, two = fitted(tissue), fitted(with_sections(tissue, ["s", "t"]), section_key="section")
    assert (two.n_spots, two.sp_kernel.n_spots) == (72, 72)
    losses = [model.get_training_summary()["best_loss"].to_numpy() for model in (one, two)]
    np.testing.assert_allclose(losses[1], 2 * losses[0], atol=1e-4)
    theta = [1 / (1 + np.exp(-estimates(model, "theta_logit"))) for model in (one, two)]
    assert ((theta[0] > 0.05) & (theta[0] < 0.95)).sum() >= 2  # not all at a boundary
    np.testing.assert_allclose(theta[1], theta[0], atol=2e-3)
    np.testing.assert_allclose(estimates(two, "sigma"), estimates(one, "sigma"), atol=2e-3)


def test_edges_of_a_given_graph_between_sections_are_dropped(tissue):
    tissue.obs["side"] = np.where(np.arange(36) % 6 < 3, "left", "right")
    model = SplisosmGLMM()
    with pytest.warns(UserWarning, match="section_key: 6 of the graph's 60 edges are between its 2 sections"):
        model.setup_data(tissue, adj_key="connectivities", section_key="side")
    other = SplisosmGLMM()
    other.setup_data(tissue, section_key="side", design_mtx="side")
    assert (model.sp_kernel.precision != other.sp_kernel.precision).nnz == 0
    other.test_spatial_variability("score", **QUIET)
    assert other.get_formatted_test_results("sv")["pvalue"].between(0, 1).all()


def test_sections_survive_a_file(tissue, tmp_path):
    model = fitted(with_sections(tissue, ["s", "t"]), section_key="section")
    model.save(tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model")
    assert "2 component(s) of 2 section(s)" in repr(again)
    assert repr(again) == repr(model)
    assert (again.sp_kernel.precision != model.sp_kernel.precision).nnz == 0
    assert list(again.filtered_adata.obs["section"]) == list(model.filtered_adata.obs["section"])


def test_a_section_left_out_with_its_small_component_is_not_counted(tissue):
    whole = with_sections(tissue, ["s", "t"])
    whole = whole[(whole.obs["section"] == "s") | (np.arange(72) < 20)].copy()
    model = SplisosmGLMM(graph="union")
    with pytest.warns(UserWarning, match="min_component_size=30"):
        model.setup_data(whole, section_key="section", min_component_size=30)
    assert "1 component(s) of 1 section(s)" in repr(model)


def test_sections_that_cannot_be_used_say_why(tissue):
    model = SplisosmGLMM()
    with pytest.raises(InvalidArgumentError, match=r"section_key: adata\.obs has no 'slide'"):
        model.setup_data(tissue, section_key="slide")
    tissue.obs["slide"] = ["a"] * 33 + ["b"] * 3
    with pytest.raises(InvalidArgumentError, match="section_key: section 'b' has 3 spots"):
        model.setup_data(tissue, section_key="slide")
    tissue.obs["slide"] = [None, *["a"] * 35]
    with pytest.raises(InvalidArgumentError, match=r"section_key: .*1 of 36 missing"):
        model.setup_data(tissue, section_key="slide")
