"""Tables meet cells by name: the same names in any order and type, or position; never something between."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice._tables.names import by_name, names_of, places_of
from pyrosplice.errors import InvalidArgumentError

KINDS = {
    "text": lambda numbers: pd.Index([f"cell{i}" for i in numbers]),
    "categorical": lambda numbers: pd.CategoricalIndex([f"cell{i}" for i in numbers]),
    "bytes": lambda numbers: pd.Index([f"cell{i}".encode() for i in numbers]),
    "string dtype": lambda numbers: pd.Index(pd.array([f"cell{i}" for i in numbers], dtype="string")),
}
NUMBERS = {
    "integers": lambda numbers: pd.Index(list(numbers)),
    "floats": lambda numbers: pd.Index([float(i) for i in numbers]),
    "text": lambda numbers: pd.Index([str(i) for i in numbers]),
}
orders = st.integers(2, 12).flatmap(lambda n: st.permutations(range(n)))


@given(orders, st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(KINDS)))
def test_the_same_names_in_any_order_and_type_are_put_in_order(order, kind, other):
    names = KINDS[kind](range(len(order)))
    table = pd.DataFrame({"x": order}, index=KINDS[other](order))
    assert by_name(table, names, "table")["x"].tolist() == list(range(len(order)))
    assert by_name(table["x"], names, "table").tolist() == list(range(len(order)))


@given(orders, st.sampled_from(sorted(NUMBERS)), st.sampled_from(sorted(NUMBERS)))
def test_numbers_as_names_are_compared_as_text(order, kind, other):
    table = pd.Series(order, index=NUMBERS[other](order))
    assert by_name(table, NUMBERS[kind](range(len(order))), "table").tolist() == list(range(len(order)))


@given(orders)
def test_names_that_have_nothing_to_do_with_the_cells_are_positional(order):
    names = KINDS["text"](range(len(order)))
    for index in (pd.RangeIndex(len(order)), pd.Index([f"row{i}" for i in order]), pd.Index(["same"] * len(order))):
        assert by_name(pd.Series(order, index=index), names, "table").tolist() == order


@given(orders, st.data())
def test_partly_the_same_names_are_refused(order, data):
    names = KINDS["text"](range(len(order)))
    changed = data.draw(st.sets(st.integers(0, len(order) - 1), min_size=1, max_size=len(order) - 1))
    index = [f"other{i}" if i in changed else f"cell{i}" for i in order]
    with pytest.raises(InvalidArgumentError, match=r"^table: expected all"):
        by_name(pd.Series(order, index=index), names, "table")


@given(orders, st.sampled_from([0, 1]))
def test_a_table_of_more_or_fewer_rows_is_refused(order, more):
    names = KINDS["text"](range(len(order)))
    index = [f"cell{i}" for i in ([*order, len(order)] if more else order[1:])]
    with pytest.raises(InvalidArgumentError, match="table"):
        by_name(pd.Series(0, index=index), names, "table")


@given(orders)
def test_duplicated_and_missing_names_are_refused(order):
    names = KINDS["text"](range(len(order)))
    twice = [f"cell{i}" for i in order[:-1]] + [f"cell{order[0]}"]
    absent = [f"cell{i}" for i in order[:-1]] + [None]
    for index in (twice, absent):
        with pytest.raises(InvalidArgumentError):
            by_name(pd.Series(order, index=pd.Index(index, dtype=object)), names, "table")


def test_cells_that_share_a_name_pair_only_with_the_same_sequence():
    names = pd.Index(["a", "a", "b"])
    assert by_name(pd.Series([1, 2, 3], index=["a", "a", "b"]), names, "table").tolist() == [1, 2, 3]
    with pytest.raises(InvalidArgumentError, match="more than once"):
        by_name(pd.Series([1, 2, 3], index=["b", "a", "a"]), names, "table")


def test_a_default_index_does_not_say_which_cell_of_a_shuffled_anndata_is_meant():
    names = pd.Index(["2", "0", "1"])
    with pytest.raises(InvalidArgumentError, match="no names of its own"):
        by_name(pd.Series([0, 1, 2]), names, "table")
    assert by_name(pd.Series([0, 1, 2], index=[0, 1, 2][::-1]), names, "table").tolist() == [0, 2, 1]


def test_names_come_from_whatever_has_them():
    adata = AnnData(np.zeros((2, 1)), obs=pd.DataFrame(index=["a", "b"]))
    adata.raw = adata.copy()
    for data in (adata, adata.raw, adata.to_df(), adata.obs, pd.Series([1, 2], index=["a", "b"])):
        assert list(names_of(data)) == ["a", "b"]
    assert names_of(np.zeros((2, 1))) is None
    assert by_name(np.zeros(2), pd.Index(["a", "b"]), "table").tolist() == [0, 0]


def test_places_of_names_positions_slices_and_masks():
    names = ["a", "b", "c", "b"]
    for wanted, expected in [
        (None, [0, 1, 2, 3]),
        ("c", [2]),
        (["c", "a"], [2, 0]),
        ([np.int64(3), 0], [3, 0]),
        (1, [1]),
        (slice(1, 3), [1, 2]),
        (np.array([True, False, True, False]), [0, 2]),
        (pd.Index(["a"]), [0]),
        ([], []),
    ]:
        np.testing.assert_array_equal(places_of(wanted, names, "genes"), expected)
    for wanted in ("d", ["a", "d"], 4, -1, [1.5], ["b"], np.array([True])):
        with pytest.raises(InvalidArgumentError, match=r"^genes"):
            places_of(wanted, names, "genes")
