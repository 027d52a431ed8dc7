import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice._usage.reading.design import build_design, complete_spots
from pyrosplice.errors import InvalidArgumentError


@pytest.fixture
def obs(tissue):
    return tissue.obs


def test_arrays_of_every_kind_are_the_same_design(obs):
    values = np.random.default_rng(0).standard_normal((12, 2))
    for container in (
        values,
        torch.tensor(values),
        torch.tensor(values).to_sparse(),
        sp.csr_matrix(values),
        values.tolist(),
    ):
        design = build_design(container, obs)
        np.testing.assert_allclose(design.values, values)
        assert design.names == ("factor_1", "factor_2")
    assert build_design(values[:, 0], obs).values.shape == (12, 1)
    named = xr.DataArray(values[::-1, 0], dims="spot", coords={"spot": obs.index[::-1]}, name="it")
    np.testing.assert_array_equal(build_design(named, obs).values[:, 0], values[:, 0])
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


def test_coding_keeps_the_predictor_and_centers_the_levels(obs):
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
    "blank name": (AGE, {"covariate_names": [" "]}, "covariate_names: .*none of them blank"),
    "no name": (AGE, {"covariate_names": [None]}, "covariate_names: .*none of them blank"),
    "formula without ~": ("age + region", {}, "A formula begins with '~'"),
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


@pytest.mark.parametrize("design", ["barcode", "~ barcode"])
def test_a_label_of_its_own_for_every_spot_is_no_factor(obs, design):
    obs["barcode"] = list(obs.index)
    with pytest.raises(InvalidArgumentError, match=r"fewer covariates than spots, found 11 .* 12 spots"):
        build_design(design, obs).check()


def test_nearly_but_not_quite_collinear_is_accepted(obs):
    noise = 1e-4 * np.random.default_rng(0).standard_normal(12)
    build_design(np.stack([1e6 + AGE, 1e6 + AGE + noise], 1), obs).check()


def test_covariates_of_a_formula_know_their_term(obs):
    design = build_design("~ age * region", obs)
    assert design.terms == ("age", "region", "region", "age:region", "age:region")
    assert design.take(np.arange(5)).terms == design.terms
    assert build_design(["age", "region"], obs).terms == ("age", *["region"] * 3)


orders = st.permutations(range(12))


@given(orders, st.sampled_from(["frame", "series"]), st.sampled_from([str, int, float, "category", "string"]))
def test_tables_in_any_order_and_type_of_names_go_to_their_spots(order, kind, dtype):
    names = pd.Index([str(100 + i) for i in range(12)])
    obs = pd.DataFrame(index=names)
    index = names[list(order)]
    index = pd.CategoricalIndex(index) if dtype == "category" else index.astype(dtype)
    table = pd.DataFrame({"dose": np.array(order, dtype=float)}, index=index)
    given_table = table if kind == "frame" else table["dose"]
    np.testing.assert_array_equal(build_design(given_table, obs).values[:, 0], np.arange(12.0))
    assert complete_spots(given_table, obs).all()


@given(orders)
def test_arrays_go_by_position_whatever_the_names_of_the_spots(order):
    obs = pd.DataFrame(index=[str(i) for i in order])
    for container in (np.arange(12.0), torch.arange(12.0), pd.array(range(12), dtype="Int64"), list(range(12))):
        np.testing.assert_array_equal(build_design(container, obs).values[:, 0], np.arange(12.0))


@given(orders, st.sets(st.integers(0, 11), min_size=1, max_size=11))
def test_tables_with_some_of_the_names_are_refused(order, renamed):
    obs = pd.DataFrame(index=[f"spot{i}" for i in range(12)])
    index = [f"other{i}" if i in renamed else f"spot{i}" for i in order]
    with pytest.raises(InvalidArgumentError, match=r"^design_mtx: expected all 12 names of the spots"):
        build_design(pd.DataFrame({"dose": np.arange(12.0)}, index=index), obs)


def test_a_name_that_stands_twice_is_refused(obs):
    for index in ([*obs.index[:11], "spot0"], [*obs.index[:11], "other"]):
        with pytest.raises(InvalidArgumentError, match=r"^design_mtx: expected"):
            build_design(pd.Series(np.arange(12.0), index=index), obs)
    with pytest.raises(InvalidArgumentError, match="design_mtx: expected 12 rows"):
        build_design(pd.Series(np.arange(13.0), index=[*obs.index, "other"]), obs)


LABELS = list("bacbacbacbaa")
DTYPES = {
    "objects": lambda labels: np.array(labels, dtype=object),
    "text": lambda labels: pd.array(labels, dtype="string"),
    "bytes": lambda labels: np.array([label.encode() for label in labels], dtype=object),
    "NumPy text": lambda labels: np.array(labels),
    "categorical": lambda labels: pd.Categorical(labels),
    "unused levels": lambda labels: pd.Categorical(labels, categories=["a", "b", "c", "never"]),
    "categories of text": lambda labels: pd.Categorical(pd.array(labels, dtype="string")),
}
OTHERS = {
    "booleans": [label == "a" for label in LABELS],
    "nullable booleans": pd.array([label == "a" for label in LABELS], dtype="boolean"),
    "dates": pd.to_datetime(["2020-01-01" if label == "a" else "2020-02-03" for label in LABELS]),
    "dates with a zone": pd.to_datetime(["2020-01-01" if x == "a" else "2020-02-03" for x in LABELS]).tz_localize(
        "UTC"
    ),
    "mixed": np.array([1 if label == "a" else label for label in LABELS], dtype=object),
    "bins": pd.cut([float("abc".index(label)) for label in LABELS], 3),
}


def space_of(values):
    """Projection on the intercept and the columns."""
    basis = np.linalg.svd(np.column_stack([np.ones(len(values)), values]), full_matrices=False)
    kept = basis[0][:, basis[1] > 1e-9]
    return kept @ kept.T


@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_of_every_type_are_the_same_design(obs, dtype):
    obs["it"], obs["plain"] = DTYPES[dtype](LABELS), LABELS
    for named, plain in (("it", "plain"), ("~ it", "~ plain"), ("~ it * age", "~ plain * age")):
        found, expected = build_design(named, obs), build_design(plain, obs)
        np.testing.assert_array_equal(found.values, expected.values)
        assert found.names == tuple(name.replace("plain", "it") for name in expected.names)
    table = build_design(obs[["it"]].sample(frac=1, random_state=0), obs)
    np.testing.assert_array_equal(table.values, build_design("it", obs).values)


@pytest.mark.parametrize("kind", [*DTYPES, *OTHERS])
def test_a_column_and_a_formula_are_the_same_model(obs, kind):
    obs["it"] = DTYPES[kind](LABELS) if kind in DTYPES else OTHERS[kind]
    by_column, by_formula = build_design("it", obs), build_design("~ it", obs)
    np.testing.assert_allclose(space_of(by_column.values), space_of(by_formula.values), atol=1e-12)
    np.testing.assert_array_equal(by_column.reduced, by_formula.values)
    assert set(by_column.values.ravel()) == {0.0, 1.0}


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, "", "  "])
@pytest.mark.parametrize("dtype", [object, "string", "category"])
def test_spots_without_a_label_are_refused_or_named(obs, missing, dtype):
    labels = pd.Series([missing, *LABELS[1:]], index=obs.index, dtype=object)
    obs["it"] = labels.astype(dtype)
    for design in ("it", ["age", "it"], "~ age + it", obs[["it"]]):
        with pytest.raises(InvalidArgumentError, match=r"design_mtx: column 'it': .*1 of 12 missing .*'spot0'"):
            build_design(design, obs)
        assert list(complete_spots(design, obs)) == [False, *[True] * 11]
        kept = complete_spots(design, obs)
        left = build_design(design, obs, spots=kept)
        assert left.values.shape == (11, left.values.shape[1])
        np.testing.assert_array_equal(left.values[:, -1], np.array(LABELS[1:]) == "c")


def test_levels_that_only_left_out_spots_have_are_no_covariates(obs):
    obs["it"] = ["lonely", *LABELS[1:]]
    spots = np.arange(12) > 0
    assert build_design("it", obs, spots=spots).names == ("it_a", "it_b", "it_c")
    assert build_design("~ it", obs, spots=spots).names == ("it[T.b]", "it[T.c]")


NUMERIC = {
    "nullable": lambda x: pd.array(x, dtype="Int64"),
    "objects": lambda x: np.array(x, dtype=object),
    "sparse": lambda x: pd.arrays.SparseArray(x),
    "half": lambda x: np.array(x, dtype=np.float16),
    "unsigned": lambda x: np.array(x, dtype=np.uint8),
}


@pytest.mark.parametrize("kind", NUMERIC)
def test_numbers_of_every_type_are_numbers(obs, kind):
    obs["it"] = NUMERIC[kind]([int(label == "a") + 2 for label in LABELS])
    for design in ("it", "~ it", obs[["it"]], obs["it"]):
        found = build_design(design, obs)
        assert found.names == ("it",)
        np.testing.assert_array_equal(found.values[:, 0], 2.0 + (np.array(LABELS) == "a"))


@pytest.mark.parametrize(
    "name", ["percent.mt", "orig.ident", "C", "df", "log", "a b", "~z", "1", "np", "a+b", "x:y", "if"]
)
def test_columns_of_any_name(obs, name):
    obs[name] = np.arange(12.0) ** 2
    for design in (name, [name], f"~ `{name}`", f"~ 1 + `{name}`"):
        found = build_design(design, obs)
        assert (found.names, found.terms) == ((name,), (name,))
        np.testing.assert_array_equal(found.values[:, 0], np.arange(12.0) ** 2)
    obs[name] = LABELS
    assert build_design(f"~ `{name}` + age", obs).names == (f"{name}[T.b]", f"{name}[T.c]", "age")


def test_a_column_that_reads_as_a_formula_goes_before_it(obs):
    obs["~ age"] = np.arange(12.0) ** 2
    np.testing.assert_array_equal(build_design("~ age", obs).values[:, 0], np.arange(12.0) ** 2)


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ("~ nope", "no column 'nope' in the table, which has"),
        ("~ total counts", "no column 'total'"),
        ("~ age +", "cannot be evaluated"),
        ("~ log(region)", "cannot be evaluated"),
        ("~ np.log(age)", "gives -inf in column"),
        ("~ age + (1 | region)", "random effect.*random terms"),
        (["age", "age"], "'age' twice"),
        (np.full((12, 1), 1j), "complex128"),
        (np.full((12, 1), "a"), "expected numbers"),
        (np.full((12, 1), "2020-01-01", dtype="datetime64[D]"), "expected numbers"),
        (np.ma.masked_array(np.arange(12.0), np.arange(12) == 3), "masked"),
        ({"age": AGE}, "expected numbers"),
    ],
)
def test_what_is_no_design_is_refused_in_our_words(obs, design, message):
    with pytest.raises(InvalidArgumentError, match=f"^design_mtx: .*{message}"):
        build_design(design, obs)


FAR = {
    "a date as ordinal": 737791.0 + np.arange(12.0),
    "a position on a genome": 248_000_000.0 + np.arange(12.0) ** 2,
    "a time in nanoseconds": 1.6e18 + 1e9 * np.arange(12.0) ** 2,
    "a decimal year": 2020 + np.arange(12.0) / 365.25,
    "far beyond": 1e13 + (np.arange(12.0) > 5),
}


@pytest.mark.parametrize("kind", FAR)
def test_numbers_far_from_zero_are_neither_constant_nor_collinear(obs, kind):
    build_design(np.stack([AGE % 5, FAR[kind]], 1), obs).check()
    build_design(np.stack([FAR[kind], AGE % 5], 1), obs).check()
    for other in (3 * FAR[kind] - 1, FAR[kind] / 7 + 0.1):
        with pytest.raises(InvalidArgumentError, match="'factor_2' collinear"):
            build_design(np.stack([FAR[kind], other], 1), obs).check()
