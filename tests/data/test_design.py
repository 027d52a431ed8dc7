import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyrosplice.data.design import build_design
from pyrosplice.errors import InvalidArgumentError


@pytest.fixture
def obs(tissue):
    return tissue.obs


def test_arrays_of_every_kind_are_the_same_design(obs):
    values = np.random.default_rng(0).standard_normal((12, 2))
    for given in (
        values,
        torch.tensor(values),
        torch.tensor(values).to_sparse(),
        sp.csr_matrix(values),
        values.tolist(),
    ):
        design = build_design(given, obs)
        np.testing.assert_allclose(design.values, values)
        assert design.names == ("factor_1", "factor_2")
    assert build_design(values[:, 0], obs).values.shape == (12, 1)
    assert build_design(values, obs, covariate_names=["a", "b"]).names == ("a", "b")


def test_categories_become_one_covariate_a_level(obs):
    design = build_design(["age", "region", "flag"], obs)
    assert design.names == ("age", "region_x", "region_y", "region_z", "flag_False", "flag_True")
    assert design.factors == ("age", "region", "region", "region", "flag", "flag")
    np.testing.assert_allclose(design.values[:, 1:4].sum(1), 1.0)
    np.testing.assert_allclose(design.values[:, 2], obs["region"] == "y")
    assert design.estimable == [0, 2, 3, 5]
    design.check()
    assert build_design("age", obs).names == ("age",)


def test_coding_keeps_the_predictor_and_centres_the_levels(obs):
    design = build_design(["age", "region", "flag"], obs)
    reduced = np.random.default_rng(0).standard_normal(5)  # age, two regions, one flag, intercept
    full = design.coding @ reduced
    expected = design.reduced @ reduced[:-1] + reduced[-1]
    np.testing.assert_allclose(design.values @ full[:-1] + full[-1], expected)
    np.testing.assert_allclose([full[1:4].sum(), full[4:6].sum()], 0.0, atol=1e-12)
    assert full[0] == reduced[0]


def test_levels_without_spots_are_not_covariates(obs):
    obs["region"] = obs["region"].cat.add_categories(["nowhere"])
    assert build_design("region", obs).names == ("region_x", "region_y", "region_z")


def test_tables_are_matched_by_name_when_they_have_the_names(obs):
    table = pd.DataFrame({"dose": np.arange(12.0)}, index=obs.index)
    shuffled = table.sample(frac=1, random_state=0)
    np.testing.assert_allclose(build_design(shuffled, obs).values[:, 0], np.arange(12.0))
    np.testing.assert_allclose(build_design(shuffled.reset_index(drop=True), obs).values, shuffled.to_numpy())


def test_a_formula_drops_its_intercept_and_codes_against_a_reference(obs):
    design = build_design("~ age + region", obs)
    assert design.names == ("age", "region[T.y]", "region[T.z]")
    np.testing.assert_allclose(design.values[:, 1], obs["region"] == "y")
    np.testing.assert_allclose(build_design("~ np.log1p(age) - 1", obs).values[:, 0], np.log1p(obs["age"]))


def test_a_mask_of_spots(obs):
    design = build_design("age", obs).take(np.arange(12) > 8)
    np.testing.assert_allclose(design.values[:, 0], [9.0, 10.0, 11.0])


AGE = np.arange(12.0)
BAD = {
    "rows": (np.ones((11, 1)), {}, "design_mtx: expected 12 rows .spots., found 11"),
    "column": ("dose", {}, "design_mtx: .*'region', 'age', 'flag'.*found .'dose'."),
    "no columns": ([], {}, "design_mtx"),
    "NaN": (np.where(AGE == 4, np.nan, AGE), {}, "design_mtx: column 'factor_1' has 1 value.*'spot4'"),
    "names": (AGE, {"covariate_names": ["a", "b"]}, "covariate_names: expected 1 names, found 2"),
    "same names": (np.eye(12)[:, :2], {"covariate_names": ["a", "a"]}, "covariate_names: .*unique"),
    "shape": (np.ones((12, 2, 2)), {}, "design_mtx: expected shape"),
    "object": (object(), {}, "design_mtx: expected numbers, found .*object"),
    "part of the index": (pd.DataFrame({"a": AGE}, index=["spot0", *"bcdefghijkl"]), {}, "expected all 12 names"),
    "only intercept": ("~ 1", {}, "design_mtx: formula"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_designs_are_named(obs, case):
    design, arguments, message = BAD[case]
    with pytest.raises(InvalidArgumentError, match=message):
        build_design(design, obs, **arguments)


def test_missing_categories_are_missing_values(obs):
    obs.loc["spot2", "region"] = np.nan
    with pytest.raises(InvalidArgumentError, match=r"column 'region': .*1 of 12 missing .*'spot2'"):
        build_design("region", obs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.stack([AGE, np.full(12, 3.0)], 1), "constant 'factor_2' .value 3."),
        (np.stack([AGE, 1e6 + 0 * AGE], 1), "constant 'factor_2'"),
        (np.stack([AGE, AGE**2, 5 - 2 * AGE], 1), "'factor_3' collinear"),
        (np.stack([AGE, AGE], 1), "'factor_2' collinear"),
    ],
)
def test_constant_and_collinear_covariates(obs, values, message):
    with pytest.raises(InvalidArgumentError, match=message):
        build_design(values, obs).check()


def test_a_covariate_that_a_factor_already_says_is_collinear(obs):
    obs["in_x"] = (obs["region"] == "x").astype(float)
    with pytest.raises(InvalidArgumentError, match="'in_x' collinear"):
        build_design(["region", "in_x"], obs).check()


def test_nearly_but_not_quite_collinear_is_accepted(obs):
    noise = 1e-4 * np.random.default_rng(0).standard_normal(12)
    build_design(np.stack([1e6 + AGE, 1e6 + AGE + noise], 1), obs).check()


def test_covariates_of_a_formula_know_their_term(obs):
    design = build_design("~ age * region", obs)
    assert design.terms == ("age", "region", "region", "age:region", "age:region")
    assert design.take(np.arange(5)).terms == design.terms
    assert build_design(["age", "region"], obs).terms == ("age", *["region"] * 3)
