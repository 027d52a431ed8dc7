"""Groups and parts: labels of any type, paired by name; missing ones refused or left out."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import pyrosplice.api as de
from pyrosplice._expression.expression_glm import ExpressionGLM
from pyrosplice.errors import InvalidArgumentError

RUNS = {
    "two_sample": lambda data, labels, **o: de.test.two_sample(data, labels, **o),
    "two_sample wald": lambda data, labels, **o: de.test.two_sample(data, labels, test="wald", **o),
    "t_test": lambda data, labels, **o: de.test.t_test(data, labels, **o),
    "rank_test": lambda data, labels, **o: de.test.rank_test(data, labels, **o),
    "pairwise": lambda data, labels, **o: de.test.pairwise(data, labels, **o),
    "pairwise rank": lambda data, labels, **o: de.test.pairwise(data, labels, test="rank", **o),
    "versus_rest": lambda data, labels, **o: de.test.versus_rest(data, labels, **o),
    "partition": lambda data, labels, **o: de.test.partition(data, labels, **o).rank_test(grouping=np.arange(40) % 2),
    "partition grouping": lambda data, labels, **o: de.test.partition(data, np.arange(40) // 20 % 2, **o).t_test(
        grouping=labels
    ),
}
NAMES = [f"n{i}" for i in range(40)]


@pytest.fixture(scope="module")
def counts():
    y = np.random.default_rng(2).poisson(4.0, (40, 5)).astype(float)
    return ad.AnnData(y, pd.DataFrame(index=NAMES), pd.DataFrame(index=list("vwxyz")))


def two_labels(values):
    """Labels of 40 cells, alternating in fours."""
    return [values[i // 2 % 2] for i in range(40)]


@pytest.mark.parametrize("run", sorted(RUNS))
@settings(max_examples=8)
@given(order=st.permutations(range(40)), kind=st.sampled_from(["same", "reordered", "foreign", "part", "twice"]))
def test_series_are_paired_by_name(run, order, kind):
    y = np.random.default_rng(2).poisson(4.0, (40, 5)).astype(float)
    data = ad.AnnData(y, pd.DataFrame(index=NAMES), pd.DataFrame(index=list("vwxyz")))
    labels = pd.Series(two_labels(["a", "b"]), NAMES)
    expected = RUNS[run](y, labels.to_numpy()).pval
    if kind in ("same", "reordered"):
        given_labels = labels if kind == "same" else labels.iloc[list(order)]
    elif kind == "foreign":
        given_labels = labels.set_axis([f"other{i}" for i in order])
    else:
        index = list(NAMES)
        index[order[0]] = "stranger" if kind == "part" else NAMES[order[1]]
        with pytest.raises(InvalidArgumentError, match=r"grouping|parts"):
            RUNS[run](data, labels.set_axis(index))
        return
    np.testing.assert_array_equal(RUNS[run](data, given_labels).pval, expected)
    frame = pd.DataFrame(y, NAMES, list("vwxyz"))
    np.testing.assert_allclose(RUNS[run](frame, given_labels).pval, expected, rtol=1e-9)


@pytest.mark.parametrize("run", sorted(RUNS))
@pytest.mark.parametrize(
    "labels",
    [
        two_labels([0, 1]),
        np.array(two_labels([False, True])),
        two_labels([1, "x"]),
        pd.Categorical(two_labels(["b", "a"]), categories=["unused", "b", "a"]),
        pd.Series(two_labels(["a", "b"]), dtype="string"),
        pd.Series(two_labels([1, 2]), dtype="Int64"),
        pd.Series(two_labels([True, False]), dtype="boolean"),
        pd.Series(pd.to_datetime(two_labels(["2021-03-01", "2020-01-02"]))),
        np.array(two_labels([0.5, 1.5]), dtype=np.float32),
    ],
    ids=["int", "bool", "mixed", "categorical", "string", "Int64", "boolean", "dates", "float32"],
)
def test_labels_of_any_type(run, labels, counts):
    text = np.array([str(v) for v in pd.Series(labels)])
    found, expected = RUNS[run](counts, labels), RUNS[run](counts, text)
    np.testing.assert_allclose(found.pval, expected.pval, rtol=1e-9)


@pytest.mark.parametrize("run", [r for r in sorted(RUNS) if r != "partition grouping"])
@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA, "", "  "], ids=repr)
def test_missing_labels_are_refused_or_left_out(run, nothing, counts):
    labels = two_labels(["a", "b"])
    labels[3], labels[20], kept = nothing, nothing, np.delete(np.arange(40), [3, 20])
    with pytest.raises(InvalidArgumentError, match="2 of 40 missing"):
        RUNS[run](counts, labels)
    with pytest.raises(InvalidArgumentError, match="missing: expected"):
        RUNS[run](counts, labels, missing="leave")
    if run == "partition":
        return
    found = RUNS[run](counts, labels, missing="drop")
    expected = RUNS[run](counts[kept].copy(), [labels[i] for i in kept])
    np.testing.assert_allclose(found.pval, expected.pval, rtol=1e-8)
    np.testing.assert_allclose(found.summary()["mean"], expected.summary()["mean"])


def test_parts_without_a_label_are_left_out(counts):
    parts = np.repeat(["p", "q", ""], [16, 16, 8])
    found = de.test.partition(counts, parts, missing="drop").t_test(grouping=np.arange(40) % 2)
    assert found.groups == ["p", "q"]
    alone = de.test.t_test(counts[16:32].copy(), np.arange(16, 32) % 2)
    np.testing.assert_allclose(found.pval_group("q"), alone.pval)
    assert set(de.fit.partition(counts, parts, missing="drop").model(formula_loc="~1")) == {"p", "q"}


def test_groups_keep_their_type_and_answer_to_their_text(counts):
    found = de.test.versus_rest(counts, np.arange(40) % 3)
    assert found.groups == [0, 1, 2]
    np.testing.assert_array_equal(found.pval_group(1), found.pval_group("1"))
    np.testing.assert_array_equal(found.pval_group(1), found.pval[0, 1])
    pairs = de.test.pairwise(counts, np.arange(40) % 3, test="rank")
    np.testing.assert_array_equal(pairs.pval_pairs(0, "2"), pairs.pval[:1, 2:])
    with pytest.raises(InvalidArgumentError, match="expected one of"):
        pairs.pval_pairs(0, 7)


def test_a_column_called_as_ours_stays_what_it_is(counts):
    table = pd.DataFrame({"group": np.arange(40) % 4, "x": two_labels(["a", "b"])}, NAMES)
    found = de.test.two_sample(
        counts, "x", test="wald", sample_description=table, formula_scale="~1+group", as_numeric="group"
    )
    own = de.test.wald(
        counts, "x", formula_loc="~1+x", formula_scale="~1+group", as_numeric="group", sample_description=table
    )
    np.testing.assert_allclose(found.pval, own.pval, rtol=1e-8)


def test_sparse_rows_of_each_pair(counts):
    labels = np.arange(40) % 3
    for test in ("wald", "t-test", "rank"):
        dense = de.test.pairwise(counts, labels, test=test).pval
        np.testing.assert_allclose(de.test.pairwise(sp.coo_array(counts.X), labels, test=test).pval, dense, rtol=1e-8)


def test_factors_without_a_coefficient_are_named_and_numbers_that_hardly_repeat_are_no_labels():
    table = pd.DataFrame({"g": ["a", "b"] * 30, "same": "x", "age": np.linspace(20, 80, 60)})
    counts = np.random.default_rng(0).poisson(3.0, (60, 2))
    with pytest.warns(UserWarning, match="factor 'same' is 'x' in every cell"):
        glm = ExpressionGLM("~g + same").fit(counts, sample_description=table)
    assert glm.coefficient_names == ["Intercept", "g[T.b]"]
    with pytest.raises(InvalidArgumentError, match=r"'age' holds numbers, 60 different.*as_numeric"):
        ExpressionGLM("~g + age").fit(counts, sample_description=table)
    with pytest.raises(InvalidArgumentError, match=r"batch_size: .*found 'big'"):
        ExpressionGLM("~g").fit(counts, sample_description=table, batch_size="big")


def test_a_model_makes_the_folder_of_its_file_and_overwrites_no_folder(tmp_path):
    table = pd.DataFrame({"g": ["a", "b"] * 6})
    glm = ExpressionGLM("~g").fit(np.random.default_rng(0).poisson(3.0, (12, 2)), sample_description=table)
    glm.save(tmp_path / "new" / "glm.safetensors")
    assert ExpressionGLM.load(tmp_path / "new" / "glm.safetensors").coefficient_names == glm.coefficient_names
    with pytest.raises(InvalidArgumentError, match="path: expected a file to write, found the folder"):
        glm.save(tmp_path / "new")
