"""Random terms as lme4 writes them: what they mean, where they are refused, and what is left of the formula."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice._tables.formula_grammar import is_plain
from pyrosplice._tables.formulas import read_formula
from pyrosplice._tables.random_terms import RandomTerm, split_random_terms
from pyrosplice.errors import InvalidArgumentError

FIXED = ["condition", "log(age)", "poly(x, 2)", "a:b", "(a + b):c", "`a | b`", "{x + 1}", "C(x, levels=['a|b'])", "0"]
LEFTS = ["1", "0 + x", "1 + condition", "x - 1", "log(age)", "poly(x, 2) + `my age`", "(1 + x)", "a*b"]
FACTORS = {
    "donor": [("donor",)],
    "`a b`": [("a b",)],
    "donor.id": [("donor.id",)],
    "donor:batch": [("donor", "batch")],
    "donor/sample": [("donor",), ("donor", "sample")],
    "a/b/c": [("a",), ("a", "b"), ("a", "b", "c")],
    "a:b/c": [("a", "b"), ("a", "b", "c")],
    "a/b:c": [("a",), ("a", "b", "c")],
    "a/(b:c)": [("a",), ("a", "b", "c")],
    "(a/b)/c": [("a",), ("a", "b"), ("a", "b", "c")],
    "(donor)": [("donor",)],
    "a:b:a": [("a", "b")],
}
BLANKS = st.sampled_from(["", " ", "  ", "\n"])


@st.composite
def formulas(draw):
    """A formula with random terms anywhere, its fixed terms and what the random ones mean."""
    fixed = draw(st.lists(st.sampled_from(FIXED), max_size=3))
    parts, meant = [(term, False) for term in fixed], []
    for _ in range(draw(st.integers(1, 3))):
        left, bar = draw(st.sampled_from(LEFTS)), draw(st.sampled_from(["|", "||"]))
        by = draw(st.sampled_from(sorted(FACTORS)))
        a, b, c, d = (draw(BLANKS) for _ in range(4))
        place = draw(st.integers(0, len(parts)))
        parts.insert(place, (f"({a}{left}{b}{bar} {c}{by}{d})", True))
        before = sum(random for _, random in parts[:place])
        meant.insert(before, [RandomTerm(f"~ {left}", names, bar == "|") for names in FACTORS[by]])
    sign = f"{draw(BLANKS)}+{draw(BLANKS)}"
    return f"~{draw(BLANKS)}{sign.join(text for text, _ in parts)}", fixed, [term for terms in meant for term in terms]


@given(formulas())
def test_terms_mean_what_they_mean_in_lme4_wherever_they_stand(example):
    formula, fixed, meant = example
    rest, terms = split_random_terms(formula, "formula")
    assert list(terms) == meant
    assert "".join(rest.split()) == "".join(f"~{'+'.join(fixed) or '1'}".split())
    assert split_random_terms(rest, "formula") == (rest, ())


@pytest.mark.parametrize("formula", ["~ a + b", "a", "~ {x | y}", "~ log(", "~ `a | b` + f('|')", "y ~ a - 1"])
def test_formulas_without_random_terms_come_back_as_they_are(formula):
    assert split_random_terms(formula, "formula") == (formula, ())


@pytest.mark.parametrize(
    ("formula", "rest"),
    [("(1 | g)", "1"), ("y ~ (1 | g)", "y ~ 1"), ("~ (1 | g) - 1 + x", "~ - 1 + x"), ("~ ((1 | g)) + x", "~ x")],
)
def test_what_is_left(formula, rest):
    left, terms = split_random_terms(formula, "formula")
    assert (" ".join(left.split()), terms) == (rest, (RandomTerm("~ 1", ("g",)),))


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("~ (1 | )", "nothing on one side"),
        ("~ ( | g)", "nothing on one side"),
        ("~ (|)", "nothing on one side"),
        ("~ 1 | g", r"outside of parentheses; write \(1 \| donor\)"),
        ("~ a || g", "outside of parentheses"),
        ("~ (1 | g | h)", "2 bars"),
        ("~ x - (1 | g)", "beside other signs"),
        ("~ x:(1 | g)", "beside other signs"),
        ("~ (1 | g) * x", "beside other signs"),
        ("(1 | g) ~ x", "beside other signs"),
        ("~ ((1 | g) + x)", "parentheses of its own"),
        ("~ (1 | g", "do not match"),
        ("~ (1 |/ g)", r"'\|/'"),
        ("~ (1 | a + b)", "one term for each"),
        ("~ (1 | a * b)", "one term for each"),
        ("~ (1 | a/(b/c))", "one term for each"),
        ("~ (1 | f(g))", "names of columns"),
        ("~ (1 | 1)", "names of columns"),
        ("~ (1 | g:)", "names of columns"),
        (3, "expected a formula"),
    ],
)
def test_what_is_no_term_is_refused_in_words(formula, says):
    with pytest.raises(InvalidArgumentError, match=rf"^formula: .*{says}"):
        split_random_terms(formula, "formula")


@pytest.mark.parametrize("formula", ["~ (1 | g)", "~ t + (t || g)", "~ (1 | g/h) + t"])
def test_doors_for_fixed_effects_go_on_refusing_them(formula):
    table = pd.DataFrame({"t": [1.0, 2], "g": ["a", "b"], "h": ["a", "b"]})
    with pytest.raises(InvalidArgumentError, match="use donors"):
        read_formula(formula, table, "formula", random_effects="use donors")


@pytest.mark.parametrize("formula", ["~ g + (1 + log(t) | a.b:c)", "~ (poly(t, 2) || `a b`/c)", "~ (0 + log(a.b) | g)"])
def test_random_terms_of_a_file_are_plain(formula):
    assert is_plain(formula, ["a.b"])


@pytest.mark.parametrize(
    "formula",
    [
        "~ ({__import__('os').system('true')} | g)",
        "~ (1 | {__import__('os').system('true')})",
        "~ (1 | g) + {(lambda: 1)()}",
        "~ (foo(t) | g)",
        "~ ((a + b)**99 | g)",
        "~ (1 | g",
        "~ (1 | foo(g))",
    ],
)
def test_code_in_random_terms_of_a_file_is_not(formula):
    assert not is_plain(formula)
