"""A mixture per patient: independence of order and of other patients, selection, bad input, the stored schema."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from pyrosplice._mixture.em.loop import EMOptions
from pyrosplice._mixture.em.many import fit_many, log_joint_of_cells
from pyrosplice._mixture.em.one_fit import MixtureForm
from pyrosplice._mixture.em.pooled_prior import _estimate
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.mixture_prior import COVARIANCE_TYPES, MixturePrior
from pyrosplice._mixture.patients.fit_gmm import fit_gmm
from pyrosplice._mixture.patients.selection import selection_table, split_folds, split_once
from pyrosplice._mixture.patients.triplets import AnnData_TripletDataset, TripletDataset
from pyrosplice.errors import InvalidArgumentError
from tests.mixture.helpers import brute_force, clouds

QUIET = {"verbose": False}


def cohort(n_patients=4, n_cells=120, dim=3, k=3, *, seed=0):
    """An AnnData whose cells are in no order, patients of different sizes."""
    rng = np.random.default_rng(seed)
    sizes = [n_cells + 17 * p for p in range(n_patients)]
    x = np.concatenate([clouds(n, dim, k, seed=seed + p, spread=6)[0] for p, n in enumerate(sizes)])
    patient = np.repeat(np.arange(n_patients), sizes)
    order = rng.permutation(len(x))
    obs = pd.DataFrame({"sample": [f"P{p}" for p in patient], "patient_group": [f"g{p % 2}" for p in patient]})
    adata = anndata.AnnData(x, obs=obs.set_index(np.arange(len(x)).astype(str)), obsm={"X_pca": x})
    return adata[order].copy()


def dataset(adata, **options):
    return AnnData_TripletDataset(adata, **{"n_cells": 100, "use_rep": "X_pca", **options})


def sets(n=5, dim=3):
    return [torch.tensor(clouds(80 + 23 * i, dim, 3, seed=i)[0]) for i in range(n)]


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_many_fits_at_once_are_the_fits_one_by_one(kind):
    cells, options = sets(), EMOptions(max_iter=60, tolerance=1e-6)
    together = fit_many(cells, [1, 2, 3, 5], MixtureForm(kind), n_init=2, options=options)
    for x, fits in zip(cells, together, strict=True):
        for k in (2, 5):
            (alone,) = fit_many([x], [k], MixtureForm(kind), n_init=2, options=options)
            torch.testing.assert_close(fits[k].parameters.means, alone[k].parameters.means, rtol=0, atol=1e-9)
            torch.testing.assert_close(fits[k].parameters.weights, alone[k].parameters.weights, rtol=0, atol=1e-9)
            assert fits[k].n_iter == alone[k].n_iter


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_joint_densities_and_likelihoods_agree_with_scipy(kind):
    cells = sets(2)
    fits = fit_many(cells, [2], MixtureForm(kind))
    joints = log_joint_of_cells(cells, [[own[2].parameters] for own in fits])
    for x, own, (joint,) in zip(cells, fits, joints, strict=True):
        expected = brute_force(own[2].parameters, x.numpy())
        np.testing.assert_allclose(joint.logsumexp(1).numpy(), expected, atol=1e-9)
        assert own[2].log_likelihood == pytest.approx(expected.sum(), abs=1e-7)


def test_memory_cap_changes_nothing(monkeypatch):
    cells = sets(6)
    wide = fit_many(cells, [2, 4], MixtureForm())
    monkeypatch.setattr("pyrosplice._mixture.em.many.MEMORY", 1)
    narrow = fit_many(cells, [2, 4], MixtureForm())
    for a, b in zip(wide, narrow, strict=True):
        torch.testing.assert_close(a[4].parameters.means, b[4].parameters.means, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"k_comps": 3},
        {"k_comps": [2, 3], "refit": "full"},
        {"k_comps": [2, 3], "k_selection_metric": "heldout_nll"},
        {"k_comps": 3, "component_sharing": "global"},
    ],
)
def test_order_of_cells_changes_nothing(options):
    adata = cohort()
    ordered = adata[np.argsort(adata.obs["sample"].to_numpy(), kind="stable")].copy()
    fits = [fit_gmm(dataset(a), **options, **QUIET) for a in (adata, ordered)]
    for name in ("supports", "covariances", "weights"):
        torch.testing.assert_close(getattr(fits[0], name), getattr(fits[1], name), rtol=0, atol=1e-9)
    assert not torch.allclose(fits[0].weights[0], fits[0].weights[1])


def test_a_patient_does_not_depend_on_the_others():
    adata = cohort()
    some = adata[adata.obs["sample"] != "P1"].copy()
    every, fewer = (fit_gmm(dataset(a), k_comps=3, **QUIET) for a in (adata, some))
    torch.testing.assert_close(every.supports[2], fewer.supports[1], rtol=0, atol=1e-9)


def test_each_patient_gets_its_own_mixture():
    adata = cohort()
    fitted = fit_gmm(dataset(adata), k_comps=3, **QUIET)
    labels = adata.obs["gmm_X_pca_comp"].to_numpy()
    for p, name in enumerate(fitted.names):
        rows = np.flatnonzero(adata.obs["sample"] == name)
        x = adata.obsm["X_pca"][rows]
        for k in range(3):
            mine = x[labels[rows] == k]
            np.testing.assert_allclose(mine.mean(0), fitted.supports[p, k].numpy(), atol=0.6)
        assert fitted.weights[p].sum() == pytest.approx(1)
    np.testing.assert_allclose(adata.obsm["gmm_X_pca_resp"].sum(1), 1)


def test_second_fit_on_one_object_is_the_same_fit():
    data = dataset(cohort())
    first = fit_gmm(data, k_comps=3, **QUIET).supports
    fit_gmm(data, k_comps=2, **QUIET)
    assert torch.equal(fit_gmm(data, k_comps=3, **QUIET).supports, first)
    ragged = TripletDataset([s.numpy() for s in sets(3)], [0, 1, 0])
    once = fit_gmm(ragged, k_comps=2, **QUIET).supports
    assert once.shape == (3, 2, 3)
    assert torch.equal(fit_gmm(ragged, k_comps=2, **QUIET).supports, once)


@pytest.mark.parametrize("metric", ["aic", "bic", "heldout_nll"])
@pytest.mark.parametrize("sharing", ["global", "sample_specific"])
def test_selection_finds_the_clouds_and_is_stored(metric, sharing, tmp_path):
    adata = cohort(3, 400, k=3)
    if sharing == "global":
        adata.obsm["X_pca"] = clouds(adata.n_obs, 3, 3, seed=7, spread=8)[0]
    fitted = fit_gmm(
        dataset(adata),
        k_comps=(1, 2, 3, 4),
        k_selection_metric=metric,
        refit="full",
        component_sharing=sharing,
        **QUIET,
    )
    chosen = fitted.gmm["distribution_n_components"]
    assert np.mean(chosen == 3) > (0.6 if metric == "bic" else 0.3) and chosen.min() >= 3
    adata.write_h5ad(tmp_path / "a.h5ad")
    stored = anndata.read_h5ad(tmp_path / "a.h5ad").uns["gmm_X_pca"]
    assert set(stored) >= {
        "component_sharing",
        "use_rep",
        "covariance_type",
        "n_components",
        "fit_params",
        "distribution_n_components",
        "distribution_reasons",
        "selection",
        "backend",
        "model_family",
        "representation_space",
        "backend_metadata",
        "model",
        "distribution_weights",
        "weight_inference",
    }
    assert set(stored["selection"]) >= {
        "metric",
        "k_comps",
        "best_k",
        "scores",
        "selection_cells_count",
        "refit",
        "train_frac",
        "val_frac",
        "best_k_by_distribution",
        "scores_by_distribution",
    }
    assert ("nll_gap" in stored["selection"]["scores"]) == (metric == "heldout_nll")
    shape = (1 if sharing == "global" else 3, stored["n_components"], 3)
    assert stored["model"]["mu"].shape == shape and stored["model"]["var"].shape == (*shape, 3)
    table = selection_table(stored)
    assert len(table) == 4 * (1 if sharing == "global" else 3) and table["chosen"].sum() == len(table) / 4
    assert table["heldout_se"].gt(0).all()


def test_reloaded_mixtures_are_the_fitted_ones(tmp_path):
    adata = cohort()
    fitted = fit_gmm(dataset(adata), k_comps=[2, 3], **QUIET)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = dataset(anndata.read_h5ad(tmp_path / "a.h5ad"), gmm_key="gmm_X_pca")
    for name in ("supports", "covariances", "weights"):
        assert torch.equal(getattr(again, name), getattr(fitted, name))
    drawn = dataset(adata, gmm_key="gmm_X_pca", sample_gmm=True)
    assert drawn.supports.shape == (4, 100, 3) and drawn.weights is None
    hard = dataset(adata, gmm_key="gmm_X_pca", gmm_weights_source="components")
    torch.testing.assert_close(hard.weights, fitted.weights, atol=0.1, rtol=0)
    with pytest.raises(InvalidArgumentError, match="gmm_key"):
        dataset(adata, gmm_key="nothing")


def test_kept_half_and_refitted_whole():
    adata = cohort()
    options = {"k_comps": [2, 3], **QUIET}
    half, whole = fit_gmm(dataset(adata), **options), fit_gmm(dataset(adata), refit="full", **options)
    assert half.gmm["backend_metadata"]["fit_indices_count"] * 2 == pytest.approx(adata.n_obs, abs=4)
    assert whole.gmm["backend_metadata"]["fit_indices_count"] == adata.n_obs
    fixed = fit_gmm(dataset(adata), k_comps=[3], **QUIET)
    assert fixed.gmm["selection"] is None and fixed.gmm["backend_metadata"]["fit_indices_count"] == adata.n_obs
    with pytest.raises(InvalidArgumentError, match="fixed"):
        selection_table(fixed.gmm)
    folds = fit_gmm(dataset(adata), k_comps=[1, 3], n_folds=4, **QUIET)
    assert folds.gmm["selection"]["metric"] == "heldout_nll" and (folds.gmm["distribution_n_components"] == 3).all()
    automatic = fit_gmm(dataset(adata), **QUIET)
    assert automatic.gmm["selection"]["k_comps"] == list(range(1, 9))


def test_splits_partition_the_cells():
    (once,) = split_once(101, 0.3, 0)
    assert len(once.train) == 30 and sorted([*once.train, *once.held_out]) == list(range(101))
    folds = split_folds(23, 4, 0)
    assert sorted(np.concatenate([f.held_out for f in folds])) == list(range(23))


def test_shared_components_have_weights_of_each_patient():
    rng = np.random.default_rng(0)
    shares, sizes = np.array([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]]), [400, 300, 200]
    means = np.array([[0.0, 0.0], [5.0, 5.0]])
    points = [means[rng.choice(2, n, p=w)] + rng.normal(size=(n, 2)) for w, n in zip(shares, sizes, strict=True)]
    data = fit_gmm(TripletDataset(points, [0, 0, 1]), k_comps=2, component_sharing="global", tol=1e-8, **QUIET)
    assert data.identical_supports and data.supports.shape == (2, 2) and data.weights.shape == (3, 2)
    order = data.supports[:, 0].argsort()
    np.testing.assert_allclose(data.weights[:, order], shares, atol=0.06)
    joint = log_joint_of_cells([torch.tensor(points[0])], [[_mixture(data)]])[0][0] - np.log(0.5)
    resp = (joint + data.weights[0].log()).softmax(1).mean(0)
    torch.testing.assert_close(resp, data.weights[0], atol=1e-3, rtol=0)


def _mixture(data):
    return MixtureParameters(torch.full((2,), 0.5, dtype=torch.float64), data.supports, data.covariances, "full")


@pytest.mark.slow
def test_a_pooled_prior_helps_patients_with_few_cells():
    rng = np.random.default_rng(3)
    train, test = [], []
    for p in range(12):
        x, _ = clouds(600, 6, 3, seed=100 + p, spread=3)
        train.append(x[:45])
        test.append(x[45:])
    scores = {}
    for prior in (None, "pooled"):
        data = fit_gmm(TripletDataset(train, rng.integers(2, size=12)), k_comps=3, prior=prior, **QUIET)
        total = []
        for p, x in enumerate(test):
            mixture = _patient_mixture(data, p)
            total.append(brute_force(mixture, x[:200]).mean())
        scores[prior] = np.mean(total)
    assert scores["pooled"] > scores[None] + 0.5


def _patient_mixture(data, p):
    return MixtureParameters(data.weights[p], data.supports[p], data.covariances[p], "full")


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_empirical_bayes_recovers_the_spread_of_covariances(kind):
    rng = np.random.default_rng(0)
    dim, dof, n = 3, 12.0, 40
    scatters = []
    for _ in range(400):
        factor = rng.normal(size=(int(dof), dim))
        precision = factor.T @ factor
        root = np.linalg.cholesky(np.linalg.inv(precision) * (dof - dim - 1))
        if kind == "diag":
            root = np.diag(np.sqrt((dof - 2) / rng.chisquare(dof, dim)))
        if kind == "spherical":
            root = np.eye(dim) * np.sqrt((dof - 2) / rng.chisquare(dof))
        x = rng.normal(size=(n, dim)) @ root.T
        x -= x.mean(0)
        scatters.append(x.T @ x)
    counts = torch.full((400,), float(n), dtype=torch.float64)
    prior = _estimate(counts, torch.tensor(np.array(scatters)), 0.0, kind)
    size = dim if kind == "full" else 1
    worth = dof - size - 1
    assert prior.covariance_dof + size + 1 == pytest.approx(worth, rel=0.2)
    pooled = prior.covariance_scale.diagonal() / (prior.covariance_dof + size + 1)
    np.testing.assert_allclose(pooled, 1.0, atol=0.1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k_comps": 0}, "k_comps"),
        ({"k_comps": []}, "k_comps"),
        ({"k_comps": 500}, "k_comps"),
        ({"k_comps": [2, 90]}, "k_comps"),
        ({"component_sharing": "some"}, "component_sharing"),
        ({"covariance_type": "low"}, "covariance_type"),
        ({"refit": "half"}, "refit"),
        ({"train_size": 1.0}, "train_size"),
        ({"singularity_handling": "ignore"}, "singularity_handling"),
        ({"eps": -1.0}, "eps"),
        ({"n_init": 0}, "n_init"),
        ({"n_folds": 1}, "n_folds"),
        ({"prior": "flat"}, "prior"),
    ],
)
def test_impossible_options_are_refused_by_name(options, match):
    with pytest.raises(InvalidArgumentError, match=match):
        fit_gmm(dataset(cohort()), **{"k_comps": 2, **QUIET, **options})


def test_unknown_metric_is_a_value_error_and_a_not_implemented_error():
    for error in (ValueError, NotImplementedError):
        with pytest.raises(error, match="k_selection_metric"):
            fit_gmm(dataset(cohort()), k_comps=[1, 2], k_selection_metric="icl", **QUIET)


@pytest.mark.parametrize("sharing", ["global", "sample_specific"])
def test_singular_covariances_are_found(sharing, caplog):
    rng = np.random.default_rng(0)
    fine = rng.normal(size=(60, 3))
    constant = rng.normal(size=(60, 3)) * [1, 1, 0]
    tied = np.repeat(np.eye(3), 20, axis=0)
    for points, k in ((constant, 1), (tied, 3), (tied, 5)):
        data = [points, points if sharing == "global" else fine]
        options = {"k_comps": k, "component_sharing": sharing, **QUIET}
        guarded = fit_gmm(TripletDataset(data, [0, 1]), **options)
        for part in (guarded.supports, guarded.covariances, guarded.weights):
            assert bool(part.isfinite().all())
        with pytest.raises(ValueError, match="singular"):
            fit_gmm(TripletDataset(data, [0, 1]), singularity_handling="strict", **options)
        with pytest.warns(UserWarning, match="singular"):
            robust = fit_gmm(TripletDataset(data, [0, 1]), singularity_handling="robust", **options)
        used = robust.weights > 0 if sharing == "sample_specific" else robust.weights[0] > 0
        smallest = torch.linalg.eigvalsh(robust.covariances[used]).min()
        assert float(smallest) >= 0.9e-2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_gmm(TripletDataset([fine, fine + 1], [0, 1]), k_comps=1, singularity_handling="strict", **QUIET)


def test_bad_data_are_refused_with_their_name():
    with pytest.raises(InvalidArgumentError, match="distribution 1"):
        TripletDataset([np.zeros((5, 2)), np.full((5, 2), np.nan)], [0, 1])
    with pytest.raises(InvalidArgumentError, match="distribution 0"):
        TripletDataset([np.zeros((0, 2)), np.zeros((5, 2))], [0, 1])
    with pytest.raises(InvalidArgumentError, match="features"):
        TripletDataset([np.zeros((4, 3)), np.zeros((5, 2))], [0, 1])
    with pytest.raises(InvalidArgumentError, match="supports"):
        TripletDataset([np.zeros((4, 3))], [0, 1])
    adata = cohort()
    adata.obsm["X_pca"][3] = np.inf
    name = adata.obs["sample"].iloc[3]
    with pytest.raises(InvalidArgumentError, match=name):
        fit_gmm(dataset(adata, n_cells=100), k_comps=2, **QUIET)
    for options, match in (
        ({"patient_col": "who"}, "patient_col"),
        ({"label_col": "x"}, "label_col"),
        ({"use_rep": "X_umap"}, "use_rep"),
        ({"n_cells": 10**6}, "n_cells"),
        ({"sample_gmm": True}, "gmm_key"),
        ({"gmm_weights_source": "mine"}, "gmm_weights_source"),
    ):
        with pytest.raises(InvalidArgumentError, match=match):
            dataset(cohort(), **options)
    mixed = cohort()
    mixed.obs["patient_group"] = np.arange(mixed.n_obs) % 2
    with pytest.raises(InvalidArgumentError, match="several groups"):
        dataset(mixed)


def test_small_patients_are_left_out_with_a_warning():
    adata = cohort()
    with pytest.warns(UserWarning, match="'P0': 120"):
        data = dataset(adata, n_cells=130)
    fit_gmm(data, k_comps=2, **QUIET)
    assert data.names == ["P1", "P2", "P3"] and data.supports.shape[0] == 3
    left_out = adata.obs["sample"] == "P0"
    assert (adata.obs["gmm_X_pca_comp"][left_out] == -1).all() and adata.obsm["gmm_X_pca_resp"][left_out].sum() == 0


def test_data_sets_follow_the_page():
    adata = cohort()
    data = AnnData_TripletDataset.from_anndata(adata, n_cells=100)
    assert data.supports.shape == (4, 100, 3) and len(data) == 4 and data.index_mask.sum() == 400
    assert {"ggml_params", "ggml_preprocessed"} <= set(adata.uns)
    support, covariances, weights, label = data[1]
    assert support.shape == (100, 3) and covariances.numel() == weights.numel() == 0 and label == 1
    triplets = data.triplets()
    labels = np.array(data.distribution_labels)[triplets.numpy()]
    assert triplets.shape == (12, 3) and (labels[:, 0] == labels[:, 1]).all() and (labels[:, 0] != labels[:, 2]).all()
    adata.obs["state"] = np.where(adata.X[:, 0] > 0, "high", "low")
    centroids = AnnData_TripletDataset(adata, n_cells=100, group_by="state")
    assert centroids.identical_supports and centroids.supports.shape == (2, 3)
    np.testing.assert_allclose(centroids.weights.sum(1), 1)
    plain = TripletDataset.from_numpy(np.zeros((2, 4, 3)), [0, 1], weights=np.full((2, 4), 0.25))
    assert plain[0][2].sum() == 1


def test_auto_sharing_follows_the_points_not_an_earlier_fit():
    data = dataset(cohort())
    fit_gmm(data, k_comps=2, component_sharing="global", **QUIET)
    assert data.identical_supports and fit_gmm(data, k_comps=2, component_sharing="auto", **QUIET).supports.dim() == 3
    adata = cohort()
    adata.obs["state"] = np.where(adata.X[:, 0] > 0, "high", "low")
    grouped = dataset(adata, group_by="state")
    assert fit_gmm(grouped, k_comps=2, component_sharing="auto", **QUIET).supports.dim() == 2


@pytest.mark.parametrize("k_comps", [2, [1, 2]])
def test_weights_of_shared_points_count_as_cells(k_comps):
    x, labels = clouds(60, 2, 2, spread=6)
    x = np.concatenate([x[labels == j][:20] for j in (0, 1)])
    times = np.repeat([[3, 1], [1, 3]], 20, axis=1)
    shared = TripletDataset(x, [0, 1], weights=times / times.sum(1, keepdims=True), identical_supports=True)
    repeated = TripletDataset([np.repeat(x, t, axis=0) for t in times], [0, 1])
    options = {"k_comps": k_comps, "k_selection_metric": "heldout_nll", "refit": "full", "tol": 1e-12, **QUIET}
    found = fit_gmm(shared, component_sharing="auto", max_iter=500, **options)
    expected = fit_gmm(repeated, component_sharing="global", max_iter=500, **options)
    assert found.identical_supports and found.supports.shape == (2, 2) and found.weights.shape == (2, 2)
    order, other = found.supports[:, 0].argsort(), expected.supports[:, 0].argsort()
    torch.testing.assert_close(found.weights[:, order], expected.weights[:, other], rtol=0, atol=1e-6)
    again = fit_gmm(shared, component_sharing="global", max_iter=500, **options)
    assert torch.equal(again.weights, found.weights)
    with pytest.raises(InvalidArgumentError, match="component_sharing"):
        fit_gmm(shared, **options)
    with pytest.raises(InvalidArgumentError, match="distribution 1"):
        TripletDataset(x, [0, 1], weights=[times[0], -times[1]], identical_supports=True)


def test_one_cell_is_a_point_with_the_floor_for_a_covariance():
    data = fit_gmm(TripletDataset([np.ones((1, 2)), clouds(30, 2, 1)[0]], [0, 1]), k_comps=1, eps=1e-3, **QUIET)
    torch.testing.assert_close(data.covariances[0, 0], 1e-3 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(data.supports[0, 0], torch.ones(2, dtype=torch.float64))


def test_given_prior_is_used():
    prior = MixturePrior(covariance_dof=1e6, covariance_scale=4e6 * torch.eye(3, dtype=torch.float64))
    data = fit_gmm(dataset(cohort()), k_comps=2, prior=prior, **QUIET)
    torch.testing.assert_close(
        data.covariances, 4 * torch.eye(3, dtype=torch.float64).expand(4, 2, 3, 3), atol=0.02, rtol=0
    )
