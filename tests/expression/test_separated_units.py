"""Separated genes beside random effects: what is identified is tested as if the rest were not there."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import pyrosplice.api as de
from pyrosplice import ExpressionGLM
from pyrosplice._hypothesis.coefficients.unit_statistics import ratio_of_suprema
from pyrosplice.effects import Field, Independent
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._separation import receding_rows, separated
from pyrosplice.likelihoods import NegativeBinomial
from tests.glmm.arrow.reference.blocks import group_block

METHODS = ("wald", "lrt", "score")
COLUMNS = ["pval", "effect", "se", "df", "unit", "n_units"]


def cells(seed: int = 0, *, n_donors: int = 12, size: int = 20, genes: int = 3) -> ad.AnnData:
    """Cells of donors in three groups and two batches, with an age each."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), rng.integers(size // 2, 2 * size, n_donors))
    eta = 0.5 + rng.normal(0, 0.4, (n_donors, genes))[donor]
    obs = pd.DataFrame(
        {
            "donor": [f"d{k}" for k in donor],
            "group": np.array(list("abc"))[donor % 3],
            "batch": rng.choice(["x", "y"], len(donor)),
            "age": rng.normal(50, 10, n_donors)[donor],
            "z": rng.normal(size=len(donor)),
        },
        index=[f"cell{k}" for k in range(len(donor))],
    )
    return ad.AnnData(rng.negative_binomial(2, 2 / (2 + np.exp(eta))).astype(float), obs=obs)


def emptied(adata: ad.AnnData, cells: object, gene: int = 0) -> ad.AnnData:
    out = adata.copy()
    out.X[np.asarray(cells), gene] = 0
    return out


def quiet(glm: ExpressionGLM, **what: object) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # cells are the units of some
        return glm.test(**what).summary()


def close(found: pd.DataFrame, expected: pd.DataFrame, columns: list[str]) -> None:
    pd.testing.assert_frame_equal(found[columns], expected[columns], rtol=2e-3, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "formula",
    [
        "~ group + (1 | donor)",
        "~ group + z + (1 + z | donor)",
        "~ group + (1 | donor) + (1 | batch)",
        "~ group + age + (1 | donor)",
    ],
)
def test_contrasts_of_other_groups_are_those_without_the_empty_one(formula: str, method: str) -> None:
    adata = cells()
    empty = (adata.obs["group"] == "c").to_numpy()
    numbers = [name for name in ("z", "age") if name in formula]
    whole = ExpressionGLM(formula, as_numeric=numbers).fit(emptied(adata, empty))
    alone = ExpressionGLM(formula, as_numeric=numbers).fit(adata[~empty].copy())
    for coefficient in ("group[T.b]", *numbers):
        found, expected = (quiet(glm, coefficient=coefficient, method=method) for glm in (whole, alone))
        close(found[:1], expected[:1], COLUMNS)
        assert found["fit_ended"][0] == "separated" and found["reason"][0] == ""
    joint = quiet(whole, factor="group")
    assert joint["pval"][0] == pytest.approx(quiet(alone, factor="group")["pval"][0], rel=2e-3)


def test_estimates_at_infinity_have_no_wald_test_and_other_genes_are_as_they_were(tmp_path) -> None:  # type: ignore[no-untyped-def]
    adata = cells()
    empty = (adata.obs["group"] == "c").to_numpy()
    whole, before = (ExpressionGLM("~ group + (1 | donor)").fit(a) for a in (emptied(adata, empty), adata))
    for method in METHODS:
        tables = [quiet(glm, coefficient="group[T.c]", method=method) for glm in (whole, before)]
        close(tables[0][1:], tables[1][1:], COLUMNS)
        assert np.isfinite(tables[0]["pval"][0]) == (method != "wald")
        assert tables[0]["reason"][0] == "separated"  # of the standard error, if not of the p-value
        assert tables[0]["effect"][0] < -10 and np.isinf(tables[0]["se"][0])
    se = whole.summary().set_index(["gene", "coefficient"])["se"].unstack().to_numpy()
    assert np.isinf(se).sum() == 1 and np.isfinite(se).sum() == se.size - 1
    whole.save(tmp_path / "a")
    loaded = ExpressionGLM.load(tmp_path / "a")
    for what in ({"factor": "group"}, {"coefficient": "group[T.b]"}, {"coefficient": "group[T.c]"}):
        pd.testing.assert_frame_equal(loaded.test(**what).summary(), whole.test(**what).summary())
    pd.testing.assert_frame_equal(loaded.summary(), whole.summary())


@settings(max_examples=6, deadline=None)
@given(
    empty=st.sets(st.sampled_from("abc"), min_size=1, max_size=2),
    seed=st.integers(0, 50),
    formula=st.sampled_from(["~ group + (1 | donor)", "~ group + batch + (1 | donor)", "~ 0 + group + (1 | donor)"]),
)
def test_every_pair_of_groups_is_identified_or_says_so(empty: set[str], seed: int, formula: str) -> None:
    adata = cells(seed)
    kept = ~adata.obs["group"].isin(list(empty)).to_numpy()
    glm = ExpressionGLM(formula).fit(emptied(adata, ~kept))
    for one, other in ("ab", "bc", "ca"):
        contrast = glm.cond(group=one) - glm.cond(group=other)
        tables = [quiet(glm, contrast=contrast, method=method).iloc[0] for method in METHODS]
        touched = bool({one, other} & empty)
        assert np.isnan(tables[0]["pval"]) == np.isinf(tables[0]["se"]) == touched
        if len({one, other} & empty) == 1:  # which is the larger is known
            assert (tables[0]["effect"] > 0) == (other in empty)
            assert 0 < tables[1]["pval"] < 1
            assert np.isfinite(tables[2]["pval"]) == (len(empty) == 1)  # else the null is separated as well


@pytest.mark.parametrize("extra", ["field", "cells"])
def test_effects_in_space_and_of_cells_stay(extra: str) -> None:
    rng = np.random.default_rng(1)
    section = np.repeat(np.arange(9), 36)
    place = np.tile(np.stack(np.divmod(np.arange(36), 6), 1).astype(float), (9, 1))
    obs = pd.DataFrame(
        {"section": [f"s{k}" for k in section], "group": np.array(list("abc"))[section % 3]},
        index=[f"spot{k}" for k in range(324)],
    )
    eta = 0.5 + rng.normal(0, 0.3, 9)[section] + 0.5 * np.sin(place[:, 0])
    adata = ad.AnnData(rng.poisson(np.exp(eta))[:, None].astype(float), obs=obs, obsm={"spatial": place})
    given = (
        {"space": Field(k_neighbors=4), "section_key": "section"} if extra == "field" else {"effects": [Independent()]}
    )
    empty = (obs["group"] == "c").to_numpy()
    parts = [emptied(adata, empty), adata[~empty].copy()]
    tables = []
    for data in parts:
        glm = ExpressionGLM("~ group + (1 | section)", likelihood="poisson", **given).fit(data)  # type: ignore[arg-type]
        tables.append([quiet(glm, coefficient="group[T.b]", method=method) for method in METHODS])
    for found, expected in zip(*tables, strict=True):
        close(found, expected, COLUMNS)


def test_the_ratio_of_suprema_is_that_of_the_cells_that_are_left() -> None:
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(8), 30)
    group = (donor % 2).astype(float)
    y = torch.from_numpy(rng.negative_binomial(2, 0.5, (4, 240)) * (1 - group))[..., None]
    size = rng.normal(0, 0.2, 240)
    whole = EffectsProblem(
        y, np.column_stack([np.ones(240), group]), NegativeBinomial(), offset=size, groups=(group_block("d", donor),)
    )
    statistic, ended = ratio_of_suprema(whole, np.array([[0.0, 1.0]]))
    kept = group == 0
    left = EffectsProblem(
        y[:, kept], np.ones((120, 1)), NegativeBinomial(), offset=size[kept], groups=(group_block("d", donor[kept]),)
    )
    null = EffectsProblem(y, np.ones((240, 1)), NegativeBinomial(), offset=size, groups=(group_block("d", donor),))
    full, small = (fit_effects(one, restricted=False).log_likelihood.numpy() for one in (left, null))
    np.testing.assert_allclose(statistic, 2 * (full - small), rtol=1e-4)
    assert (ended == "").all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 0.5), levels=st.integers(2, 5))
def test_observations_recede_that_a_direction_takes_down_and_no_others_can(
    seed: int, share: float, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    g = rng.integers(0, levels, 60)
    design = np.column_stack([np.ones(60), *(g == k for k in range(1, levels)), rng.normal(size=60)]).astype(float)
    design = design[:, : np.linalg.matrix_rank(design)] if np.linalg.matrix_rank(design) < levels + 1 else design
    seen = rng.random(60) < share
    receded, direction = receding_rows(seen, design)
    moved = design @ direction
    assert not (receded & seen).any() and np.abs(moved[~receded]).max(initial=0.0) < 1e-8
    assert (moved[receded] <= -1 + 1e-8).all()
    counts = torch.from_numpy(seen.astype(float))[None, :, None]
    eta = torch.full((1, 60, 1), 9.0, dtype=torch.float64)
    if seen.any():
        assert bool(separated(counts, torch.from_numpy(design), eta)[0]) == receded.any()
    left = design[~receded]
    again, _ = receding_rows(seen[~receded], left)
    assert not again.any()


def test_mixed_tests_of_a_plain_fit_and_documented_ones_test_what_is_identified() -> None:
    adata = cells()
    data = emptied(adata, adata.obs["group"] == "c")
    mixed = ExpressionGLM("~ group + (1 | donor)").fit(data).test(coefficient="group[T.b]")
    plain = ExpressionGLM("~ group").fit(data).test(coefficient="group[T.b]", method="glmm", donors="donor")
    documented = de.test.wald(data, coef_to_test="group[T.b]", formula_loc="~ group + (1 | donor)")
    for other in (plain, documented):
        np.testing.assert_allclose(other.pval, mixed.pval, rtol=1e-4)
    assert np.isfinite(mixed.pval).all()


def test_genes_of_which_too_little_is_left_say_so() -> None:
    adata = cells(n_donors=6)
    data = emptied(adata, adata.obs["donor"] != "d0")  # one donor has all counts
    glm = ExpressionGLM("~ group + (1 | donor)").fit(data)
    found = glm.test(factor="group").summary()
    assert found["reason"][0] == "separated" and np.isnan(found["pval"][0]) and np.isfinite(found["pval"][1:]).all()
    assert glm.test(factor="group", method="lrt").pval[0] > 0.01


def test_df_of_ones_own_go_for_contrasts_at_infinity_as_well() -> None:
    adata = cells()
    glm = ExpressionGLM("~ group + (1 | donor)").fit(emptied(adata, adata.obs["group"] == "c"))
    what = {"coefficient": "group[T.c]", "method": "lrt"}
    tables = {
        df: glm.test(df=df, **what).summary().iloc[0] for df in ("clip", "between-within", "normal", 5, "satterthwaite")
    }
    assert tables["clip"]["df"] == tables["between-within"]["df"] == 9 and tables[5]["df"] == 5
    statistic = tables["normal"]["statistic"]
    assert tables["normal"]["pval"] == pytest.approx(stats.chi2.sf(statistic, 1))
    assert tables["clip"]["pval"] == pytest.approx(stats.f.sf(np.expm1(statistic / 12) * 9, 1, 9))
    assert np.isnan(tables["satterthwaite"]["pval"]) and tables["satterthwaite"]["reason"] == "separated"
