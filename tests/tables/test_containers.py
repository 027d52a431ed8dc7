"""Numbers in every container give the same numbers; damaged ones are refused before anything reads them."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyrosplice._tables.containers import well_formed
from pyrosplice.errors import InvalidArgumentError

counts = arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 200))
SPARSE = [
    getattr(sp, f"{name}_{kind}")
    for name in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok")
    for kind in ("matrix", "array")
]
DENSE = {
    "int": lambda x: x,
    "uint8": lambda x: x.astype(np.uint8),
    "float16": lambda x: x.astype(np.float16),
    "longdouble": lambda x: x.astype(np.longdouble),
    "object": lambda x: x.astype(object),
    "fortran": np.asfortranarray,
    "list": lambda x: x.tolist(),
    "matrix": np.matrix,
    "masked": np.ma.array,
    "frame": pd.DataFrame,
    "Int64": lambda x: pd.DataFrame(x).astype("Int64"),
    "frame of objects": lambda x: pd.DataFrame(x).astype(object),
    "sparse frame": lambda x: pd.DataFrame(x).astype(pd.SparseDtype(int, 0)),
    "tensor": torch.from_numpy,
    "tensor with gradient": lambda x: torch.from_numpy(x).double().requires_grad_(),
    "half tensor": lambda x: torch.from_numpy(x).half(),
    "sparse tensor": lambda x: torch.from_numpy(x).to_sparse(),
}


@given(counts, st.sampled_from(sorted(DENSE)))
def test_dense_containers(x, kind):
    found = well_formed(DENSE[kind](x.copy()), "counts")
    assert type(found) is np.ndarray
    assert found.dtype.kind in "biuf"
    np.testing.assert_array_equal(found, x)


@given(counts, st.sampled_from(SPARSE))
def test_sparse_containers(x, make):
    found = well_formed(make(x), "counts")
    assert found.format in ("csr", "csc")
    assert found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), x)


@given(counts, counts, st.sampled_from(["csr", "csc"]), st.sampled_from([np.uint8, np.float32, np.int64, object]))
def test_entries_that_stand_twice_are_added_and_zeros_left_out(x, y, form, dtype):
    """A sum may not overflow the type of its terms, and the person's own matrix stays as it was."""
    rows, columns = np.indices(x.shape).reshape(2, -1)
    data = np.concatenate([x.ravel(), x.ravel()])
    twice = sp.coo_matrix((data, (np.tile(rows, 2), np.tile(columns, 2))), shape=x.shape)
    order = np.argsort(twice.row if form == "csr" else twice.col, kind="stable")
    major, minor = (twice.row, twice.col) if form == "csr" else (twice.col, twice.row)
    size = x.shape[0] if form == "csr" else x.shape[1]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(major, minlength=size))])
    make = sp.csr_matrix if form == "csr" else sp.csc_matrix
    held = make((data[order].astype(dtype), minor[order], indptr), shape=x.shape)
    before = held.data.copy()
    found = well_formed(held, "counts")
    np.testing.assert_array_equal(found.toarray(), 2 * x)
    assert (found.data != 0).all()
    np.testing.assert_array_equal(held.data, before)


@pytest.mark.parametrize("index", [-7, -1, 6, 100_000])
@pytest.mark.parametrize("form", ["csr", "csc", "bsr", "coo"])
def test_indices_out_of_range_are_refused(form, index):
    ones = sp.csr_matrix(np.ones((6, 6)))
    matrix = ones.tobsr((1, 1)) if form == "bsr" else ones.asformat(form)
    if form == "coo":
        matrix.coords[1][3] = index
    else:
        matrix.indices[3] = index
    with pytest.raises(InvalidArgumentError, match=r"^counts: the sparse matrix is damaged"):
        well_formed(matrix, "counts")


def test_a_damaged_pointer_is_refused():
    matrix = sp.csr_matrix(np.ones((6, 6)))
    matrix.indptr[2] = 400
    with pytest.raises(InvalidArgumentError, match="damaged"):
        well_formed(matrix, "counts")


@pytest.mark.parametrize(
    "matrix",
    [
        np.array([["1"]]),
        np.array([["1"]], dtype=object),
        np.array([[1j]]),
        np.array([["2020"]], dtype="datetime64[D]"),
        pd.DataFrame({"a": [1], "symbol": ["x"]}),
        pd.DataFrame({"a": pd.Categorical([1])}),
        pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}),
        sp.csr_matrix(np.array([[1j]])),
        torch.ones((1, 1), dtype=torch.complex64),
        np.ma.array([[1, 2]], mask=[[True, False]]),
        [[1], [2, 3]],
    ],
)
def test_what_is_no_number_is_refused(matrix):
    with pytest.raises(InvalidArgumentError, match=r"^counts"):
        well_formed(matrix, "counts")


def test_gaps_of_nullable_types_are_missing_numbers():
    found = well_formed(pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [None, 2.0]}), "counts")
    np.testing.assert_array_equal(found, [[1, np.nan], [np.nan, 2]])


def test_what_is_elsewhere_stays_there():
    lazy = da.ones((4, 2))
    assert well_formed(lazy, "counts") is lazy
