"""One door for formulas: any column name, any type of column, our own errors, and a grammar that holds no code."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice._tables.formula_grammar import is_plain
from pyrosplice._tables.formulas import complete_rows, read_formula
from pyrosplice.errors import InvalidArgumentError

N = 24
GROUP = np.array(["a", "b", "c"] * (N // 3))
TIME = np.linspace(1, 9, N) ** 1.5
NAMES = [
    *("x", "percent.mt", "orig.ident", "total counts", "C", "df", "log", "np", "I", "bs", "class", "lambda", "1", "0"),
    *("a-b", "a+b", "a:b", "~x", "(x)", "x[0]", "μ", "_column_0_", "True", "T.x", "x'y", "1|x", "f(x)"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_column_may_have_any_name(name):
    """In backticks, alone, in an interaction and within functions: the columns are those of an ordinary name."""
    plain = pd.DataFrame({"y": TIME, "g": GROUP, "day": TIME[::-1].copy()})
    numbers, labels = plain.rename(columns={"y": name}), plain.rename(columns={"g": name})
    for formula in ("~ `{}`", "~ 0 + g * `{}`", "~ np.log(`{}`)", "~ bs(`{}`, df=4) + day", "~ I(1 / `{}`) + C(g)"):
        want = read_formula(formula.format("y"), plain, "formula")
        found = read_formula(formula.format(name), numbers, "formula")
        np.testing.assert_array_equal(found.matrix, want.matrix)
        assert found.numeric == tuple(name if n == "y" else n for n in want.numeric)
        np.testing.assert_allclose(found.again(numbers.iloc[::-1], "new"), want.matrix[::-1])
    for formula in ("~ `{}`", "~ C(`{}`) + log(day)", "~ C(`{}`, Treatment('b')) * day", "~ `{}`:day - 1"):
        want = read_formula(formula.format("g"), plain, "formula")
        found = read_formula(formula.format(name), labels, "formula")
        np.testing.assert_array_equal(found.matrix, want.matrix)
        assert found.levels == {name: ("a", "b", "c")}
        assert [v - {"day"} for v in found.variables] == [{name} if v & {"g"} else set() for v in want.variables]
    if name not in ("1",):
        assert read_formula(f"~ `{name}`", numbers, "formula").names == ["Intercept", name]


@pytest.mark.parametrize("spare", ["df", "C", "b", "1", "np", "Treatment", "contr"])
def test_other_columns_do_not_matter(spare):
    table = pd.DataFrame({"g": GROUP, "t": TIME})
    formula = "~ C(g, Treatment('b')) + bs(t, df=4) + np.log(t)"
    found = read_formula(formula, table.assign(**{spare: np.nan}), "formula")
    np.testing.assert_array_equal(found.matrix, read_formula(formula, table, "formula").matrix)


LABELS = {
    "object": GROUP.astype(object),
    "string": pd.array(GROUP, dtype="string"),
    "categorical": pd.Categorical(GROUP),
    "unused": pd.Categorical(GROUP, categories=["z", "a", "b", "c", "y"]),
    "bytes": np.array([g.encode() for g in GROUP], dtype=object),
}


@pytest.mark.parametrize("kind", sorted(LABELS))
def test_text_of_every_kind_makes_the_same_design(kind):
    found = read_formula("~ g", pd.DataFrame({"g": LABELS[kind]}), "formula")
    assert found.names == ["Intercept", "g[T.b]", "g[T.c]"]
    np.testing.assert_array_equal(found.matrix[:, 1:], np.stack([GROUP == "b", GROUP == "c"], 1))


NUMBERS = {
    "float32": TIME.round().astype(np.float32),
    "Int64": pd.array(TIME.round().astype(int), dtype="Int64"),
    "object": TIME.round().astype(object),
    "uint8": TIME.round().astype(np.uint8),
}


@pytest.mark.parametrize("kind", sorted(NUMBERS))
def test_numbers_of_every_kind_make_the_same_design(kind):
    found = read_formula("~ t", pd.DataFrame({"t": NUMBERS[kind]}), "formula")
    np.testing.assert_array_equal(found.matrix[:, 1], TIME.round())


def test_types_decide_unless_numbers_are_named():
    table = pd.DataFrame(
        {"t": [1.0, 2, 3, 1], "day": pd.to_datetime(["2020-01-01", "2020-01-02"] * 2), "f": [True, False] * 2}
    )
    assert read_formula("~ t + day + f", table, "x").names == ["Intercept", "t", "day[T.2020-01-02]", "f[T.True]"]
    assert read_formula("~ t", table, "x", as_numeric=()).names == ["Intercept", "t[T.2.0]", "t[T.3.0]"]
    assert read_formula("~ t", table, "x", as_numeric="t").names == ["Intercept", "t"]
    with pytest.raises(InvalidArgumentError, match="'day' does not hold numbers"):
        read_formula("~ day", table, "x", as_numeric=["day"])
    with pytest.raises(InvalidArgumentError, match="as_numeric: no column 'nope'"):
        read_formula("~ t", table, "x", as_numeric=["nope"])


@given(st.sets(st.integers(0, N - 1), min_size=1, max_size=N - 1), st.sampled_from([None, np.nan, pd.NA, "", " "]))
def test_missing_values_are_refused_or_told(where, missing):
    labels, numbers = GROUP.astype(object), TIME.astype(object)
    labels[list(where)] = missing
    numbers[list(where)] = np.nan
    table = pd.DataFrame({"g": labels, "t": numbers, "spare": np.nan})
    for formula in ("~ g", "~ C(g)", "~ t", "~ np.log(t)", "~ g:t"):
        with pytest.raises(InvalidArgumentError, match=rf"^formula: column '[gt]'.* {len(where)} "):
            read_formula(formula, table, "formula")
        assert set(np.flatnonzero(~complete_rows(formula, table, "formula"))) == where


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("~ nope", "no column 'nope'"),
        ("~ log(nope)", "no column 'nope'"),
        ("~ percent", "`percent counts`"),
        ("~ g + (1 | g)", "use donors"),
        ("~ (1 + t | g)", "use donors"),
        ("~ .", "name them"),
        ("~ 0", "no columns"),
        ("~ g +", "cannot be evaluated"),
        ("t ~ g", "right-hand side"),
        ("~ g | t", "right-hand side"),
        ("~ foo(t)", "foo"),
        ("~ log(t - 1)", "-inf"),
        ("~ 'a'", "formula"),
        ("~ log(", "formula"),
        ("~ Intercept", "two columns of the name 'Intercept'"),
        (3, "expected a formula"),
    ],
)
def test_errors_are_ours(formula, says):
    table = pd.DataFrame({"g": GROUP, "t": TIME, "percent counts": TIME, "Intercept": TIME})
    with pytest.raises(InvalidArgumentError, match=r"^formula: ") as caught:
        read_formula(formula, table, "formula", random_effects="use donors")
    assert says in str(caught.value)


def test_new_rows():
    table = pd.DataFrame({"g": GROUP, "t": TIME})
    design = read_formula("~ g + center(t) + bs(t, df=4)", table, "formula")
    np.testing.assert_allclose(design.again(table.iloc[[5]], "new"), design.matrix[[5]])
    with pytest.raises(InvalidArgumentError, match=r"never saw: \['d'\]"):
        design.again(pd.DataFrame({"g": ["d"], "t": [2.0]}), "new")
    with pytest.raises(InvalidArgumentError, match="no column 't'"):
        design.again(table[["g"]], "new")
    with pytest.raises(InvalidArgumentError, match="cannot be evaluated"):
        design.again(pd.DataFrame({"g": ["a"], "t": [1e9]}), "new")


@pytest.mark.parametrize(
    "formula",
    [
        "~ 1",
        "~ g * t",
        "~ C(g, Treatment('b'))",
        "~ bs(t, df=4) + I(t**2)",
        "~ np.log(`a.b` + 1)",
        "~ log(a.b)",
        "~ I(t**-0.5)",
    ],
)
def test_formulas_are_plain(formula):
    assert is_plain(formula, ["a.b"])


@pytest.mark.parametrize(
    "formula",
    [
        "~ {__import__('os').system('true')}",
        "~ {[x for x in t]}",
        "~ {(lambda: 1)()}",
        "~ np.load('x')",
        "~ np.lib._npyio_impl.os.system('x')",
        "~ {np.lib}",
        "~ foo(t)",
        "~ {f'{t}'}",
        "~ I(9**9**9)",
        "~ I((t**9)**9)",
        "~ {'a' * 9}",
        "~ {[1] * 9}",
        "~ (g + t)**99",
        "~ {1 << 9}",
        "~ log(",
        "~ {t if t else t}",
        "~ {(t := 1)}",
    ],
)
def test_code_is_not(formula):
    assert not is_plain(formula)


@pytest.mark.parametrize("formula", ["~ 1/t", "~ t/2", "~ t**2", "~ t^2", "~ `t`**3", "~ log(t)**2", "~ g + 1/t"])
def test_arithmetic_that_a_formula_would_read_otherwise_is_refused(formula):
    table = pd.DataFrame({"t": [1.0, 2.0, 4.0], "g": ["a", "b", "a"]})
    with pytest.raises(InvalidArgumentError, match=r"write I\("):
        read_formula(formula, table, "design")


def test_labels_beside_the_levels_of_a_formula_are_refused():
    table = pd.DataFrame({"t": [1.0, 2.0, 4.0], "g": ["a", "b", "c"]})
    for formula in ("~ C(g, levels=['a', 'b'])", "~ t + C(g, levels=['a'])", "~ C(g, contr.sum, levels=['b', 'c'])"):
        with pytest.raises(InvalidArgumentError, match="outside of the nominated levels"):
            read_formula(formula, table, "design")


@pytest.mark.parametrize("name", ["\\d", "\\1", "\\g<0>", "a\\b"])
def test_names_with_backslashes_come_back(name):
    table = pd.DataFrame({name: [1.0, 2.0, 4.0]})
    assert read_formula(f"~ log(`{name}`)", table, "design").names == ["Intercept", f"log(`{name}`)"]
