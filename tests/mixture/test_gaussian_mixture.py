"""The estimator: interface, invariances, bad input, disk."""

import json

import anndata
import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch.utils.data import DataLoader, TensorDataset

from pyrosplice.errors import InvalidArgumentError, ModelFileError
from pyrosplice.mixture.em_estimator import GaussianMixture
from pyrosplice.mixture.mixture_prior import COVARIANCE_TYPES, MixturePrior
from tests.mixture.helpers import F64, brute_force, clouds

SHAPES = {"full": (3, 4, 4), "tied": (4, 4), "diag": (3, 4), "spherical": (3,)}


def fitted(x, k=3, **options):
    return GaussianMixture(k, random_state=0, **options).fit(x)


def test_scikit_learn_accepts_it():
    results = check_estimator(GaussianMixture(), on_skip=None, on_fail=None)
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("start", ["kmeans", "kmeans++", "random"])
def test_recovers_clouds_from_every_start(kind, start):
    x, labels = clouds(600, 4, 3, spread=10)
    model = fitted(x, covariance_type=kind, init_strategy=start, n_init=3)
    found = model.predict(x)
    assert all(len(np.unique(found[labels == j])) == 1 for j in range(3))
    assert model.converged_ and model.num_iter_ >= 1
    assert tuple(model.model_.covariances.shape) == SHAPES[kind]
    assert model.nll_ == pytest.approx(model.score(x), abs=1e-10)
    expected = -brute_force(model.model_.parameters_of(), x)
    np.testing.assert_allclose(model.score_samples(x), expected, atol=1e-9)


def test_shapes_and_types_follow_the_page():
    x, _ = clouds(50, 4, 3)
    model = fitted(torch.tensor(x, dtype=torch.float32))
    data = torch.tensor(x, dtype=torch.float32)
    assert model.predict(data).dtype == torch.int64 and model.predict(data).shape == (50,)
    assert model.predict_proba(data).shape == (50, 3) and model.score_samples(data).shape == (50,)
    assert model.model_.means.dtype == torch.float32 and isinstance(model.score(data), float)
    assert model.sample(7).shape == (7, 4)
    assert torch.equal(model.sample(7), model.sample(7))
    torch.testing.assert_close(model.predict_proba(data).sum(1), torch.ones(50))
    assert isinstance(model.predict(x), np.ndarray)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_module_scripts_and_agrees(kind):
    x, _ = clouds(60, 4, 3)
    model = fitted(x, covariance_type=kind).model_
    scripted = torch.jit.script(model)
    data = torch.tensor(x)
    for ours, theirs in zip(model(data), scripted(data), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert scripted.sample(5).shape == (5, 4)
    precision = model.precisions_cholesky
    if kind in ("full", "tied"):
        torch.testing.assert_close(
            precision @ precision.mT @ model.covariances, torch.eye(4, dtype=F64).expand_as(model.covariances)
        )
        assert torch.equal(precision, precision.triu())


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_draws_have_the_moments_of_the_mixture(kind):
    x, _ = clouds(400, 2, 2)
    model = fitted(x, 2, covariance_type=kind)
    draws = model.sample(40000).numpy()
    p = model.model_.parameters_of()
    mean = (p.weights[:, None] * p.means).sum(0)
    gap = p.means - mean
    covariance = (p.weights[:, None, None] * (p.covariance_matrices() + gap[:, :, None] * gap[:, None])).sum(0)
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.15)
    np.testing.assert_allclose(np.cov(draws.T), covariance, rtol=0.08, atol=0.3)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_shifted_data_shift_the_means_alone(kind):
    x, _ = clouds(300, 3, 2)
    near, far = (fitted(x + s, 2, covariance_type=kind, init_means=x[:2] + s).model_ for s in (0.0, 1e6))
    torch.testing.assert_close(near.means, far.means - 1e6, rtol=0, atol=1e-8)
    torch.testing.assert_close(near.covariances, far.covariances, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("start", ["kmeans", "kmeans++", "random"])
def test_batches_never_change_the_result(kind, start):
    x, labels = clouds(400, 3, 3)
    x = x[np.argsort(labels)]
    whole = fitted(x, covariance_type=kind, init_strategy=start).model_
    for size in (399, 50, 1):
        parts = fitted(x, covariance_type=kind, init_strategy=start, batch_size=size).model_
        torch.testing.assert_close(whole.means, parts.means, rtol=0, atol=1e-9)
        torch.testing.assert_close(whole.covariances, parts.covariances, rtol=0, atol=1e-9)


class LazyMatrix:
    """What a Dask array shows of itself."""

    def __init__(self, x):
        self._x, self.shape, self.ndim = x, x.shape, 2

    def __getitem__(self, rows):
        return LazyMatrix(self._x[rows])

    def compute(self):
        return self._x


def test_any_container_gives_the_same_fit():
    x, _ = clouds(120, 3, 3)
    x[np.abs(x) < 1] = 0
    adata = anndata.AnnData(scipy.sparse.csr_matrix(x), obsm={"X_pca": x})
    data = TensorDataset(torch.tensor(x))
    reference = fitted(x).model_.means
    for other in (
        torch.tensor(x),
        x.tolist(),
        adata,
        LazyMatrix(x),
        data,
        DataLoader(data, batch_size=11, shuffle=True),
    ):
        torch.testing.assert_close(fitted(other).model_.means, reference, rtol=0, atol=1e-9)
    torch.testing.assert_close(fitted(adata, use_rep="X_pca").model_.means, reference, rtol=0, atol=1e-9)
    sparse = fitted(scipy.sparse.csr_matrix(x), batch_size=50)
    torch.testing.assert_close(sparse.model_.means, reference, rtol=0, atol=1e-9)
    with pytest.raises(InvalidArgumentError, match="use_rep"):
        fitted(adata, use_rep="X_umap")


def test_float32_is_promoted_where_statistics_would_cancel():
    rng = np.random.default_rng(0)
    x = np.where(rng.random((2000, 1)) < 0.5, 0.0, 1e3) + 0.1 * rng.normal(size=(2000, 2))
    single = fitted(x.astype(np.float32), 2, covariance_type="full").model_
    double = fitted(x.astype(np.float32).astype(float), 2, covariance_type="full").model_
    torch.testing.assert_close(single.covariances.double(), double.covariances, rtol=1e-4, atol=1e-6)


def test_start_from_parameters_and_warm_start():
    x, _ = clouds(300, 2, 2, seed=2)
    done = fitted(x, 2, covariance_type="full", convergence_tolerance=1e-12, trainer_params={"max_epochs": 2000})
    p = done.model_.parameters_of()
    again = GaussianMixture(
        2,
        covariance_type="full",
        init_weights=p.weights,
        init_means=p.means,
        init_covariances=p.covariances - 1e-6 * torch.eye(2),
    ).fit(x)
    assert again.num_iter_ == 2 and again.nll_ == pytest.approx(done.nll_, abs=1e-7)
    warm = done.set_params({"warm_start": True}).fit(x)
    assert warm.num_iter_ == 2
    with pytest.raises(InvalidArgumentError, match="init_weights"):
        GaussianMixture(2, init_weights=p.weights).fit(x)
    with pytest.raises(InvalidArgumentError, match="init_weights"):
        GaussianMixture(2, init_weights=[-1, 2], init_means=p.means, init_covariances=torch.ones(2, 2)).fit(x)
    with pytest.raises(InvalidArgumentError, match="init_means"):
        GaussianMixture(2, init_means=np.array([[0.0, 0.0], [1e6, 1e6]])).fit(x)


def test_prior_pulls_and_regularizes():
    x, _ = clouds(40, 3, 2)
    prior = MixturePrior(mean=torch.zeros(3, dtype=F64), mean_strength=1e6)
    model = fitted(x, 2, prior=prior, covariance_type="full").model_
    assert float(model.means.abs().max()) < 1e-3
    strong = MixturePrior(covariance_dof=1e7, covariance_scale=1e7 * torch.eye(3, dtype=F64))
    torch.testing.assert_close(
        fitted(x, 2, prior=strong, covariance_type="full").model_.covariances,
        torch.eye(3, dtype=F64).expand(2, 3, 3),
        atol=1e-3,
        rtol=0,
    )


def test_partial_fit_approaches_the_full_fit():
    x, _ = clouds(20000, 2, 3, seed=4)
    x = x[np.random.default_rng(0).permutation(len(x))]
    model = GaussianMixture(3, covariance_type="full", random_state=0)
    for block in np.array_split(x, 20):
        model.partial_fit(block)
    assert model.reason_ == "running"
    assert model.score(x) == pytest.approx(fitted(x, covariance_type="full").score(x), abs=2e-2)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_partial_fit_refuses_what_is_not_finite_and_stays_as_it_was(kind, bad):
    x, _ = clouds(100, 3, 2)
    model = fitted(torch.tensor(x), 2, covariance_type=kind).partial_fit(torch.tensor(x))
    before = model.model_.means.clone()
    for missing in ("error", "marginalize") if bad == torch.inf else ("error",):
        with pytest.raises(InvalidArgumentError, match="NaN or infinity"):
            model.set_params(missing=missing).partial_fit(torch.full((5, 3), bad, dtype=F64))
    assert torch.equal(model.model_.means, before)
    assert bool(model.set_params(missing="error").partial_fit(torch.tensor(x)).model_.means.isfinite().all())


def test_missing_values_are_an_error_until_asked_for():
    x, _ = clouds(500, 3, 2, spread=8)
    holes = x.copy()
    holes[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fitted(holes, 2)
    with pytest.raises(InvalidArgumentError, match="NaN"):
        fitted(torch.tensor(holes), 2)
    model = fitted(holes, 2, missing="marginalize", covariance_type="full")
    order = [int(torch.cdist(model.model_.means, m[None]).argmin()) for m in fitted(x, 2).model_.means]
    gap = model.model_.means[order] - fitted(x, 2, covariance_type="full").model_.means
    assert float(gap.abs().max()) < 0.4
    assert model.score(holes) == pytest.approx(model.nll_, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_components": 0}, "num_components"),
        ({"covariance_type": "banded"}, "covariance_type"),
        ({"init_strategy": "best"}, "init_strategy"),
        ({"missing": "drop"}, "missing"),
        ({"batch_size": 0}, "batch_size"),
        ({"covariance_regularization": -1.0}, "covariance_regularization"),
        ({"convergence_tolerance": float("nan")}, "convergence_tolerance"),
        ({"init_means": torch.zeros(2, 5)}, "init_means"),
        ({"trainer_params": {"max_epoch": 5}}, "max_epoch"),
        ({"trainer_params": {"devices": 2}}, "devices"),
        ({"trainer_params": {"accelerator": "tpu"}}, "accelerator"),
        ({"num_components": 200}, "num_components"),
    ],
)
def test_impossible_options_are_refused_by_name(options, match):
    x, _ = clouds(100, 3, 2)
    with pytest.raises(InvalidArgumentError, match=match):
        GaussianMixture(**{"num_components": 2, **options}).fit(x)


@pytest.mark.parametrize("start", ["kmeans", "kmeans++", "random"])
def test_more_components_than_points_is_an_error(start):
    x = np.repeat(np.eye(3), 20, axis=0)
    with pytest.raises(InvalidArgumentError, match="3 distinct points"):
        fitted(x, 4, init_strategy=start)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_degenerate_data_give_finite_parameters_or_an_error(kind):
    x, _ = clouds(60, 3, 2)
    x[:, 1] = 5.0
    model = fitted(x, 2, covariance_type=kind)
    assert all(bool(t.isfinite().all()) for t in model.model_.state_dict().values())
    tied = np.repeat(np.eye(3), 20, axis=0)
    model = fitted(tied, 3, covariance_type=kind)
    assert all(bool(t.isfinite().all()) for t in model.model_.state_dict().values())
    for bad in (np.full((5, 2), np.inf), np.full((5, 2), np.nan), np.zeros((0, 2)), np.zeros(5)):
        with pytest.raises(ValueError):
            fitted(bad, 1)
    with pytest.raises(InvalidArgumentError):
        fitted(torch.full((5, 2), torch.inf), 1)
    with pytest.raises(InvalidArgumentError, match="covariance_regularization"):
        fitted(tied, 3, covariance_type=kind, covariance_regularization=0.0)
    with pytest.raises(InvalidArgumentError, match="covariance_regularization"):
        fitted(np.ones((9, 3)), 1, covariance_type=kind, covariance_regularization=0.0)
    with pytest.raises(InvalidArgumentError, match="covariance_regularization"):
        fitted(np.vstack([x, np.full((1, 3), 1e12)]), 2, covariance_type=kind)


def test_saved_and_loaded_without_pickle(tmp_path):
    x, _ = clouds(100, 3, 2)
    prior = MixturePrior(covariance_dof=5.0, covariance_scale=torch.eye(3, dtype=F64))
    model = GaussianMixture(
        2, covariance_type="full", prior=prior, random_state=3, init_means=x[:2], trainer_params={"max_epochs": 50}
    ).fit(x)
    model.save(tmp_path)
    again = GaussianMixture.load(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    assert (again.nll_, again.num_iter_, again.converged_) == (model.nll_, model.num_iter_, model.converged_)
    assert again.get_params()["prior"].covariance_dof == 5.0
    files = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"params.json", "attributes.json", "config.json", "parameters.safetensors"}
    assert not hasattr(GaussianMixture.load_parameters(tmp_path), "model_")
    newer = json.loads((tmp_path / "params.json").read_text()) | {"format_version": 99}
    (tmp_path / "params.json").write_text(json.dumps(newer))
    with pytest.raises(ModelFileError, match="99"):
        GaussianMixture.load(tmp_path)
    (tmp_path / "model" / "parameters.safetensors").write_bytes(b"short")
    with pytest.raises(ModelFileError, match="damaged"):
        model.load_attributes(tmp_path)


def test_clones_pipelines_and_unfitted_access():
    x, _ = clouds(100, 3, 2)
    model = fitted(x, 2)
    assert not hasattr(clone(model), "model_") and model.clone().get_params() == model.get_params()
    assert make_pipeline(StandardScaler(), GaussianMixture(2, random_state=0)).fit_predict(x).shape == (100,)
    assert model.trainer(max_epochs=7).max_epochs == 7
    assert GaussianMixture.persistent_attributes == ("model_", "converged_", "num_iter_", "nll_")
    with pytest.raises(NotFittedError):
        GaussianMixture().predict(x)


def test_library_leaves_global_generators_alone():
    x, _ = clouds(100, 3, 2)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fitted(x, 2, n_init=2).sample(5)
    GaussianMixture(2).fit(x).sample(5)
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
