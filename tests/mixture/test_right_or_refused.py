"""What a person gives a mixture is used as it is meant, or refused by name: containers, names, options, files."""

import copy
import inspect
import os
import pickle
import warnings

import anndata
import dask.array
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as Reference
from sklearn.model_selection import GridSearchCV
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

import pyrosplice
from pyrosplice import GaussianMixture, TripletDataset, fit_gmm, log_likelihood_scorer
from pyrosplice._mixture.density_module import GaussianMixtureModel, GaussianMixtureModelConfig
from pyrosplice._mixture.mixture_prior import COVARIANCE_TYPES, MixturePrior
from pyrosplice._mixture.trainer import WITHOUT_EFFECT, WITHOUT_EFFECT_AT
from pyrosplice.errors import InvalidArgumentError, ModelFileError
from tests.mixture.helpers import clouds, doubled

X = np.round(clouds(90, 3, 2, spread=6)[0])
CELLS = [f"c{i}" for i in range(len(X))]
FRAME = pd.DataFrame(X, index=CELLS, columns=["a", "b", "c"])


def fitted(x=X, **options):
    return GaussianMixture(2, random_state=0, **options).fit(x)


CONTAINERS = {
    "objects": lambda x: x.astype(object),
    "Fortran": np.asfortranarray,
    "big endian": lambda x: x.astype(">f8"),
    "small integers": lambda x: x.astype(np.int8),
    "nullable": lambda x: pd.DataFrame(x).astype("Int64"),
    "tensor with gradient": lambda x: torch.tensor(x, requires_grad=True),
    "sparse tensor": lambda x: torch.tensor(x).to_sparse(),
    "AnnData of integers": lambda x: anndata.AnnData(x.astype(int)),
    "AnnData of halves": lambda x: anndata.AnnData(doubled(x).tocsr()),
    "AnnData, columns": lambda x: anndata.AnnData(sp.csc_matrix(x)),
    "view": lambda x: anndata.AnnData(np.vstack([x, x + 1]))[: len(x)],
    "Dask": lambda x: dask.array.from_array(x.astype(object), chunks=(7, 2)),
    "rows as lists": lambda x: Subset(x.tolist(), range(len(x))),
    "loader": lambda x: DataLoader(TensorDataset(torch.tensor(x)), batch_size=7, shuffle=True),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_fit_to_the_bit(name):
    model, data = fitted(), CONTAINERS[name](X)
    other = fitted(data)
    assert torch.equal(other.model_.means, model.model_.means)
    assert torch.equal(torch.as_tensor(other.predict_proba(data)), torch.as_tensor(model.predict_proba(X)))


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csc_array, sp.lil_matrix, doubled])
def test_sparse_matrices_are_read_in_blocks(make):
    torch.testing.assert_close(fitted(make(X), batch_size=17).model_.means, fitted().model_.means, rtol=0, atol=1e-12)
    with pytest.raises(InvalidArgumentError, match="batch_size"):
        fitted(make(X))


@pytest.mark.parametrize("stored", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_backed_files_are_read_as_they_are(tmp_path, stored):
    anndata.AnnData(stored(X)).write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert torch.equal(fitted(backed).model_.means, fitted().model_.means)
    backed.file.close()


@pytest.mark.parametrize(
    "bad",
    [
        X.astype(str),
        X.astype(str).astype(object),
        X + 0j,
        torch.tensor(X) + 0j,
        X.astype("datetime64[D]"),
        FRAME.assign(a="text"),
        np.ma.masked_less(X, 0),
        X[:, 0],
        X[..., None],
        anndata.AnnData(obs=pd.DataFrame(index=CELLS)),
        DataLoader(TensorDataset(torch.tensor(X)), sampler=SubsetRandomSampler(range(5))),
        "text",
    ],
    ids=lambda bad: type(bad).__name__,
)
def test_what_is_no_matrix_of_numbers_is_refused(bad):
    with pytest.raises(InvalidArgumentError):
        fitted(bad)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [np.asarray, torch.tensor, anndata.AnnData, lambda x: TensorDataset(torch.tensor(x))])
@pytest.mark.parametrize("method", ["fit", "predict", "predict_proba", "score", "score_samples", "aic", "bic"])
def test_cells_that_are_not_finite_have_no_component(value, make, method):
    x = X.copy()
    x[70, 1] = value
    with pytest.raises(InvalidArgumentError, match="marginalize" if np.isnan(value) else "infinity"):
        getattr(fitted(), method)(make(x))
    model = fitted(missing="marginalize")
    if np.isnan(value):
        assert bool(torch.isfinite(torch.as_tensor(model.predict_proba(make(x)))).all())
    else:
        with pytest.raises(InvalidArgumentError, match="infinity"):
            getattr(model, method)(make(x))


@given(st.permutations(range(len(X))))
@settings(max_examples=5)
def test_weights_are_paired_with_cells_by_name(order):
    weights = pd.Series(np.linspace(0.1, 2, len(X)), index=CELLS)
    expected = fitted().fit(X, sample_weight=weights.to_numpy()).model_.means
    shuffled = weights.iloc[list(order)]
    for data in (FRAME, anndata.AnnData(FRAME)):
        assert torch.equal(fitted().fit(data, sample_weight=shuffled).model_.means, expected)
    for wrong in (shuffled.iloc[1:], shuffled.rename({"c3": "c4"}), shuffled.rename({"c3": "someone"})):
        with pytest.raises(InvalidArgumentError, match="sample_weight"):
            fitted().fit(FRAME, sample_weight=wrong)


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
@pytest.mark.parametrize("kind", ["tied", "diag"])
def test_starting_tables_are_paired_with_features_by_name(order, kind):
    means = pd.DataFrame(X[[0, 1]] + [[0.0, 0.1, 0.2]], index=["u", "v"], columns=list("abc"))
    spread = pd.DataFrame(np.diag([1.0, 2.0, 3.0]) + 0.1, index=list("abc"), columns=list("abc"))
    if kind == "diag":
        spread = pd.DataFrame([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], index=["u", "v"], columns=list("abc"))
    weights = pd.Series([0.3, 0.7], index=["u", "v"])
    plain = {"init_means": means.to_numpy(), "init_covariances": spread.to_numpy(), "init_weights": [0.3, 0.7]}
    rows = list(order) if kind == "tied" else ["v", "u"]
    named = {
        "init_means": means[list(order)],
        "init_covariances": spread.loc[rows, list(order)],
        "init_weights": weights[::-1],
    }
    options = {"covariance_type": kind, "trainer_params": {"max_epochs": 1}}
    a, b = (GaussianMixture(2, **options, **start).fit(FRAME) for start in (plain, named))
    assert torch.equal(a.model_.means, b.model_.means)


def test_features_are_known_by_name_after_loading(tmp_path):
    for data in (FRAME, anndata.AnnData(FRAME)):
        fitted(data).save(tmp_path / "model")
        model = GaussianMixture.load(tmp_path / "model")
        assert model.feature_names_in_.tolist() == ["a", "b", "c"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.predict(data)
        for other in (
            FRAME[["b", "a", "c"]],
            anndata.AnnData(FRAME[["b", "a", "c"]]),
            FRAME.rename(columns={"a": "z"}),
        ):
            with pytest.raises(InvalidArgumentError, match="feature names"):
                model.predict(other)
    fitted().save(tmp_path / "model")
    assert not hasattr(GaussianMixture.load(tmp_path / "model"), "feature_names_in_")


def test_saving_replaces_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model"
    fitted().save(path)
    GaussianMixture(5).save(path)
    assert not hasattr(GaussianMixture.load(path), "model_")
    model = fitted(FRAME)
    model.save(path)
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        fitted(X + 1).save(path)
    with pytest.raises(InvalidArgumentError, match="random_state"):
        GaussianMixture(random_state=np.random.RandomState(0)).save(path)
    again = GaussianMixture.load(path)
    assert torch.equal(again.model_.means, model.model_.means) and again.num_components == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    monkeypatch.undo()
    (path / "notes.txt").write_text("mine")
    GaussianMixture(4).save(path)
    assert {entry.name for entry in path.iterdir()} == {"params.json", "notes.txt"}
    model.save(path)
    fitted(X + 1).save(tmp_path / "other")
    (tmp_path / "other" / "attributes.json").replace(path / "attributes.json")
    with pytest.raises(ModelFileError, match="attributes"):
        GaussianMixture.load(path)


def test_everything_can_be_pickled():
    for thing in (
        fitted(FRAME),
        fitted().partial_fit(X),
        fitted().model_,
        TripletDataset([X[:40], X[40:]], [0, 1]).fit_gmm(k_comps=2, verbose=False),
    ):
        assert type(copy.deepcopy(thing)) is type(pickle.loads(pickle.dumps(thing)))


def test_searches_keep_the_best_with_the_scorer():
    x = np.concatenate([clouds(60, 2, 1, seed=s)[0] + 9 * s for s in range(3)])
    x = x[np.random.default_rng(0).permutation(len(x))]
    model, grid = GaussianMixture(covariance_type="full", random_state=0), {"num_components": [1, 2, 3, 4]}
    assert GridSearchCV(model, grid, scoring=log_likelihood_scorer, cv=3).fit(x).best_params_ == {"num_components": 3}
    for text in (GaussianMixture.__doc__, GaussianMixture.score.__doc__):
        assert "GridSearchCV" in text and "scoring" in text
    for kind in COVARIANCE_TYPES:
        ours = GaussianMixture(2, covariance_type=kind, init_means=x[:2], convergence_tolerance=1e-9).fit(x)
        theirs = Reference(2, covariance_type=kind).fit(x)
        p = ours.model_.parameters_of()
        theirs.weights_, theirs.means_, theirs.covariances_ = p.weights.numpy(), p.means.numpy(), p.covariances.numpy()
        theirs.precisions_cholesky_ = ours.model_.precisions_cholesky.numpy()
        assert ours.aic(x) == pytest.approx(theirs.aic(x)) and ours.bic(torch.tensor(x)) == pytest.approx(theirs.bic(x))


@pytest.mark.parametrize("change", [{"num_components": 3}, {"covariance_type": "full"}, {}])
def test_going_on_from_another_shape_is_refused(change):
    model = fitted(warm_start=True).set_params(**change)
    data = X if change else X[:, :2]
    with pytest.raises(InvalidArgumentError, match="warm_start"):
        model.fit(data)
    if change:
        with pytest.raises(InvalidArgumentError, match="partial_fit"):
            fitted().partial_fit(X).set_params(**change).partial_fit(X)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_new_modules_are_standard_normals(kind):
    module = GaussianMixtureModel(GaussianMixtureModelConfig(2, 3, kind))
    log_density = torch.jit.script(module)(torch.zeros(4, 3))[1]
    torch.testing.assert_close(log_density, torch.full((4,), -1.5 * np.log(2 * np.pi)))
    assert module.sample(5).shape == (5, 3) and bool((module.covariances.sum() > 0).all())


@pytest.mark.parametrize("most", [0, 1, 2, 3, 100])
def test_rounds_are_counted_as_scikit_learn_counts_them(most):
    x = np.array([[0.0], [1.0], [3.0], [4.0]])
    model = GaussianMixture(2, trainer_params={"max_epochs": most}).fit(x)
    assert (model.num_iter_, model.converged_) == (min(most, 2), most >= 2)
    assert model.reason_ == ("converged" if most >= 2 else "max_epochs") and model.reason_.text


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("scale", [1e4, 1e6])
@pytest.mark.parametrize("tie", [0.0, 17.3])
@pytest.mark.parametrize("way", ["cells", "weights", "missing", "patients", "shared"])
def test_a_feature_tied_in_one_component_and_thousands_in_the_other(kind, scale, tie, way):
    rng = np.random.default_rng(0)
    on = np.arange(200) % 2 == 0
    x = np.column_stack([rng.normal(8, 3, 200), np.where(on, rng.normal(scale, scale / 6, 200), tie)])
    start = np.array([[8.0, tie], [8.0, scale]])
    options = {"covariance_type": kind, "tol": 1e-6, "max_iter": 300}
    theirs = Reference(2, means_init=start, random_state=0, **options).fit(x)
    if way in ("patients", "shared"):
        sharing = "global" if way == "shared" else "sample_specific"
        data = fit_gmm(
            TripletDataset([x, x + 1], [0, 1]) if way == "patients" else TripletDataset([x[:120], x[120:]], [0, 1]),
            k_comps=2,
            eps=1e-6,
            component_sharing=sharing,
            verbose=False,
            **options,
        )
        ours = [float(c[..., -1, -1]) for c in (data.covariances[0] if way == "patients" else data.covariances)]
        np.testing.assert_allclose(sorted(ours), sorted(_last_variances(theirs, kind)), rtol=1e-3)
        return
    extra = {"missing": "marginalize"} if way == "missing" else {}
    weights = np.ones(200) if way == "weights" else None
    model = GaussianMixture(2, covariance_type=kind, init_means=start, convergence_tolerance=1e-6, **extra)
    assert model.fit(x, sample_weight=weights).score(x) <= -theirs.score(x) + 1e-3


def _last_variances(reference, kind):
    c = reference.covariances_
    return {"full": lambda: c[:, -1, -1], "tied": lambda: [c[-1, -1]] * 2, "diag": lambda: c[:, -1]}.get(
        kind, lambda: c
    )()


WRONG_NUMBERS = [0, -1, 2.0, 2.5, True, "2", [2], np.float64(2)]


@pytest.mark.parametrize("value", WRONG_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["num_components", "n_init", "batch_size"])
def test_whole_numbers_are_whole_numbers(name, value):
    with pytest.raises(InvalidArgumentError, match=name):
        GaussianMixture(**{name: value}).fit(X)
    data = TripletDataset([X], [0])
    for option in ("n_init", "max_iter") if name == "n_init" else ("k_comps",):
        if not (option == "k_comps" and value == [2]):
            with pytest.raises(InvalidArgumentError, match=option):
                data.fit_gmm(verbose=False, **{option: value})


@pytest.mark.parametrize("name", sorted(set(inspect.signature(GaussianMixture).parameters)))
def test_every_option_of_the_estimator_is_checked(name):
    with pytest.raises(InvalidArgumentError, match="init_" if name.startswith("init_") else name):
        GaussianMixture(**{"num_components": 2, "init_means": X[:2], name: object()}).fit(X)


def test_unknown_names_are_refused():
    for call in (
        lambda: GaussianMixture().set_params(components=2),
        lambda: GaussianMixture().set_params({"components": 2}),
        lambda: GaussianMixture(trainer_params={"epochs": 2}).fit(X),
        lambda: GaussianMixture().trainer(epochs=2),
    ):
        with pytest.raises(InvalidArgumentError, match=r"components|epochs"):
            call()
    with pytest.raises(TypeError):
        TripletDataset([X], [0]).fit_gmm(components=2)


def test_words_of_a_trainer_are_accepted_where_they_ask_for_nothing():
    words = dict.fromkeys(WITHOUT_EFFECT, False) | {name: at[0] for name, at in WITHOUT_EFFECT_AT.items()}
    assert torch.equal(fitted(trainer_params=words).model_.means, fitted().model_.means)
    for name in WITHOUT_EFFECT_AT:
        with pytest.raises(InvalidArgumentError, match=name):
            fitted(trainer_params={name: 7})


@pytest.mark.parametrize(
    "part",
    [
        {"concentration": np.nan},
        {"mean": np.zeros(2), "mean_strength": 1.0},
        {"mean": pd.Series(np.zeros(3)), "mean_strength": 1.0},
        {"covariance_dof": 5.0, "covariance_scale": -np.eye(3)},
        {"covariance_dof": 5.0, "covariance_scale": np.eye(2)},
        {"covariance_dof": 5.0, "covariance_scale": np.ones((3, 2))},
    ],
)
def test_priors_are_of_the_cells_features(part):
    with pytest.raises(InvalidArgumentError):
        fitted(prior=MixturePrior(**part))


def test_names_are_public():
    assert {"GaussianMixtureModel", "GaussianMixtureModelConfig", "log_likelihood_scorer"} <= set(pyrosplice.__all__)


def test_a_fit_that_fails_leaves_the_model_as_it_was():
    model = fitted(FRAME)
    expected = model.predict_proba(FRAME)
    for bad in (X[:, :2], np.full((5, 3), np.nan), X[:1], torch.zeros(9, 4)):
        with pytest.raises(InvalidArgumentError):
            model.set_params(init_means=np.ones((2, 9))).fit(bad)
        np.testing.assert_array_equal(model.predict_proba(FRAME), expected)


def test_an_array_of_an_anndata_is_no_reason_to_warn():
    model = fitted(anndata.AnnData(FRAME))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.predict(X).sum() == fitted().predict(anndata.AnnData(FRAME)).sum()
