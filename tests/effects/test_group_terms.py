"""Groups by hand and from formulas: matrices as lme4 makes them, whatever the table's order, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrosplice.effects import Effect, Field, Groups
from pyrosplice.effects._effect import bind
from pyrosplice.effects._group_terms import random_effects
from pyrosplice.errors import InvalidArgumentError, NotStatedError

CONDITION, BATCH = ["x", "y"], ["1", "2", "3"]


def table_of(seed: int, n: int = 60) -> pd.DataFrame:
    """Donors and batches, crossed and unbalanced, with a category that nobody has and names that are no words."""
    rng = np.random.default_rng(seed)
    donor = pd.Categorical(rng.permutation(np.arange(n) % 5), categories=range(7)).rename_categories(list("dcbaefg"))
    table = pd.DataFrame({"donor": donor, "batch": rng.choice(BATCH, n), "condition": rng.choice(CONDITION, n)})
    table["age"], table["log count"] = rng.uniform(1, 80, n), rng.normal(size=n)
    table["my donor"] = donor.astype(str)
    return table


def columns_by_hand(table: pd.DataFrame) -> dict[str, list[np.ndarray]]:
    one, age, count = np.ones(len(table)), table["age"].to_numpy(), table["log count"].to_numpy()
    x, y = ((table["condition"] == level).to_numpy(float) for level in CONDITION)
    return {
        "1": [one],
        "condition": [one, y],
        "1 + condition": [one, y],
        "0 + condition": [x, y],
        "condition - 1": [x, y],
        "age": [one, age],
        "0 + age": [age],
        "-1 + age": [age],
        "1 + `log count`": [one, count],
        "0 + log(age)": [np.log(age)],
        "condition*age": [one, y, age, y * age],
        "condition + condition:age": [one, y, x * age, y * age],
        "0 + I(age - 40) + condition": [age - 40, x, y],
    }


GROUPINGS = {
    "donor": [["donor"]],
    "`my donor`": [["my donor"]],
    "batch:donor": [["batch", "donor"]],
    "batch/donor": [["batch"], ["batch", "donor"]],
}


@settings(max_examples=40)
@given(st.integers(0, 9), st.sampled_from(sorted(columns_by_hand(table_of(0)))), st.sampled_from(sorted(GROUPINGS)))
def test_matrices_are_those_that_lme4_would_make(seed, left, grouping):
    table = table_of(seed, 200)
    rest, effects = random_effects(f"~ age + ({left} | {grouping})", table, "formula")
    blocks, expected = bind(effects, table), np.stack(columns_by_hand(table)[left], 1)
    assert rest == "~ age" and len(blocks) == len(GROUPINGS[grouping])
    q = expected.shape[1]
    for block, by in zip(blocks, GROUPINGS[grouping], strict=True):
        labels = [":".join(map(str, row)) for row in table[by].itertuples(index=False)]
        assert [block.level_names[level] for level in block.levels] == labels
        assert set(block.level_names) == set(labels)
        order = [block.columns.T.tolist().index(column.tolist()) for column in expected.T]
        np.testing.assert_array_equal(block.columns[:, order], expected)
        assert block.basis.shape == (q * (q + 1) // 2, q, q) and len(block.parameters) == len(block.basis)
        np.testing.assert_array_equal(block.basis.sum(0), np.tril(np.ones((q, q))))


@given(st.integers(0, 20))
def test_the_order_of_rows_changes_nothing(seed):
    table = table_of(seed)
    order = np.random.default_rng(seed).permutation(len(table))
    first, second = (Groups(("batch", "donor"), "~ age").bind(t) for t in (table, table.iloc[order]))
    assert first.level_names == second.level_names
    np.testing.assert_array_equal(first.levels[order], second.levels)
    np.testing.assert_array_equal(first.columns[order], second.columns)


def test_levels_are_in_the_order_of_a_categorical_and_those_unused_are_left_out():
    assert Groups("donor").bind(table_of(1)).level_names == tuple("dcbae")


def test_two_bars_leave_numbers_uncorrelated():
    _, (effect,) = random_effects("~ (age + `log count` || donor)", table_of(0), "formula")
    block = effect.bind(table_of(0))
    assert block.parameters == ("sd(1)", "sd(age)", "sd(log count)")
    np.testing.assert_array_equal(block.basis, [np.diag(row) for row in np.eye(3)])


def test_types_are_those_of_the_fixed_part():
    table = table_of(0).assign(dose=np.arange(60) % 3)
    _, (number,) = random_effects("~ (dose | donor)", table, "formula")
    _, (label,) = random_effects("~ (dose | donor)", table, "formula", as_numeric=())
    assert number.bind(table).column_names == ("1", "dose")
    assert label.bind(table).column_names == ("1", "dose[T.1]", "dose[T.2]")


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("~ (condition || donor)", r"coding. Write \(condition \| donor\).* or \(1 \| donor/condition\)"),
        ("~ (age:condition || donor)", "factor 'condition'"),
        ("~ (poly(age, 2) || donor)", r"the 2 columns of 'poly"),
        ("~ (1 | age)", "labels to group by, found a column 'age'"),
        ("~ (1 | all)", r"two groups at least, found \['a'\]"),
        ("~ (1 | cell)", "fewer effects than observations, found 60 groups.*Independent"),
        ("~ (age | pair)", "30 groups of 2 effects each in 60"),
        ("~ (0 | donor)", "no columns"),
        ("~ (1 | nope)", "no column 'nope'"),
        ("~ (nope | donor)", "no column 'nope'"),
        ("~ (1 | donor) + (1 | donor)", "the same groups"),
        ("~ (1 | donor) + (1 | `my donor`)", "the same groups"),
        ("~ (1 | donor) + (0 + condition | donor)", "the same groups"),
        ("~ (1 | donor/site)", "the same groups"),
        ("~ (site | donor)", r"\['site\[T.q\]'\] do not vary within any group"),
        ("~ (1 | missing)", "12 of 60 missing"),
        ("~ (gap | donor)", "12 value"),
    ],
)
def test_what_cannot_be_estimated_or_has_no_meaning_is_refused(formula, says):
    table = table_of(0)
    table["all"], table["cell"], table["pair"] = "a", range(60), np.arange(60) // 2
    table["site"] = np.where(table["donor"].isin(["a", "b"]), "p", "q")
    table["missing"] = np.where(np.arange(60) % 5 == 0, None, table["my donor"])
    table["gap"] = np.where(np.arange(60) % 5 == 0, np.nan, table["age"])
    with pytest.raises(InvalidArgumentError, match=says):
        bind(random_effects(formula, table, "formula")[1], table)


def test_correlated_terms_beside_uncorrelated_ones_of_other_columns_stand():
    table = table_of(0, 200)
    formula = "~ (1 + condition | donor) + (0 + age | donor) + (1 | batch) + (1 | donor:batch)"
    assert len(bind(random_effects(formula, table, "formula")[1], table)) == 4


@given(st.sets(st.integers(0, 59), max_size=20), st.sets(st.integers(0, 59), max_size=20))
def test_rows_without_label_or_number_are_those_left_out(no_donor, no_age):
    table = table_of(0).astype({"my donor": object})
    table.loc[list(no_donor), "my donor"], table.loc[list(no_age), "age"] = None, np.nan
    kept = Groups(("my donor", "batch"), "~ log(age)").complete_rows(table)
    assert set(np.flatnonzero(~kept)) == no_donor | no_age


def test_labels_that_read_the_same_only_when_joined_are_refused():
    table = pd.DataFrame({"a": ["u", "u:v"] * 4, "b": ["v:w", "w"] * 4})
    with pytest.raises(InvalidArgumentError, match="read the same, 'u:v:w'"):
        Groups(("a", "b")).bind(table)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (((),), "by"),
        ((("a", "a"),), "by"),
        ((" ",), "by"),
        ((3,), "by"),
        (("a", "1 + x"), "slopes"),
        (("a", "~ (1 | b)"), "slopes"),
        (("a", 1), "slopes"),
        (("a", "~ 1", "none"), "covariance"),
    ],
)
def test_arguments_are_checked_when_groups_are_made(arguments, says):
    with pytest.raises(InvalidArgumentError, match=rf"^{says}: "):
        Groups(*arguments)


def test_groups_say_what_they_are():
    assert repr(Groups("donor")) == "Groups('donor')" and Groups("donor").name == "1 | donor"
    slopes = Groups(("my donor", "batch"), "~ age", "diagonal")
    assert eval(repr(slopes)) == slopes and slopes.name == "age || `my donor`:batch"
    assert hash(Groups(("donor",))) == hash(Groups("donor"))


def test_others_are_refused():
    with pytest.raises(InvalidArgumentError, match="effects of groups"):
        bind([Field()], table_of(0))
    with pytest.raises(InvalidArgumentError, match=r"call it: Groups\(\)"):
        bind([Groups], table_of(0))
    with pytest.raises(NotStatedError, match="override levels"):
        Effect().bind(table_of(0))
