"""Cells, files and options at the edge of what a mixture can do: right, or refused by name."""

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
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference
from torch.utils.data import Subset, TensorDataset

from pyrosplice import GaussianMixture
from pyrosplice._mixture.mixture_prior import COVARIANCE_TYPES
from pyrosplice.errors import InvalidArgumentError, ModelFileError
from tests.mixture.helpers import clouds

X = clouds(80, 2, 2, spread=8)[0]
FRAME = pd.DataFrame(X, index=[f"c{i}" for i in range(len(X))], columns=["a", "b"])
MAKE = [np.asarray, torch.tensor, anndata.AnnData, lambda x: TensorDataset(torch.tensor(x))]
DRAWS = {"num_samples": 3, "num_chains": 1, "warmup_steps": 2, "groups": ()}


def fitted(x=X, **options):
    return GaussianMixture(2, random_state=0, **options).fit(x)


@given(
    exponent=st.floats(0, 300),
    sign=st.sampled_from([-1, 1]),
    kind=st.sampled_from(COVARIANCE_TYPES),
    make=st.sampled_from(MAKE),
    narrow=st.booleans(),
    missing=st.sampled_from(["error", "marginalize"]),
)
@settings(max_examples=60)
def test_cells_far_away_get_their_component_or_are_refused(exponent, sign, kind, make, narrow, missing):
    far = np.array([[sign * 10.0**exponent, 0.0], X[0]])
    model = fitted(X.astype(np.float32) if narrow else X, covariance_type=kind, missing=missing)
    p = model.model_.parameters_of()
    try:
        shares = np.asarray(model.predict_proba(make(far)))
    except InvalidArgumentError as error:
        assert "row 0" in str(error) and exponent > 100
        with pytest.raises(InvalidArgumentError, match="row 0"):
            model.score(make(far))
        return
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    gap = (torch.tensor(far[:1]) - p.means) * 10.0**-exponent  # so that squares are of order one
    distance = torch.einsum("md,mde,me->m", gap, torch.linalg.inv(p.covariance_matrices()), gap)
    if exponent > 10 and float(abs(distance[0] - distance[1])) > 1e-6 * float(distance.max()):
        assert int(shares[0].argmax()) == int(distance.argmin())
    assert np.isfinite(model.score(make(far)))


@pytest.mark.parametrize("make", [lambda f: f, anndata.AnnData])
def test_draws_are_of_the_features_of_the_fit(make):
    model = fitted(make(FRAME))
    assert "means" in model.posterior(make(FRAME), **DRAWS)["posterior"]
    for other in (FRAME[["b", "a"]], FRAME.rename(columns={"a": "z"})):
        with pytest.raises(InvalidArgumentError, match="feature names"):
            model.posterior(make(other), **DRAWS)


@pytest.mark.parametrize("make", MAKE)
def test_draws_of_missing_values_are_refused_in_words(make):
    x = X.copy()
    x[5, 1] = np.nan
    with pytest.raises(InvalidArgumentError, match="complete cells, found NaN in row 5, feature 1"):
        fitted(make(x), missing="marginalize").posterior(make(x), **DRAWS)


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16])
def test_numbers_of_numpy_are_numbers(kind, tmp_path):
    model = GaussianMixture(kind(2), n_init=kind(2), trainer_params={"max_epochs": kind(1)}, random_state=kind(3))
    model.fit(X).save(tmp_path / "m")
    again = GaussianMixture.load(tmp_path / "m")
    assert type(model.num_iter_) is int and type(model.converged_) is bool
    assert (again.num_iter_, again.num_components) == (1, 2)
    with pytest.raises(InvalidArgumentError, match="devices"):
        fitted(trainer_params={"devices": True})


@pytest.mark.parametrize("stored", ["dense", "csr", "csc"])
def test_views_of_backed_files_are_read_or_refused(stored, tmp_path):
    matrix = X if stored == "dense" else getattr(sp, f"{stored}_matrix")(X)
    anndata.AnnData(matrix).write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for rows in (np.random.default_rng(0).permutation(80), np.arange(80) % 2 == 0, slice(3, 60)):
        assert torch.equal(fitted(backed[rows]).model_.means, fitted(X[rows]).model_.means)
    with pytest.raises(InvalidArgumentError, match="to_memory"):
        fitted(backed[::-1])
    backed.file.close()


def fit_of(k, kind, make):
    return GaussianMixture(k, covariance_type=kind, random_state=0).fit(make(FRAME))


STATES = {
    "unfitted": lambda: GaussianMixture(5),
    "table": lambda: fit_of(2, "full", lambda f: f),
    "AnnData": lambda: fit_of(3, "diag", anndata.AnnData),
    "array": lambda: fit_of(2, "tied", pd.DataFrame.to_numpy),
    "set since": lambda: fit_of(2, "diag", lambda f: f).set_params(num_components=4),
}
KNOWN = ("n_features_in_", "feature_names_in_", "converged_", "num_iter_", "nll_", "named_by_anndata_")


@pytest.mark.slow
@given(st.lists(st.sampled_from(sorted(STATES)), min_size=1, max_size=4), st.booleans())
@settings(max_examples=25)
def test_the_last_model_saved_is_the_one_that_loads(tmp_path_factory, names, note):
    path = tmp_path_factory.mktemp("saved") / "model"
    if note:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    for name in names:
        model = STATES[name]()
        model.save(path)
        again = GaussianMixture.load(path)
        assert again.get_params() == model.get_params() and hasattr(again, "model_") == hasattr(model, "model_")
        for known in KNOWN:
            np.testing.assert_array_equal(getattr(again, known, None), getattr(model, known, None))
        if hasattr(model, "model_"):
            assert torch.equal(again.predict_proba(torch.tensor(X)), model.predict_proba(torch.tensor(X)))
    assert not note or (path / "notes.txt").read_text() == "mine"
    assert [entry.name for entry in path.parent.iterdir()] == ["model"]


def test_parameters_of_one_and_the_fit_of_another_do_not_load_together(tmp_path):
    STATES["table"]().save(tmp_path / "m")
    GaussianMixture(5).save_parameters(tmp_path / "m")
    with pytest.raises(ModelFileError, match="other parameters"):
        GaussianMixture.load(tmp_path / "m")
    model = GaussianMixture.load_parameters(tmp_path / "m")
    model.load_attributes(tmp_path / "m")
    assert model.model_.means.shape == (2, 2)
    model.save_attributes(tmp_path / "m")
    assert GaussianMixture.load(tmp_path / "m").num_components == 5


@pytest.mark.parametrize("make", [lambda f: f, anndata.AnnData])
def test_going_on_from_features_of_other_names_is_refused(make):
    model = GaussianMixture(2, warm_start=True, random_state=0).fit(make(FRAME))
    expected = model.model_.means.clone()
    for other in (FRAME[["b", "a"]], FRAME.rename(columns={"a": "z"})):
        with pytest.raises(InvalidArgumentError, match="feature names"):
            model.fit(make(other))
        assert torch.equal(model.model_.means, expected) and model.feature_names_in_.tolist() == ["a", "b"]
    model.fit(make(FRAME)).fit(torch.tensor(X))


def test_words_that_are_no_parameters_are_refused_at_construction():
    with pytest.raises(InvalidArgumentError, match="n_components"):
        GaussianMixture(n_components=3)
    assert GaussianMixture(3).clone().get_params() == GaussianMixture(3).get_params()


@given(st.integers(1, len(X) - 1), st.sampled_from([1j, np.nan, np.inf, "text", None]))
@settings(max_examples=25)
def test_one_wrong_row_of_a_data_set_is_found(row, wrong):
    rows: list[object] = [torch.tensor(x) for x in X]
    rows[row] = torch.tensor(X[row]) * wrong if isinstance(wrong, (complex, float)) else wrong
    data = Subset(rows, range(len(rows)))
    for call in (fitted, fitted().predict, fitted().score):
        with pytest.raises(InvalidArgumentError, match="X"):
            call(data)


def test_lazy_arrays_of_unknown_length_are_refused():
    lazy = dask.array.from_array(X, chunks=(20, 2))
    with pytest.raises(InvalidArgumentError, match="compute_chunk_sizes"):
        fitted(lazy[lazy[:, 0] > 0])
    known = lazy[lazy[:, 0] > 0].compute_chunk_sizes()
    assert torch.equal(fitted(known).model_.means, fitted(X[X[:, 0] > 0]).model_.means)


@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(COVARIANCE_TYPES),
    most=st.integers(1, 40),
    tolerance=st.sampled_from([1e-2, 1e-3, 1e-5]),
)
@settings(max_examples=40)
def test_rounds_and_their_end_are_those_of_scikit_learn_from_the_same_start(seed, kind, most, tolerance):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 2)) + 2.5 * (np.arange(60)[:, None] % 2)
    shape = {"full": (2, 2, 2), "tied": (2, 2), "diag": (2, 2), "spherical": (2,)}[kind]
    spread = np.broadcast_to(2 * np.eye(2), shape).copy() if kind in ("full", "tied") else np.full(shape, 2.0)
    inverse = np.linalg.inv(spread) if kind in ("full", "tied") else 1 / spread
    means = x[rng.choice(60, 2, replace=False)]
    theirs = Reference(
        2,
        covariance_type=kind,
        weights_init=[0.4, 0.6],
        means_init=means,
        precisions_init=inverse,
        max_iter=most,
        tol=tolerance,
        reg_covar=1e-6,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(x)
    ours = GaussianMixture(
        2,
        covariance_type=kind,
        init_weights=[0.4, 0.6],
        init_means=means,
        init_covariances=spread,
        trainer_params={"max_epochs": most, "logger": False},
        convergence_tolerance=tolerance,
    ).fit(x)
    assert (ours.num_iter_, ours.converged_) == (theirs.n_iter_, bool(theirs.converged_))
    if most > theirs.n_iter_ or not theirs.converged_:
        assert abs(ours.score(x) + theirs.score(x)) < 2 * tolerance


def test_groups_and_names_of_draws_are_made_or_refused():
    x = clouds(40, 2, 2, spread=6)[0]
    model = GaussianMixture(2, random_state=0).fit(x)
    few = {"num_samples": 3, "warmup_steps": 0, "num_chains": 1}
    for group in ("prior", "prior_predictive", "posterior_predictive", "log_likelihood", "log_prior"):
        assert group in model.posterior(x, groups=group, **few).children
    named = model.posterior(x, names={"feature": ["a", "b"]}, groups=(), **few)
    assert named["posterior"]["feature"].values.tolist() == ["a", "b"]
    for names in ({"feature": ["a"]}, {"gene": ["a", "b"]}):
        with pytest.raises(InvalidArgumentError, match="names"):
            model.posterior(x, names=names, **few)


def test_steps_go_on_with_the_options_of_the_first():
    x = clouds(40, 2, 2, spread=6)[0]
    model = GaussianMixture(2, random_state=0).partial_fit(x).partial_fit(x)
    model.set_params(covariance_regularization=1.0)
    with pytest.raises(InvalidArgumentError, match="covariance_regularization"):
        model.partial_fit(x)
    assert model.fit(x).partial_fit(x).partial_fit(x).model_.covariances.min() > 1
