"""Every missing p-value and standard error of expression has a reason, whatever the gene, the design and the test."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import pyrosplice.api as de
from pyrosplice import ExpressionGLM
from pyrosplice._expression.estimator import Estimator
from pyrosplice._optimize.convergence import FitCode, reasons_of_codes
from pyrosplice.errors import ModelFileError
from pyrosplice.reasons import Reason
from tests.expression.conftest import every_test
from tests.missing_results import check_reasons

N = 90
CELLS = pd.DataFrame(
    {
        "group": np.tile(["a", "b", "c"], 30),
        "half": np.tile(["u", "v"], 45),
        "part": np.repeat(["p", "q"], 45),
        "donor": np.repeat([f"d{i}" for i in range(9)], 10),
        "t": np.random.default_rng(0).uniform(0, 4, N),
    },
    index=[f"cell{i}" for i in range(N)],
)


def awkward_counts():
    """Genes that are plain, plain, without counts, without counts in a group, seen in one cell, constant, Poisson."""
    rng = np.random.default_rng(1)
    y = rng.negative_binomial(2, 0.3, (N, 8)).astype(float)
    y[:, 2] = 0
    y[CELLS["group"] == "a", 3] = 0
    y[:, 4] = np.arange(N) == 17
    y[:, 5] = 3
    y[:, 6] = rng.poisson(4, N)
    y[CELLS["half"] == "u", 7] = 0
    return y


@pytest.fixture(scope="module")
def cells():
    return ad.AnnData(awkward_counts(), obs=CELLS.copy(), var=pd.DataFrame(index=[f"G{i}" for i in range(8)]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("call", sorted(every_test(None)))
def test_tables_of_documented_calls(cells, call):
    found = every_test(cells)[call]()
    table = found.summary()
    check_reasons(table, least=1)
    for ours, documented in (("pvalue", "pval"), ("pvalue_adj", "qval")):
        np.testing.assert_array_equal(table[ours], table[documented])
    assert table.loc[2, "reason"] == "no_counts"
    for key, test in getattr(found, "tests", {}).items():
        check_reasons(test.summary(), least=1)
        if len(key) == 2:
            there, back = found.summary_pair(*key), found.summary_pair(*key[::-1])
            check_reasons(there, least=1)
            np.testing.assert_array_equal(there["lower"], -back["upper"])
            np.testing.assert_array_equal(there["effect"], -back["effect"])
    if "pairwise" in call:
        check_reasons(found.summary_pairs(["a"], ["b", "c"]), least=1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:donors. the tested")
@pytest.mark.parametrize("method", ["wald", "lrt", "score", "robust", "ql", "cluster", "glmm"])
def test_tables_of_every_method(cells, method):
    glm = ExpressionGLM("~1+half").fit(cells)
    donors = {"donors": "donor"} if method in ("cluster", "glmm") else {}
    table = glm.test(coefficient="half[T.v]", method=method, **donors).summary()
    check_reasons(table, least=1)
    assert table.loc[2, ["reason", "fit_ended"]].tolist() == ["no_counts"] * 2
    assert table.loc[7, "fit_ended"] == "separated"
    if method == "glmm":  # whose law is pooled over fifty genes and more
        alone = ExpressionGLM("~1+half").fit(cells[:, :2].copy())
        alone = alone.test(coefficient="half[T.v]", method=method, **donors).summary()
        np.testing.assert_allclose(table[["pvalue", "effect", "se"]][:2], alone[["pvalue", "effect", "se"]], rtol=1e-6)
    check_reasons(glm.summary(), least=3)
    check_reasons(glm.shrink("half[T.v]"), least=1)
    assert glm.summary().groupby("gene")["fit_ended"].first().tolist() == glm.results.reason.tolist()


def test_models_that_differ_in_scale_have_no_effect_to_show(cells):
    table = de.test.lrt(cells, "~1", "~1", "~1+half", "~1").summary()
    check_reasons(table)
    assert not {"effect", "se", "lower", "upper"} & set(table) and table["log2fc"].isna().all()


def test_a_fit_that_failed_says_how(cells):
    """The documented codes know one failure, the reasons which; both are kept."""
    estimator = de.fit.model(cells, "~1+half", training_strategy=[{"max_iter": 1}])
    assert isinstance(estimator, Estimator) and set(estimator.error_codes) <= set(range(5))
    assert estimator.reason[0] == "max_epochs" and estimator.error_codes[0] == FitCode.FAILED
    table = de.test.wald_repeated(estimator, coef_to_test="half[T.v]").summary()
    check_reasons(table, least=2)
    assert table.loc[0, "reason"] == "max_epochs" and "max_epochs" in repr(estimator)


def test_codes_and_words_are_one_vocabulary():
    assert reasons_of_codes(list(FitCode)).tolist() == [code.reason.value for code in FitCode]
    assert all(FitCode.of(code.reason) == code for code in FitCode)
    assert FitCode.of(Reason.NOT_REFINED) == FitCode.FAILED
    assert len({reason.text for reason in Reason}) == len(Reason) and all(reason.text for reason in Reason)
    assert Reason("boundary") == "boundary" and f"{Reason.BOUNDARY}" == "boundary"


def test_a_file_with_codes_that_there_are_not_is_refused(cells, tmp_path):
    glm = ExpressionGLM("~1+half").fit(cells)
    glm.results.code[:] = 99
    glm.save(tmp_path / "glm")
    with pytest.raises(ModelFileError, match="code: expected numbers from 0 to 11, found 99 to 99"):
        ExpressionGLM.load(tmp_path / "glm")
