"""The documented page of fit.model: every argument, every attribute, every error."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrosplice._expression import fit
from pyrosplice._expression.constraints import parse_constraint
from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.formula_design import from_formula
from pyrosplice._expression.size_factors import median_of_ratios, normed_sum
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.errors import InvalidArgumentError, NotReadyError


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    obs = pd.DataFrame(
        {
            "condition": np.repeat(["ctrl", "drug"], 60),
            "batch": np.tile(np.repeat(["b1", "b2", "b3"], 20), 2),
            "nested": [f"d{i}" for i in np.repeat([1, 2, 3, 4], 30)],
            "time": rng.normal(size=120),
            "size": rng.lognormal(0, 0.3, 120),
        },
        index=[f"cell{i}" for i in range(120)],
    )
    mean = np.exp(rng.normal(1, 0.5, 8)[None] + 0.5 * (obs["condition"] == "drug").to_numpy()[:, None])
    mean = mean * obs["size"].to_numpy()[:, None]
    x = rng.poisson(rng.gamma(2.0, mean / 2.0)).astype(float)
    return ad.AnnData(x, obs, pd.DataFrame(index=[f"G{i}" for i in range(8)]))


@pytest.fixture(scope="module")
def reference(data):
    return fit.model(data, "~1+condition", size_factors="size")


def test_attributes_and_shapes(reference):
    n, g, p = 120, 8, 2
    assert reference.a_var.shape == (p, g) and reference.b_var.shape == (1, g)
    assert reference.log_likelihood.shape == (g,) and np.isclose(reference.loss, -reference.log_likelihood.sum())
    assert reference.jacobian.shape == (g, 3) and np.abs(reference.jacobian).max() < 1e-5
    assert reference.hessian.shape == reference.fisher_inv.shape == (g, 3, 3)
    assert (reference.error_codes == FitCode.CONVERGED).all() and (reference.niter > 0).all()
    assert reference.x.shape == (n, g) and len(reference.lls) == 1
    model = reference.model
    assert model.a.shape == (p, g) and model.location.shape == model.scale.shape == model.ll.shape == (n, g)
    np.testing.assert_allclose(model.ll.sum(0), reference.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(np.log(model.mu), model.eta_loc)
    np.testing.assert_allclose(model.r, np.exp(model.eta_scale))
    assert model.design_loc_names == ["Intercept", "condition[T.drug]"] and model.design_scale_names == ["Intercept"]
    assert model.design_loc.shape == (n, p) and model.constraints_loc.shape == (p, p)
    assert model.converged.all() and model.fim.shape == (g, p, p) and model.jac.shape == (g, 3)
    np.testing.assert_allclose(model.location_j([2, 5]), model.location[:, [2, 5]])


@pytest.mark.parametrize("kind", ["ndarray", "csr", "csc", "frame", "raw", "backed", "layer", "int"])
def test_every_input_gives_the_same_fit(kind, data, reference, tmp_path):
    kwargs = {"formula_loc": "~1+condition", "size_factors": "size", "sample_description": data.obs}
    x = data.X
    if kind == "backed":
        sparse = ad.AnnData(sp.csr_matrix(x), data.obs, data.var)
        sparse.write_h5ad(tmp_path / "a.h5ad")
        source = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    elif kind == "raw":
        source = ad.AnnData(x, data.obs, data.var)
        source.raw = source
        source = source.raw
    elif kind == "layer":
        source = ad.AnnData(x * 0, data.obs, data.var, layers={"counts": x})
        kwargs["layer"] = "counts"
    else:
        source = {
            "ndarray": x,
            "csr": sp.csr_matrix(x),
            "csc": sp.csc_matrix(x),
            "int": x.astype(np.int32),
            "frame": pd.DataFrame(x, columns=data.var_names),
        }[kind]
    estim = fit.model(source, batch_size=50 if kind == "csr" else None, **kwargs)
    np.testing.assert_allclose(estim.a_var, reference.a_var, atol=1e-9)
    np.testing.assert_allclose(estim.b_var, reference.b_var, atol=1e-7)
    assert estim.model.features[3] == ("gene3" if kind in ("ndarray", "csr", "csc", "int") else "G3")


@pytest.mark.parametrize("sparse", [True, False])
def test_data_on_disk_is_read_rarely_where_genes_are_wanted(sparse, data, tmp_path, monkeypatch):
    monkeypatch.setattr("pyrosplice._expression.count_matrix.HELD_ENTRIES", 3 * 120)
    ad.AnnData(sp.csr_matrix(data.X) if sparse else data.X, data.obs, data.var).write_h5ad(tmp_path / "a.h5ad")
    reads = []
    original = CountMatrix.cell_blocks
    monkeypatch.setattr(CountMatrix, "cell_blocks", lambda self, size=None: reads.append(1) or original(self, size))
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    estim = fit.model(backed, "~1+time", as_numeric="time", batch_size=(50, 1))
    assert len(reads) == 3  # eight genes, three at a time
    memory = fit.model(data, "~1+time", as_numeric="time")
    np.testing.assert_allclose(estim.a_var, memory.a_var, atol=1e-9)


@pytest.mark.parametrize("init", ["AUTO", "standard", "closed_form", "all_zero", "array"])
def test_the_start_does_not_matter(init, data, reference):
    a = np.zeros((2, 8)) + 0.3 if init == "array" else init
    b = np.zeros((1, 8)) - 0.5 if init == "array" else init
    estim = fit.model(data, "~1+condition", size_factors="size", init_a=a, init_b=b)
    np.testing.assert_allclose(estim.a_var, reference.a_var, atol=1e-8)


def test_training_strategies(data, reference):
    kwargs = {"formula_loc": "~1+condition", "size_factors": "size"}
    steps = fit.model(data, training_strategy=[{"train_scale": False}, {"tol": 1e-10, "max_iter": 50}], **kwargs)
    np.testing.assert_allclose(steps.a_var, reference.a_var, atol=1e-8)
    assert len(steps.lls) == 2 and steps.lls[1] > steps.lls[0]
    called = fit.model(data, training_strategy=lambda estim: estim.train(), **kwargs)
    np.testing.assert_allclose(called.a_var, reference.a_var, atol=1e-9)
    with pytest.warns(UserWarning, match="use_batching"):
        fit.model(data, training_strategy=[{"use_batching": False}], **kwargs)
    with pytest.raises(NotReadyError):
        fit.model(data, training_strategy=lambda estim: None, **kwargs)
    quick = fit.model(data, quick_scale=True, **kwargs)
    assert (quick.log_likelihood <= reference.log_likelihood + 1e-9).all()
    assert np.abs(quick.b_var - reference.b_var).max() > 1e-3
    single = fit.model(data, dtype="float32", **kwargs)
    assert single.a_var.dtype == np.float32
    np.testing.assert_allclose(single.a_var, reference.a_var, atol=1e-6)


def test_nested_constraints_are_a_reparametrization(data):
    # ~condition + nested is confounded; levels of nested sum to zero within condition
    constrained = fit.model(data, "~1+condition+nested", constraints_loc={"nested": "condition"})
    free = fit.model(data, "~1+nested")
    np.testing.assert_allclose(constrained.log_likelihood, free.log_likelihood, atol=1e-8)
    names = constrained.model.design_loc_names
    a = pd.DataFrame(constrained.model.a, index=names)
    np.testing.assert_allclose(a.loc["nested[d1]"] + a.loc["nested[d2]"], 0, atol=1e-12)
    np.testing.assert_allclose(a.loc["nested[d3]"] + a.loc["nested[d4]"], 0, atol=1e-12)
    with pytest.raises(InvalidArgumentError, match=r"depend linearly"):
        fit.model(data, "~1+condition+nested")


def test_string_and_matrix_constraints(data):
    design = pd.get_dummies(data.obs["batch"]).astype(float)
    by_string = fit.model(data, dmat_loc=design, constraints_loc=["b1 + b2 + b3 = 0"])
    c = np.array([[1.0, 0], [0, 1], [-1, -1]])
    by_matrix = fit.model(data, dmat_loc=design, constraints_loc=c)
    np.testing.assert_allclose(by_string.model.a, by_matrix.model.a, atol=1e-9)
    np.testing.assert_allclose(by_string.model.a.sum(0), 0, atol=1e-12)
    shifted = fit.model(data, dmat_loc=design, constraints_loc=["b1 - b2 = 0", "2*b2 + b3 = 1.5"])
    a = shifted.model.a
    np.testing.assert_allclose(a[0] - a[1], 0, atol=1e-12)
    np.testing.assert_allclose(2 * a[1] + a[2], 1.5, atol=1e-12)
    assert (shifted.log_likelihood <= fit.model(data, dmat_loc=design).log_likelihood).all()
    with pytest.raises(InvalidArgumentError, match="contradicts"):
        fit.model(data, dmat_loc=design, constraints_loc=["b1 = b2", "b1 - b2 = 1"])
    with pytest.warns(UserWarning, match="already follows"):
        fit.model(data, dmat_loc=design, constraints_loc=["b1 = b2", "2*b1 - 2*b2 = 0"])
    with pytest.raises(InvalidArgumentError, match="shape"):
        fit.model(data, dmat_loc=design, constraints_loc=c.T)
    for bad in (["b1 + c9 = 0"], ["b1 + b2"], ["2 * = 0"], [3]):
        with pytest.raises(InvalidArgumentError, match="constraints_loc"):
            fit.model(data, dmat_loc=design, constraints_loc=bad)


def test_constraint_parser():
    names = ["Intercept", "cond[T.a]", "cond[T.b]", "x"]
    row, value = parse_constraint("2*cond[T.a] - 0.5 b + 3 = x + 1", names, "c")
    np.testing.assert_allclose(row, [0, 2, -0.5, -1])
    assert value == -2


def test_scale_constraints_and_design(data):
    estim = fit.model(data, "~1", "~1+batch", constraints_scale=["batch[T.b2] = batch[T.b3]"])
    assert estim.b_var.shape == (2, 8) and estim.model.b.shape == (3, 8)
    np.testing.assert_allclose(estim.model.b[1], estim.model.b[2])


def test_noise_models(data):
    poisson = fit.model(data, "~1+condition", noise_model="poisson", size_factors="size")
    drug = (data.obs["condition"] == "drug").to_numpy()
    rate = [data.X[s].sum(0) / data.obs["size"].to_numpy()[s].sum() for s in (~drug, drug)]
    np.testing.assert_allclose(poisson.a_var, [np.log(rate[0]), np.log(rate[1] / rate[0])], atol=1e-9)
    y = np.random.default_rng(0).normal(size=(120, 3))
    normal = fit.model(y, "~1+condition", sample_description=data.obs, noise_model="norm")
    np.testing.assert_allclose(normal.a_var[0], y[~drug].mean(0), atol=1e-9)
    residual = y - normal.model.location
    np.testing.assert_allclose(np.exp(normal.b_var[0]), np.sqrt((residual**2).mean(0)), atol=1e-8)


def test_offsets_weights_and_the_unlogged_switch(data, reference):
    logs = np.log(data.obs["size"].to_numpy())
    gene_wise = fit.model(data, "~1+condition", offsets=np.repeat(logs[:, None], 8, axis=1))
    np.testing.assert_allclose(gene_wise.a_var, reference.a_var, atol=1e-8)
    unlogged = fit.model(data, "~1+condition", size_factors=logs - logs.min() + 0.1, size_factors_logged=False)
    np.testing.assert_allclose(unlogged.a_var[1], reference.a_var[1], atol=1e-8)
    keep = np.ones(120)
    keep[:10] = 0
    dropped = fit.model(data[10:].copy(), "~1+condition", size_factors="size")
    weighted = fit.model(data, "~1+condition", size_factors="size", weights=keep)
    np.testing.assert_allclose(weighted.a_var, dropped.a_var, atol=1e-8)


def test_size_factor_estimators():
    rng = np.random.default_rng(0)
    true = np.array([0.5, 1.0, 2.0, 4.0])
    counts = rng.poisson(true[:, None] * rng.lognormal(5, 1, 300))
    for estimate in (median_of_ratios(counts), normed_sum(counts), normed_sum(sp.csr_matrix(counts))):
        np.testing.assert_allclose(estimate / estimate[1], true, rtol=0.05)
    with pytest.raises(InvalidArgumentError, match="normed_sum"):
        median_of_ratios(np.eye(4))


def test_new_cells_get_the_same_design(data):
    design = from_formula("~1+condition+time", data.obs, as_numeric="time", n_cells=120)
    np.testing.assert_allclose(design.for_new(data.obs.iloc[70:75]), design.matrix[70:75])
    with pytest.raises(InvalidArgumentError, match=r"never saw.*placebo"):
        design.for_new(pd.DataFrame({"condition": ["placebo"], "time": [0.0]}))


def test_residuals_and_partition(data):
    left = fit.residuals(data, "~1+condition", size_factors="size")
    estim = fit.model(data, "~1+condition", size_factors="size")
    np.testing.assert_allclose(left, data.X - estim.model.location, atol=1e-9)
    parts = fit.partition(data, "batch").model(formula_loc="~1+condition")
    alone = fit.model(data[data.obs["batch"] == "b2"].copy(), "~1+condition")
    np.testing.assert_allclose(parts["b2"].a_var, alone.a_var, atol=1e-9)


def bad(**kwargs):
    return kwargs


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (bad(formula_loc=None), "formula_loc"),
        (bad(formula_loc="~1+nothere"), "nothere"),
        (bad(formula_loc="~1+"), "formula_loc"),
        (bad(as_numeric="condition"), "as_numeric"),
        (bad(as_numeric="nope"), "nope"),
        (bad(size_factors="nope"), "size_factors"),
        (bad(size_factors=np.zeros(120)), "positive"),
        (bad(size_factors=-np.ones(120)), "positive"),
        (bad(size_factors=np.ones(7)), "120"),
        (bad(noise_model="zinb"), "noise_model"),
        (bad(dtype="int8"), "dtype"),
        (bad(init_a="best"), "init_a"),
        (bad(init_b=np.zeros((4, 4))), "init_b"),
        (bad(training_strategy="SLOW"), "training_strategy"),
        (bad(training_strategy=[3]), "training_strategy"),
        (bad(batch_size=0), "batch_size"),
        (bad(dmat_loc=np.ones((3, 1))), "dmat_loc"),
        (bad(dmat_loc=np.ones((120, 2))), "depend linearly"),
        (bad(dmat_loc=np.full((120, 1), np.nan)), "NaN"),
        (bad(gene_names=["a"]), "gene_names"),
        (bad(weights=-np.ones(120)), "weights"),
        (bad(offsets=np.ones(120)), "offsets"),
        (bad(constraints_loc={"condition": "nope"}), "nope"),
        (bad(layer="x"), "layer"),
    ],
)
def test_bad_arguments_are_named(kwargs, message, data):
    with pytest.raises(InvalidArgumentError, match=message):
        fit.model(data, **{"formula_loc": "~1+condition", **kwargs})


def test_bad_counts(data):
    obs = data.obs
    for value, message in ((-1.0, "-1 in cell 5, gene 2"), (np.nan, "NaN"), (np.inf, "infinite")):
        x = data.X.copy()
        x[5, 2] = value
        with pytest.raises(InvalidArgumentError, match=message):
            fit.model(x, "~1+condition", sample_description=obs)
        with pytest.raises(InvalidArgumentError):
            fit.model(sp.csr_matrix(x), "~1+condition", sample_description=obs)
    x = data.X.copy()
    x[5, 2] += 0.5
    with pytest.warns(UserWarning, match="fractional"):
        estim = fit.model(x, "~1+condition", sample_description=obs)
    others = np.arange(8) != 2
    whole = fit.model(data.X, "~1+condition", sample_description=obs)
    np.testing.assert_allclose(estim.a_var[:, others], whole.a_var[:, others], atol=1e-9)
    for wrong in (3, "counts", np.ones(5), np.ones((0, 3))):
        with pytest.raises(InvalidArgumentError, match="data"):
            fit.model(wrong, "~1")
