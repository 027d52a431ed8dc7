"""The map of the field: a stationary point of the model, in any order of spots and genes, or refused."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyrosplice import ExpressionGLM
from pyrosplice.effects import Field
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.spatial import CarCovariance, knn_graph


def tissue(seed: int, side: int = 7) -> ad.AnnData:
    """Two sections of a grid and four genes: two follow a wave, one does not vary in space, one has no counts."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.divmod(np.arange(side * side), side), 1).astype(float)
    wave = np.sin(place[:, 0])
    eta = 1 + np.outer(np.tile(wave, 2), [0.8, -0.8, 0.0, 0.0]) + np.repeat([0.3, -0.3], len(place))[:, None]
    counts = rng.poisson(np.exp(eta)).astype(float) * [1, 1, 1, 0]
    obs = pd.DataFrame({"section": np.repeat(["a", "b"], len(place))}, index=[f"s{i}" for i in range(len(eta))])
    names = pd.DataFrame(index=[f"g{i}" for i in range(4)])
    return ad.AnnData(counts, obs=obs, var=names, obsm={"spatial": np.tile(place, (2, 1))})


def fitted(adata: ad.AnnData) -> ExpressionGLM:
    glm = ExpressionGLM("~ 1 + (1 | section)", likelihood="poisson", space=Field(k_neighbors=4), section_key="section")
    return glm.fit(adata)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_map_is_where_counts_and_covariance_balance(seed: int) -> None:
    """At a mode of Poisson counts the field is its covariance times what the counts exceed their means by."""
    adata = tissue(seed)
    glm = fitted(adata)
    field, levels, components = glm.fitted_field(), glm.random_effects("section"), glm.variance_components()
    estimate = glm.summary().set_index("gene")["effect"]
    points = (
        adata.obsm["spatial"] + np.where(adata.obs["section"] == "b", 100.0, 0.0)[:, None]
    )  # no neighbors of others
    covariance = CarCovariance(knn_graph(points, k_neighbors=4, graph="union")).dense().numpy()
    for gene in ("g0", "g1"):
        own = levels[levels["gene"] == gene].set_index("level")["effect"]
        eta = estimate[gene] + own.loc[adata.obs["section"]].to_numpy() + field[gene].to_numpy()
        sd = components[(components["gene"] == gene) & (components["effect"] == "space")]["estimate"].iloc[0]
        residual = adata[:, gene].X.ravel() - np.exp(eta)
        np.testing.assert_allclose(field[gene], sd**2 * covariance @ residual, atol=1e-4)
        centered = field[gene] - field.groupby(adata.obs["section"])[gene].transform("mean")
        assert sd > 0.2 and abs(np.corrcoef(centered, np.tile(np.sin(points[:49, 0]), 2))[0, 1]) > 0.8
    assert field["g3"].isna().all()


def test_the_map_goes_by_names() -> None:
    adata, rng = tissue(2), np.random.default_rng(0)
    field = fitted(adata).fitted_field()
    shuffled = adata[rng.permutation(adata.n_obs), rng.permutation(4)].copy()
    other = fitted(shuffled).fitted_field()
    pd.testing.assert_frame_equal(other.loc[field.index, field.columns], field, atol=1e-4)
    some = fitted(adata).fitted_field(["g2", "g0"])
    pd.testing.assert_frame_equal(some, field[["g2", "g0"]])


def test_a_map_of_no_field_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    adata = tissue(0)
    plain = ExpressionGLM("~ 1 + (1 | section)").fit(adata)
    with pytest.raises(NotReadyError, match="no field"):
        plain.fitted_field()
    glm = fitted(adata)
    with pytest.raises(InvalidArgumentError, match="genes"):
        glm.fitted_field("g9")
    glm.save(tmp_path / "a.pyrosplice")
    with pytest.raises(NotReadyError):
        ExpressionGLM.load(tmp_path / "a.pyrosplice").fitted_field()
