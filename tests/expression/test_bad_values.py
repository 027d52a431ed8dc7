"""Anything may be given to any argument: it is taken, or refused in our own words."""

import inspect

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import pyrosplice.api as de
from pyrosplice import ExpressionGLM
from pyrosplice._expression.comparisons import ExpressionTests
from pyrosplice._expression.fit import model
from pyrosplice._expression.results import ExpressionTest
from pyrosplice.errors import InvalidArgumentError

N = 24
RNG = np.random.default_rng(0)
OBS = pd.DataFrame(
    {
        "g": np.tile(["a", "b"], 12),
        "h": np.repeat(["x", "y"], 12),
        "t": RNG.random(N),
        "donor": np.repeat(list("uvwxyz"), 4),
    },
    index=[f"c{i}" for i in range(N)],
)
CELLS = ad.AnnData(RNG.poisson(5.0, (N, 3)).astype(float), OBS, pd.DataFrame(index=["G0", "G1", "G2"]))
ODD = [
    None,
    True,
    5,
    -1,
    0,
    2.5,
    float("nan"),
    float("inf"),
    "x",
    "",
    b"x",
    [],
    {},
    (),
    ["x"],
    [None],
    [["x"]],
    {"x"},
    {"x": 1},
    np.array([1.0]),
    np.array(["x"]),
    np.ones((2, 2, 2)),
    pd.Series([1.0]),
    pd.DataFrame({"x": [1]}),
    sp.csr_matrix(np.eye(2)),
    object(),
    1j,
    range(2),
    slice(2),
    np.float64(3),
    pd.NaT,
]
FIT = {"formula_loc": "~1+g"}
CALLS = {
    "fit.model": (model, FIT),
    "wald": (de.test.wald, {"factor_loc_totest": "g", **FIT}),
    "score": (de.test.score, {"factor_loc_totest": "g", **FIT}),
    "lrt": (de.test.lrt, {"full_formula_loc": "~1+g", "reduced_formula_loc": "~1"}),
    "continuous_1d": (de.test.continuous_1d, {"continuous": "t", "df": 3}),
    "t_test": (de.test.t_test, {"grouping": "g"}),
    "rank_test": (de.test.rank_test, {"grouping": "g"}),
    "two_sample": (de.test.two_sample, {"grouping": "g"}),
    "pairwise": (de.test.pairwise, {"grouping": "g"}),
    "versus_rest": (de.test.versus_rest, {"grouping": "g"}),
    "partition": (lambda data, parts="h", **o: de.test.partition(data, parts, **o).t_test(grouping="g"), {}),
}
OPTIONS = {"partition": ("parts", "gene_names", "sample_description", "missing")}
OF_A_FIT = [name for name in inspect.signature(model).parameters if name not in ("data", "kwargs")]


def options_of(call):
    names = [n for n, p in inspect.signature(CALLS[call][0]).parameters.items() if p.kind is not p.VAR_KEYWORD]
    others = {"fit.model": OF_A_FIT, "pairwise": ("weights", "offsets")}.get(call, ("size_factors", "batch_size"))
    return OPTIONS.get(call, dict.fromkeys([*names, *others]))


@pytest.mark.slow
@pytest.mark.parametrize("call", sorted(CALLS))
@pytest.mark.filterwarnings("ignore")
def test_arguments_are_taken_or_refused(call):
    run, usual = CALLS[call]
    for name in options_of(call):
        for value in ODD:
            given = {"data": CELLS, **usual, name: value}
            try:
                run(**given)
            except InvalidArgumentError:
                continue
            except Exception as error:
                raise AssertionError(f"{call}({name}={value!r}) raised {type(error).__name__}: {error}") from error


METHODS = [
    (kind, name)
    for kind, cls in (("test", ExpressionTest), ("tests", ExpressionTests))
    for name, member in inspect.getmembers(cls, inspect.isfunction)
    if not name.startswith(("_", "plot"))
]


@pytest.fixture(scope="module")
def results():
    return {"test": de.test.wald(CELLS, "g", **FIT), "tests": de.test.pairwise(CELLS, "donor", test="t-test")}


USUAL = {"group1": "u", "group2": "v", "group": "u", "alternative": "greater"}


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_methods_of_results_take_or_refuse(kind, name, results):
    method = getattr(results[kind], name)
    named = inspect.signature(method).parameters
    usual = {n: value for n, value in USUAL.items() if n in named}
    usual |= {"adata": CELLS.copy()} if "adata" in named else {}
    thresholds = ["qval_thres", "fc_upper_thres", "nonsense"] if "thresholds" in named else []
    for argument in [n for n in named if n != "thresholds"] + thresholds:
        for value in ODD:
            try:
                method(**{**usual, argument: value})
            except InvalidArgumentError:
                continue
            except Exception as error:
                raise AssertionError(f"{name}({argument}={value!r}) raised {type(error).__name__}: {error}") from error
            assert argument != "nonsense"


@pytest.mark.filterwarnings("ignore")
def test_genes_are_taken_by_name_or_position_everywhere():
    curve = de.test.continuous_1d(CELLS, "t", df=3)
    fitted = curve.estimator.model
    for method in (fitted.location_j, fitted.scale_j, fitted.eta_loc_j, fitted.eta_scale_j, fitted.ll_j, curve.curve):
        whole = method(None)
        for one in ("G1", 1, ["G1"], np.array([1]), np.array([False, True, False])):
            np.testing.assert_allclose(method(one), whole[:, [1]], rtol=1e-12)
        for wrong in ("G9", 9, -1, 1.0, [1.5], object(), {"G1": 1, 3: 2}):
            with pytest.raises(InvalidArgumentError, match="genes"):
                method(wrong)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("argument", ["contrast", "factor", "coefficient", "method", "donors"])
def test_contrasts_of_the_class_are_taken_or_refused(argument):
    glm = ExpressionGLM("~1+g").fit(CELLS)
    for value in ODD:
        usual = {"method": "cluster", "coefficient": "g[T.b]", "donors": "donor"}
        given = {**(usual if argument in usual else {}), argument: value}
        try:
            glm.test(**given)
        except InvalidArgumentError:
            continue


def test_columns_of_absurd_size_are_refused():
    for factor in (1e200, 1e-200):
        with pytest.raises(InvalidArgumentError, match=r"'t'.*rescale"):
            model(CELLS.X, "~1+t", as_numeric="t", sample_description=OBS.assign(t=OBS["t"] * factor))
