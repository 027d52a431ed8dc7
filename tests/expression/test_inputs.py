"""Everything that a person gives an expression model is read right, whatever holds it, or refused."""

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice._expression import fit
from pyrosplice._expression import tests as expression_tests
from pyrosplice._expression.expression_glm import ExpressionGLM
from pyrosplice.errors import InvalidArgumentError

N, GENES = 60, list("wxyz")
RNG = np.random.default_rng(0)
NAMES = [f"c{i}" for i in range(N)]
TABLE = pd.DataFrame(
    {
        "g": ["a", "b"] * 30,
        "x": RNG.random(N),
        "size": RNG.uniform(0.5, 2, N),
        "donor": np.repeat(list("uvwmno"), 10),
        "weight": RNG.uniform(0.5, 1.5, N),
    },
    index=NAMES,
)
Y = RNG.negative_binomial(3, 0.1, (N, 4)).astype(float)
Y[::7, 1] = 0
DESIGN = pd.DataFrame({"one": 1.0, "b": (TABLE["g"] == "b") * 1.0}, index=NAMES)
OFFSETS = pd.DataFrame(RNG.normal(0, 0.2, (N, 4)), index=NAMES, columns=GENES)
HOW = {"formula_loc": "~1+g+x", "as_numeric": "x"}


def arguments(table=lambda t: t):
    """Each argument that stands beside the cells, through ``table``."""
    return {
        "sample_description": {**HOW, "sample_description": table(TABLE)},
        "dmat_loc": {"dmat_loc": table(DESIGN)},
        "dmat_scale": {**HOW, "sample_description": TABLE, "dmat_scale": table(DESIGN)},
        "size_factors": {**HOW, "sample_description": TABLE, "size_factors": table(TABLE["size"])},
        "offsets": {**HOW, "sample_description": TABLE, "offsets": table(OFFSETS)},
        "weights": {**HOW, "sample_description": TABLE, "weights": table(TABLE["weight"])},
        "weights of genes": {**HOW, "sample_description": TABLE, "weights": table(OFFSETS.abs() + 0.1)},
        "missing": {**HOW, "sample_description": TABLE, "missing": table(TABLE["x"] > 0.2)},
    }


ARGUMENTS = sorted(arguments())
HOLDERS = {
    "AnnData": lambda: ad.AnnData(Y, TABLE[["g"]], pd.DataFrame(index=GENES)),
    "DataFrame": lambda: pd.DataFrame(Y, NAMES, GENES),
    "array beside a table": lambda: Y,
}


@pytest.mark.slow
@pytest.mark.parametrize("argument", ARGUMENTS)
@given(seed=st.integers(0, 1000), holder=st.sampled_from(sorted(HOLDERS)))
def test_tables_are_paired_with_cells_by_name(argument, seed, holder):
    order = np.random.default_rng(seed).permutation(N)
    if holder == "array beside a table" and argument in ("sample_description", "dmat_loc"):
        holder = "DataFrame"  # nothing else has names
    found = fit.model(HOLDERS[holder](), **arguments(lambda t: t.iloc[order])[argument])
    want = fit.model(Y, **arguments()[argument])
    np.testing.assert_array_equal(found.a_var, want.a_var)
    np.testing.assert_array_equal(found.log_likelihood, want.log_likelihood)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_names_that_agree_in_part_are_refused_and_unrelated_ones_positional(argument):
    data = HOLDERS["AnnData"]()
    twice = [*NAMES[:-1], NAMES[0]]
    partly = [*NAMES[:-1], "other"]
    for names in (twice, partly):
        with pytest.raises(InvalidArgumentError, match=argument.split()[0]):
            fit.model(data, **arguments(lambda t, names=names: t.set_axis(names))[argument])
    found = fit.model(data, **arguments(lambda t: t.reset_index(drop=True))[argument])
    np.testing.assert_array_equal(found.a_var, fit.model(Y, **arguments()[argument]).a_var)


def test_tables_of_genes_are_paired_by_name():
    data, mixed = HOLDERS["AnnData"](), [2, 0, 3, 1]
    want = fit.model(data, **arguments()["offsets"])
    found = fit.model(data, **arguments(lambda t: t.iloc[:, mixed] if t.shape == Y.shape else t)["offsets"])
    np.testing.assert_array_equal(found.a_var, want.a_var)
    start = pd.DataFrame(want.a_var, want.model.design_loc_names, GENES)
    again = fit.model(data, **arguments()["offsets"], init_a=start.iloc[::-1, mixed], init_b=want.b_var)
    assert (again.niter <= 2).all()
    with pytest.raises(InvalidArgumentError, match="init_a"):
        fit.model(data, **arguments()["offsets"], init_a=start.rename(columns={"w": "q"}))


@pytest.mark.parametrize("method", ["cluster", "glmm"])
def test_donors_are_paired_by_name(method):
    table = TABLE.assign(g=np.where(TABLE["donor"].isin(list("uvw")), "a", "b"))
    glm = ExpressionGLM("~1+g").fit(Y, sample_description=table)
    want = glm.test(factor="g", method=method, donors="donor").pval
    found = glm.test(factor="g", method=method, donors=table["donor"].sample(frac=1, random_state=1)).pval
    np.testing.assert_array_equal(found, want)
    with pytest.raises(InvalidArgumentError, match="donors"):
        glm.test(factor="g", method=method, donors=table["donor"].where(table["donor"] != "u"))


def twice(matrix):
    """Every entry in two parts, and zeros that are stored."""
    c = sp.coo_matrix(matrix)
    row, column = np.concatenate([c.row, c.row, [0, 0, 1]]), np.concatenate([c.col, c.col, [0, 1, 1]])
    return sp.coo_matrix((np.concatenate([c.data - 1, np.ones(c.nnz), np.zeros(3)]), (row, column)), c.shape)


def uncanonical(matrix):
    c = twice(matrix)
    order = np.argsort(c.row, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(c.row, minlength=len(matrix)))])
    return sp.csr_matrix((c.data[order], c.col[order], start), shape=c.shape)


KINDS = {
    "float32": lambda y: y.astype(np.float32),
    "uint16": lambda y: y.astype(np.uint16),
    "Fortran": np.asfortranarray,
    "object": lambda y: y.astype(object),
    "Int64": lambda y: pd.DataFrame(y).astype("Int64"),
    "sparse frame": lambda y: pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(y)),
    **{k: (lambda y, k=k: sp.coo_matrix(y).asformat(k)) for k in ("csr", "csc", "coo", "bsr", "dok", "lil")},
    "csr_array": sp.csr_array,
    "duplicates": twice,
    "duplicates csr": uncanonical,
    "Tensor": lambda y: torch.tensor(y, requires_grad=True),
    "sparse Tensor": lambda y: torch.tensor(y).to_sparse(),
    "Dask": lambda y: da.from_array(y, chunks=(7, 2)),
    "Dask of sparse": lambda y: da.from_array(y, chunks=(7, 4)).map_blocks(sp.csr_matrix),
    "AnnData": lambda y: ad.AnnData(sp.csc_matrix(y)),
}
FITS = {
    "groups": {"formula_loc": "~1+g"},
    "size factors": {"formula_loc": "~1+g", "size_factors": TABLE["size"]},
    "numbers": {**HOW, "size_factors": TABLE["size"]},
    "weights": {"formula_loc": "~1+g", "weights": TABLE["weight"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("how", sorted(FITS))
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.filterwarnings("ignore:Transforming to str index:anndata.ImplicitModificationWarning")
def test_counts_of_every_kind_give_the_same_numbers_to_the_bit(kind, how):
    want = fit.model(Y, sample_description=TABLE, **FITS[how])
    found = fit.model(
        KINDS[kind](Y),
        sample_description=TABLE.reset_index(drop=True) if kind == "AnnData" else TABLE,
        **{k: v.to_numpy() if isinstance(v, pd.Series) else v for k, v in FITS[how].items()},
    )
    for name in ("a_var", "b_var", "log_likelihood", "hessian", "gene_means"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counts")
    for name, x in {"csr": sp.csr_matrix(Y), "csc": sp.csc_matrix(Y), "dense": Y}.items():
        data = ad.AnnData(x, TABLE, pd.DataFrame(index=GENES), layers={"other": x})
        data.raw = data.copy()
        data.write_h5ad(folder / f"{name}.h5ad")
    return folder


@pytest.mark.parametrize("stored", ["csr", "csc", "dense"])
def test_counts_on_disk_give_the_same_numbers_to_the_bit(stored, files):
    how = {"formula_loc": "~1+g", "sample_description": TABLE}
    want, path = fit.model(Y, **how).a_var, files / f"{stored}.h5ad"
    backed, order = ad.read_h5ad(path, backed="r"), np.random.default_rng(0).permutation(N)
    lazy = ad.experimental.read_lazy(path)
    for data in (backed, backed.raw, lazy, lazy.raw, lazy[np.arange(N)]):
        np.testing.assert_array_equal(fit.model(data, **how).a_var, want)
    for data in (backed, lazy):
        np.testing.assert_array_equal(fit.model(data, **how, layer="other").a_var, want)
        np.testing.assert_array_equal(fit.model(data, "~1+g").a_var, want)
        np.testing.assert_allclose(fit.model(data[order], **how).a_var, want, rtol=1e-9)
    if stored == "dense":
        with h5py.File(path) as file:
            np.testing.assert_array_equal(fit.model(file["X"], **how).a_var, want)
    backed.file.close()


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (Y + 0j, {}, "complex"),
        (Y.astype(str), {}, "dtype"),
        (pd.DataFrame(Y, columns=GENES).assign(symbol="q"), {}, "symbol"),
        (np.ma.masked_array(Y, Y > 30), {}, "masked"),
        (ad.AnnData(obs=TABLE, layers={"counts": Y}), {}, r"X of the AnnData is None.*layer.*counts"),
        (ad.AnnData(Y, TABLE), {"layer": "nope"}, "layer"),
        (Y, {"layer": "counts"}, "layer"),
    ],
)
def test_what_holds_no_counts_is_refused(data, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        fit.model(data, "~1", **options)


def test_damaged_sparse_matrices_are_refused():
    damaged = sp.csr_matrix(Y)
    damaged.indices = damaged.indices.copy()
    damaged.indices[3] = 99
    with pytest.raises(InvalidArgumentError, match="damaged"):
        fit.model(damaged, "~1")


def test_cells_with_missing_labels_are_refused_or_dropped():
    table = TABLE.copy()
    table["g"] = table["g"].astype(object)
    table.iloc[3, 0], table.iloc[5, 0], table.iloc[7, 1] = np.nan, " ", np.nan
    used = ~np.isin(np.arange(N), [3, 5, 7])
    with pytest.raises(InvalidArgumentError, match="'g'"):
        fit.model(Y, sample_description=table, **HOW)
    kept = TABLE[used]
    want = expression_tests.wald(Y[used], "g", sample_description=kept, size_factors="size", **HOW)
    for size in ("size", TABLE["size"].iloc[::-1], TABLE["size"].to_numpy(), kept["size"]):
        for data in (Y, da.from_array(Y, chunks=(7, 2)), sp.csr_matrix(Y)):
            found = expression_tests.wald(data, "g", sample_description=table, size_factors=size, missing="drop", **HOW)
            np.testing.assert_array_equal(found.pval, want.pval)
            np.testing.assert_array_equal(found.estimator.input_data.cells.used, used)
    how = {"as_numeric": "x", "sample_description": table, "missing": "drop"}
    nested = expression_tests.lrt(Y, "~1+g+x", "~1+g", **how)  # on the cells of the larger model
    alone = expression_tests.lrt(Y[used], "~1+g+x", "~1+g", as_numeric="x", sample_description=kept)
    np.testing.assert_array_equal(nested.pval, alone.pval)
    glm = ExpressionGLM("~1+g", as_numeric="x").fit(Y, sample_description=table, missing="drop")
    ways = ("donor", TABLE["donor"], list(TABLE["donor"]), table["donor"].to_numpy())
    first, *rest = (glm.test(factor="g", method="cluster", donors=way).pval for way in ways)
    for other in rest:
        np.testing.assert_array_equal(first, other)


@pytest.mark.slow
@given(name=st.sampled_from(["percent.mt", "orig.ident", "total counts", "C", "df", "log", "a:b", "1", "class"]))
def test_columns_of_any_name_in_every_argument(name):
    numbers, labels = TABLE.rename(columns={"x": name}), TABLE.rename(columns={"g": name})
    want = expression_tests.wald(Y, coef_to_test="x", sample_description=TABLE, **HOW).pval
    found = expression_tests.wald(
        Y, coef_to_test=name, formula_loc=f"~1+g+`{name}`", as_numeric=name, sample_description=numbers
    )
    np.testing.assert_array_equal(found.pval, want)
    want = expression_tests.wald(Y, "g", formula_loc="~1+g", sample_description=TABLE).pval
    found = expression_tests.wald(Y, name, formula_loc=f"~1+`{name}`", sample_description=labels).pval
    np.testing.assert_array_equal(found, want)
    size = fit.model(Y, "~1", sample_description=TABLE.rename(columns={"size": name}), size_factors=name)
    np.testing.assert_array_equal(size.a_var, fit.model(Y, "~1", size_factors=TABLE["size"].to_numpy()).a_var)
    if name == "1":  # in a dict of constraints, all cells
        return
    bound = fit.model(Y, f"~1+`{name}`", sample_description=labels, constraints_loc={name: "1"})
    np.testing.assert_allclose(bound.model.a[1:].sum(0), 0, atol=1e-12)


def test_numbers_taken_as_labels_are_said():
    with pytest.warns(UserWarning, match=r"'x'.*60 levels.*as_numeric"):
        fit.model(np.tile(Y, (2, 1)), "~1+x", sample_description=pd.concat([TABLE, TABLE], ignore_index=True))
    with pytest.raises(InvalidArgumentError, match="no columns"):
        fit.model(Y, "~0", sample_description=TABLE)


def test_terms_are_found_in_any_order():
    table = TABLE.assign(h=np.where(np.arange(N) % 3 == 0, "x", "y"))
    want = expression_tests.wald(Y, "g:h", formula_loc="~1+g*h", sample_description=table).pval
    design = fit.model(Y, "~1+g*h", sample_description=table)
    dmat = pd.DataFrame(design.model.design_loc, columns=design.model.design_loc_names)
    for term, how in (
        ("h:g", {"formula_loc": "~1+g*h"}),
        ("h:g", {"formula_loc": "~1+C(g)*h"}),
        ("h:g", {"dmat_loc": dmat}),
    ):
        found = expression_tests.wald(Y, term, sample_description=table.reset_index(drop=True), **how).pval
        np.testing.assert_allclose(found, want, rtol=1e-9)
    with pytest.raises(InvalidArgumentError, match=r"'nope'.*\['g', 'h', 'g:h'\]"):
        expression_tests.wald(Y, "nope", formula_loc="~1+g*h", sample_description=table)
