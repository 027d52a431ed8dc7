"""Calls that scripts of the kept interface make: designs, constraints, results by group and gene, pickles, messages."""

import copy
import inspect
import io
import pickle

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest

import pyrosplice.api as de
from pyrosplice import ExpressionGLM
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.posterior._nuts import NutsOptions
from tests.expression.conftest import EMPTY, N_GENES, every_test

CALLS = sorted(every_test(None))
UTILS = {
    "constraint_matrix_from_dict",
    "constraint_matrix_from_string",
    "constraint_system_from_star",
    "design_matrix",
    "preview_coef_names",
    "view_coef_names",
}


def test_namespaces_show_what_is_documented_only():
    shown = {name: {n for n in dir(getattr(de, name)) if not n.startswith("_")} for name in de.__all__}
    assert shown["fit"] == {"model", "residuals", "partition"}
    assert shown["stats"] == {
        "likelihood_ratio_test",
        "wald_test",
        "wald_test_chisq",
        "two_coef_z_test",
        "mann_whitney_u_test",
        "t_test_raw",
        "t_test_moments",
        "hypergeom_test",
    }
    assert shown["utils"] == UTILS | {"setup_constrained", "normed_sum", "median_of_ratios"}
    for name, names in shown.items():
        for function in names:
            assert inspect.getdoc(getattr(getattr(de, name), function)), function


def test_coefficient_names_before_a_fit(cells):
    names = de.utils.preview_coef_names(cells.obs, "~1+t+half", as_numeric=["t"])
    assert names == ["Intercept", "t", "half[T.v]"] or names == ["Intercept", "half[T.v]", "t"]
    design, same = de.utils.design_matrix(cells, formula="~1+t+half", as_numeric="t")
    assert same == names == list(de.utils.view_coef_names(design)) and len(design) == cells.n_obs
    again, _ = de.utils.design_matrix(dmat=design, return_type="dataframe")
    pd.testing.assert_frame_equal(again, design)
    found = de.test.wald(cells, coef_to_test=names[-1], dmat_loc=design)
    expected = de.test.wald(cells, coef_to_test=names[-1], formula_loc="~1+t+half", as_numeric="t")
    np.testing.assert_allclose(found.pval, expected.pval)
    for wrong in ({"dmat": design, "formula": "~1"}, {"formula": "~1"}, {"data": cells}, {}):
        with pytest.raises(InvalidArgumentError):
            de.utils.design_matrix(**wrong)
    with pytest.raises(InvalidArgumentError, match="return_type"):
        de.utils.design_matrix(cells, formula="~1", return_type="numpy")
    with pytest.raises(InvalidArgumentError, match="names"):
        de.utils.view_coef_names(np.ones((3, 2)))


def test_constraints_of_any_form_give_one_system(cells):
    table = cells.obs.assign(batch=cells.obs["half"] + np.tile(["1", "2", "3"], 30))
    formula, constraints = "~1+half+batch", {"batch": "half"}
    design, names, matrix, terms = de.utils.constraint_system_from_star(
        sample_description=table, formula=formula, constraints=constraints
    )
    assert matrix.shape == (len(names), len(names) - 2) and set(terms) >= {"half", "batch"}
    by_dict = de.utils.constraint_matrix_from_dict(table, formula, constraints=constraints)
    np.testing.assert_array_equal(by_dict[2], matrix)
    np.testing.assert_array_equal(de.utils.setup_constrained(table, formula, constraints)[2], matrix)
    strings = [f"{'+'.join(n for n in names if n.startswith(f'batch[{half}'))}=0" for half in "uv"]
    by_string = de.utils.constraint_matrix_from_string(dmat=design, coef_names=names, constraints=strings)
    np.testing.assert_array_equal(by_string, matrix)
    np.testing.assert_array_equal(
        de.utils.constraint_system_from_star(dmat=design, constraints=tuple(strings))[2], matrix
    )
    built = de.test.wald(cells, "half", dmat_loc=design, constraints_loc=matrix)
    expected = de.test.wald(cells, "half", formula_loc=formula, constraints_loc=constraints, sample_description=table)
    np.testing.assert_allclose(built.pval, expected.pval, rtol=1e-8)
    assert de.utils.constraint_system_from_star(sample_description=table, formula="~1+half")[2] is None
    with pytest.raises(InvalidArgumentError, match="depend linearly"):
        de.utils.constraint_system_from_star(dmat=design)
    with pytest.raises(InvalidArgumentError, match="constraints"):
        de.utils.constraint_matrix_from_dict(table, formula)
    with pytest.raises(InvalidArgumentError, match="coef_names"):
        de.utils.constraint_matrix_from_string(constraints=["a=0"])
    numeric = de.utils.constraint_matrix_from_dict(
        table[["half", "batch", "t"]], formula + "+t", [True, True, False], constraints
    )
    assert "t" in numeric[1]


@pytest.mark.parametrize("factor", ["half:group", "group:half", "group", "half", "C(group)"])
@pytest.mark.parametrize("how", ["formula", "constraints", "design"])
def test_terms_in_any_order_whatever_made_the_design(factor, how, cells):
    formula = "~1+half*C(group)"
    table = cells.obs.assign(batch=cells.obs["half"] + np.tile(["1", "2", "3"], 30))
    plain = de.test.wald(cells, factor, formula_loc=formula)
    size = {"half:group": 2, "group:half": 2, "half": 1}.get(factor, 2)
    assert plain.estimator.a_var.shape[0] == 6
    if how == "formula":
        other = {":".join(reversed(factor.split(":")))}
        np.testing.assert_array_equal(de.test.wald(cells, list(other), formula_loc=formula).pval, plain.pval)
    elif how == "design":
        design, _ = de.utils.design_matrix(cells, formula=formula)
        np.testing.assert_allclose(de.test.wald(cells, factor, dmat_loc=design).pval, plain.pval)
    else:
        found = de.test.wald(
            cells,
            factor,
            formula_loc="~1+half+group+half:group+batch" if factor != "C(group)" else formula + "+batch",
            constraints_loc={"batch": "half"},
            sample_description=table.assign(batch=table["half"] + table["part"]),
        )
        assert np.isfinite(np.delete(found.pval, EMPTY)).all()
        assert len(found.estimator.input_data.location.columns_of(factor)) == size


@pytest.mark.parametrize("call", CALLS)
def test_genes_without_counts_are_no_tests(call, cells):
    found = every_test(cells)[call]()
    counted = np.delete(np.arange(N_GENES), EMPTY)
    assert np.isnan(found.pval[..., EMPTY]).all() and np.isnan(found.qval[..., EMPTY]).all()
    assert np.isfinite(found.pval[..., counted]).all()
    without = every_test(cells[:, counted].copy())[call]()
    np.testing.assert_allclose(found.qval[..., counted], without.qval, rtol=1e-7, atol=1e-12)
    nothing = ad.AnnData(np.zeros((cells.n_obs, 2)), cells.obs)
    assert np.isnan(every_test(nothing)[call]().pval).all()


@pytest.mark.parametrize("noise_model", ["poisson", "norm"])
@pytest.mark.parametrize("call", [c for c in CALLS if c.endswith(("wald", "lrt", "z-test", "score"))])
def test_genes_without_counts_whatever_the_noise(call, noise_model, cells):
    pval = every_test(cells, noise_model=noise_model)[call]().pval
    assert np.isnan(pval[..., EMPTY]).all() and np.isfinite(np.delete(pval, EMPTY, axis=-1)).all()


@pytest.mark.parametrize("method", ["wald", "lrt", "ql", "cluster", "glmm"])
def test_genes_without_counts_in_the_class(method, cells):
    donors = {"donors": "donor"} if method in ("cluster", "glmm") else {}
    glm = ExpressionGLM("~1+treated").fit(cells)
    pval = glm.test(factor="treated", method=method, **donors).pval
    assert np.isnan(pval[EMPTY]) and np.isfinite(np.delete(pval, EMPTY)).all()
    nothing = ExpressionGLM("~1+treated").fit(ad.AnnData(np.zeros((cells.n_obs, 2)), cells.obs))
    assert np.isnan(nothing.test(factor="treated", method=method, **donors).pval).all()
    table = glm.summary().set_index("gene")
    assert table.loc[f"G{EMPTY}", ["effect", "se"]].isna().all(None)
    assert table.drop(index=f"G{EMPTY}")[["effect", "se"]].notna().all(None)
    assert np.isnan(glm.sample_counts(slice(None), seed=0)[:, EMPTY]).all()


@pytest.mark.parametrize("test", ["t_test", "rank_test"])
def test_constant_genes(test):
    x = np.column_stack([np.zeros(10), np.full(10, 5.0), np.repeat([1.0, 2.0], 5), np.tile([1.0, 2.0], 5)])
    run = getattr(de.test, test)
    pval = run(x, np.repeat(["a", "b"], 5)).pval
    assert np.isnan(pval[0]) and pval[1] == 1 and pval[2] == 0 and 0 < pval[3] <= 1
    pval = run(x, np.repeat(["a", "b"], 5), is_sig_zerovar=False).pval
    assert np.isnan(pval[2]) if test == "t_test" else 0 < pval[2] < 0.05


def test_results_of_pairs(cells):
    result = de.test.pairwise(cells, "group", test="rank")
    both = result.summary_pairs(["a"], ["b"])
    np.testing.assert_array_equal(both["pval"], result.summary_pair("a", "b")["pval"])
    np.testing.assert_array_equal(both["log2fc"], result.summary_pair("a", "b")["log2fc"])
    several = result.summary_pairs(groups0=["a", "b"], groups1=["b", "c"])
    np.testing.assert_array_equal(several["pval"], result.summary()["pval"])
    turned = result.summary_pairs("b", "a")
    np.testing.assert_array_equal(turned["log2fc"], -both["log2fc"])
    assert (result.summary_pairs(["a"], ["b"], qval_thres=0.05)["qval"] <= 0.05).all()
    np.testing.assert_allclose(
        result.log10_pval_pairs_clean(["a"], ["b"], log10_threshold=-3),
        np.maximum(np.nan_to_num(np.log10(result.pval[0, 1])), -3),
    )
    np.testing.assert_allclose(
        result.log10_qval_pairs_clean(["a"], ["b", "c"]), np.nan_to_num(np.log10(result.qval[0, 1:])).ravel()
    )
    np.testing.assert_array_equal(result.log10_fold_change(), result.log_fold_change(10.0))
    np.testing.assert_allclose(result.summary()["mean"], cells.X.mean(0))
    for wrong in (
        lambda: result.summary_pairs(["a"], ["a"]),
        lambda: result.pval_group("a"),
        lambda: result.summary_pairs(["x"], ["a"]),
    ):
        with pytest.raises(InvalidArgumentError, match="group"):
            wrong()


@pytest.mark.parametrize("kind", ["versus_rest", "partition"])
def test_results_of_groups(kind, cells):
    if kind == "versus_rest":
        result, name, place = de.test.versus_rest(cells, "group"), "b", (0, 1)
    else:
        result, name, place = de.test.partition(cells, "part").t_test(grouping="half"), "q", (1,)
    np.testing.assert_array_equal(result.pval_group(name), result.pval[place])
    np.testing.assert_array_equal(result.qval_group(name), result.qval[place])
    np.testing.assert_array_equal(result.log_fold_change_group(name, base=2), result.log2_fold_change()[place])
    np.testing.assert_array_equal(result.summary_group(name)["qval"], result.qval[place])
    np.testing.assert_allclose(result.summary()["mean"], cells.X.mean(0))
    with pytest.raises(InvalidArgumentError, match="expected one of"):
        result.pval_group("nobody")
    with pytest.raises(InvalidArgumentError, match="pairs"):
        result.summary_pairs([name], [name])


def test_the_estimator_behind_a_result(cells):
    found = de.test.wald(cells, "group", formula_loc="~1+group")
    assert found.model_estim is found.estimator
    z = de.test.pairwise(cells, "group")
    assert z.model_estim.a_var.shape == (3, N_GENES)
    assert de.test.pairwise(cells, "group", test="t_test").model_estim is None


@pytest.mark.parametrize("name", ["T-Test", "t_test", "ttest", "RANK", "rank_test", "Wald", "LRT", "z_test"])
def test_names_of_tests_in_any_case(name, cells):
    plain = name.lower().replace("_test", "-test").replace("ttest", "t-test").replace("rank-test", "rank")
    np.testing.assert_array_equal(
        de.test.pairwise(cells, "group", test=name).pval, de.test.pairwise(cells, "group", test=plain).pval
    )


def test_curves_of_some_genes(cells):
    result = de.test.continuous_1d(cells, "t", formula_loc="~1+t+half", df=3)
    where = np.array([3, 0])
    for genes in (["G3", "G0"], pd.Index(["G3", "G0"]), where, [np.int64(3), 0]):
        for method in ("max", "min", "argmax", "argmin", "log_fold_change", "log2_fold_change", "log10_fold_change"):
            whole = getattr(result, method)(non_numeric=True)
            name = {"base": np.e} if method == "log_fold_change" else {}
            some = getattr(result, method)(genes=genes, non_numeric=True, **name)
            np.testing.assert_array_equal(some, whole[where])
    np.testing.assert_array_equal(result.max("G3"), result.max()[[3]])
    design, a = result.estimator.model.design_loc, result.estimator.model.a
    np.testing.assert_allclose(result.curve(non_numeric=True), design @ a)
    np.testing.assert_allclose(result.log_fold_change(), result.max() - result.min())
    assert np.isnan(result.argmax()[EMPTY]) and np.isnan(result.log_fold_change()[EMPTY])
    table = result.summary(non_numeric=True)
    np.testing.assert_allclose(table["log2fc"], result.log2_fold_change(non_numeric=True))
    np.testing.assert_allclose(result.summary()["log2fc"], result.log2_fold_change())
    for wrong in (["G9"], "nothing", [6], [-1]):
        with pytest.raises(InvalidArgumentError, match="genes"):
            result.max(wrong)


@pytest.mark.parametrize("call", CALLS)
def test_results_go_through_pickle(call, cells):
    found = every_test(cells)[call]()
    again = pickle.loads(pickle.dumps(found, protocol=pickle.HIGHEST_PROTOCOL))
    np.testing.assert_array_equal(again.pval, found.pval)
    pd.testing.assert_frame_equal(again.summary(), found.summary())
    joblib.dump(found, io.BytesIO())
    assert repr(again) == repr(found)


@pytest.mark.parametrize("noise_model", ["nb", "poisson", "norm"])
def test_estimators_go_through_pickle_and_work_on(noise_model, cells):
    strategy = [{"max_iter": 2}, {}]
    estim = de.fit.model(cells, "~1+group", noise_model=noise_model, training_strategy=strategy)
    again = pickle.loads(pickle.dumps(estim))
    again.train()
    np.testing.assert_allclose(again.a_var, estim.a_var, atol=1e-6)
    glm = ExpressionGLM("~1+treated", noise_model=noise_model).fit(cells)
    again = pickle.loads(pickle.dumps(glm))
    np.testing.assert_array_equal(
        again.test(factor="treated", method="lrt").pval, glm.test(factor="treated", method="lrt").pval
    )
    assert pickle.loads(pickle.dumps(de.test.partition(cells, "part"))).partitions == ["p", "q"]


def test_a_pickle_leaves_counts_on_disk(cells, tmp_path):
    cells.copy().write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    glm = ExpressionGLM("~1+treated").fit(backed)
    again = pickle.loads(pickle.dumps(glm))
    np.testing.assert_array_equal(again.test(factor="treated").pval, glm.test(factor="treated").pval)
    with pytest.raises(NotReadyError, match="on disk"):
        again.estimator.model.ll_j([0])
    assert np.isfinite(glm.estimator.model.ll_j([0])).all()
    backed.file.close()


def test_a_ratio_test_knows_of_constants(cells):
    glm = ExpressionGLM("~1+half+part", constraints_loc=["half[T.v] - part[T.q] = 0.5"]).fit(cells)
    lrt, wald = glm.test(coefficient="half[T.v]", method="lrt"), glm.test(coefficient="half[T.v]")
    fixed = ExpressionGLM("~1+half+part", constraints_loc=["half[T.v] = 0", "part[T.q] = -0.5"]).fit(cells)
    expected = 2 * (glm.results.log_likelihood - fixed.results.log_likelihood)
    np.testing.assert_allclose(np.delete(lrt.statistic - expected, EMPTY), 0, atol=1e-6)
    np.testing.assert_allclose(np.delete(lrt.statistic / wald.statistic**2, EMPTY), 1, rtol=0.5)
    with pytest.raises(InvalidArgumentError, match="constant"):
        glm.test(coefficient="part[T.q]", method="ql")
    with pytest.raises(InvalidArgumentError, match="constraints say"):
        fixed.test(coefficient="part[T.q]", method="lrt")


def test_scales_alone_have_no_fold_change(cells):
    found = de.test.lrt(cells, "~1", "~1", full_formula_scale="~1+group")
    assert np.isfinite(np.delete(found.pval, EMPTY)).all() and np.isnan(found.log_fold_change()).all()


def test_contrasts_are_paired_with_coefficients_by_name(cells):
    glm = ExpressionGLM("~1+group").fit(cells)
    row = pd.Series({"group[T.c]": -1.0, "Intercept": 0.0, "group[T.b]": 1.0})
    expected = glm.test(glm.cond(group="b") - glm.cond(group="c"))
    np.testing.assert_allclose(glm.test(row).pval, expected.pval)
    np.testing.assert_allclose(glm.test(row.to_frame().T).pval, expected.pval)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda glm, d: glm.test("group"), ["'group'", "factor=", "half"]),
        (lambda glm, d: glm.test(["group"]), ["factor=", "half"]),
        (lambda glm, d: glm.test(coefficient="group"), ["^coefficient", "group\\[T.b\\]", "is a factor", "factor"]),
        (lambda glm, d: glm.test(factor="grup"), ["^factor", "'group'"]),
        (lambda glm, d: glm.test(factor="group[T.b]"), ["^factor", "is a coefficient"]),
        (lambda glm, d: glm.test(factor=[]), ["^factor"]),
        (lambda glm, d: glm.test(), ["factor"]),
        (lambda glm, d: glm.cond(grup="a"), ["grup", "group"]),
        (lambda glm, d: glm.cond(group="z"), ["z", "'b'"]),
        (lambda glm, d: glm.shrink("group"), ["coefficient", "group\\[T.b\\]"]),
        (lambda glm, d: de.test.wald(d, coef_to_test="group", formula_loc="~1+group"), ["coef_to_test", "is a factor"]),
        (lambda glm, d: de.test.two_sample(d, "hlf"), ["grouping", "half"]),
        (lambda glm, d: de.test.partition(d, "prt"), ["parts", "part"]),
        (lambda glm, d: de.test.two_sample(d, "half", test=3), ["test", "'wald'"]),
    ],
)
def test_messages_list_what_there_is(run, words, cells):
    glm = ExpressionGLM("~1+half+group").fit(cells)
    with pytest.raises(InvalidArgumentError) as error:
        run(glm, cells)
    for word in words:
        error.match(word)


def test_long_lists_are_shortened(cells):
    many = ad.AnnData(np.tile(cells.X, 20), cells.obs, pd.DataFrame(index=[f"GENE{i}" for i in range(20 * N_GENES)]))
    result = de.test.continuous_1d(many, "t", df=3)
    with pytest.raises(InvalidArgumentError, match=r"'GENE11.*120 in all") as error:
        result.max("GENE111x")
    assert len(str(error.value)) < 500


def test_a_posterior_takes_genes_by_name(cells):
    glm = ExpressionGLM("~1+half").fit(cells)
    tree = glm.posterior(num_samples=5, genes=["G3", "G0"], groups=())
    assert list(tree["posterior"]["gene"].values) == ["G3", "G0"]
    with pytest.raises(InvalidArgumentError, match="no gene 'NEAT1'"):
        glm.posterior(num_samples=5, genes=["NEAT1"])
    with pytest.raises(InvalidArgumentError, match="nuts_options"):
        glm.posterior(num_samples=5, nuts_options=NutsOptions())


def test_models_of_a_ratio_test_leave_out_the_same_cells(cells):
    table = cells.obs.copy()
    table.loc["cell3", "half"], table.loc["cell8", "group"] = np.nan, None
    whole = table.notna().all(axis=1).to_numpy()
    part = cells[whole].copy()
    for full, reduced in (("~1+half+group", "~1+half"), ("~1+half+group", "~1+group")):
        found = de.test.lrt(cells, full, reduced, sample_description=table, missing="drop")
        np.testing.assert_allclose(found.pval, de.test.lrt(part, full, reduced).pval)
    found = de.test.score(cells, "half", formula_loc="~1+half+group", sample_description=table, missing="drop")
    np.testing.assert_allclose(found.pval, de.test.score(part, "half", formula_loc="~1+half+group").pval)


@pytest.mark.parametrize("noise_model", ["nb", "poisson", "norm"])
@pytest.mark.parametrize("test", ["wald", "lrt"])
@pytest.mark.parametrize("basis", ["bs", "cr", "cc"])
def test_curves_beside_constraints_and_interactions(noise_model, test, basis, cells):
    table = cells.obs.assign(batch=cells.obs["half"] + np.tile(["1", "2", "3"], 30))
    how = {"df": 3, "spline_basis": basis, "test": test, "noise_model": noise_model, "sample_description": table}
    counted = cells[:, np.delete(np.arange(N_GENES), EMPTY)]
    for constrained in (False, True):
        found = de.test.continuous_1d(
            counted.copy(),
            continuous="t",
            factor_loc_totest=["t", "half:t"],
            init_a="all_zero",
            formula_loc="~1+t+half+t:half" + "+batch" * constrained,
            constraints_loc={"batch": "half"} if constrained else None,
            **how,
        )
        assert len(found.columns) == 6 and np.isfinite(found.pval).all()


def test_conditions_remember_what_was_assumed_through_pickle(cells):
    glm = ExpressionGLM("~1+half*log(t)", as_numeric="t").fit(cells)
    contrast = glm.cond(half="v") - glm.cond(half="u")
    for row in (contrast, pickle.loads(pickle.dumps(contrast)), copy.deepcopy(contrast)):
        with pytest.raises(InvalidArgumentError, match="'t'"):
            glm.test(row)
