"""Lists of effects of an analysis: what is fitted is what they say, tests and files follow, all else is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyrosplice import SplisosmGLMM
from pyrosplice.effects import Effect, Field, Groups, Independent
from pyrosplice.errors import InvalidArgumentError, ModelFileError, NotReadyError, RefusedModelError
from pyrosplice.spatial import CarCovariance, knn_graph
from tests.usage.grouped.test_grouped_fits import laplace_of
from tests.usage.grouped.tissues import NEWTON, QUIET, sections


class Rows(Effect):
    """Rows of the tissue, each like the one before: correlation 0.5."""

    def levels(self, table):
        return table["row"].astype(int)

    def root(self, level_names):
        row = np.array([int(name) for name in level_names])
        return np.linalg.cholesky(0.5 ** np.abs(row[:, None] - row))


def tissue(seed=0, **options):
    adata = sections(seed, **{"n_sections": 4, "side": 3, "n_genes": 2, **options})
    adata.obs["tumour"] = np.random.default_rng(seed).random(adata.n_obs)
    adata.obs["row"] = adata.obsm["spatial"][:, 0].astype(int)
    return adata


def listed(adata, effects, kind="glmm-full", *, design=None, **options):
    model = SplisosmGLMM(kind, **{**NEWTON, **options})
    section = {"section_key": "section"} if kind == "glmm-full" else {}
    model.setup_data(adata, design_mtx=design, effects=effects, min_counts=0, **section)
    model.fit(batch_size=8, with_design_mtx=design is not None, **QUIET)
    return model


LISTS = {
    "field by, groups": ("glmm-full", [Field(k_neighbors=3, by="tumour"), Groups("section", slopes="~ 1 + age")]),
    "field, own": ("glmm-full", [Rows(), Field(k_neighbors=3, rho=0.8)]),
    "own covariance": (
        "glmm-full",
        Field(covariance=CarCovariance(knn_graph(np.random.default_rng(0).random((36, 2))))),
    ),
    "noise, crossed": ("glm", [Independent(), Groups("section"), Rows()]),
    "groups": ("glm", [Groups("donor")]),
}


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["independent", "symmetric"])
@pytest.mark.parametrize("name", LISTS)
def test_the_objective_is_laplaces_value_of_the_pyro_model(name, effect):
    kind, effects = LISTS[name]
    adata = tissue(3, n_genes=1, sd=0.8)
    model = listed(adata, effects, kind, design="~ age", isoform_effect=effect).get_gene_model("g0")
    torch.testing.assert_close(model()[0], laplace_of(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["glmm-full", "glmm-null", "glm"])
def test_groups_in_a_list_are_those_of_a_formula(kind):
    adata = tissue(1)
    by_list = listed(adata, [Groups("section"), Groups("donor", slopes="~ 0 + age")], kind, design="~ condition")
    by_formula = listed(adata, (), kind, design="~ condition + (1 | section) + (0 + age | donor)")
    mixed = listed(adata, Groups("donor", slopes="~ 0 + age"), kind, design="~ condition + (1 | section)")
    for other in (by_list, mixed):
        pd.testing.assert_frame_equal(other.variance_components(), by_formula.variance_components())
        for one in ("wald", "lrt"):
            found, expected = (
                m.test_differential_usage(one, return_results=True, **QUIET) for m in (other, by_formula)
            )
            np.testing.assert_allclose(found["pvalue"], expected["pvalue"], rtol=1e-9)


def test_a_field_in_a_list_is_the_types_own_where_it_says_the_same():
    adata = tissue(2)
    own = listed(adata, Groups("section"))
    same = listed(adata, [Groups("section"), Field(k_neighbors=4, graph="mutual")])
    pd.testing.assert_frame_equal(own.variance_components(), same.variance_components())
    alone = listed(adata, Field(k_neighbors=4, graph="mutual"))
    plain = SplisosmGLMM(**NEWTON)
    plain.setup_data(adata, section_key="section", min_counts=0)
    assert alone.sp_kernel.adjacency.nnz == plain.sp_kernel.adjacency.nnz
    assert not set(alone.variance_components()["effect"]) - {"space", "spot"}


def test_a_multiplied_field_is_zero_where_its_column_is():
    """At the mode an effect of every spot is its variance times the score of the counts."""
    adata = tissue(4, n_genes=1, sd=0.8, depth=30.0)
    adata.obs["tumour"] = (adata.obs["tumour"] > 0.4).astype(float) * (1 + adata.obs["tumour"])
    adata.obs["flag"] = adata.obs["tumour"] > 0
    for column in ("tumour", "flag"):
        model = listed(adata, Field(k_neighbors=3, by=column))
        gene, field = model.get_gene_model("g0"), model.fitted_field("g0").to_numpy()
        sds = model.variance_components().set_index("effect")["estimate"]
        counts = torch.from_numpy(adata.layers["counts"])
        score = counts - counts.sum(-1, keepdim=True) * gene.get_isoform_ratio()[0]
        noise = sds["spot"] ** 2 * score[:, :2]
        by = torch.from_numpy(adata.obs[column].to_numpy(float))[:, None]
        torch.testing.assert_close(gene.nu[0].detach(), by * torch.from_numpy(field) + noise, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_an_estimated_rho_is_the_best_of_those_given():
    adata = tissue(5, n_sections=2, side=7, n_genes=3, sd=0.0, depth=20.0)
    graph = CarCovariance(knn_graph(adata.obsm["spatial"][:49], k_neighbors=4), rho=0.95).dense().numpy()
    smooth = np.linalg.cholesky(graph) @ np.random.default_rng(0).standard_normal((49, 2))
    for k in range(2):
        rows = slice(49 * k, 49 * (k + 1))
        adata.layers["counts"][rows, 0] = np.random.default_rng(k).poisson(15 * np.exp(smooth[:, k]))
    model = listed(adata, [Field(k_neighbors=4, rho="estimate"), Groups("section")])
    rho = model.variance_components().query("parameter == 'rho'").set_index("gene")["estimate"]
    best = model.get_training_summary()["best_loss"]
    for given in (0.5, 0.9, 0.99, float(rho["g0"])):
        other = listed(adata, [Field(k_neighbors=4, rho=given), Groups("section")])
        assert (other.get_training_summary()["best_loss"] >= best - 0.02).all()
    assert abs(other.get_training_summary()["best_loss"]["g0"] - best["g0"]) < 1e-5
    field = model.fitted_field()
    np.testing.assert_allclose(field["g0"], other.fitted_field()["g0"], atol=1e-3)
    for test in ("wald", "lrt"):
        with pytest.raises(InvalidArgumentError, match="design"):
            model.test_differential_usage(test, **QUIET)
    several = SplisosmGLMM(**NEWTON)
    several.setup_data(adata, effects=Field(rho="estimate"), section_key="section", design_mtx="age", min_counts=0)
    several.fit(with_design_mtx=True, n_jobs=2, **QUIET)
    alone = listed(adata[:, 3:6].copy(), Field(rho="estimate"), design="age")
    found = several.get_effects().query("gene == 'g1'").reset_index(drop=True)
    pd.testing.assert_frame_equal(found, alone.get_effects(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("component", ["(1 | section)", "spot"])
def test_a_components_statistic_is_the_gain_over_a_fit_without_it(component):
    adata = tissue(6, sd=0.7)
    effects = {"spot": Independent(), "(1 | section)": Groups("section")}
    full = listed(adata, list(effects.values()), "glm", design="~ age")
    null = listed(adata, [one for name, one in effects.items() if name != component], "glm", design="~ age")
    gain = 2 * (null.get_training_summary()["best_loss"] - full.get_training_summary()["best_loss"])
    table = full.test_component(component)
    np.testing.assert_allclose(table["statistic"], np.maximum(gain, 0.0), atol=1e-5)
    assert table.index.tolist() == ["g0", "g1"] and (table["pvalue"].between(0, 1)).all()
    drawn = full.test_component(component, n_bootstrap=9, seed=1)
    assert set(drawn["law"]) == {"bootstrap"} and np.isin((drawn["pvalue"] * 10).round(6), range(1, 11)).all()


@pytest.mark.slow
@pytest.mark.parametrize("n_isoforms", [2, 4])
def test_a_component_that_is_absent_is_rejected_at_its_level(n_isoforms):
    """300 null genes: 15 expected at 5 %, 7 to 25 in 99 of 100 studies."""
    adata = sections(5, n_genes=300, n_sections=8, side=3, sd=0.0, n_isoforms=n_isoforms, depth=8)
    model = SplisosmGLMM("glmm-null", **NEWTON)
    model.setup_data(adata, effects=Groups("section"), min_counts=0)
    model.fit(batch_size=64, **QUIET)
    pvalue = model.test_component("(1 | section)")["pvalue"]
    assert pvalue.notna().all() and 7 <= (pvalue < 0.05).sum() <= 25


def test_levels_of_a_factor_are_against_the_first():
    adata = tissue(7)
    adata.obs["zone"] = pd.Categorical(adata.obs["section"].str[1:].astype(int) % 3)
    by_column, by_formula = (listed(adata, Groups("section"), "glm", design=d) for d in ("zone", "~ zone"))
    assert by_column.covariate_names == ["zone_1", "zone_2"]
    for name in ("g0", "g1"):
        one, two = (model.get_gene_model(name).beta for model in (by_column, by_formula))
        torch.testing.assert_close(one, two)
    joint = by_column.test_differential_usage("wald", by="factor", return_results=True, **QUIET)
    assert joint["covariate"] == ["zone"] and joint["n_tested"].tolist() == [[4], [4]]


@pytest.mark.filterwarnings("ignore:age varies within")
@pytest.mark.parametrize("name", LISTS)
def test_files_bring_lists_back(name, tmp_path):
    kind, effects = LISTS[name]
    adata = tissue(8)
    model = listed(adata, effects, kind, design="~ age")
    model.save(tmp_path / "model")
    own = [one for one in (effects if isinstance(effects, list) else [effects]) if not isinstance(one, Groups)]
    own = [one for one in own if isinstance(one, Rows) or getattr(one, "covariance", None) is not None]
    if own:
        with pytest.raises(ModelFileError, match=r"load\(path, effects="):
            SplisosmGLMM.load(tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model", effects=own)
    assert repr(again) == repr(model)
    pd.testing.assert_frame_equal(again.variance_components(), model.variance_components())
    found, expected = (m.test_differential_usage("wald", return_results=True, **QUIET) for m in (again, model))
    np.testing.assert_array_equal(found["pvalue"], expected["pvalue"])
    if kind == "glmm-full":
        pd.testing.assert_frame_equal(again.fitted_field(), model.fitted_field())
    with pytest.raises(ModelFileError, match="was saved without"):
        SplisosmGLMM.load(tmp_path / "model", effects=[*own, Groups("age")])


REFUSED = {
    "no effect": ({"effects": "section"}, "^effects: expected Groups"),
    "a class": ({"effects": [Groups]}, r"^effects: expected .*call it: Groups\(\)"),
    "two fields": ({"effects": [Field(), Field(by="tumour")]}, "^effects: expected one field .*stands in the place"),
    "noise twice": (
        {"effects": [Independent(), Independent()]},
        "^effects: expected one field and one effect of every",
    ),
    "no space": ({"kind": "glmm-null", "effects": Field()}, "^effects: .*'glmm-null' has no space; .*'glmm-full'"),
    "covariance": (
        {"effects": Field(), "covariance": CarCovariance(knn_graph(np.eye(36)))},
        "^covariance: .*leave one",
    ),
    "adjacency": ({"effects": Field(), "adj_key": "a"}, "^adj_key: .*leave one"),
    "neighbors": ({"effects": Field(), "k_neighbors": 5}, "^k_neighbors: .*leave one"),
    "rho": ({"effects": Field(), "rho": 0.5}, "^rho: .*leave one"),
    "wrong size": ({"effects": Field(covariance=CarCovariance(knn_graph(np.eye(9))))}, "^space: expected .*36 spots"),
    "no column": ({"effects": Field(by="stroma")}, "^Field, by: .*stroma"),
    "labels": ({"effects": Field(by="condition")}, "^Field, by: expected numbers or booleans"),
    "explained": ({"effects": Groups("section"), "design_mtx": "section"}, "^effect .*explain them all"),
    "twice": ({"effects": Groups("section"), "design_mtx": "~ (1 | section)"}, "cannot be told apart"),
    "joint": (
        {"effects": Groups("section"), "fitting_method": "joint_newton"},
        "^fitting_method: .*in effects expected",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_lost(name):
    given, message = REFUSED[name]
    adata, options = tissue(9, n_genes=1), {k: given[k] for k in ("k_neighbors", "rho", "fitting_method") if k in given}
    adata.obsp["a"] = knn_graph(adata.obsm["spatial"] + 10 * np.arange(adata.n_obs)[:, None])
    model = SplisosmGLMM(given.get("kind", "glmm-full"), **{**NEWTON, **options})
    model.setup_data(adata, section_key="section", min_counts=0)
    before = model.analysis
    setup = {k: v for k, v in given.items() if k not in ("kind", *options)}
    with pytest.raises(InvalidArgumentError, match=message):
        model.setup_data(adata, section_key="section", min_counts=0, **setup)
    assert model.analysis is before


def test_tests_of_space_and_tables_that_a_list_has_not_are_refused():
    adata = tissue(10, n_genes=1)
    multiplied = listed(adata, Field(by="tumour"))
    with pytest.raises(InvalidArgumentError, match=r"^method: 'score' .*test_component\('space'\)"):
        multiplied.test_spatial_variability("score", **QUIET)
    with pytest.raises(RefusedModelError, match=r"^method='llr': .*test_component"):
        multiplied.test_spatial_variability("llr", **QUIET)
    assert multiplied.test_component("space")["pvalue"].between(0, 1).all()
    plain = listed(adata, Field())
    assert 0 <= plain.test_spatial_variability("score", return_results=True, **QUIET)["pvalue"][0] <= 1
    with pytest.raises(InvalidArgumentError, match=r"^n_bootstrap: expected a whole number"):
        plain.test_component("space", n_bootstrap=-1)
    with pytest.raises(InvalidArgumentError, match=r"^component: expected one of \['space', 'spot'\], found '\(1"):
        plain.test_component("(1 | section)")
    estimated = listed(adata, Field(rho="estimate"))
    with pytest.raises(InvalidArgumentError, match=r"^component: the field's rho was estimated"):
        estimated.test_component("space")
    without = listed(adata, Groups("section"), "glm")
    with pytest.raises(NotReadyError, match="no field"):
        without.fitted_field()
    for call in (lambda m: m.test_component("spot"), lambda m: m.fitted_field()):
        other = SplisosmGLMM("glm")
        other.setup_data(adata, min_counts=0)
        with pytest.raises(NotReadyError, match=r"effects=\[...\]"):
            call(other)


def test_spots_that_lack_what_effects_need_are_dropped():
    adata = tissue(11, n_genes=1)
    adata.obs.loc[adata.obs_names[:3], "tumour"] = np.nan
    adata.obs.loc[adata.obs_names[3:5], "donor"] = None
    model = SplisosmGLMM(**NEWTON)
    effects = [Field(k_neighbors=3, by="tumour"), Groups("donor")]
    with pytest.raises(InvalidArgumentError, match="donor"):
        model.setup_data(adata, effects=effects, section_key="section", min_counts=0)
    with pytest.warns(UserWarning, match="missing='drop': 5 of 36 spots have no label or number in .*effects"):
        model.setup_data(adata, effects=effects, section_key="section", min_counts=0, missing="drop")
    model.fit(**QUIET)
    other = listed(adata[5:].copy(), effects)
    torch.testing.assert_close(model.get_gene_model("g0")(), other.get_gene_model("g0")())
