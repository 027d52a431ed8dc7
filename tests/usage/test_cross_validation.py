"""Cross-validation of one fit, beside refits; what it says of models that are right and wrong; what is refused."""

import numpy as np
import pandas as pd
import pytest

from pyrosplice import SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods import DirichletMultinomial
from tests.usage.conftest import tissue_of

MARGINAL = {"fitting_method": "marginal_newton", "var_fix_sigma": False}


def fitted(adata, kind="glmm-full", *, options=MARGINAL, **setup):
    model = SplisosmGLMM(kind, **options)
    model.setup_data(adata, min_counts=0, **setup)
    model.fit(batch_size=32, print_progress=False, with_design_mtx="design_mtx" in setup)
    return model


@pytest.fixture(scope="module")
def tissue():
    return simulate_isoforms(n_spots=64, n_genes=3, n_isoforms=2, depth=5.0, sigma=1.0, theta=0.6, seed=2)


@pytest.fixture(scope="module")
def model(tissue):
    return fitted(tissue)


def per_spot(one, other):
    """Mean difference of log densities a spot, by gene."""
    both = one.assign(away=one.log_density - other.log_density).groupby("gene", sort=False)
    return (both.away.sum() / both.n_spots.sum()).to_numpy()


@pytest.mark.slow
@pytest.mark.parametrize("groups", ["spot", "block"])
def test_within_a_twentieth_of_a_nat_a_spot_of_refits(model, groups):
    found, corrected, refits = (
        model.cross_validate(groups, method=method, n_blocks=8, pointwise=True)
        for method in ("laplace", "corrected", "refit")
    )
    assert np.abs(per_spot(found, refits)).max() < 0.05
    assert np.abs(per_spot(found, corrected)).max() < 0.002  # what is left is of σ and θ, not of the downdate
    assert found.group.tolist() == refits.group.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(("isoforms", "likelihood"), [((3, 2, 4), None), ((2, 3), DirichletMultinomial(15.0))], ids=str)
def test_the_downdate_is_the_mode_found_again(isoforms, likelihood):
    model = fitted(tissue_of(isoforms, seed=3), options=MARGINAL | {"likelihood": likelihood}, design_mtx="half")
    groups = np.repeat(["a", "b", "c", "rest"], [1, 3, 5, 27])
    found, again = (model.cross_validate(groups, method=m, pointwise=True) for m in ("laplace", "corrected"))
    some = found.group != "rest"  # without three quarters of all spots one step is not enough
    assert found.n_spots[:4].tolist() == [1, 3, 5, 27]
    away = np.abs(found.log_density - again.log_density) / found.n_spots
    assert away[found.group == "a"].max() < 0.01 and away[some].max() < 0.1


def test_the_table_adds_up_the_groups(model):
    for groups, options in (("spot", {}), ("block", {"n_blocks": 5})):
        table = model.cross_validate(groups, **options)
        rows = model.cross_validate(groups, pointwise=True, **options)
        rows = rows[rows.n_spots > 0]
        by_gene = rows.groupby("gene", sort=False)
        np.testing.assert_allclose(table.elpd, by_gene.log_density.sum())
        np.testing.assert_allclose(table.se, by_gene.log_density.std() * by_gene.size() ** 0.5)
        np.testing.assert_allclose(table.elpd_per_spot, table.elpd / table.n_spots)
        assert table.n_groups.tolist() == by_gene.size().tolist() and (table.reason == "").all()
    assert (table.n_groups == 5).all()


def test_labels_are_a_column_or_given_by_name(model, tissue):
    names = pd.Series(np.arange(64) // 8, index=tissue.obs_names)
    here, there = (model.cross_validate(labels) for labels in (names.to_numpy(), names[::-1]))
    pd.testing.assert_frame_equal(here, there)
    assert (here.n_groups <= 8).all()
    one = model.cross_validate("block", genes="gene_2")
    pd.testing.assert_frame_equal(one, model.cross_validate("block").iloc[[1]].reset_index(drop=True))


def test_spots_without_counts_count_for_nothing(tissue):
    empty = tissue.copy()
    counts = np.asarray(tissue.layers["counts"].todense())
    counts[:10, :2] = 0
    empty.layers["counts"] = counts
    rows = fitted(empty).cross_validate(pointwise=True)
    rows = rows[rows.gene == "gene_1"]
    assert (rows.log_density[:10].abs() < 1e-9).all() and (rows.n_spots[:10] == 0).all()


@pytest.mark.slow
def test_space_is_preferred_where_there_is_some_and_blocks_are_harder():
    adata = simulate_isoforms(n_spots=256, n_genes=8, n_isoforms=2, depth=8.0, sigma=1.0, theta=0.9, seed=5)
    full, null = fitted(adata), fitted(adata, "glmm-null")
    alone = full.cross_validate("spot").elpd - null.cross_validate("spot").elpd
    assert (alone > 0).all()
    assert (full.cross_validate("block").elpd < full.cross_validate("spot").elpd).all()
    # of independent spots the blocks do not matter
    codes = np.arange(256) // 16
    together, apart = null.cross_validate(codes).elpd, null.cross_validate("spot").elpd
    assert (np.abs(together - apart) / 256 < 0.02).all()


def test_what_cannot_be_left_out_is_refused(model, tissue):
    for groups, message in (
        ("donor", "donor"),
        (np.zeros(64), "two groups or more"),
        (np.zeros(3), "64 labels"),
        (4, "expected 'spot', 'block'"),
        (np.append(np.ones(63), np.nan), "groups"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            model.cross_validate(groups)
    with pytest.raises(InvalidArgumentError, match="method"):
        model.cross_validate(method="loo")
    with pytest.raises(InvalidArgumentError, match="n_blocks"):
        model.cross_validate("block", n_blocks=1)
    with pytest.raises(InvalidArgumentError, match="without positions"):
        fitted(tissue, "glmm-null").cross_validate("block")
    with pytest.raises(InvalidArgumentError, match="joint"):
        fitted(tissue, options={}).cross_validate()
