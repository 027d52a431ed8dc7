"""Results in an AnnData: paired by name, all or nothing, and the same after a file."""

import functools
import itertools
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import pyrosplice.api as de
from pyrosplice import ExpressionGLM, GaussianMixture, SplisosmGLMM
from pyrosplice._results.annotations import Annotations, storable_table
from pyrosplice.data import simulate_isoforms
from pyrosplice.effects import Field
from pyrosplice.errors import InvalidArgumentError, NotReadyError

N, G = 48, 5


def cells(seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"g": np.tile(["a", "b", "c"], N // 3), "donor": np.repeat(list("uvwx"), N // 4)})
    obs.index = [f"cell {i}" for i in range(N)]
    counts = rng.negative_binomial(3, 0.4, (N, G)).astype(float)
    counts[:, 2] = 0
    var = pd.DataFrame({"symbol": ["A", "B", None, " ", "E"]}, index=[f"G/{i}" for i in range(G)])
    return ad.AnnData(counts, obs, var, obsm={"spatial": rng.random((N, 2))})


@functools.cache
def tissue() -> SplisosmGLMM:
    adata = simulate_isoforms(n_spots=49, n_genes=3, covariates=("iid",), seed=1)
    model = SplisosmGLMM("glmm-null", fitting_method="marginal_newton", var_fix_sigma=False, isoform_effect="symmetric")
    model.setup_data(adata, design_mtx="iid")
    model.fit(with_design_mtx=True, print_progress=False)
    model.test_differential_usage("wald", print_progress=False)
    return model


def shuffled(adata: ad.AnnData, seed: int = 1) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    order = adata.obs_names[rng.permutation(adata.n_obs)], adata.var_names[rng.permutation(adata.n_vars)]
    return adata[list(order[0]), list(order[1])].copy()


WRITERS = {
    "glm": lambda: ExpressionGLM("~ 1 + g").fit(cells()),
    "field": lambda: ExpressionGLM("~ 1 + (1 | donor)", space=Field(k_neighbors=4)).fit(cells()),
    "tests": lambda: de.test.versus_rest(cells(), "g", test="wald"),
    "test": lambda: ExpressionGLM("~ 1 + g").fit(cells()).test(factor="g"),
    "mixture": lambda: GaussianMixture(2, random_state=0, use_rep="spatial").fit(cells()),
    "usage": tissue,
}


def of(name: str) -> ad.AnnData:
    return (tissue().adata if name == "usage" else cells()).copy()


def same(a, b) -> None:
    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(
            pd.DataFrame(b), a, check_dtype=False, check_categorical=False, check_names=False, check_column_type=False
        )
    elif hasattr(a, "keys"):
        assert set(a.keys()) == set(b.keys())
        for key in a:
            same(a[key], b[key])
    elif getattr(a, "dtype", None) is not None and a.dtype.names:
        for key in a.dtype.names:
            np.testing.assert_array_equal(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_what_a_file_gives_back(name, tmp_path):
    result, adata = WRITERS[name](), of(name)
    before = {part: set(getattr(adata, part).keys()) for part in ("obs", "var", "obsm", "layers", "uns")}
    told = result.write(adata)
    new = {part: set(getattr(adata, part).keys()) - keys for part, keys in before.items()}
    assert {(part, key) for part, keys in new.items() for key in keys} == set(
        zip(told["part"], told["key"], strict=True)
    )
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = [ad.read_h5ad(tmp_path / "a.h5ad")]
    for form in (2, 3):
        with warnings.catch_warnings(), ad.settings.override(zarr_write_format=form):
            warnings.simplefilter("ignore")  # of zarr's formats, which are anndata's to choose
            adata.write_zarr(tmp_path / f"{form}.zarr")
        read.append(ad.read_zarr(tmp_path / f"{form}.zarr"))
    for again in read:
        for part in ("obs", "var", "obsm", "layers"):
            for key in new[part]:
                left, right = getattr(adata, part)[key], getattr(again, part)[key]
                np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=key)
        for key in new["uns"]:
            same(adata.uns[key], again.uns[key])
        assert told.equals(result.write(again))  # its own record is read again from the file, and replaced


@pytest.mark.parametrize("name", WRITERS)
def test_cells_and_genes_go_by_name_whatever_their_order(name):
    result, adata = WRITERS[name](), of(name)
    result.write(adata)
    other = shuffled(of(name))
    result.write(other)
    for part in ("layers", "obs", "var", "obsm"):
        for key in getattr(other, part):
            left = getattr(adata[other.obs_names, other.var_names], part)[key]
            right = getattr(other, part)[key]
            left, right = (np.asarray(v.toarray() if hasattr(v, "toarray") else v) for v in (left, right))
            if left.dtype.kind == "f":
                np.testing.assert_allclose(left, right, rtol=1e-6, err_msg=key)
            else:
                assert [str(v) for v in left.ravel()] == [str(v) for v in right.ravel()]


@pytest.mark.parametrize("name", WRITERS)
def test_keys_of_others_are_refused_and_nothing_is_written(name):
    result, adata = WRITERS[name](), of(name)
    told = result.write(adata, "mine")
    for part, key in zip(told["part"], told["key"], strict=True):
        other = of(name)
        taken = {"obs": "x", "var": "x", "obsm": np.zeros((other.n_obs, 1)), "layers": np.zeros(other.shape)}
        getattr(other, part)[key] = taken.get(part, {"foreign": 1})
        keys = {p: set(getattr(other, p).keys()) for p in ("obs", "var", "obsm", "layers", "uns")}
        with pytest.raises(InvalidArgumentError, match=f"key_added: .*{key}"):
            result.write(other, "mine")
        assert keys == {p: set(getattr(other, p).keys()) for p in keys}
    for wrong in ("", "a/b", " ", 3, None):
        with pytest.raises(InvalidArgumentError, match="key_added: expected a word"):
            result.write(of(name), wrong)
    with pytest.raises(InvalidArgumentError, match="view"):
        result.write(adata[:3])
    with pytest.raises(InvalidArgumentError, match="expected an AnnData"):
        result.write(adata.to_df())


@pytest.mark.parametrize("name", ["glm", "field", "tests", "usage"])
def test_others_genes_and_cells_are_refused_by_name(name):
    result = WRITERS[name]()
    fewer = of(name)[:, 1:].copy()
    with pytest.raises(InvalidArgumentError, match=r"adata.var_names: expected the genes of the result.*first: '"):
        result.write(fewer)
    if name != "tests":
        with pytest.raises(InvalidArgumentError, match=r"adata.obs_names: expected the cells of the result"):
            result.write(of(name)[1:].copy())
        renamed = of(name)
        renamed.obs_names = [f"other {i}" for i in range(renamed.n_obs)]
        with pytest.raises(InvalidArgumentError, match="first: "):
            result.write(renamed)
    twice = of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice.var_names = ["x"] * twice.n_vars
    with pytest.raises(InvalidArgumentError, match="'x' stands more than once"):
        result.write(twice)


def test_cells_that_were_not_fitted_have_no_values_and_are_counted():
    adata = cells()
    adata.obs.loc["cell 3", "g"] = None
    glm = ExpressionGLM("~ 1 + g").fit(adata, missing="drop")
    more = ad.concat([adata, cells(1)[:, ::-1]], index_unique="-")
    more.obs_names = [name.removesuffix("-0") for name in more.obs_names]
    told = glm.write(more)
    assert told.loc[told["key"] == "expression_mean", "missing"].tolist() == [N + 1]
    mean = more.layers["expression_mean"]
    assert np.isnan(mean[3]).all() and np.isnan(mean[N:]).all() and np.isfinite(np.delete(mean[:N, :2], 3, 0)).all()
    np.testing.assert_allclose(mean[4, [0, 1]], glm.estimator.model.location_j([0, 1])[3])


def test_without_names_there_is_no_pairing():
    glm = ExpressionGLM("~ 1").fit(cells().X)
    with pytest.raises(InvalidArgumentError, match=r"(no names|expected the genes of the result)"):
        glm.write(cells())
    with pytest.raises(NotReadyError):
        ExpressionGLM("~ 1").write(cells())


def test_a_smaller_result_takes_out_what_the_larger_one_wrote():
    adata, tested = cells(), WRITERS["tests"]()
    ExpressionGLM("~ 1 + g").fit(cells()).test(coefficient="g[T.b]").write(adata)
    assert "rank_genes_groups_pvalue" in adata.var
    tested.write(adata)
    assert "rank_genes_groups_pvalue" not in adata.var and "symbol" in adata.var
    WRITERS["field"]().write(adata)
    assert "expression_field" in adata.layers
    WRITERS["glm"]().write(adata, layers=True)
    assert "expression_field" not in adata.layers and "expression_mean" in adata.layers


def test_columns_of_every_kind_are_spread():
    adata = cells()
    some = adata.obs_names[[5, 2]]
    said = {"flag": np.array([True, False]), "word": np.array(["p", "q"]), "kind": pd.Categorical(["u", "v"])}
    Annotations(kind="k", cells=some, obs=said).write(adata, "x")
    assert adata.obs["x_flag"].isna().sum() == N - 2 and bool(adata.obs["x_flag"].iloc[5])
    assert adata.obs["x_word"].iloc[[5, 2, 0]].tolist() == ["p", "q", ""]
    assert adata.obs["x_kind"].iloc[[5, 2]].tolist() == ["u", "v"] and adata.obs["x_kind"].isna().sum() == N - 2


def test_columns_that_differ_stay_apart_without_their_slashes():
    names = ["".join(parts) for k in range(5) for parts in itertools.product(["/", "%", "2F", "25", "a"], repeat=k)]
    names = list(dict.fromkeys(names))
    stored = storable_table(pd.DataFrame([range(len(names))], columns=names))
    assert stored.columns.is_unique and not stored.columns.str.contains("/").any()
    assert stored.iloc[0].tolist() == list(range(len(names)))
    assert list(storable_table(pd.DataFrame(columns=["a/b", "50 %"])).columns) == ["a%2Fb", "50 %"]


def test_cells_of_one_name_are_refused_before_a_density_is_evaluated(monkeypatch):
    x = np.random.default_rng(0).normal(size=(60, 2)) + 8 * (np.arange(60)[:, None] % 2)
    mixture = GaussianMixture(2, random_state=0).fit(x)
    adata = ad.AnnData(x)
    adata.obs_names = [f"cell {i // 2}" for i in range(60)]
    monkeypatch.setattr(GaussianMixture, "_evaluate", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(InvalidArgumentError, match=r"'cell 0' stands more than once in adata.obs_names"):
        mixture.write(adata)
    assert not adata.uns and adata.obs.empty
