"""Designs far from zero, conditions of transformed numbers, files of designs, genes that fail alone."""

import json
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch

from pyrosplice._expression import fit
from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.engine.basis import conditioned
from pyrosplice._expression.engine.gene_fits import fit_glm
from pyrosplice._expression.engine.row_source import Design, RowSource
from pyrosplice._expression.expression_glm import ExpressionGLM
from pyrosplice._expression.formula_design import check_full_rank
from pyrosplice._io.archive import Archive
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.errors import InvalidArgumentError, ModelFileError
from pyrosplice.likelihoods import NegativeBinomial

N = 90
RNG = np.random.default_rng(0)
U, V = RNG.random(N), RNG.random(N)
TABLE = pd.DataFrame(
    {
        "g": ["a", "b", "c"] * 30,
        "h": RNG.choice(["x", "y"], N),
        "t": RNG.uniform(1, 15, N),
        "p.m": RNG.uniform(1, 9, N),
        "donor": np.repeat(list("abcdef"), 15),
    }
)
Y = RNG.negative_binomial(4, 4 / (4 + np.exp(1.5 + 0.4 * U)[:, None] * np.ones(6)))
Y[:, 4], Y[np.array(TABLE["g"]) == "b", 5] = 0, 0
FAR = {
    "ordinal date": ({"x": 737_791 + 365 * U}, "x"),
    "decimal year": ({"x": 2021 + U}, "x"),
    "position": ({"x": 44e6 + 9e3 * U}, "x"),
    "product": ({"x": 737_791 + 365 * U, "z": 2021 + V}, "x*z"),
    "square": ({"x": 737_791 + 365 * U}, "x + I(x**2)"),
    "two dates": ({"x": 737_791 + 365 * U, "z": 737_792 + 365 * U + V}, "x + z"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(FAR))
@pytest.mark.parametrize("scale", ["~1", "~1+x"])
def test_a_design_far_from_zero_is_the_centered_one(kind, scale):
    columns, terms = FAR[kind]
    near = {k: (v - v.mean()) / v.std() for k, v in columns.items()}
    far, centered = (
        ExpressionGLM(f"~1+g+{terms}", scale, as_numeric=list(columns)).fit(Y, sample_description=TABLE.assign(**c))
        for c in (columns, near)
    )
    np.testing.assert_array_equal(far.results.code, centered.results.code)
    np.testing.assert_allclose(far.results.log_likelihood, centered.results.log_likelihood, atol=1e-6)
    contrasts = [
        m.cond(g="c", **{k: v[0] for k, v in c.items()}) - m.cond(g="a", **{k: v[0] for k, v in c.items()})
        for m, c in ((far, columns), (centered, near))
    ]
    for method in ("wald", "lrt", "cluster", *(("glmm", "ql") if scale == "~1" else ())):
        donors = TABLE["donor"] if method in ("cluster", "glmm") else None
        with pytest.warns(UserWarning, match="within donors") if method == "glmm" else nullcontext():
            a = far.test(contrasts[0], method=method, donors=donors)
        with pytest.warns(UserWarning, match="within donors") if method == "glmm" else nullcontext():
            b = centered.test(contrasts[1], method=method, donors=donors)
        np.testing.assert_allclose(a.pval, b.pval, rtol=1e-3, atol=1e-6)
    good = far.results.code == FitCode.CONVERGED
    np.testing.assert_allclose(
        far.summary()["se"].to_numpy().reshape(6, -1)[good, 2],
        centered.summary()["se"].to_numpy().reshape(6, -1)[good, 2],
        rtol=1e-6,
    )
    for column in ("effect", "se"):
        np.testing.assert_allclose(*(m.shrink("g[T.c]", scale=0.5)[column][good] for m in (far, centered)), rtol=1e-5)
    start = far.estimator
    again = fit.model(
        Y,
        f"~1+g+{terms}",
        scale,
        as_numeric=list(columns),
        sample_description=TABLE.assign(**columns),
        init_a=np.nan_to_num(start.a_var),
        init_b=np.nan_to_num(start.b_var),
    )
    assert (again.niter[good] <= 2).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(FAR))
@pytest.mark.parametrize("method", ["wald", "lrt", "ql", "cluster", "glmm"])
@pytest.mark.filterwarnings("ignore:donors")
def test_the_far_column_itself_is_tested_as_the_centered_one(kind, method):
    columns, terms = FAR[kind]
    near = {k: (v - v.mean()) / v.std() for k, v in columns.items()}
    donors = TABLE["donor"] if method in ("cluster", "glmm") else None
    far, centered = (
        ExpressionGLM(f"~1+{terms}", as_numeric=list(columns)).fit(Y, sample_description=TABLE.assign(**c))
        for c in (columns, near)
    )
    highest = far.coefficient_names[-1]  # which centring leaves what it is, up to its unit
    a, b = (m.test(coefficient=highest, method=method, donors=donors) for m in (far, centered))
    np.testing.assert_allclose(a.pval, b.pval, rtol=2e-3, atol=1e-6)


def test_well_conditioned_designs_stay_as_they_are():
    x = np.column_stack([np.ones(N), U > 0.9, V, 50 + 10 * V]).astype(float)
    assert conditioned(x[:, :3], np.ones(N)).trivial
    basis = conditioned(np.column_stack([x[:, :2], 2021 + V]), np.ones(N))
    np.testing.assert_array_equal(basis.matrix[:, :2], np.eye(3)[:, :2])
    np.testing.assert_allclose(basis.matrix @ basis.inverse, np.eye(3), atol=1e-9)


def test_exactly_dependent_columns_are_refused():
    table = TABLE.assign(x=737_791 + 365 * U, y=(737_791 + 365 * U) * 0.1 + 3, z=(U - U.mean()) / U.std())
    for terms in ("x + y", "x + z", "x*g + z"):
        with pytest.raises(InvalidArgumentError, match="depend linearly"):
            fit.model(Y, f"~1+{terms}", as_numeric=["x", "y", "z"], sample_description=table)


@pytest.mark.parametrize("n", [10, 12, 777, 1000, 3001, 8000, 50_000, 100_000])
def test_a_crossed_design_has_full_rank_at_any_number_of_cells(n):
    patient, drug = np.arange(n) % 5, np.arange(n) // 5 % 2
    one = (patient[:, None] == np.arange(1, 5)).astype(float)
    columns = np.column_stack([np.ones(n), drug, one, drug[:, None] * one])
    check_full_rank(columns, list("abcdefghij"), "formula_loc")
    check_full_rank(columns * np.pi * 1e3, list("abcdefghij"), "formula_loc")
    with pytest.raises(InvalidArgumentError, match="depend linearly"):
        check_full_rank(np.column_stack([columns, drug + one[:, 0]]), list("abcdefghijk"), "formula_loc")


TRANSFORMS = [
    "np.log(t)",
    "I(1/t)",
    "bs(t, df=4)",
    "center(t)",
    "scale(t)",
    "poly(t, 2)",
    "t",
    "np.log(t)*h",
    "bs(`p.m`, df=4)",
    "np.log(t) + I(1/`p.m`)",
    "cr(t, df=3, constraints='center')",
]


@pytest.mark.parametrize("term", TRANSFORMS)
def test_conditions_and_new_cells_before_and_after_a_file(term, tmp_path):
    glm = ExpressionGLM(f"~1+g+{term}", as_numeric=["t", "p.m"]).fit(Y, sample_description=TABLE)
    glm.save(tmp_path / "model")
    loaded = ExpressionGLM.load(tmp_path / "model")
    want = glm.test(coefficient="g[T.b]").pval
    for model in (glm, loaded):
        np.testing.assert_array_equal(model.test(model.cond(g="b") - model.cond(g="a")).pval, want)
        np.testing.assert_allclose(model._design().for_new(TABLE.iloc[7:20]), glm._design().matrix[7:20], atol=1e-12)
    np.testing.assert_array_equal(
        loaded.cond(t=3.0, g="c"), glm.cond(t=3.0, g="c")
    ) if "t" in glm._design().numeric else None
    pd.testing.assert_frame_equal(loaded.summary(), glm.summary())


def test_a_condition_that_has_no_value_says_what_to_give():
    glm = ExpressionGLM("~1+g*np.log(t)", as_numeric="t").fit(Y, sample_description=TABLE)
    for contrast in (glm.cond(g="b") - glm.cond(g="a"), glm.cond(g="b", t=2.0) - glm.cond(g="b"), glm.cond(g="a")):
        with pytest.raises(InvalidArgumentError, match="'t'"):
            glm.test(contrast)
    assert np.isfinite(glm.test(glm.cond(g="b", t=2.0) - glm.cond(g="a", t=2.0)).pval[:4]).all()
    with pytest.raises(InvalidArgumentError, match=r"typo.*g \(a, b, c\); t"):
        glm.cond(typo="b")
    with pytest.raises(InvalidArgumentError, match=r"never saw.*'a', 'b', 'c'"):
        glm.cond(g="z")


CODE = ["~1 + g + {__import__('os').getcwd()}", "~1 + g + {[x for x in (1,)][0]}", "~ I((lambda: 1)())"]


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("key", ["formula_loc", "formula_scale", "recipe"])
def test_code_in_a_file_is_refused(code, key, tmp_path):
    ExpressionGLM("~1 + g").fit(Y, sample_description=TABLE).save(tmp_path / "model")
    archive = Archive.load(tmp_path / "model", "ExpressionGLM")
    content = json.loads(json.dumps(archive.content))
    if key == "recipe":
        content["design"]["recipe"]["fields"]["formula"] = content["settings"]["formula_loc"] = code
    else:
        content["settings"][key] = code
    Archive(archive.kind, content, archive.tensors).save(tmp_path / "crafted")
    with pytest.raises(ModelFileError, match="is code"):
        ExpressionGLM.load(tmp_path / "crafted")


def test_a_formula_that_is_more_is_saved_without_new_cells(tmp_path):
    glm = ExpressionGLM("~1+g+{t**t}", as_numeric="t").fit(Y, sample_description=TABLE.assign(t=U))
    glm.save(tmp_path / "model")
    loaded = ExpressionGLM.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.test(coefficient="g[T.b]").pval, glm.test(coefficient="g[T.b]").pval)
    with pytest.raises(InvalidArgumentError, match="other code"):
        loaded.cond(g="b")


def test_genes_without_counts_have_no_standard_error():
    table = ExpressionGLM("~1+g").fit(Y, sample_description=TABLE).summary()
    assert table.loc[table["gene"] == "gene4", ["effect", "se"]].isna().all(None)
    assert table.loc[table["gene"] == "gene0", "se"].gt(0).all()


def test_any_mode_of_autograd_around_a_fit():
    def everything():
        glm = ExpressionGLM("~1+g").fit(Y[:, :4], sample_description=TABLE)
        draws = glm.posterior(num_samples=5, groups=[])["posterior"]["location"].to_numpy()
        return glm, [glm.test(factor="g", method="lrt").pval, glm.shrink("g[T.b]")["effect"].to_numpy(), draws]

    want = everything()[1]
    with torch.inference_mode():
        glm, found = everything()
    for a, b in zip([*found, glm.shrink("g[T.b]")["effect"].to_numpy()], [*want, want[1]], strict=True):
        np.testing.assert_array_equal(a, b)


class Refusing(NegativeBinomial):
    """Raises wherever a gene is counted more than a thousand times."""

    def log_prob(self, counts, eta):
        return super().log_prob(counts, eta)

    def terms(self, total, weight, eta, zeta):
        if bool((total > 1000).any()):
            raise ValueError("too many")
        return super().terms(total, weight, eta, zeta)


def test_a_gene_that_raises_fails_alone():
    x = np.column_stack([np.ones(N), V])
    design = Design(x, np.ones((N, 1)), np.zeros(N), np.zeros(N))
    y = Y[:, :4].astype(float)
    want = fit_glm(RowSource(CountMatrix(y), design, Refusing()))
    y[3, 2] = 5000
    found = fit_glm(RowSource(CountMatrix(y), design, Refusing()))
    assert found.reason[2] == "raised" and np.isnan(found.theta[2]).all()
    others = [0, 1, 3]
    np.testing.assert_allclose(found.theta[others], want.theta[others], atol=1e-9)
    y[4] = 5000
    with pytest.raises(ValueError, match="too many"):  # where every gene does, the fault is no gene's
        fit_glm(RowSource(CountMatrix(y), design, Refusing()))
