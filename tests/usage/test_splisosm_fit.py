import copy

import anndata as ad
import numpy as np
import pytest
import torch

from pyrosplice._usage.analysis.splisosm import SplisosmGLMM
from pyrosplice.errors import InvalidArgumentError, NonSpatialWarning, NotReadyError
from tests.paths import shared

QUIET = {"print_progress": False}
TYPES = ("glm", "glmm-null", "glmm-full")


def fitted(adata, model_type="glm", *, fit=None, **setup):
    model = SplisosmGLMM(model_type, fitting_configs={"max_epochs": 60})
    model.setup_data(adata, **setup)
    model.fit(**QUIET, **(fit or {}))
    return model


def test_attributes_before_and_after_setup(tissue):
    model = SplisosmGLMM()
    assert (model.adata, model.n_spots, model.n_genes, model.n_factors, model.sp_kernel) == (None, 0, 0, 0, None)
    model.setup_data(tissue, design_mtx=["smooth", "half"])
    assert model.adata is tissue
    assert (model.n_spots, model.n_genes, model.n_factors) == (36, 6, 3)
    assert model.gene_names == [f"gene_{g + 1}" for g in range(6)]
    assert model.covariate_names == ["smooth", "half_lower", "half_upper"]
    assert model.n_isos_per_gene == [3, 2, 3, 4, 2, 3]
    assert model.filtered_adata.shape == (36, 17)
    np.testing.assert_allclose(model.design_mtx[:, 0], tissue.obs["smooth"])


def test_the_kernel_of_each_model_type(tissue):
    expected = {"glm": "NoneType", "glmm-null": "IdentityCovariance", "glmm-full": "CarCovariance"}
    for model_type, kernel in expected.items():
        model = SplisosmGLMM(model_type, rho=0.9)
        model.setup_data(tissue)
        assert type(model.sp_kernel).__name__ == kernel
    assert model.sp_kernel.rho == 0.9
    assert model.sp_kernel.adjacency.sum() == 2 * 60  # the grid's own edges


def test_the_glm_needs_no_coordinates(tissue):
    del tissue.obsm["spatial"]
    assert fitted(tissue).get_training_summary()["converged"].all()
    with pytest.raises(InvalidArgumentError, match=r"spatial_key: adata.obsm has no 'spatial'"):
        SplisosmGLMM().setup_data(tissue)


def test_a_given_adjacency_is_used_as_it_is(tissue):
    tissue.obsp["weights"] = np.triu(np.ones((36, 36)), 1)
    model = SplisosmGLMM()
    model.setup_data(tissue, adj_key="weights")
    np.testing.assert_allclose(model.sp_kernel.adjacency.toarray(), 0.5 * (1 - np.eye(36)))


def test_small_components_are_left_out_everywhere_with_a_warning(tissue):
    graph = tissue.obsp["connectivities"].tolil()
    graph[:4, 4:] = graph[4:, :4] = 0
    tissue.obsp["cut"] = graph.tocsr()
    with pytest.warns(NonSpatialWarning, match="falls into"):
        SplisosmGLMM().setup_data(tissue, adj_key="cut")
    model = SplisosmGLMM("glm")
    with pytest.warns(UserWarning, match=r"min_component_size=5: 4 of 36 spots"):
        model.setup_data(tissue, adj_key="cut", min_component_size=5, design_mtx="iid")
    assert model.n_spots == 32
    assert list(model.filtered_adata.obs_names) == list(tissue.obs_names[4:])
    np.testing.assert_allclose(model.design_mtx[:, 0], tissue.obs["iid"].iloc[4:])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_batches_and_jobs_do_not_change_the_results(tissue, model_type):
    one = fitted(tissue, model_type)
    for grouped, fit in (
        (True, {"batch_size": 20}),
        (False, {"batch_size": 2}),
        (True, {"batch_size": 2, "n_jobs": 2}),
    ):
        other = fitted(tissue, model_type, group_gene_by_n_iso=grouped, fit=fit)
        assert list(other.get_training_summary().index) == one.gene_names
        a, b = one.get_training_summary(), other.get_training_summary()
        np.testing.assert_allclose(a["best_loss"], b["best_loss"], rtol=1e-8)
        for x, y in zip(one.get_fitted_models(), other.get_fitted_models(), strict=True):
            torch.testing.assert_close(x.get_isoform_ratio(), y.get_isoform_ratio(), atol=1e-5, rtol=1e-5)


def test_a_full_rank_is_exact_and_a_low_one_keeps_the_variance(tissue):
    options = {"fitting_method": "marginal_newton", "var_fix_sigma": False}
    found = {}
    for rank in (None, 36, 10):
        model = SplisosmGLMM(approx_rank=rank, **options)
        model.setup_data(tissue)
        model.fit(batch_size=8, **QUIET)
        found[rank] = model.get_training_summary()["best_loss"].to_numpy()
    np.testing.assert_allclose(found[36], found[None], atol=1e-6)
    assert 1e-6 < np.abs(found[10] - found[None]).max() < 1.0


def test_training_summary_has_the_documented_columns(tissue):
    table = fitted(tissue, "glm").get_training_summary()
    assert list(table.columns[:5]) == ["model_type", "converged", "best_loss", "best_epoch", "fitting_time_s"]
    assert table["converged"].dtype == bool
    assert (table["model_type"] == "glm").all()
    assert (table["fitting_time_s"] > 0).all()


def test_intercept_only_glm_is_the_overall_usage(tissue):
    model = fitted(tissue, "glm")
    summary = model.extract_feature_summary("isoform", print_progress=False)
    ratios = model.get_fitted_ratios_anndata().layers["fitted_ratios"]
    np.testing.assert_allclose(ratios, np.tile(summary["ratio_total"], (36, 1)), atol=1e-7)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("with_design", [False, True])
def test_ratios_are_those_of_the_models_in_the_order_of_var(tissue, model_type, with_design):
    tissue = tissue[:, np.random.default_rng(0).permutation(tissue.n_vars)].copy()
    fit = {"with_design_mtx": with_design}
    model = fitted(tissue, model_type, fit=fit, gene_names="label", design_mtx=["smooth", "half"])
    adata = model.get_fitted_ratios_anndata("usage")
    assert adata.var.equals(model.filtered_adata.var)
    assert "usage" not in model.filtered_adata.layers
    for name in model.gene_names:
        columns = (adata.var["label"] == name).to_numpy()
        expected = model.get_gene_model(name).get_isoform_ratio()[0]
        np.testing.assert_allclose(adata.layers["usage"][:, columns], expected, atol=1e-10)


def test_changing_a_rebuilt_model_changes_nothing_here(tissue):
    model = fitted(tissue)
    before = model.get_gene_model("gene_2").bias_eta.clone()
    with torch.no_grad():
        model.get_gene_model("gene_2").bias_eta.fill_(7.0)
    assert torch.equal(model.get_gene_model("gene_2").bias_eta, before)
    summary = model.get_training_summary().loc["gene_2"]
    assert model.get_gene_model("gene_2").logger.reason == [summary["reason"]]
    assert "not fitted" not in repr(model.get_gene_model("gene_2"))
    with pytest.raises(KeyError, match="gene_9"):
        model.get_gene_model("gene_9")


def test_configs_given_by_the_user_are_never_changed(tissue):
    configs = {"max_epochs": 30}
    before = copy.deepcopy(configs)
    model = SplisosmGLMM("glm", fitting_configs=configs)
    model.setup_data(tissue)
    model.fit(**QUIET)
    assert configs == before


def test_new_data_and_new_fits_clear_what_rested_on_the_old(tissue):
    model = fitted(tissue)
    model.setup_data(tissue[:, :6].copy())
    assert model.gene_names == ["gene_1", "gene_2"]
    with pytest.raises(NotReadyError, match="fit"):
        model.get_training_summary()


def test_a_failed_setup_leaves_the_fit_usable(tissue):
    model = fitted(tissue)
    before = model.get_training_summary()
    bad = tissue.copy()
    bad.layers["counts"].data[3] = -1
    with pytest.raises(InvalidArgumentError, match="negative"):
        model.setup_data(bad)
    assert model.get_training_summary().equals(before)


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.fit(),
        lambda m: m.filtered_adata,
        lambda m: m.extract_feature_summary(),
        lambda m: m.get_fitted_models(),
        lambda m: m.get_gene_model("gene_1"),
        lambda m: m.get_training_summary(),
        lambda m: m.get_fitted_ratios_anndata(),
        lambda m: m.get_formatted_test_results("sv"),
        lambda m: m.test_spatial_variability(),
        lambda m: m.test_differential_usage(),
        lambda m: m.save("nowhere"),
    ],
)
def test_everything_before_setup_says_so(ask):
    with pytest.raises(RuntimeError, match="setup_data"):
        ask(SplisosmGLMM())


def without_coordinates(adata):
    adata.obsm["spatial"] = np.where(np.arange(36)[:, None] == 5, np.nan, adata.obsm["spatial"])


def set_count(value):
    def change(adata):
        counts = adata.layers["counts"].toarray().astype(float)
        counts[2, 1] = value
        adata.layers["counts"] = counts

    return change


def unseen(adata):
    adata.layers["counts"] = adata.layers["counts"].toarray() * (np.arange(adata.n_vars) != 4)


def renamed(axis):
    def change(adata):
        names = list(getattr(adata, axis))
        setattr(adata, axis, [names[0], names[0], *names[2:]])

    return change


ONE = np.ones(36)
BAD = {
    "negative counts": ({}, set_count(-1), {}, "layer 'counts': .*negative"),
    "fractions": ({}, set_count(0.5), {}, "layer 'counts': .*non-integer"),
    "NaN": ({}, set_count(np.nan), {}, "layer 'counts': .*NaN"),
    "coordinates": ({}, without_coordinates, {}, r"adata.obsm\['spatial'\]: .*1 spots without .first: row 5"),
    "spot names": ({}, renamed("obs_names"), {}, "adata.obs_names: .*more than once.*'spot_1'"),
    "isoform names": ({}, renamed("var_names"), {}, "adata.var_names: .*more than once"),
    "gene names": ({}, lambda a: a.var.__setitem__("label", "x"), {"gene_names": "label"}, "gene_names: .*unique"),
    "rho": ({"rho": 1.0}, None, {}, r"rho: .*\[0, 1\), found 1.0"),
    "k = 0": ({"k_neighbors": 0}, None, {}, "k_neighbors: .*found 0"),
    "k = N": ({"k_neighbors": 36}, None, {}, "k_neighbors: .*1 to 35.*found 36"),
    "rank 0": ({"approx_rank": 0}, None, {}, "approx_rank: .*found 0"),
    "constant": ({}, None, {"design_mtx": ONE}, "design_mtx: .*constant 'factor_1'"),
    "collinear": ({}, None, {"design_mtx": np.outer(np.arange(36.0), [1, 2])}, "design_mtx: .*'factor_2' collinear"),
    "design rows": ({}, None, {"design_mtx": np.arange(35.0)}, "design_mtx: expected 36 rows"),
    "no such column": ({}, None, {"design_mtx": "dose"}, "design_mtx: .*'dose'"),
    "names": ({}, None, {"design_mtx": "iid", "covariate_names": ["a", "b"]}, "covariate_names: expected 1"),
    "names alone": ({}, None, {"covariate_names": ["a"]}, "covariate_names: .*without a design_mtx"),
    "one isoform": ({}, None, {"group_iso_by": "name"}, "nothing is left.*has 1 isoform"),
    "never seen": ({}, unseen, {"min_counts": 0}, "min_counts: .*never seen"),
    "empty selection": ({}, None, {"min_bin_pct": 100.0, "min_counts": 1e6}, "nothing is left"),
    "component size": ({}, None, {"min_component_size": 0}, "min_component_size: .*found 0"),
    "adjacency": ({}, None, {"adj_key": "none"}, "adj_key: adata.obsp has no 'none'"),
    "model type": ({"model_type": "lmm"}, None, {}, "model_type: .*found 'lmm'"),
    "method": ({"fitting_method": "em"}, None, {}, "fitting_method: .*found 'em'"),
    "prior": ({"var_prior_model": "flat"}, None, {}, "var_prior_model: .*found 'flat'"),
    "start": ({"init_ratio": "random"}, None, {}, "init_ratio: .*found 'random'"),
    "device": ({"device": "tpu"}, None, {}, "device: .*found 'tpu'"),
    "graph": ({"graph": "tree"}, None, {}, "graph: .*found 'tree'"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:Observation names:UserWarning", "ignore:Variable names:UserWarning")
def test_bad_input_names_argument_found_and_expected(tissue, case):
    options, change, setup, message = BAD[case]
    bad = tissue.copy()
    bad.var["name"] = bad.var_names
    if change is not None:
        change(bad)
    with pytest.raises(InvalidArgumentError, match=message):
        SplisosmGLMM(**options).setup_data(bad, **setup)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ({"batch_size": 0}, "batch_size: .*found 0"),
        ({"n_jobs": 0}, "n_jobs: .*found 0"),
        ({"with_design_mtx": True}, "with_design_mtx=True: .*without one"),
    ],
)
def test_a_bad_fit_leaves_the_earlier_one(tissue, fit, message):
    model = fitted(tissue)
    with pytest.raises(InvalidArgumentError, match=message):
        model.fit(**QUIET, **fit)
    assert len(model.get_fitted_models()) == 6


def test_representation_follows_the_state(tissue):
    model = SplisosmGLMM("glmm-full")
    assert "call setup_data" in repr(model)
    model.setup_data(tissue, design_mtx="half")
    text = repr(model)
    for part in ("36 spots, 6 genes, 17 isoforms (2 to 4 a gene)", "rho 0.99, 60 edges, 1 component", "call fit"):
        assert part in text
    assert "half_lower, half_upper" in text
    model = fitted(tissue)
    assert "6 of 6 genes converged" in repr(model)
    html = model._repr_html_()
    assert html.count("<tr>") == len(model._rows())
    assert "<table>" in html


def test_spots_without_counts_change_nothing(tissue):
    more = ad.concat([tissue, tissue[:4].copy()], index_unique="-")
    more.var = tissue.var
    more.layers["counts"] = more.layers["counts"].toarray() * (np.arange(40) < 36)[:, None]
    a, b = fitted(tissue), fitted(more)
    np.testing.assert_allclose(a.get_training_summary()["best_loss"], b.get_training_summary()["best_loss"], rtol=1e-10)


def test_lung_junctions_by_cell_type():
    adata = ad.read_h5ad(shared("data", "lung_junctions_spliz.h5ad"))
    model = SplisosmGLMM("glm")
    model.setup_data(adata, group_iso_by="usage_group", design_mtx="compartment", group_gene_by_n_iso=True)
    assert model.n_genes == adata.var["usage_group"].nunique()
    model.fit(batch_size=20, with_design_mtx=True, **QUIET)
    # a junction that a whole compartment never uses has its optimum at infinity, and the summary says so
    assert set(model.get_training_summary()["reason"]) == {"converged", "separated"}
    # with one covariate a level, fitted usage is the usage within the level
    counts = model.filtered_adata.layers["counts"].toarray()
    usage = model.get_fitted_ratios_anndata().layers["fitted_ratios"]
    for level in adata.obs["compartment"].unique():
        cells = (adata.obs["compartment"] == level).to_numpy()
        for columns in model._prepared.data.columns:
            total = counts[cells][:, columns].sum(0)
            np.testing.assert_allclose(usage[cells][0, columns], total / total.sum(), atol=1e-5)
