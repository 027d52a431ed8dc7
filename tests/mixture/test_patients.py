"""Data sets of patients: labels, containers and tables of every kind are right or refused; what is stored is named."""

import inspect
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyrosplice import AnnData_TripletDataset, TripletDataset, fit_gmm
from pyrosplice._mixture.patients.selection import selection_table
from pyrosplice.errors import InvalidArgumentError
from tests.mixture.helpers import clouds, doubled

X = np.round(clouds(90, 3, 2, spread=6)[0])
CELLS = [f"c{i}" for i in range(len(X))]
FRAME = pd.DataFrame(X, index=CELLS, columns=["a", "b", "c"])


def _adata(**columns):
    obs = {"sample": np.repeat(["a/b", "b", "c"], 30), "patient_group": np.repeat(["u", "v", "u"], 30), **columns}
    return anndata.AnnData(X.copy(), obs=pd.DataFrame(obs, index=CELLS))


def _patients(adata=None, **options):
    return AnnData_TripletDataset(_adata() if adata is None else adata, **{"n_cells": 10, **options})


WHO = np.repeat([0, 1, 2], 30)
LABELS = {
    "text": np.array(["a", "b", "c"])[WHO],
    "string": pd.array(np.array(["a", "b", "c"])[WHO], dtype="string"),
    "categories": pd.Categorical(np.array(["a", "b", "c"])[WHO], categories=list("zcbay")),
    "numbers": WHO,
    "nullable": pd.array(WHO, dtype="Int64"),
    "dates": pd.Timestamp("2020-01-01") + pd.to_timedelta(WHO, unit="D"),
    "mixed": np.array([1, "x", "y"], dtype=object)[WHO],
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_every_type_are_the_same_groups(name):
    labels = LABELS[name]
    data = _patients(_adata(sample=labels, patient_group=labels, state=labels), group_by="state")
    assert len(data.names) == 3 and data.distribution_labels == [0, 1, 2]
    np.testing.assert_allclose(data.weights, np.eye(3))
    np.testing.assert_allclose(data.supports, [X[p == WHO].mean(0) for p in range(3)])


@pytest.mark.parametrize("blank", [None, np.nan, pd.NA, pd.NaT, "", "  "], ids=repr)
@pytest.mark.parametrize("column", ["sample", "patient_group", "state"])
def test_missing_labels_are_refused(blank, column):
    labels = pd.Series(np.array(["a", "b", "c"], dtype=object)[WHO], index=CELLS)
    adata = _adata(state=labels)
    labels.iloc[5] = blank
    adata.obs[column] = labels
    with pytest.raises(InvalidArgumentError, match=r"patient_col|label_col|group_by"):
        _patients(adata, group_by="state")


def test_patients_stay_where_no_cell_is_drawn():
    adata = _adata(
        sample=np.repeat(["p", "q", "r"], [12, 38, 40]), patient_group="u", state=np.array(["x", "y"])[WHO % 2]
    )
    _patients(adata).fit_gmm(k_comps=2, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"gmm_key": "gmm_X"}, {"gmm_key": "gmm_X", "sample_gmm": True}, {"group_by": "state"}):
            assert AnnData_TripletDataset(adata, **options).names == ["p", "q", "r"]
    with pytest.warns(UserWarning, match="'p': 12"):
        _patients(adata, n_cells=20).fit_gmm(k_comps=2, verbose=False, gmm_key="some")
    with pytest.warns(UserWarning, match="left out"):
        assert AnnData_TripletDataset(adata, gmm_key="some").names == ["q", "r"]
    adata.obs["some_comp"] = 0
    with pytest.raises(InvalidArgumentError, match="p"):
        AnnData_TripletDataset(adata, gmm_key="some")


def test_weights_that_were_not_stored_are_shares_of_labels(tmp_path):
    adata = _adata()
    _patients(adata).fit_gmm(k_comps=2, verbose=False)
    hard = _patients(adata, gmm_key="gmm_X", gmm_weights_source="components").weights
    adata.uns["gmm_X"]["distribution_weights"] = None
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    for source in ("auto", "components"):
        assert torch.equal(_patients(read, gmm_key="gmm_X", gmm_weights_source=source).weights, hard)
    with pytest.raises(ValueError, match="stored"):
        _patients(read, gmm_key="gmm_X", gmm_weights_source="stored")
    del read.obs["gmm_X_comp"]
    with pytest.raises(ValueError, match="gmm_X_comp"):
        _patients(read, gmm_key="gmm_X")


@pytest.mark.parametrize("metric", ["aic", "bic", "heldout_nll"])
def test_the_stored_selection_is_keyed_by_name_and_survives_a_file(metric, tmp_path):
    adata = _adata()
    data = _patients(adata).fit_gmm(k_comps=np.arange(1, 4), k_selection_metric=metric, verbose=False)
    adata.write_h5ad(tmp_path / "a.h5ad")
    for gmm in (data.gmm, anndata.read_h5ad(tmp_path / "a.h5ad").uns["gmm_X"]):
        selection = gmm["selection"]
        assert selection["score_name"] == ("validation_nll" if metric == "heldout_nll" else metric)
        assert list(selection["k_comps"]) == list(selection["scores"]["k"]) == [1, 2, 3]
        parts = selection["scores_by_distribution"]
        assert set(parts) == set(selection["best_k_by_distribution"]) == {"a%2Fb", "b", "c"}
        mean = np.mean([part["score"] for part in parts.values()], 0)
        np.testing.assert_allclose(selection["scores"]["score"], mean)
        for name, part in parts.items():
            assert selection["best_k_by_distribution"][name] == part["k"][int(np.argmin(part["score"]))]
        pd.testing.assert_frame_equal(
            selection_table(gmm), selection_table(data.gmm), check_dtype=False, check_like=True
        )
    fixed = _patients(_adata()).fit_gmm(k_comps=2, verbose=False)
    assert fixed.gmm["backend_metadata"]["refit"] == "full"


@pytest.mark.parametrize("name", sorted(inspect.signature(fit_gmm).parameters))
@pytest.mark.parametrize("value", [object(), "nonsense", -3, float("nan")], ids=["object", "text", "negative", "NaN"])
def test_every_option_of_fit_gmm_is_checked(name, value):
    if (name, value) == ("gmm_key", "nonsense"):
        return
    with pytest.raises(InvalidArgumentError):
        fit_gmm(**{"dataset": _patients(), "k_comps": 2, "verbose": False, name: value})


@pytest.mark.parametrize("k", [np.arange(1, 4), range(1, 4), {1, 2, 3}, [np.int64(1), np.int32(2), np.uint8(3)]])
def test_candidates_of_every_kind_of_sequence(k):
    expected = _patients().fit_gmm(k_comps=[1, 2, 3], verbose=False).weights
    assert torch.equal(_patients().fit_gmm(k_comps=k, verbose=False).weights, expected)


@pytest.mark.parametrize(
    "make", [sp.csr_matrix, sp.csc_matrix, lambda x: x.astype(np.int8), lambda x: doubled(x).tocsr()]
)
def test_containers_of_patients(make):
    adata = _adata()
    adata.obsm["table"] = pd.DataFrame(X, index=CELLS).astype("Int64").rename(columns=str)
    other = anndata.AnnData(make(X), obs=adata.obs)
    expected = _patients(adata).fit_gmm(k_comps=2, verbose=False).supports
    for data in (_patients(other), _patients(adata, use_rep="table")):
        assert torch.equal(data.fit_gmm(k_comps=2, verbose=False).supports, expected)


def test_messages_say_what_to_do():
    with pytest.raises(InvalidArgumentError, match="AnnData_TripletDataset"):
        fit_gmm(_adata())
    with pytest.raises(InvalidArgumentError, match="X"):
        AnnData_TripletDataset(anndata.AnnData(obs=_adata().obs), n_cells=5)
    holes = _adata()
    holes.X[4, 1] = np.nan
    with pytest.raises(InvalidArgumentError, match="marginalize"):
        _patients(holes)


def test_tables_of_distributions_are_paired_by_name():
    first, second = FRAME.iloc[:9], FRAME.iloc[9:20]
    data = TripletDataset([first, second[["c", "a", "b"]]], ["late", "early"])
    np.testing.assert_array_equal(data.supports[1], second)
    assert data.distribution_labels == [1, 0]
    points = FRAME.iloc[:3]
    weights = pd.DataFrame([[1, 2, 3], [4, 5, 6.0]], index=["p", "q"], columns=points.index)
    labels = pd.Series([7, 9], index=["q", "p"])
    paired = TripletDataset(points, labels, weights=weights.iloc[:, ::-1], identical_supports=True)
    assert paired.weights.tolist() == [[4, 5, 6], [1, 2, 3]] and paired.distribution_labels == [7, 9]
    for labels in ([0, None], ["a", " "], [[1], [2]]):
        with pytest.raises(InvalidArgumentError, match="distribution_labels"):
            TripletDataset([first, second], labels)
