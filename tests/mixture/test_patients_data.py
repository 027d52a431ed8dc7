"""Data sets of patients: labels of any type, containers of any kind, names, stored mixtures, who stays."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrosplice._mixture.patients.fit_gmm import fit_gmm
from pyrosplice._mixture.patients.schema import key_of
from pyrosplice._mixture.patients.selection import selection_table
from pyrosplice._mixture.patients.triplets import AnnData_TripletDataset, TripletDataset
from pyrosplice.errors import InvalidArgumentError

SIZES = {"s1": 60, "s2": 20, "s3": 45}
COLUMNS = {"patient_col": "sample", "label_col": "patient_group", "group_by": "state"}


def cells(seed=0):
    """Three patients of different sizes in no order, a representation and a state of each cell."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.repeat(list(SIZES), list(SIZES.values())))
    x = rng.normal(size=(len(names), 2)) + 5 * rng.integers(2, size=(len(names), 1))
    obs = pd.DataFrame({"sample": names, "patient_group": np.where(names == "s3", "B", "A")})
    obs["state"] = np.where(x[:, 0] > 2.5, "high", "low")
    return anndata.AnnData(x, obs=obs.set_index(np.char.add("c", np.arange(len(names)).astype(str))))


def made(adata, **options):
    return AnnData_TripletDataset(adata, **{"n_cells": 20, **options})


def fitted(**options):
    adata = cells()
    fit_gmm(made(adata), **{"k_comps": 2, "verbose": False, **options})
    return adata


KINDS = {
    "object": lambda v: v.astype(object),
    "string": lambda v: v.astype("string"),
    "text": lambda v: v.astype(pd.StringDtype("python", na_value=np.nan)),
    "categorical": lambda v: pd.Categorical(v, categories=["zz", *sorted(set(v), reverse=True), "aa"]),
    "integer": lambda v: pd.factorize(v, sort=True)[0],
    "nullable": lambda v: pd.array(pd.factorize(v, sort=True)[0], dtype="Int64"),
    "dates": lambda v: pd.to_datetime("2024-01-01") + pd.to_timedelta(pd.factorize(v, sort=True)[0], unit="D"),
    "floats": lambda v: pd.factorize(v, sort=True)[0] + 0.5,
    "mixed": lambda v: v.map({name: i if i else name for i, name in enumerate(sorted(set(v)))}),
}


@pytest.mark.parametrize("argument", COLUMNS)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_type_give_the_same_distributions(kind, argument):
    expected = made(cells(), group_by="state")
    adata = cells()
    adata.obs[COLUMNS[argument]] = KINDS[kind](adata.obs[COLUMNS[argument]].astype("object"))
    found = made(adata, group_by="state")
    rows = [np.flatnonzero(adata.obs["sample"].astype(str) == name) for name in found.names]
    assert sorted(map(len, rows)) == sorted(SIZES.values())
    same = found.supports[:, 0].argsort(), expected.supports[:, 0].argsort()
    torch.testing.assert_close(found.supports[same[0]], expected.supports[same[1]])
    patients = [[20, 60, 45].index(len(own)) for own in rows], [1, 0, 2]
    order = [patients[0].index(p) for p in patients[1]]
    torch.testing.assert_close(found.weights[order][:, same[0]], expected.weights[:, same[1]])
    groups = np.array(found.distribution_labels)[order]
    assert groups[0] == groups[1] != groups[2] and len(found.classes) == 2


@pytest.mark.parametrize("dtype", ["boolean", bool])
def test_truth_values_are_labels(dtype):
    adata = cells()
    adata.obs["patient_group"] = (adata.obs["patient_group"] == "B").astype(dtype)
    assert made(adata).classes == ["False", "True"]


@pytest.mark.parametrize("argument", COLUMNS)
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, "", " ", "\t"])
def test_a_missing_label_is_refused_with_its_column(argument, missing):
    adata = cells()
    values = adata.obs[COLUMNS[argument]].astype(object).to_numpy()
    values[7] = missing
    adata.obs[COLUMNS[argument]] = values
    with pytest.raises(InvalidArgumentError, match=rf"{argument}: obs\['{COLUMNS[argument]}'\].*missing"):
        made(adata, group_by="state")


CONTAINERS = {
    "float32": lambda x: x.astype(np.float32),
    "object": lambda x: x.astype(object),
    "list": lambda x: x.tolist(),
    "fortran": np.asfortranarray,
    "frame": lambda x: pd.DataFrame(x),
    "nullable": lambda x: pd.DataFrame(x).convert_dtypes(),
    "csr": sp.csr_matrix,
    "csc": sp.csc_array,
    "coo": sp.coo_matrix,
    "tensor": lambda x: torch.tensor(x, requires_grad=True),
    "sparse tensor": lambda x: torch.tensor(x).to_sparse(),
    "duplicates": lambda x: sp.coo_matrix(
        (np.repeat(x.ravel() / 2, 2), [np.repeat(i.ravel(), 2) for i in np.indices(x.shape)]), shape=x.shape
    ),
}


@pytest.mark.parametrize("kind", CONTAINERS)
@settings(max_examples=5)
@given(st.integers(0, 10**6))
def test_points_in_every_container_are_the_same_points(kind, seed):
    rng = np.random.default_rng(seed)
    points = [rng.integers(-9, 9, size=(n, 3)).astype(float) for n in (4, 4, 6)]
    found = TripletDataset([CONTAINERS[kind](x) for x in points], [0, 1, 0])
    for own, x in zip(found.supports, points, strict=True):
        assert own.dtype == torch.float64 and not own.requires_grad and np.array_equal(own.numpy(), x)
    shared = TripletDataset(CONTAINERS[kind](points[0]), [0, 1], identical_supports=True)
    assert np.array_equal(shared.supports.numpy(), points[0])


@pytest.mark.parametrize("kind", ["float32", "csr", "csc", "frame", "duplicates"])
def test_a_representation_in_every_container_is_the_same_cells(kind):
    adata = cells()
    x = CONTAINERS[kind](np.round(adata.X))
    adata.obsm["rep"] = x.set_axis(adata.obs_names) if kind == "frame" else sp.csr_matrix(x) if sp.issparse(x) else x
    if kind == "frame":
        adata.obsm["rep"].columns = ["a", "b"]
    np.testing.assert_array_equal(made(adata, use_rep="rep").representation(), np.round(adata.X))


def test_no_numbers_are_refused_with_what_to_give():
    adata = cells()
    bare = anndata.AnnData(obs=adata.obs, obsm={"rep": adata.X})
    bare.layers["counts"] = np.ones((adata.n_obs, 0))
    with pytest.raises(InvalidArgumentError, match=r"X is None.*use_rep.*\['rep'\]"):
        made(bare)
    assert len(made(bare, use_rep="rep")) == 3
    with pytest.raises(InvalidArgumentError, match=r"use_rep.*\['rep'\]"):
        made(bare, use_rep="X_pca")
    for wrong in (np.nan, np.inf):
        adata.X[3, 1] = wrong
        with pytest.raises(InvalidArgumentError, match=r"NaN.*marginalize"):
            made(adata)
    for wrong in (np.array([["a", "b"]]), np.ones((2, 2), complex), pd.DataFrame({"a": ["x"]})):
        with pytest.raises(InvalidArgumentError, match=r"distribution 1.*numbers|expected numbers"):
            TripletDataset([np.ones((2, 2)), wrong], [0, 1])


def test_backed_cells_are_read(tmp_path):
    adata = cells()
    for name, x in (("dense", adata.X), ("sparse", sp.csr_matrix(adata.X))):
        anndata.AnnData(x, obs=adata.obs).write_h5ad(tmp_path / f"{name}.h5ad")
        backed = anndata.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        np.testing.assert_array_equal(made(backed).representation(), adata.X)
        backed.file.close()


# ---- names ------------------------------------------------------------------------------------------------------


@given(st.permutations(range(4)), st.permutations(range(3)))
def test_tables_are_paired_by_the_names_of_patients_points_and_features(patients, points):
    rng = np.random.default_rng(0)
    names, at, features = list("wxyz"), ["p", "q", "r"], ["a", "b"]
    labels = pd.Series([0, 1, 1, 0], index=names)
    support = pd.DataFrame(rng.normal(size=(3, 2)), index=at, columns=features)
    weights = pd.DataFrame(rng.random((4, 3)), index=names, columns=at)
    mixed = TripletDataset(support, labels, weights=weights.iloc[patients, points], identical_supports=True)
    np.testing.assert_array_equal(mixed.weights.numpy(), weights.to_numpy())
    own = [support + i for i in range(4)]
    tables = [x if i == 0 else x[features[::-1]] for i, x in enumerate(own)]
    turned = TripletDataset(pd.Series(tables, index=names).iloc[patients], labels)
    np.testing.assert_array_equal(turned.supports.numpy(), np.stack([x.to_numpy() for x in own]))


def test_names_that_fit_in_part_are_refused():
    labels = pd.Series([0, 1], index=["x", "y"])
    support = pd.DataFrame(np.eye(2), index=["p", "q"])
    for rows, columns in ((["x", "z"], ["p", "q"]), (["x", "y"], ["p", "z"]), (["x", "x"], ["p", "q"])):
        weights = pd.DataFrame(np.ones((2, 2)), index=rows, columns=columns)
        with pytest.raises(InvalidArgumentError, match="weights"):
            TripletDataset(support, labels, weights=weights, identical_supports=True)
    tables = [pd.DataFrame(np.ones((3, 2)), columns=c) for c in (["a", "b"], ["b", "c"])]
    with pytest.raises(InvalidArgumentError, match="supports: distribution 1"):
        TripletDataset(tables, [0, 1])


def test_classes_of_every_type_and_shapes_that_do_not_fit():
    x = np.ones((3, 2, 2))
    assert TripletDataset(x, [5, 7, 5]).distribution_labels == [5, 7, 5]
    for labels in (["b", "a", "b"], [True, False, True], [1.7, 1.2, 1.7], pd.Categorical(["b", "a", "b"])):
        data = TripletDataset(x, labels)
        assert len(data.classes) == 2 and data.distribution_labels in ([1, 0, 1], [0, 1, 0])
    for given_, match in (
        ({"distribution_labels": [0, None, 1]}, "distribution_labels"),
        ({"weights": np.ones((3, 3))}, "weights"),
        ({"weights": -np.ones((3, 2))}, "weights"),
        ({"covariances": np.ones((3, 2, 3, 3))}, "covariances"),
        ({"supports": np.ones((3, 2))}, "supports"),
        ({"supports": {"a": x[0]}}, "supports"),
        ({"n_triplets": 1.5}, "n_triplets"),
        ({"lables": 1}, "no option 'lables'"),
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            TripletDataset(**{"supports": x, "distribution_labels": [0, 1, 1], **given_})


def test_weights_of_own_points_count_and_mixtures_are_not_cells():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 20, 2)) + 4 * (np.arange(20) < 10)[:, None]
    times = np.where(np.arange(20) < 10, 3, 1)
    weighted = TripletDataset(x, [0, 1], weights=np.stack([times, times]))
    repeated = TripletDataset([np.repeat(own, times, axis=0) for own in x], [0, 1])
    options = {"k_comps": 2, "component_sharing": "global", "tol": 1e-12, "max_iter": 500, "verbose": False}
    found, expected = weighted.fit_gmm(**options), repeated.fit_gmm(**options)
    torch.testing.assert_close(found.weights.sort(1)[0], expected.weights.sort(1)[0], rtol=0, atol=1e-6)
    for data, match in (
        (weighted, "component_sharing"),
        (TripletDataset(x, [0, 1], covariances=np.ones((2, 20, 2, 2))), "covariances"),
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            data.fit_gmm(k_comps=2, verbose=False)


# ---- who stays, stored mixtures, the schema ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"group_by": "state"}, {"gmm_key": "gmm_X"}, {"gmm_key": "gmm_X", "sample_gmm": 1}]
)
@pytest.mark.parametrize("n_cells", [30, 250])
def test_every_patient_stays_where_no_cells_are_drawn(options, n_cells):
    adata = fitted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = AnnData_TripletDataset(adata, n_cells=n_cells, **options)
    assert data.names == list(SIZES) and data.index_mask.all()
    assert "sample_gmm" not in options or data.supports.shape == (3, n_cells, 2)


def test_patients_that_the_fit_left_out_are_left_out_again():
    adata = cells()
    with pytest.warns(UserWarning, match="'s2': 20"):
        fit_gmm(AnnData_TripletDataset(adata, n_cells=40), k_comps=2, verbose=False)
    with pytest.warns(UserWarning, match="the fit in uns.*'s2': 20"):
        assert AnnData_TripletDataset(adata, gmm_key="gmm_X").names == ["s1", "s3"]
    adata.obs["sample"] = adata.obs["sample"].astype(str).replace("s1", "new")
    with pytest.raises(InvalidArgumentError, match="new"), pytest.warns(UserWarning):
        AnnData_TripletDataset(adata, gmm_key="gmm_X")


@pytest.mark.parametrize("sharing", ["global", "sample_specific"])
@pytest.mark.parametrize("how", ["none", "absent"])
@pytest.mark.parametrize("dtype", [np.int64, np.float64, str, "category", "Int64"])
def test_shares_of_hard_labels_stand_in_for_weights(sharing, how, dtype):
    adata = fitted(component_sharing=sharing)
    if how == "none":
        adata.uns["gmm_X"]["distribution_weights"] = None
    else:
        del adata.uns["gmm_X"]["distribution_weights"]
    labels = adata.obs["gmm_X_comp"].astype(int)
    adata.obs["gmm_X_comp"] = labels.astype(dtype)
    expected = [np.bincount(labels[adata.obs["sample"] == name], minlength=2) / n for name, n in SIZES.items()]
    for source in ("auto", "components"):
        found = AnnData_TripletDataset(adata, gmm_key="gmm_X", gmm_weights_source=source)
        np.testing.assert_allclose(found.weights, expected)
    with pytest.raises(ValueError, match=r"gmm_weights_source.*'stored'"):
        AnnData_TripletDataset(adata, gmm_key="gmm_X", gmm_weights_source="stored")
    adata.obs["gmm_X_comp"] = np.where(np.arange(len(labels)) == 4, -1, labels)
    with pytest.raises(InvalidArgumentError, match="gmm_X_comp"):
        AnnData_TripletDataset(adata, gmm_key="gmm_X")
    del adata.obs["gmm_X_comp"]
    for source in ("auto", "components"):
        with pytest.raises(ValueError, match=r"gmm_weights_source.*gmm_X_comp"):
            AnnData_TripletDataset(adata, gmm_key="gmm_X", gmm_weights_source=source)


@pytest.mark.parametrize("metric", ["aic", "bic", "heldout_nll"])
@pytest.mark.parametrize("sharing", ["global", "sample_specific"])
def test_the_stored_selection_is_by_name_and_survives_a_file(metric, sharing, tmp_path):
    adata = cells()
    names = {"s1": "a/b", "s2": "50%2", "s3": ".."}
    adata.obs["sample"] = adata.obs["sample"].map(names)
    data = made(adata).fit_gmm(
        k_comps=np.arange(1, 4), k_selection_metric=metric, component_sharing=sharing, verbose=False
    )
    adata.write_h5ad(tmp_path / "a.h5ad")
    for gmm in (data.gmm, anndata.read_h5ad(tmp_path / "a.h5ad").uns["gmm_X"]):
        selection = gmm["selection"]
        assert selection["score_name"] == ("validation_nll" if metric == "heldout_nll" else metric)
        own = selection["scores_by_distribution"]
        assert set(own) == set(selection["best_k_by_distribution"]) == {key_of(name) for name in names.values()}
        for scores in (selection["scores"], *own.values()):
            assert all(len(values) == 3 for values in scores.values()) and list(scores["k"]) == [1, 2, 3]
            assert {"k", "score", "train_nll", "n_train_cells"} <= set(scores)
            assert ("validation_nll" in scores) == (metric == "heldout_nll")
        for p, name in enumerate(data.names):
            best = selection["best_k_by_distribution"][key_of(name)]
            assert best == 1 + np.argmin(own[key_of(name)]["score"]) == gmm["distribution_n_components"][p]
        assert selection_table(gmm)["chosen"].sum() == (1 if sharing == "global" else 3)
    assert isinstance(data.gmm["selection"]["k_comps"], list) and isinstance(selection["scores"], dict)


@given(st.lists(st.text("/%2F5.E ", min_size=1, max_size=8), unique=True))
def test_keys_of_a_file_are_as_different_as_the_names(names):
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names) and not any("/" in key or not key.strip(".") for key in keys)


@pytest.mark.parametrize(
    ("options", "refit", "whole"),
    [
        ({"k_comps": 2}, "full", True),
        ({"k_comps": [2]}, "full", True),
        ({"k_comps": [1, 2]}, "none", False),
        ({"k_comps": [1, 2], "refit": "full"}, "full", True),
        ({"k_comps": [1, 2], "n_folds": 2}, "full", True),
    ],
)
@pytest.mark.parametrize("sharing", ["global", "sample_specific"])
def test_what_was_fitted_is_recorded(options, refit, whole, sharing):
    record = fitted(component_sharing=sharing, **options).uns["gmm_X"]["backend_metadata"]
    assert record["refit"] == refit and (record["fit_indices_count"] == sum(SIZES.values())) == whole


def test_what_is_no_data_set_is_told_how_to_make_one():
    for wrong in (cells(), cells().X, [cells().X], None):
        with pytest.raises(InvalidArgumentError, match=r"AnnData_TripletDataset\(adata"):
            fit_gmm(wrong)
    for options, match in (({"gmm_key": "x"}, "gmm_key"), ({"k": 2}, "it takes dataset")):
        with pytest.raises(InvalidArgumentError, match=match):
            TripletDataset(np.ones((2, 9, 2)), [0, 1]).fit_gmm(**options)
    with pytest.raises(InvalidArgumentError, match="gmm_key"):
        made(cells()).fit_gmm(k_comps=2, gmm_key="a/b", verbose=False)
    for options in ({"group_by": "state", "gmm_key": "gmm_X"}, {"n_cells": 2.5}, {"seed": -1}, {"patients": "sample"}):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            made(fitted(), **options)


@pytest.mark.parametrize("argument", ["patient_col", "label_col", "group_by", "use_rep", "gmm_key"])
@pytest.mark.parametrize("wrong", ["nothing", "", 3, ["sample"]])
def test_columns_and_keys_that_there_are_not_are_refused_with_those_that_there_are(argument, wrong):
    with pytest.raises(InvalidArgumentError, match=rf"{argument}: expected a (column|key) of"):
        made(cells(), **{argument: wrong})
