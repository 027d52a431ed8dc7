"""Labels of every type: one level for each distinct value, missing ones never a level."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice._tables.labels import read_labels
from pyrosplice.errors import InvalidArgumentError

codes = st.lists(st.integers(0, 3), min_size=1, max_size=15)
TEXT = {
    "object": lambda text: np.array(text, dtype=object),
    "str": np.array,
    "string": lambda text: pd.array(text, dtype="string"),
    "list": list,
    "tuple": tuple,
    "series": pd.Series,
    "index": pd.Index,
    "categorical": pd.Categorical,
    "unused levels": lambda text: pd.Categorical(text, categories=["unused", "a", "b", "c", "d", "none"]),
    "categorical of strings": lambda text: pd.Series(pd.array(text, dtype="string")).astype("category"),
    "bytes": lambda text: np.array([t.encode() for t in text]),
    "column": lambda text: pd.DataFrame({"x": text}),
    "matrix": lambda text: np.array(text, dtype=object)[:, None],
}
VALUES = {
    "int": [0, 1, 2, 3],
    "float": [0.25, 1.0, 2.5, 30.0],
    "float32": list(np.array([0.3, 1.0, 2.7, 30.0], dtype=np.float32)),
    "date": list(pd.to_datetime(["2019-12-31", "2020-01-01", "2020-01-02", "2020-02-01"])),
    "time": list(pd.to_datetime(["2020-01-01 00:00", "2020-01-01 00:01", "2020-01-02 00:00", "2020-02-01 12:00"])),
    "zone": list(pd.to_datetime(["2019-12-31", "2020-01-01", "2020-01-02", "2020-02-01"]).tz_localize("CET")),
    "duration": list(pd.to_timedelta([0, 1, 2, 3], unit="D")),
    "period": list(pd.period_range("2020-01", periods=4, freq="M")),
    "mixed": [1, "two", 3.5, "4"],
}


@given(codes, st.sampled_from(sorted(TEXT)))
def test_text_of_every_kind_gives_the_same_labels(codes, kind):
    text = ["abcd"[i] for i in codes]
    labels = read_labels(TEXT[kind](text), "batch")
    assert labels.names.tolist() == text
    assert labels.levels == tuple(sorted(set(text)))


@given(codes, st.sampled_from(sorted(VALUES)), st.booleans())
def test_one_level_for_each_distinct_value(codes, kind, categorical):
    values = [VALUES[kind][i] for i in codes]
    labels = read_labels(pd.Categorical(values) if categorical and kind != "mixed" else pd.Series(values), "batch")
    distinct = {tuple(np.flatnonzero(labels.codes == code)) for code in range(len(labels.levels))}
    assert distinct == {tuple(np.flatnonzero(np.array(codes) == code)) for code in set(codes)}
    assert len(set(labels.levels)) == len(labels.levels)


@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_booleans(values):
    for column in (values, np.array(values), pd.array(values, dtype="boolean"), torch.tensor(values)):
        assert read_labels(column, "flag").names.tolist() == [str(v) for v in values]


@given(codes, st.integers(0, 14), st.sampled_from([None, np.nan, pd.NA, "", " ", "\t"]))
def test_what_is_missing_is_no_level(codes, where, missing):
    text = ["abcd"[i] for i in codes]
    text.insert(where % (len(text) + 1), missing)
    series = pd.Series(text, dtype=object, index=[f"c{i}" for i in range(len(text))])
    with pytest.raises(InvalidArgumentError, match=r"^batch: .* 1 of .*missing or blank"):
        read_labels(series, "batch")
    kept = read_labels(series, "batch", keep_missing=True)
    assert kept.missing.sum() == 1
    assert set(kept.levels) == {"abcd"[i] for i in codes}
    assert [name for name in kept.names if name is not None] == ["abcd"[i] for i in codes]


@pytest.mark.parametrize(
    "values", [[1, "1"], [1, True], [[1], [2]], "text", 3, np.zeros((2, 2)), pd.DataFrame(np.eye(2))]
)
def test_what_cannot_be_labels_is_refused_by_our_error(values):
    with pytest.raises(InvalidArgumentError, match=r"^batch: "):
        read_labels(values, "batch")


def test_dates_are_called_by_their_day():
    assert read_labels(pd.to_datetime(["2020-01-02", "2020-01-01"]), "day").levels == ("2020-01-01", "2020-01-02")
    assert read_labels(np.array([0.3, 1.0], dtype=np.float32), "x").levels == ("0.3", "1.0")
