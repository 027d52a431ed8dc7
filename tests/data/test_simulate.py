import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from pyrosplice.data import read_isoforms, simulate_counts, simulate_isoforms
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial import CarCovariance


def logits(adata, gene):
    ratios = adata.layers["true_ratios"][:, adata.var["gene_symbol"] == gene].astype(np.float64)
    return np.log(ratios[:, :-1] / ratios[:, -1:])


def test_the_random_effect_has_the_stated_covariance():
    adata = simulate_isoforms(n_spots=100, n_genes=400, sigma=0.8, theta=0.6, n_isoforms=2, seed=1)
    intercepts = adata.var["intercept"].to_numpy()[::2]
    effects = np.stack([logits(adata, f"gene_{g + 1}")[:, 0] - b for g, b in enumerate(intercepts)])
    covariance = 0.8**2 * (0.6 * CarCovariance(adata.obsp["connectivities"]).dense().numpy() + 0.4 * np.eye(100))
    white = np.linalg.solve(np.linalg.cholesky(covariance), effects.T)
    assert stats.kstest((white**2).sum(0), stats.chi2(100).cdf).pvalue > 1e-3
    assert abs(white.mean()) < 4 / np.sqrt(white.size)


def test_counts_follow_the_stated_usage_and_depth():
    adata = simulate_isoforms(n_spots=400, n_genes=3, depth=[2.0, 5.0, 50.0], seed=2)
    counts = adata.layers["counts"].toarray().reshape(400, 3, 3)
    np.testing.assert_allclose(counts.sum(2).mean(0), [2, 5, 50], rtol=0.1)
    ratios = adata.layers["true_ratios"].reshape(400, 3, 3)
    total = counts.sum(2, keepdims=True)
    expected = total * ratios
    statistic = ((counts - expected) ** 2 / np.where(total > 0, expected, 1.0))[:, 2].sum()
    assert 1e-3 < stats.chi2.sf(statistic, 2 * 400) < 1 - 1e-3


def test_effects_are_in_the_logits_and_in_the_truth():
    beta = np.zeros((4, 2, 2))
    beta[1, 0] = [0.5, -0.25]
    adata = simulate_isoforms(n_genes=4, covariates=("iid", "binary"), beta=beta, sigma=0.0, n_spots=64, seed=3)
    assert set(adata.obs["binary"]) == {0.0, 1.0}
    b = adata.var["intercept"].to_numpy().reshape(4, 3)[:, :2]
    np.testing.assert_allclose(logits(adata, "gene_2"), b[1] + np.outer(adata.obs["iid"], [0.5, -0.25]), atol=1e-5)
    np.testing.assert_allclose(logits(adata, "gene_1"), np.tile(b[0], (64, 1)), atol=1e-5)
    np.testing.assert_allclose(adata.var["beta_iid"].to_numpy().reshape(4, 3)[1], [0.5, -0.25, 0.0])
    only_first = simulate_isoforms(n_genes=2, covariates=("smooth",), beta=0.3, n_spots=64)
    np.testing.assert_allclose(only_first.var["beta_smooth"], [0.3, 0.0, 0.0] * 2)
    assert abs(only_first.obs["smooth"].mean()) < 1e-12


def test_a_seed_decides_everything_and_the_file_holds_it(tmp_path):
    a = simulate_isoforms(n_spots=50, n_genes=3, layout="random", covariates=("iid", "iid"), seed=4)
    b = simulate_isoforms(n_spots=50, n_genes=3, layout="random", covariates=("iid", "iid"), seed=4)
    c = simulate_isoforms(n_spots=50, n_genes=3, layout="random", covariates=("iid", "iid"), seed=5)
    assert (a.layers["counts"] != b.layers["counts"]).nnz == 0
    assert (a.layers["counts"] != c.layers["counts"]).nnz > 0
    assert list(a.obs) == ["iid", "iid_2"]
    assert sp.issparse(a.layers["counts"])
    a.write_h5ad(tmp_path / "tissue.h5ad")
    again = ad.read_h5ad(tmp_path / "tissue.h5ad")
    assert list(again.uns["truth"].columns) == ["sigma", "theta", "depth"]
    assert read_isoforms(again, min_counts=1).gene_names == ("gene_1", "gene_2", "gene_3")


def test_given_coordinates():
    points = np.random.default_rng(0).uniform(size=(40, 3))
    adata = simulate_isoforms(layout=points, n_genes=1)
    np.testing.assert_array_equal(adata.obsm["spatial"], points)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "circle"}, "layout"),
        ({"n_isoforms": 1}, "n_isoforms: .*at least 2"),
        ({"n_genes": 0}, "n_genes"),
        ({"theta": 1.5}, "theta: .*found 1.5"),
        ({"sigma": [0.1, 0.2]}, "sigma: .*found shape .2,"),
        ({"depth": -1.0}, "depth"),
        ({"covariates": ("rough",)}, "covariates: .*'rough'"),
        ({"covariates": ("iid",), "beta": np.ones((3, 3))}, "beta: .*found shape .3, 3."),
        ({"rho": 1.0}, "rho"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        simulate_isoforms(**{"n_spots": 16, "n_genes": 1} | arguments)


@pytest.mark.parametrize(
    "wrong",
    [{"n_genes": 0}, {"n_isos": 1}, {"seed": -1}, {"sigma": -1.0}, {"theta": 1.5}, {"depth": -1.0}],
)
def test_counts_as_arrays_refuse_what_is_no_truth(wrong):
    given = {"n_genes": 2, "depth": 3.0, "sigma": 0.5, "theta": 0.5, "seed": 0}
    counts = simulate_counts(CarCovariance(np.eye(5, k=1)), **given)
    assert counts.shape == (2, 5, 3)
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        simulate_counts(CarCovariance(np.eye(5, k=1)), **(given | wrong))
