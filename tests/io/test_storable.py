"""What an AnnData may hold comes back from a file as it was, or is refused by name; nothing between."""

import datetime
import decimal

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice._io.storable import anndata_from_bytes, anndata_to_bytes, split
from pyrosplice._io.stored_values import column_from_json, column_to_json, from_json, to_json
from pyrosplice.errors import InvalidArgumentError, ModelFileError

DAY = datetime.date(2024, 2, 29)
COLUMNS = {
    "text with a gap": pd.array(["a", None, "b"], dtype="string"),
    "boolean with a gap": pd.array([True, None, False], dtype="boolean"),
    "integers with a gap": pd.array([2**60 + 1, None, 3], dtype="Int64"),
    "nullable floats": pd.array([1.5, None, 3], dtype="Float64"),
    "object with None": ["a", None, "b"],
    "object with NaN": ["a", np.nan, "b"],
    "mixed": [1, "a", 2.5],
    "all missing": [None, None, None],
    "numbers as objects": np.array([1, 2, 3], dtype=object),
    "sets": [{1}, {2, 3}, set()],
    "lists": [[1], ["a", None], []],
    "dates": [DAY] * 3,
    "decimals": [decimal.Decimal("1.50")] * 3,
    "bytes": [b"a", b"\xff", b""],
    "time": pd.to_datetime(["2020-01-01", None, "2020-01-03"]),
    "time with a zone": pd.to_datetime(["2020-01-01", None, "2020-07-03"]).tz_localize("Europe/Berlin"),
    "duration": pd.to_timedelta([1, None, 3], unit="s"),
    "period": pd.period_range("2020", periods=3, freq="M"),
    "bins": pd.cut([1.0, 2.0, 3.0], 3),
    "intervals": pd.arrays.IntervalArray.from_breaks([0, 1, 2, 3]),
    "complex": [1j, 2.0, 3.0],
    "categories of dates": pd.Categorical(pd.to_datetime(["2020-01-01", None, "2020-01-02"])),
    "categories of numbers": pd.Categorical([3, 1, 3], categories=[3, 2, 1], ordered=True),
    "categories with a gap": pd.Categorical(["a", None, "b"]),
    "sparse": pd.arrays.SparseArray([0, 1, 0]),
    "single precision": np.array([0.1, 0.2, 0.3], dtype=np.float32),
    "null byte": ["a\0b", "c", "d"],
}
ENTRIES = {
    "None": None,
    "set": {1, 2},
    "tuple": (1, ("a", None)),
    "list of dicts": [{"a": 1}, {"b": [2.5]}],
    "list of both": [1, "a"],
    "ragged": [[1], [2, 3]],
    "numbers as keys": {1: 2, "b": {3: np.arange(3)}},
    "slashes": {"a/b": {"c": 1}},
    "dates": np.array(["2020-01-01"], dtype="datetime64[s]"),
    "stamp": pd.Timestamp("2020-01-01 12:00", tz="UTC"),
    "objects": np.array([[1, None], ["a", 2.5]], dtype=object),
    "table": pd.DataFrame({"a": pd.array(["x", None], dtype="string"), 3: [1.0, 2.0]}),
    "series": pd.Series([1, 2], index=["a", "b"], name="s"),
    "whole": 10**30,
    "matrix under an odd name": {"a/b": sp.csr_matrix(np.eye(3))},
}


def tissue():
    obs = pd.DataFrame(index=["s1", "s2", "s3"])
    return ad.AnnData(np.ones((3, 3), dtype=np.float32), obs=obs, var=pd.DataFrame(index=["i1", "i2", "i3"]))


def stored(adata):
    return anndata_from_bytes(*anndata_to_bytes(adata))


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, (pd.DataFrame, pd.Series)):
        (pd.testing.assert_frame_equal if isinstance(a, pd.DataFrame) else pd.testing.assert_series_equal)(a, b)
    elif isinstance(a, dict):
        assert set(a) == set(b)  # a file sorts the keys of a dictionary
        for key in a:
            assert_same(a[key], b[key])
    elif sp.issparse(a):
        assert (a != b).nnz == 0
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    else:
        assert a == b


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_every_kind_come_back_in_their_place(kind):
    values, adata = COLUMNS[kind], tissue()
    for where in ("obs", "var"):
        table = getattr(adata, where)
        table["before"] = ["x", "y", "z"]
        table["it"] = pd.Series(list(values) if isinstance(values, list) else values, index=table.index)
        table["after"] = [1, 2, 3]
    adata.obsm["table"] = adata.obs.copy()
    adata.uns["deep"] = {"table": adata.obs.copy()}
    adata.raw = adata.copy()
    again = stored(adata)
    for read in (
        lambda a: a.obs,
        lambda a: a.var,
        lambda a: a.obsm["table"],
        lambda a: a.uns["deep"]["table"],
        lambda a: a.raw.var,
    ):
        pd.testing.assert_frame_equal(read(again), read(adata))


@pytest.mark.parametrize("kind", ENTRIES)
def test_entries_of_every_kind_come_back(kind):
    adata = tissue()
    adata.uns["it"], adata.uns["deep"] = ENTRIES[kind], {"deeper": {"it": ENTRIES[kind], "number": 1.5}}
    again = stored(adata)
    assert_same(again.uns["it"], ENTRIES[kind])
    assert_same(again.uns["deep"]["deeper"]["it"], ENTRIES[kind])
    assert again.uns["deep"]["deeper"]["number"] == 1.5


@pytest.mark.parametrize("name", ["a/b", "", ".", "_index", "a.b", "a\0b", " "])
def test_names_of_every_kind_come_back(name):
    adata = tissue()
    adata.obs[name], adata.obs["other"] = [1, 2, 3], ["a", "b", "c"]
    adata.uns[name], adata.obsm[name], adata.layers[name] = 1, np.eye(3), sp.csr_matrix(np.eye(3))
    again = stored(adata)
    pd.testing.assert_frame_equal(again.obs, adata.obs)
    assert again.uns[name] == 1
    np.testing.assert_array_equal(again.obsm[name], np.eye(3))
    np.testing.assert_array_equal(again.layers[name].toarray(), np.eye(3))


def test_an_index_named_like_a_column_and_no_x():
    adata = tissue()
    adata.obs["id"], adata.obs.index.name, adata.X = [1.0, 2.0, 3.0], "id", None
    again = stored(adata)
    pd.testing.assert_frame_equal(again.obs, adata.obs)
    assert again.X is None


@pytest.mark.parametrize("bad", [object(), len, np.ma.masked_array([1, 2], [True, False]), pd.Index(["a"])])
def test_what_no_file_can_hold_is_named(bad):
    adata = tissue()
    adata.uns["deep"] = {"it": bad}
    with pytest.raises(InvalidArgumentError, match=r"adata\.uns\['deep'\]\['it'\]: found .*cannot be stored"):
        split(adata)
    del adata.uns["deep"]
    adata.obs["it"] = [bad] * 3
    with pytest.raises(InvalidArgumentError, match=r"adata\.obs\['it'\]: found"):
        split(adata)


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.dates()
nested = st.recursive(
    plain, lambda s: st.lists(s) | st.tuples(s, s) | st.dictionaries(st.text() | st.integers(), s), max_leaves=6
)


@given(nested)
def test_nested_values_come_back(value):
    assert from_json(to_json(value, "it")) == value


@given(st.lists(st.none() | st.text() | st.integers(-5, 5) | st.floats(allow_nan=False)))
def test_object_columns_come_back(values):
    column = pd.Series(values, dtype=object)
    again = pd.Series(column_from_json(column_to_json(column, "it")), dtype=object)
    assert [(type(a), a) for a in again] == [(type(a), a) for a in column]


def test_an_unknown_kind_of_a_newer_file_is_said():
    with pytest.raises(ModelFileError, match="'lambda'"):
        from_json({"lambda": "print(1)"})
    with pytest.raises(ModelFileError, match="'pickle'"):
        column_from_json({"kind": "pickle"})
