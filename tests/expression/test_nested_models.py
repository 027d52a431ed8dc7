"""Ratio and score tests of the documented interface with random terms in their formulas."""

import numpy as np
import pandas as pd
import pytest

import pyrosplice.api as de
from pyrosplice import ExpressionGLM
from pyrosplice.effects import Groups
from pyrosplice.errors import InvalidArgumentError

OBS = pd.DataFrame({"g": np.repeat(["a", "b"], 60), "donor": np.repeat([f"d{i}" for i in range(12)], 10)})
OBS["x"] = np.random.default_rng(1).random(120)
RNG = np.random.default_rng(0)
COUNTS = RNG.negative_binomial(
    5, 5 / (5 + np.exp(2 + 0.3 * RNG.standard_normal((12, 4))[np.repeat(np.arange(12), 10)]))
)
FIT = {"sample_description": OBS, "as_numeric": ["x"]}


@pytest.mark.filterwarnings("ignore:.*varies within")
@pytest.mark.parametrize("columns", [["g"], ["g", "x"]])
def test_random_terms_are_tested_as_the_estimator_tests_them(columns):
    formula = f"~ 1 + {' + '.join(columns)} + (1 | donor)"
    glm = ExpressionGLM(formula, as_numeric=["x"]).fit(COUNTS, sample_description=OBS)
    ratio = de.test.lrt(COUNTS, formula, "~ 1 + (1 | donor)", **FIT)
    score = de.test.score(COUNTS, factor_loc_totest=columns, formula_loc=formula, **FIT)
    for found, method in ((ratio, "lrt"), (score, "score")):
        want = glm.test(factor=columns, method=method)
        np.testing.assert_allclose(found.pval, want.pval, rtol=1e-8)
        np.testing.assert_allclose(found.logfc, want.logfc, rtol=1e-8)
        assert found.method == method and found.estimator is not None


def test_without_random_terms_they_are_the_tests_that_were():
    obs = {"sample_description": OBS}
    glm = ExpressionGLM("~ g").fit(COUNTS, **obs)
    np.testing.assert_allclose(
        de.test.lrt(COUNTS, "~ g", "~ 1", **obs).pval, glm.test(factor="g", method="lrt").pval, rtol=1e-6
    )
    assert np.isfinite(de.test.score(COUNTS, "g", formula_loc="~ g", **obs).pval).all()


@pytest.mark.parametrize(
    ("full", "reduced", "words"),
    [
        ("~ g + (1 | donor)", "~ 1", "reduced_formula_loc: expected the random terms of"),
        ("~ g", "~ 1 + (1 | donor)", "reduced_formula_loc: expected the random terms of"),
        ("~ g + (1 | donor)", "~ g + (1 | donor)", "some of the columns"),
        ("~ g + (1 | donor)", "~ x + (1 | donor)", "some of the columns"),
    ],
)
def test_models_that_are_not_nested_are_refused(full, reduced, words):
    with pytest.raises(InvalidArgumentError, match=words):
        de.test.lrt(COUNTS, full, reduced, **FIT)


def test_scales_beside_random_terms_are_refused():
    with pytest.raises(InvalidArgumentError, match="full_formula_scale: beside random terms"):
        de.test.lrt(COUNTS, "~ g + (1 | donor)", "~ 1 + (1 | donor)", "~ g", **FIT)


def test_groups_are_compared_between_donors():
    obs = OBS.assign(h=np.tile(["u", "v", "w"], 4).repeat(10))
    donors = {"effects": [Groups("donor")], "sample_description": obs}
    tested = de.test.versus_rest(COUNTS, "h", **donors)
    frame = tested.to_frame()
    assert set(frame["unit"]) == {"donor"} and (frame["n_units"] == 12).all() and (frame["df"] < 30).all()
    pairs = de.test.pairwise(COUNTS, "h", reference="u", **donors)
    assert set(pairs.to_frame()["contrast"]) == {"v vs u", "w vs u"} and set(pairs.to_frame()["unit"]) == {"donor"}
    for test in ("t-test", "rank", "lrt"):
        with pytest.raises(InvalidArgumentError, match="effects"):
            de.test.versus_rest(COUNTS, "h", test=test, **donors)
