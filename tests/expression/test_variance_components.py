"""Tests of variance components and fields of estimated strength, through the door."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from pyrosplice import ExpressionGLM
from pyrosplice.effects import Field, Independent
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial.car import CarCovariance
from tests.studies.simulation import grid, places

SIDE = 9
N = SIDE**2


def data_of(seed=0, *, n_genes=5, field=0.0, donor=0.0, slope=0.0, rho=0.95):
    rng = np.random.default_rng(seed)
    x, z, label = np.arange(N) % 2.0, rng.normal(size=N), np.arange(N) // 2 % 6
    smooth = CarCovariance(grid(SIDE).adjacency, rho=rho).sample(n_genes, torch.Generator().manual_seed(seed)).numpy()
    eta = 1.0 + field * smooth + donor * rng.normal(size=(n_genes, 6))[:, label]
    eta += slope * rng.normal(size=(n_genes, 6))[:, label] * x
    table = pd.DataFrame({"x": x, "z": z, "donor": [f"d{k}" for k in label]}, index=[f"c{k}" for k in range(N)])
    counts = rng.poisson(np.exp(eta)).T.astype(float)
    return anndata.AnnData(counts, obs=table, obsm={"spatial": places(SIDE)})


def fitted(formula, data, **options):
    return ExpressionGLM(formula, as_numeric=["x", "z"], likelihood="poisson", **options).fit(data)


def test_ratio_is_twice_the_gain_over_the_smaller_formula():
    data = data_of(donor=0.4, slope=0.3)
    large = fitted("~ x + (1 + x | donor)", data)
    slopes = large.test_component("(0 + x | donor)")
    middle, small = fitted("~ x + (1 | donor)", data), fitted("~ x + (1 + x | donor)", data)
    gain = 2 * (large.estimator.mixed.log_likelihood - middle.estimator.mixed.log_likelihood).numpy()
    np.testing.assert_allclose(slopes["statistic"], np.maximum(gain, 0), atol=1e-4)
    whole, first = small.test_component("(1 + x | donor)"), middle.test_component("1|donor")
    np.testing.assert_allclose(whole["statistic"], slopes["statistic"] + first["statistic"], atol=1e-3)
    assert set(slopes["law"]) == {"mixture of chi2"} and set(first["law"]) == {"finite sample"}
    assert (first["pvalue"] < whole["pvalue"] + 0.2).all()


def test_effects_that_are_there_are_found_and_others_are_not():
    data = data_of(1, n_genes=4, donor=0.8)
    counts = data.X.copy()
    counts[:, 3] = 0
    glm = fitted("~ x + (1 | donor)", anndata.AnnData(counts, obs=data.obs, obsm=data.obsm), space=Field(k_neighbors=4))
    donors, space = glm.test_component("(1 | donor)"), glm.test_component("space")
    assert (donors["pvalue"][:3] < 1e-3).all() and (space["pvalue"][:3] > 0.01).all()
    assert donors["reason"].tolist() == ["", "", "", "no_counts"] and np.isnan(donors["pvalue"].iloc[3])
    ratio = glm.test_spatial_variability("llr")
    pd.testing.assert_frame_equal(ratio, space)
    alone = fitted("~ x + (1 | donor)", data[:, :1], space=Field(k_neighbors=4)).test_component("space")
    assert alone["pvalue"].iloc[0] == pytest.approx(space["pvalue"].iloc[0], rel=1e-4)


def test_bootstrap_agrees_with_the_law_and_goes_by_the_seed():
    glm = fitted("~ x + (1 | donor)", data_of(2, n_genes=8, donor=0.15))
    law = glm.test_component("(1 | donor)")
    drawn = glm.test_component("(1 | donor)", n_bootstrap=60, seed=1)
    assert set(drawn["law"]) == {"bootstrap"}
    clear = law["pvalue"] < 1
    np.testing.assert_allclose(drawn["pvalue"][clear], law["pvalue"][clear], atol=0.2)
    assert (drawn["pvalue"][~clear] == 1).all()
    again = fitted("~ x + (1 | donor)", data_of(2, n_genes=8, donor=0.15)[:, :3])
    pd.testing.assert_series_equal(
        again.test_component("(1 | donor)", n_bootstrap=60, seed=1)["pvalue"], drawn["pvalue"][:3]
    )


@pytest.mark.parametrize(
    ("component", "says"),
    [
        ("(1 | batch)", r"component: expected one of .*\(1 \+ x \| donor\).*found '\(1 \| batch\)'"),
        ("(1 | donor)", "cannot leave alone"),
        ("cell", "expected one of"),
        ("space", "expected one of"),
    ],
)
def test_refusals_say_what_there_is(component, says):
    glm = fitted("~ x + (1 + x | donor)", data_of(n_genes=1))
    with pytest.raises(InvalidArgumentError, match=says):
        glm.test_component(component)
    with pytest.raises(InvalidArgumentError, match="n_bootstrap"):
        glm.test_component("(1 + x | donor)", n_bootstrap=-1)


def test_effects_of_cells_are_tested_against_poisson():
    rng = np.random.default_rng(0)
    data = data_of(4, n_genes=3)
    data.X[:, 0] = rng.poisson(3 * np.exp(0.8 * rng.normal(size=N)))
    found = fitted("~ x", data, effects=(Independent(),)).test_component("cell")
    assert found["pvalue"].iloc[0] < 1e-3 and (found["pvalue"].iloc[1:] > 0.005).all()


@pytest.mark.slow
def test_strength_of_a_field_is_each_genes_own_and_known_to_all_that_follows(tmp_path):
    data = data_of(5, n_genes=3, field=0.9, rho=0.9)
    data.X[:, 2] = 0
    glm = fitted("~ z", data, space=Field(k_neighbors=4, rho="estimate"))
    table = glm.variance_components()
    rho = table[table["parameter"] == "rho"]
    assert rho["estimate"].iloc[:2].between(0.3, 0.9995).all() and rho["reason"].iloc[2] == "no_counts"
    glm.save(tmp_path / "glm.safetensors")
    pd.testing.assert_frame_equal(ExpressionGLM.load(tmp_path / "glm.safetensors").variance_components(), table)
    held = [
        fitted("~ z", data[:, [k]], space=Field(k_neighbors=4, rho=value))
        for k, value in enumerate(rho["estimate"].iloc[:2])
    ]
    together = glm.test(coefficient="z").summary()
    for k, alone in enumerate(held):
        assert alone.estimator.mixed.log_likelihood[0] == pytest.approx(float(glm.estimator.mixed.log_likelihood[k]))
        expected = alone.test(coefficient="z").summary()["pval"].iloc[0]
        assert together["pval"].iloc[k] == pytest.approx(expected, rel=1e-3)
        lrt = alone.test(coefficient="z", method="lrt").summary()["pval"].iloc[0]
        assert glm.test(coefficient="z", method="lrt").summary()["pval"].iloc[k] == pytest.approx(lrt, rel=1e-3)
    with pytest.raises(InvalidArgumentError, match="rho was estimated"):
        glm.test_component("space")
    with pytest.raises(InvalidArgumentError, match="rho: expected a number"):
        Field(rho="estimate").covariance_at(places(3))


def test_score_of_a_field_by_a_covariate_finds_one_and_does_not_depend_on_its_sign():
    data = data_of(6, n_genes=2)
    field = np.where(places(SIDE)[:, 0] < SIDE // 2, 1.0, -1.0)
    z = data.obs["z"].to_numpy()
    data.X[:, 0] = np.random.default_rng(0).poisson(6 * np.exp(0.8 * field * z))
    found = fitted("~ z", data, space=Field(k_neighbors=4, by="z")).test_spatial_variability("score")
    assert found["pvalue"].iloc[0] < 0.01 < found["pvalue"].iloc[1]
    data.obs["z"] = -z
    again = fitted("~ z", data, space=Field(k_neighbors=4, by="z")).test_spatial_variability("score")
    np.testing.assert_allclose(again["pvalue"], found["pvalue"], rtol=1e-5)


def test_two_fields_are_refused_and_it_says_what_may_stand_beside_one():
    with pytest.raises(InvalidArgumentError, match=r"one field .* groups may vary beside it"):
        ExpressionGLM("~ x", space=Field(), effects=(Field(by="x"),))
