"""Options: every one is honoured, named as without effect, or refused, whichever call it is given to."""

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import pyrosplice.api as de
from pyrosplice import ExpressionGLM
from pyrosplice._expression.call_options import TRAINING_WITHOUT_EFFECT, WITHOUT_EFFECT, defaults_of
from pyrosplice._expression.groups import FITTED, PLAIN
from pyrosplice._expression.tests import FIT_OPTIONS
from pyrosplice.effects import Field, Groups
from pyrosplice.errors import InvalidArgumentError
from tests.expression.conftest import N_CELLS, N_GENES, every_test

CALLS = sorted(every_test(None))
RNG = np.random.default_rng(0)
ASKING = {  # a value of every option that asks for something
    "as_numeric": ["t"],
    "backend": "tf1",
    "batch_size": 7,
    "close_session": True,
    "constraints_loc": ["Intercept = 1"],
    "constraints_scale": ["Intercept = 0"],
    "dmat_loc": pd.DataFrame({"one": np.ones(N_CELLS)}),
    "dmat_scale": pd.DataFrame({"one": np.ones(N_CELLS), "t": np.linspace(0, 1, N_CELLS)}),
    "dtype": "float32",
    "effects": [Groups("donor")],
    "formula_scale": "~1+half",
    "full_formula_scale": "~1+half",
    "init_a": "all_zero",
    "init_b": "standard",
    "init_model": "another",
    "is_logged": True,
    "is_sig_zerovar": False,
    "noise_model": "poisson",
    "offsets": RNG.normal(size=(N_CELLS, N_GENES)),
    "quick_scale": True,
    "reduced_formula_scale": "~1+half",
    "section_key": "half",
    "size_factors": "depth",
    "size_factors_logged": False,
    "space": Field(),
    "spatial_key": "place",
    "train_args": {"max_iter": 2},
    "training_strategy": "QUICK",
    "weights": RNG.uniform(0.5, 2, N_CELLS),
}
CHANGES_NUMBERS = {
    "effects",
    "formula_scale",
    "noise_model",
    "offsets",
    "size_factors",
    "weights",
    "is_logged",
    "quick_scale",
    "full_formula_scale",
}


def plain(call):
    return call.endswith(("t-test", "rank", "t_test", "rank_test")) and "z" not in call


@pytest.mark.parametrize("call", CALLS)
def test_unknown_options_are_refused(call, cells):
    for name in ("sizefactors", "no_such_option"):
        with pytest.raises(InvalidArgumentError, match=name):
            every_test(cells, **{name: 1})[call]()


def test_a_misspelt_option_names_the_one_meant(cells):
    with pytest.raises(InvalidArgumentError, match="did you mean 'size_factors'"):
        de.test.two_sample(cells, "half", sizefactors="depth")
    with pytest.raises(InvalidArgumentError, match="noise_model"):
        de.fit.model(cells, "~1", noise_modell="nb")


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore:.*fractional")
@pytest.mark.filterwarnings("ignore:.*varies within donor")
def test_every_option_is_honored_or_refused(call, cells):
    before = every_test(cells)[call]()
    for name, value in ASKING.items():
        try:
            found = every_test(cells, **{name: value})[call]()
        except InvalidArgumentError:
            continue
        except UserWarning as warning:
            assert f"'{name}' has no effect" in str(warning)
            continue
        known = PLAIN if plain(call) else FIT_OPTIONS | {"formula_scale", "full_formula_scale", "reduced_formula_scale"}
        assert name in known, f"{call} took {name}"
        if name in CHANGES_NUMBERS and not (name == "quick_scale" and call == "score"):
            same = [
                np.allclose(getattr(found, field)(), getattr(before, field)(), rtol=1e-6, equal_nan=True)
                for field in ("log_fold_change", "log10_pval_clean")
            ]
            assert not all(same), f"{call} ignored {name}"


@pytest.mark.parametrize("call", [c for c in CALLS if plain(c)])
def test_tests_without_a_model_refuse_what_a_model_needs(call, cells):
    for name in ("quick_scale", "noise_model", "weights", "offsets", "init_a", "size_factors_logged", "train_args"):
        with pytest.raises(InvalidArgumentError, match=name):
            every_test(cells, **{name: ASKING[name]})[call]()


@pytest.mark.parametrize("call", [c for c in CALLS if plain(c) and c not in ("t_test", "rank_test") and "." not in c])
def test_options_that_ask_for_nothing_pass(call, cells):
    asks_nothing = {
        "noise_model": None,
        "quick_scale": False,
        "training_strategy": "DEFAULT",
        "dtype": "float64",
        "batch_size": None,
        "as_numeric": (),
    }
    found = every_test(cells, **asks_nothing)[call]()
    np.testing.assert_array_equal(found.pval, every_test(cells)[call]().pval)


def test_the_tables_are_of_options_that_exist_nowhere_else():
    named = set(defaults_of(de.fit.model)) | set(PLAIN) | set(FITTED)
    assert not named & set(WITHOUT_EFFECT)
    assert set(ASKING) >= (set(FITTED) | set(PLAIN) | set(WITHOUT_EFFECT)) - {"layer", "missing", "device"}
    assert not set(TRAINING_WITHOUT_EFFECT) & {"max_iter", "tol", "train_loc", "train_scale"}


def test_original_words_are_named_as_without_effect(cells):
    with pytest.warns(UserWarning, match="'backend' has no effect .there is one engine"):
        de.test.wald(cells, "group", formula_loc="~1+group", backend="numpy")
    with pytest.warns(UserWarning, match="learning_rate"):
        de.fit.model(cells, "~1", training_strategy=[{"learning_rate": 0.1}])
    with pytest.raises(InvalidArgumentError, match="max_iterr"):
        de.fit.model(cells, "~1", training_strategy=[{"max_iterr": 3}])


def test_training_arguments_reach_every_step(cells):
    few = de.fit.model(cells, "~1+group", train_args={"max_iter": 1})
    assert few.niter.max() < de.fit.model(cells, "~1+group").niter.max()
    with pytest.raises(InvalidArgumentError, match="train_args"):
        de.fit.model(cells, "~1", training_strategy=lambda estim: estim.train(), train_args={"max_iter": 1})


@pytest.mark.parametrize("name", ["as_numeric", "noise_model", "formula_loc", "no_such_option", "constraints_loc"])
def test_the_class_takes_its_options_where_they_belong(name, cells):
    with pytest.raises(InvalidArgumentError, match=name):
        ExpressionGLM("~1").fit(cells, **{name: "nb"})


def test_donors_are_refused_where_they_have_no_use(cells):
    glm = ExpressionGLM("~1+treated").fit(cells)
    with pytest.raises(InvalidArgumentError, match="donors"):
        glm.test(factor="treated", donors="donor")
    with pytest.raises(InvalidArgumentError, match="donors"):
        glm.test(factor="treated", method="glmm")


@pytest.mark.parametrize("form", ["array", "sparse", "series", "column", "list"])
@pytest.mark.parametrize("test", ["t-test", "rank"])
def test_tests_without_a_model_divide_by_size_factors(test, form, cells):
    depth = cells.obs["depth"]
    given = {"column": "depth", "series": depth.sample(frac=1, random_state=0), "list": list(depth)}
    given = given.get(form, depth.to_numpy())
    data = ad.AnnData(sp.csr_matrix(cells.X), cells.obs, cells.var) if form == "sparse" else cells
    divided = cells.copy()
    divided.X = cells.X / depth.to_numpy()[:, None]
    for run in (
        lambda d, **o: de.test.two_sample(d, "half", test=test, **o),
        lambda d, **o: de.test.pairwise(d, "group", test=test, **o),
        lambda d, **o: de.test.versus_rest(d, "group", test=test, **o),
        lambda d, **o: de.test.partition(d, "part").two_sample(grouping="half", test=test, **o),
        lambda d, **o: getattr(de.test.partition(d, "part"), {"t-test": "t_test", "rank": "rank_test"}[test])(
            grouping="half", **o
        ),
    ):
        found, expected = run(data, size_factors=given), run(divided)
        np.testing.assert_allclose(found.pval, expected.pval, rtol=1e-9)
        np.testing.assert_allclose(found.log_fold_change(), expected.log_fold_change(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.summary()["mean"], expected.summary()["mean"])


def test_depth_alone_is_no_difference():
    rng = np.random.default_rng(1)
    group, depth = np.repeat(["a", "b"], 150), np.repeat([1.0, 4.0], 150)
    y = rng.poisson(20 * depth[:, None] * np.ones(200))
    for test in ("t-test", "rank", "wald"):
        assert (de.test.two_sample(y, group, test=test).pval < 0.05).mean() > 0.99
        assert (de.test.two_sample(y, group, test=test, size_factors=depth).pval < 0.05).mean() < 0.12
    with pytest.raises(InvalidArgumentError, match="logarithm"):
        de.test.t_test(np.log1p(y), group, is_logged=True, size_factors=depth)


@pytest.mark.parametrize("call", CALLS)
def test_a_layer_reaches_every_test(call, cells):
    doubled = ad.AnnData(cells.layers["double"], cells.obs, cells.var)
    found, expected = every_test(cells, layer="double")[call](), every_test(doubled)[call]()
    np.testing.assert_array_equal(found.pval, expected.pval)
    np.testing.assert_allclose(found.summary()["mean"], expected.summary()["mean"])
    with pytest.raises(InvalidArgumentError, match="absent"):
        every_test(cells, layer="absent")[call]()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_data_on_disk_give_the_same(form, cells, tmp_path):
    make = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[form]
    ad.AnnData(make(cells.X), cells.obs.copy(), cells.var, layers={"double": make(cells.layers["double"])}).write_h5ad(
        tmp_path / "a.h5ad"
    )
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    memory = every_test(cells)
    for name, call in every_test(backed).items():
        np.testing.assert_allclose(call().pval, memory[name]().pval, rtol=1e-6, atol=1e-9, err_msg=name)
    view = de.test.partition(backed[: cells.n_obs], "part").two_sample(grouping="half")
    np.testing.assert_allclose(view.pval, memory["partition t-test"]().pval, rtol=1e-6)
    backed.file.close()


def test_options_with_an_entry_a_cell_follow_the_cells_of_each_comparison(cells):
    weights = pd.Series(np.where(cells.obs["depth"] > 1, 2.0, 1.0), cells.obs_names).sample(frac=1, random_state=3)
    pairs = de.test.pairwise(cells, "group", test="wald", weights=weights)
    some = cells[cells.obs["group"].isin(["a", "c"])].copy()
    alone = de.test.wald(some, "group", formula_loc="~1+group", weights=weights[some.obs_names])
    np.testing.assert_allclose(pairs.pval[0, 2], alone.pval, rtol=1e-8)
    offsets = RNG.normal(size=cells.shape)
    parts = de.test.partition(cells, "part").wald(
        factor_loc_totest="group", formula_loc="~1+group", offsets=offsets, weights=weights
    )
    q = cells[45:].copy()
    alone = de.test.wald(q, "group", formula_loc="~1+group", offsets=offsets[45:], weights=weights[q.obs_names])
    np.testing.assert_allclose(parts.pval_group("q"), alone.pval, rtol=1e-8)
    with pytest.raises(InvalidArgumentError, match="weights: expected 90"):
        de.test.pairwise(cells, "group", test="wald", weights=np.ones(7))
    with pytest.raises(InvalidArgumentError, match="sample_description"):
        de.test.partition(cells, "part").t_test(grouping="half", sample_description=cells.obs)


def test_noise_without_a_scale_says_so_of_a_scale_formula(cells):
    expected = de.test.lrt(cells, "~1+group", "~1", noise_model="poisson")
    with pytest.warns(UserWarning, match="'formula_scale' has no effect .Poisson noise has no scale"):
        found = de.test.lrt(cells, "~1+group", "~1", noise_model="poisson", full_formula_scale="~1+half")
    np.testing.assert_array_equal(found.pval, expected.pval)


@pytest.mark.parametrize(
    "run",
    [
        lambda d, **o: de.fit.model(d, "~1", **o),
        lambda d, **o: de.fit.residuals(d, "~1", **o),
        lambda d, **o: de.fit.partition(d, "part").model(formula_loc="~1", **o),
        lambda d, **o: ExpressionGLM("~1").fit(d, **o),
        lambda d, **o: de.fit.model(d, "~1", training_strategy=[o]),
        lambda d, **o: de.fit.model(d, "~1", train_args=o),
    ],
)
def test_fits_refuse_unknown_options(run, cells):
    for name in ("sizefactors", "no_such_option"):
        with pytest.raises(InvalidArgumentError, match=name):
            run(cells, **{name: 1})


def test_other_bad_values_are_named(cells):
    for options, name in (
        ({"device": "nowhere"}, "device"),
        ({"batch_size": 0}, "batch_size"),
        ({"dtype": 8}, "dtype"),
    ):
        with pytest.raises(InvalidArgumentError, match=name):
            de.fit.model(cells, "~1", **options)
    for options, name in (
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": (3, "x")}, "batch_size"),
        ({"dtype": "int8"}, "dtype"),
        ({"size_factors": np.zeros(90)}, "size_factors"),
        ({"pval_correction": "none"}, "pval_correction"),
    ):
        with pytest.raises(InvalidArgumentError, match=name):
            de.test.pairwise(cells, "group", test="rank", **options)
    for wrong in (de.test.pairwise(cells, "group"), None, de.test.t_test(cells, "half")):
        with pytest.raises(InvalidArgumentError, match="det"):
            de.test.wald_repeated(wrong, "group")
    blocks = de.test.pairwise(cells, "group", test="rank", batch_size=(7, 2))
    np.testing.assert_array_equal(blocks.pval, de.test.pairwise(cells, "group", test="rank").pval)


@pytest.mark.parametrize("form", ["csr", "coo", "Dask", "Tensor", "list", "range"])
def test_numbers_of_cells_in_any_container(form, cells):
    values = np.arange(1, N_CELLS + 1)
    make = {
        "csr": lambda v: sp.csr_matrix(v[:, None]),
        "coo": lambda v: sp.coo_matrix(v[:, None]),
        "Dask": lambda v: da.from_array(v, chunks=7),
        "Tensor": torch.as_tensor,
        "list": list,
        "range": lambda v: range(1, len(v) + 1),
    }[form]
    keep = cells.obs["t"].to_numpy() > 1
    for option in ("size_factors", "weights"):
        for rest in ({}, {"missing": keep}):
            found = de.fit.model(cells, "~1+half", **{option: make(values)}, **rest)
            expected = de.fit.model(cells, "~1+half", **{option: values}, **rest)
            np.testing.assert_allclose(found.a_var, expected.a_var)
    found = de.test.partition(cells, "part").t_test(grouping="half", size_factors=make(values))
    np.testing.assert_allclose(
        found.pval, de.test.partition(cells, "part").t_test(grouping="half", size_factors=values).pval
    )


def test_size_factors_are_estimated_from_a_layer(cells):
    some = cells[:, :4].copy()
    some.layers["counts"] = some.X + 1
    np.testing.assert_array_equal(de.utils.normed_sum(some, layer="counts"), de.utils.normed_sum(some.X + 1))
    np.testing.assert_array_equal(
        de.utils.median_of_ratios(some, layer="counts"), de.utils.median_of_ratios(some.X + 1)
    )
    with pytest.raises(InvalidArgumentError, match="none but zeros"):
        de.utils.normed_sum(np.zeros((3, 2)))
