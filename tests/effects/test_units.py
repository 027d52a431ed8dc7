"""Units of coefficients and between–within degrees of freedom, against analyses of variance done by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrosplice._tables.formulas import read_formula
from pyrosplice.effects._effect import bind
from pyrosplice.effects._group_terms import random_effects
from pyrosplice.effects._units import Coefficients, DesignUnits, describe_units
from pyrosplice.errors import InvalidArgumentError


def units_of(formula: str, table: pd.DataFrame) -> DesignUnits:
    rest, effects = random_effects(formula, table, "formula")
    design = read_formula(rest, table, "formula")
    return DesignUnits(Coefficients.of(design), bind(effects, table))


def described(formula: str, table: pd.DataFrame) -> dict[str, tuple[str, int, float]]:
    found = units_of(formula, table).table()
    return {row.coefficient: (row.unit, row.n_units, row.df) for row in found.itertuples()}


def donors(n: int, cells: int = 8, seed: int = 0) -> pd.DataFrame:
    """Donors of two conditions each, half of them treated, with an age a donor and a score a cell."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"donor": np.repeat([f"d{i:02}" for i in range(n)], cells)})
    table["condition"] = np.tile(["x", "y"], n * cells // 2)
    table["treated"] = np.repeat(["no", "yes"], [n // 2 * cells, (n - n // 2) * cells])
    table["age"], table["score"] = np.repeat(rng.normal(40, 9, n), cells), rng.normal(size=n * cells)
    table["sample"] = table["donor"] + table["condition"]
    table["batch"] = np.where(np.arange(n * cells) // cells % 2, "b1", "b2")
    return table


@given(st.integers(3, 8), st.integers(2, 5))
@settings(max_examples=2, deadline=None)
def test_between_within_and_nested_designs(half, quarter):
    n, table = 2 * half, donors(2 * half, 4 * quarter)
    cells = ("cells", len(table))
    between = ("donor", n)
    assert described("~ treated + (1 | donor)", table)["treated[T.yes]"] == (*between, n - 2)
    assert described("~ treated + age + (1 | donor)", table)["treated[T.yes]"] == (*between, n - 3)
    found = described("~ treated + score + (1 | donor)", table)
    assert found["treated[T.yes]"] == (*between, n - 2)
    assert found["score"] == (*cells, len(table) - n - 1)
    assert described("~ treated + score + (score | donor)", table)["score"] == (*between, n - 1)
    paired = "condition[T.y]"
    assert described("~ condition + (1 | donor)", table)[paired] == (*cells, len(table) - n - 1)
    assert described("~ condition + (1 + condition | donor)", table)[paired] == (*between, n - 1)
    assert described("~ condition + (1 | donor/sample)", table)[paired] == ("donor:sample", 2 * n, n - 1)
    assert described("~ condition + (1 | donor) + (1 | sample)", table)[paired] == ("sample", 2 * n, n - 1)
    assert described("~ condition + (1 | sample)", table)[paired] == ("sample", 2 * n, 2 * n - 2)
    for random in ("(condition | donor)", "(1 | donor/sample)"):
        split_plot = described(f"~ condition * treated + {random}", table)
        assert split_plot["condition[T.y]:treated[T.yes]"][2] == split_plot["treated[T.yes]"][2] == n - 2


def test_crossed_and_nested_groups():
    table = donors(12)
    crossed = described("~ treated + (1 | donor) + (1 | score_bin)", table.assign(score_bin=(table.score > 0) + 1))
    assert crossed["treated[T.yes]"] == ("donor", 12, 10)
    blocked = described("~ treated + (1 | batch/donor)", table)
    assert blocked["treated[T.yes]"] == ("batch:donor", 12, 12 - 2 - 1)
    assert blocked["Intercept"] == ("batch", 2, 1)


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_degrees_of_freedom_are_those_of_regressions_of_donors(seed):
    """Donors' means and differences, regressed on what is known of donors, have these residual degrees of freedom."""
    rng = np.random.default_rng(seed)
    n, n_sites = int(rng.integers(8, 15)), int(rng.integers(2, 4))
    table = donors(n, 6, seed)
    site = rng.permutation(np.arange(n) % n_sites)
    table["site"] = [f"s{site[int(name[1:])]}" for name in table["donor"]]
    known = np.column_stack([np.ones(n), *(site == k for k in range(1, n_sites)), table["age"].to_numpy()[::6]])
    left = n - np.linalg.matrix_rank(known)
    found = described("~ condition * (site + age) + (condition | donor)", table)
    nested = described("~ condition * (site + age) + (1 | donor/sample)", table)
    assert {df for _, _, df in found.values()} == {df for _, _, df in nested.values()} == {left}


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_pairs_that_lack_a_half_count_by_slopes_as_by_samples(seed):
    rng = np.random.default_rng(seed)
    table = donors(12, 6)
    halves = rng.choice(sorted(set(table["sample"])), 5, replace=False)
    table = table[~table["sample"].isin(halves)].reset_index(drop=True)
    pairs = int((table.groupby("donor")["condition"].nunique() == 2).sum())
    slopes = described("~ condition + (condition | donor)", table)["condition[T.y]"]
    samples = described("~ condition + (1 | donor/sample)", table)["condition[T.y]"]
    assert slopes == ("donor", pairs, pairs - 1)
    assert samples == ("donor:sample", table["sample"].nunique(), pairs - 1)


CODINGS = ["condition", "0 + condition", "C(condition, contr.sum)", "C(condition, contr.treatment(base='y'))"]
RANDOM = ["(1 | donor)", "(condition | donor)", "(0 + condition | donor)", "(1 | donor/sample)", "(1 | sample)"]


@given(
    st.sampled_from(CODINGS), st.sampled_from(RANDOM), st.integers(0, 99), st.floats(-1e4, 1e4), st.floats(0.01, 1e3)
)
@settings(max_examples=15, deadline=None)
def test_units_depend_neither_on_coding_nor_on_order_nor_on_the_unit_of_a_covariate(coding, random, seed, shift, scale):
    table = donors(8)
    expected = units_of(f"~ condition + score + {random}", table).of(np.array([0.0, 1.0, 0.0]))
    table = table.sample(frac=1, random_state=seed)
    table["score"] = shift + scale * table["score"]
    rest, effects = random_effects(f"~ {coding} + score + {random}", table, "formula")
    design = read_formula(rest, table, "formula")
    means = [design.matrix[(table["condition"] == level).to_numpy()][0] for level in "yx"]
    contrast = np.where(np.array(design.names) == "score", 0.0, means[0] - means[1])
    assert DesignUnits(Coefficients(design.matrix, design.names), bind(effects, table)).of(contrast) == expected


def test_contrasts_of_three_levels_and_of_cell_means():
    table = donors(9, 12)
    table["stage"] = np.tile(["a", "b", "c"], 36)
    for left in ("stage", "0 + stage"):
        units = units_of(f"~ stage + ({left} | donor)", table)
        for contrast in ([0, 1, 0], [0, 0, 1], [0, 1, -1], [0, 1, 1]):
            assert units.of(np.array(contrast, float)).df == 8
    means = units_of("~ 0 + stage + (1 | donor)", table)
    assert means.of(np.array([1.0, 0, 0])).unit == "donor"
    assert means.of(np.array([1.0, -1, 0])).unit == "cells"
    mixed = units_of("~ stage + score + (stage | donor)", table)
    assert (mixed.of(np.eye(4)[3]).unit, mixed.of(np.eye(4)[1]).unit) == ("cells", "donor")


def test_a_date_is_a_covariate_like_others():
    table = donors(8).assign(day=lambda t: 2.46e6 + t["age"].round(), hour=lambda t: 1e5 + t["score"])
    found = described("~ day + hour + (1 + hour | donor)", table)
    assert found["day"] == ("donor", 8, 6) and found["hour"] == ("donor", 8, 7)


@pytest.mark.parametrize(
    ("formula", "tested", "says"),
    [
        ("~ condition + (1 | donor)", 1, "Add (1 | donor/sample) or (1 + condition | donor)."),
        ("~ treated * condition + (1 | donor)", 3, "Add (1 | donor/sample) or (1 + treated:condition | donor)."),
        ("~ score + (1 | donor)", 1, "Add (1 + score | donor)."),
        ("~ condition + (1 | batch/donor)", 1, "Add (1 | batch:donor/sample) or (1 + condition | batch:donor)."),
        ("~ condition + score + (1 + score | donor)", 1, "Add (1 | donor/sample) or (1 + condition | donor)."),
        ("~ condition + (1 + condition | donor)", 1, None),
        ("~ condition + (1 | donor/sample)", 1, None),
        ("~ condition + (1 | sample)", 1, None),
        ("~ treated + (1 | donor)", 1, None),
        ("~ treated + (1 | donor) + (1 | noise)", 1, None),
        ("~ condition", 1, None),
    ],
)
def test_observations_as_units_are_warned_about_with_what_to_add(formula, tested, says):
    table = donors(8).assign(noise=lambda t: (t["score"] > 0).map({True: "u", False: "v"}))
    units = units_of(formula, table)
    found = units.warning(np.eye(len(units.coefficients.names))[tested])
    assert found == says if says is None else found.endswith(f"{says}")
    if says is not None:
        assert "varies within" in found and "; cells are the units of this test. " in found


@pytest.mark.parametrize(
    ("n", "formula", "tested"),
    [(2, "~ treated + (1 | donor)", 1), (3, "~ treated + age + (1 | donor)", 1), (4, "~ batch + (1 | batch)", 1)],
)
def test_not_more_units_than_coefficients_are_refused_where_they_are_tested(n, formula, tested):
    units = units_of(formula, donors(n))
    with pytest.raises(InvalidArgumentError, match="more units than coefficients"):
        units.of(np.eye(len(units.coefficients.names))[tested])
    assert units.table()["df"].iloc[tested] == 0


@pytest.mark.parametrize("contrast", [[0.0, 0.0], [1.0], [np.nan, 1.0]])
def test_contrasts_are_checked(contrast):
    with pytest.raises(InvalidArgumentError, match="contrast: expected 2 finite weights"):
        units_of("~ condition + (1 | donor)", donors(4)).of(np.array(contrast))


def test_without_effects_observations_are_the_units():
    table = donors(4)
    found = describe_units(Coefficients(np.ones((len(table), 1)), ["Intercept"]), (), observations="spots")
    assert found.to_dict("list") == {"coefficient": ["Intercept"], "unit": ["spots"], "n_units": [32], "df": [31.0]}


# nlme 3.1.162, denDF of anova(lme(y ~ ..., random = ~ 1 | ..., data = t)), t being this table with any y; its intercept
# is counted with the observations and is left out
NLME = {
    "~ treated*condition + donor_age + score + (1 | donor/sample)": [5, 6, 5, 223, 6],
    "~ treated + score + (1 | donor)": [6, 231],
    "~ condition + score + (1 | batch/donor)": [214, 214],
}


@pytest.mark.parametrize("formula", sorted(NLME))
def test_degrees_of_freedom_of_unbalanced_designs_are_nlme_s(formula):
    rng = np.random.default_rng(3)
    parts = [rng.choice(list(levels), 240) for levels in ("abcdefgh", "pqr", "xy", "uvw")]
    table = pd.DataFrame(dict(zip(("donor", "batch", "condition", "stage"), parts, strict=True)))
    table["age"], table["score"] = rng.uniform(1, 80, 240), rng.normal(size=240)
    table["sample"] = table["donor"] + table["condition"]
    table["treated"] = np.where(table["donor"] < "e", "no", "yes")
    table["donor_age"] = table["donor"].map(dict(zip("abcdefgh", rng.normal(40, 9, 8), strict=True)))
    assert [df for name, (_, _, df) in described(formula, table).items() if name != "Intercept"] == NLME[formula]
