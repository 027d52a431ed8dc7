"""Spatially variable genes: what is found, what it does not depend on, and what is refused."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrosplice import ExpressionGLM, spatially_variable_genes
from pyrosplice.errors import InvalidArgumentError, NotReadyError, UnreliableWarning
from pyrosplice.spatial._graph import knn_graph

SIDE = 9
N = SIDE**2
COLUMNS = ["statistic", "pvalue", "pvalue_adj", "reason", "mean", "coverage"]


def tissue(seed=0, n_null=6, mean=2.0):
    """A 9 × 9 grid: gene_0 high on the left, the others null; unequal sizes; two sections; a smooth covariate."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.divmod(np.arange(N), SIDE), 1).astype(float)
    size = np.exp(0.5 * rng.standard_normal(N))
    pattern = np.ones((N, 1 + n_null))
    pattern[:, 0] = np.where(places[:, 1] < 4, 6.0, 1.0)
    counts = rng.poisson(mean * size[:, None] * pattern * rng.gamma(10, 0.1, pattern.shape)).astype(float)
    counts[:, 1] += rng.poisson(3.0 * size)  # no spot is empty
    counts[0, 1] += 1
    obs = pd.DataFrame({"size": size, "x": places[:, 1], "section": np.where(places[:, 0] < 4, "a", "b")})
    obs.index = [f"s{i}" for i in range(N)]
    var = pd.DataFrame(index=[f"gene_{g}" for g in range(1 + n_null)])
    counts[counts.sum(1) == 0, 1] = 1
    return ad.AnnData(counts, obs=obs, var=var, obsm={"spatial": places})


def test_a_pattern_is_found_and_the_two_doors_are_one():
    adata = tissue()
    table = spatially_variable_genes(adata, size_factors="size")
    assert list(table.columns) == COLUMNS and list(table.index) == list(adata.var_names)
    assert table["pvalue"].iloc[0] < 1e-4 and (table["pvalue"].iloc[1:] > 0.001).all() and (table["reason"] == "").all()
    np.testing.assert_allclose(table["mean"], adata.X.mean(0))
    np.testing.assert_allclose(table["coverage"], (adata.X > 0).mean(0))
    glm = ExpressionGLM("~ 1").fit(adata, size_factors="size")
    pd.testing.assert_frame_equal(table, glm.test_spatial_variability("score"), rtol=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
def test_neither_the_order_of_spots_nor_that_of_genes_nor_other_genes_change_a_result(seed):
    adata = tissue(seed)
    table = spatially_variable_genes(adata, size_factors="size", section_key="section")
    rng = np.random.default_rng(seed)
    shuffled = adata[rng.permutation(N)][:, rng.permutation(adata.n_vars)].copy()
    other = spatially_variable_genes(shuffled, size_factors="size", section_key="section").loc[table.index]
    pd.testing.assert_frame_equal(table, other, rtol=1e-5, atol=1e-7)
    few = spatially_variable_genes(adata, size_factors="size", section_key="section", genes=["gene_3", "gene_0"])
    rest = ["statistic", "pvalue", "reason", "mean", "coverage"]
    pd.testing.assert_frame_equal(few[rest], table.loc[["gene_3", "gene_0"], rest], rtol=1e-5, atol=1e-7)


def test_counts_are_read_from_every_kind_of_container(tmp_path):
    adata = tissue(3)
    table = spatially_variable_genes(adata)
    adata.write_h5ad(tmp_path / "tissue.h5ad")
    layered = adata.copy()
    layered.layers["counts"], layered.X = sp.csc_matrix(adata.X), np.log1p(adata.X)
    wide = ad.concat({"first": adata, "again": adata}, index_unique=" ", merge="same")
    others = {
        "csr": ad.AnnData(sp.csr_matrix(adata.X), obs=adata.obs, var=adata.var, obsm=adata.obsm),
        "whole": ad.AnnData(adata.X.astype(np.int32), obs=adata.obs, var=adata.var, obsm=adata.obsm),
        "backed": ad.read_h5ad(tmp_path / "tissue.h5ad", backed="r"),
        "view": wide[:N],
    }
    for name, other in others.items():
        pd.testing.assert_frame_equal(table, spatially_variable_genes(other), rtol=1e-5, atol=1e-7, obj=name)
    pd.testing.assert_frame_equal(table, spatially_variable_genes(layered, layer="counts"), rtol=1e-5, atol=1e-7)


def test_totals_are_of_all_genes_and_given_sizes_go_by_name():
    adata = tissue(4)
    total = pd.Series(adata.X.sum(1) / adata.X.sum(1).mean(), index=adata.obs_names)
    table = spatially_variable_genes(adata, genes=[2, 3])
    given = spatially_variable_genes(adata, genes=[2, 3], size_factors=total.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(table, given, rtol=1e-6)
    assert not np.allclose(table["pvalue"], spatially_variable_genes(adata, genes=[2, 3], size_factors=None)["pvalue"])


def test_what_sections_and_covariates_explain_is_not_variability_in_space():
    adata = tissue(5)
    rng = np.random.default_rng(5)
    level = np.where(adata.obs["section"] == "a", 1.0, 4.0) * adata.obs["size"]
    adata.X[:, 2] = rng.poisson(level)
    adata.X[:, 3] = rng.poisson(3 * np.exp(0.2 * adata.obs["x"]) * adata.obs["size"])
    plain = spatially_variable_genes(adata, size_factors="size")["pvalue"]
    sections = spatially_variable_genes(adata, size_factors="size", section_key="section")["pvalue"]
    options = {"formula": "~ 1 + x + section", "as_numeric": ["x"], "section_key": "section"}
    both = spatially_variable_genes(adata, size_factors="size", **options)["pvalue"]
    assert (plain[["gene_2", "gene_3"]] < 1e-4).all()
    assert sections["gene_2"] > 0.01 and sections["gene_3"] < 1e-4
    assert (both[["gene_2", "gene_3"]] > 0.01).all()
    glm = ExpressionGLM("~ 1").fit(adata, size_factors="size")
    with pytest.warns(UnreliableWarning, match="section_key.*levels"):
        glm.test_spatial_variability(section_key="section")


def test_sections_may_lie_on_each_other():
    adata = tissue(6)
    upper = adata.obs["section"] == "b"
    moved = adata.copy()
    moved.obsm["spatial"][upper] += 1000.0
    for method in ({"section_key": "section"}, {"section_key": "section", "k_neighbors": 4}):
        table, other = (spatially_variable_genes(a, **method) for a in (adata, moved))
        pd.testing.assert_frame_equal(table, other, rtol=1e-6)


def test_a_given_graph_is_the_graph_and_cells_left_out_are_left_out():
    adata = tissue(7)
    adata.obsp["mine"] = knn_graph(adata.obsm["spatial"], k_neighbors=6, graph="union")
    table = spatially_variable_genes(adata)
    pd.testing.assert_frame_equal(table, spatially_variable_genes(adata, adj_key="mine"), rtol=1e-9)
    kept = np.arange(N) < 63
    some = ExpressionGLM("~ 1").fit(adata, size_factors="size", missing=kept).test_spatial_variability()
    part = ExpressionGLM("~ 1").fit(adata[kept].copy(), size_factors="size").test_spatial_variability()
    pd.testing.assert_frame_equal(some, part, rtol=1e-6)


def test_genes_of_no_or_few_counts_say_so_and_change_nothing():
    adata = tissue(8)
    whole = spatially_variable_genes(adata, size_factors="size")
    adata.X[:, 4], adata.X[:, 5] = 0.0, 0.0
    adata.X[:4, 5] = 7.0
    table = spatially_variable_genes(adata, size_factors="size", likelihood="nb")
    assert table["reason"].tolist() == ["", "", "", "", "no_counts", "few_counts", ""]
    adata.X[:, 6] = 1.0  # in every spot alike
    assert spatially_variable_genes(adata, size_factors=None)["reason"]["gene_6"] == "not_identified"
    assert table["pvalue"].isna().tolist() == (table["reason"] != "").tolist()
    same = ["gene_0", "gene_1", "gene_2", "gene_3", "gene_6"]
    np.testing.assert_allclose(table.loc[same, "pvalue"], whole.loc[same, "pvalue"], rtol=1e-6)


def test_a_section_without_a_count_of_the_gene_takes_no_part():
    adata = tissue(9)
    adata.X[adata.obs["section"] == "a", 2] = 0.0
    table = spatially_variable_genes(adata, size_factors="size", section_key="section")
    assert table["reason"].tolist() == [""] * 7 and 0.001 < table["pvalue"]["gene_2"] <= 1


def test_results_are_written_where_asked_and_never_over_others(tmp_path):
    adata = tissue(10)
    table = spatially_variable_genes(adata, genes=["gene_0", "gene_2"], key_added="space")
    assert set(adata.var) == {f"space_{name}" for name in COLUMNS}
    assert adata.var["space_pvalue"].notna().tolist() == [True, False, True, False, False, False, False]
    assert adata.var["space_pvalue"]["gene_2"] == table["pvalue"]["gene_2"]
    adata.write_h5ad(tmp_path / "written.h5ad")
    again = spatially_variable_genes(adata, key_added="space")
    np.testing.assert_array_equal(adata.var["space_pvalue"], again["pvalue"])
    adata.var["other_statistic"] = 0.0
    with pytest.raises(InvalidArgumentError, match=r"key_added: adata.var has \['other_statistic'"):
        spatially_variable_genes(adata, key_added="other")
    adata.uns["third"] = "mine"
    with pytest.raises(InvalidArgumentError, match=r"adata.uns\['third'\] holds something else"):
        spatially_variable_genes(adata, key_added="third")
    with pytest.raises(InvalidArgumentError, match="key_added: adata is a view"):
        spatially_variable_genes(adata[:, :3], key_added="other")


def test_random_terms_are_levels_of_their_own_whether_sections_are_named_or_written():
    adata = tissue(14)
    rng = np.random.default_rng(14)
    adata.obs["donor"] = rng.choice(list("uvwx"), N)
    adata.X = rng.poisson(np.exp(1 + (adata.obs["donor"] == "u").to_numpy()[:, None] * np.ones(adata.n_vars)))
    found = spatially_variable_genes(adata, formula="~ 1 + (1 | donor)", size_factors=None)
    fixed = spatially_variable_genes(adata, formula="~ 1 + donor", size_factors=None)
    np.testing.assert_allclose(found["pvalue"], fixed["pvalue"], rtol=1e-6)
    named = spatially_variable_genes(adata, formula="~ 1 + (1 | donor)", size_factors=None, section_key="section")
    both = spatially_variable_genes(
        adata, formula="~ 1 + (1 | donor) + (1 | section)", size_factors=None, section_key="section"
    )
    np.testing.assert_allclose(named["pvalue"], both["pvalue"], rtol=1e-9)


def test_poisson_counts_are_tested_by_their_own_noise():
    rng, adata = np.random.default_rng(11), tissue(11)
    adata.X = rng.poisson(np.full(adata.shape, 2.0)).astype(float)
    nb, poisson = (spatially_variable_genes(adata, size_factors=None, likelihood=name) for name in ("nb", "poisson"))
    np.testing.assert_allclose(nb["statistic"], poisson["statistic"], atol=0.15)


def spoiled(change):
    adata = tissue(12)
    change(adata)
    return adata


def nan_place(adata):
    adata.obsm["spatial"][3, 0] = np.nan


def lonely(adata):
    adata.obs["section"] = ["c", *adata.obs["section"][1:]]


def no_section(adata):
    adata.obs["section"] = [None, *adata.obs["section"][1:]]


def negative(adata):
    adata.X[2, 1] = -1


def normalized(adata):
    adata.X = np.log1p(adata.X)


def empty_spot(adata):
    adata.X[5] = 0


def twins(adata):
    adata.var_names = ["gene_0", "gene_0", *adata.var_names[2:]]


REFUSED = {
    "coordinates": (nan_place, {}, "expected finite coordinates .* row 3"),
    "lonely": (lonely, {"section_key": "section"}, "section 'c' has 1 spots"),
    "no section": (no_section, {"section_key": "section"}, "section_key"),
    "negative": (negative, {}, "expected raw counts, found -1"),
    "normalized": (normalized, {}, "expected raw counts, .* layer="),
    "empty spot": (empty_spot, {}, "1 of 81 spots have no counts .* row 5"),
    "twins": (twins, {}, "'gene_0' stands more than once"),
    "key": (bool, {"spatial_key": "places"}, r"spatial_key: .* no 'places'; it has \['spatial'\]"),
    "graph": (bool, {"adj_key": "graph"}, "adj_key: adata.obsp has no 'graph'"),
    "two graphs": (bool, {"adj_key": "graph", "k_neighbors": 4}, "adj_key: .* leave either out"),
    "column": (bool, {"section_key": "slice"}, "section_key: no column 'slice'"),
    "neighbors": (bool, {"k_neighbors": 81}, "k_neighbors"),
    "gene": (bool, {"genes": ["gene_77"]}, "genes: no gene 'gene_77'"),
    "noise": (bool, {"likelihood": "norm"}, "noise_model: .* log mean"),
    "layer": (bool, {"layer": "raw"}, "layer: 'raw'"),
    "sizes": (bool, {"size_factors": np.zeros(N)}, "size_factors: expected positive"),
    "word": (bool, {"key_added": ""}, "key_added: expected a word"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_in_words(name):
    change, options, words = REFUSED[name]
    with pytest.raises(InvalidArgumentError, match=re.compile(words, re.DOTALL)):
        spatially_variable_genes(spoiled(change), **options)


def test_a_fit_without_places_or_with_weights_is_refused():
    adata = tissue(13)
    frame = pd.DataFrame(adata.X, columns=adata.var_names)
    with pytest.raises(NotReadyError, match="places of the spots"):
        ExpressionGLM("~ 1").fit(frame).test_spatial_variability()
    glm = ExpressionGLM("~ 1").fit(adata, weights=np.full(N, 2.0))
    with pytest.raises(InvalidArgumentError, match="weights"):
        glm.test_spatial_variability()
    with pytest.raises(InvalidArgumentError, match="method: expected one of 'score'"):
        glm.test_spatial_variability("llr")
    with pytest.raises(InvalidArgumentError, match="expected an AnnData"):
        spatially_variable_genes(frame)
