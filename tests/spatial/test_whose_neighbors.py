"""Which graph the spots of an AnnData have: squidpy's, one that is named, or that of the nearest neighbors."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrosplice import ExpressionGLM, SplisosmGLMM, plotting, spatially_variable_genes
from pyrosplice.data import simulate_isoforms
from pyrosplice.effects import Field
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.spatial import adjacency_graph, knn_graph, section_graph
from pyrosplice.testing import Domains

KEY = "spatial_connectivities"
N = 36


@pytest.fixture
def tissue():
    """Isoforms on a grid of 6 × 6, with a ring of neighbors that no coordinates would give."""
    adata = simulate_isoforms(n_spots=N, n_genes=3, seed=0)
    del adata.obsp["connectivities"]
    ring = np.roll(np.arange(N), 1)
    adata.obsp[KEY] = sp.csr_matrix((np.ones(N), (np.arange(N), ring)), shape=(N, N))
    adata.obs["x"], adata.obs["y"] = adata.obsm["spatial"].T
    adata.obs["slide"] = np.repeat(["a", "b"], N // 2)
    return adata


def usages(adata, options=(), **given):
    model = SplisosmGLMM(**dict(options))
    model.setup_data(adata, **given)
    return model


def graph_of(model):
    return model.sp_kernel.adjacency


def same(a, b):
    return (abs(sp.csr_matrix(a) - sp.csr_matrix(b)) > 1e-12).nnz == 0


def test_squidpys_graph_is_taken_and_named(tissue):
    model = usages(tissue)
    assert same(graph_of(model), adjacency_graph(tissue.obsp[KEY]))
    assert f"of obsp['{KEY}']" in repr(model)


@pytest.mark.parametrize("options", [{"k_neighbors": 4}, {"graph": "mutual"}, {"k_neighbors": 3, "graph": "union"}])
def test_neighbors_that_are_given_beat_it_even_the_defaults(tissue, options):
    model = usages(tissue, options)
    k, graph = options.get("k_neighbors", 4), options.get("graph", "mutual")
    assert same(graph_of(model), knn_graph(tissue.obsm["spatial"], k_neighbors=k, graph=graph))
    assert f"{graph} {k}-NN graph of adata.obsm['spatial']" in repr(model)


def test_other_coordinates_or_another_graph_beat_it(tissue):
    tissue.obsm["other"] = tissue.obsm["spatial"][:, ::-1] * [1, 3]
    tissue.obsp["mine"] = knn_graph(tissue.obsm["spatial"], k_neighbors=8, graph="union")
    assert same(graph_of(usages(tissue, spatial_key="other")), knn_graph(tissue.obsm["other"]))
    assert same(graph_of(usages(tissue, adj_key="mine")), tissue.obsp["mine"])
    assert "of obsp['mine']" in repr(usages(tissue, adj_key="mine"))


def test_without_it_all_is_as_documented(tissue):
    del tissue.obsp[KEY]
    model = usages(tissue)
    assert same(graph_of(model), knn_graph(tissue.obsm["spatial"])) and model.k_neighbors == 4
    assert "mutual 4-NN graph of adata.obsm['spatial']" in repr(model)


def test_no_spot_is_its_own_neighbor_and_weights_stay(tissue):
    weights = sp.random(N, N, density=0.3, random_state=0, format="csr") + sp.identity(N)
    tissue.obsp[KEY] = sp.csr_matrix(weights)
    expected = adjacency_graph(weights).toarray()
    np.fill_diagonal(expected, 0)
    assert same(graph_of(usages(tissue)), expected)
    assert same(graph_of(usages(tissue, {"k_neighbors": 4})), knn_graph(tissue.obsm["spatial"]))


@pytest.mark.parametrize(
    ("value", "message"), [(-1.0, "expected weights ≥ 0, found -1"), (np.nan, "expected finite weights")]
)
def test_graphs_that_are_none_are_refused_where_they_would_be_taken(tissue, value, message):
    tissue.obsp[KEY].data[5] = value
    with pytest.raises(InvalidArgumentError, match=rf"adata.obsp\['{KEY}'\]: {message}"):
        usages(tissue)
    with pytest.raises(InvalidArgumentError, match=rf"adata.obsp\['{KEY}'\]: {message}"):
        expression(tissue, "union")
    usages(tissue, {"k_neighbors": 4})
    usages(tissue, {"model_type": "glm"})


def test_edges_between_sections_are_left_out_aloud(tissue):
    with pytest.warns(UserWarning, match="section_key: 2 of the graph's 36 edges are between its 2 sections"):
        model = usages(tissue, section_key="slide")
    assert graph_of(model)[: N // 2, N // 2 :].nnz == 0


def expression(adata, how="field", **given):
    """Adjacency of the test of space, or of a field."""
    genes = anndata.AnnData(
        np.random.default_rng(0).poisson(3.0, (N, 2)).astype(float), obs=adata.obs, obsm=adata.obsm, obsp=adata.obsp
    )
    if how == "field":
        glm = ExpressionGLM("~ 1", space=Field(**given)).fit(genes)
        return glm, genes
    return spatially_variable_genes(genes, size_factors=None, **given), genes


def test_a_field_of_expression_has_it_unless_neighbors_are_given(tissue):
    glm, _ = expression(tissue)
    assert same(glm.estimator.input_data.effects.field.adjacency, adjacency_graph(tissue.obsp[KEY]))
    for given in ({"k_neighbors": 6}, {"graph": "union"}):
        glm, _ = expression(tissue, **given)
        nearest = knn_graph(tissue.obsm["spatial"], k_neighbors=6, graph="union")
        assert same(glm.estimator.input_data.effects.field.adjacency, nearest)


def test_a_field_on_it_says_nothing_of_new_places_and_keeps_its_default_in_a_file(tissue, tmp_path):
    glm, genes = expression(tissue)
    new = genes[:3].copy()
    new.obsm["spatial"] = new.obsm["spatial"] + 0.1
    with pytest.raises(InvalidArgumentError, match=rf"neighbours of the fit are those of obsp\['{KEY}'\]"):
        glm.predict(new)
    glm.save(tmp_path / "fit")
    assert ExpressionGLM.load(tmp_path / "fit").space.k_neighbors is None
    glm, genes = expression(tissue, k_neighbors=6)
    assert np.isfinite(glm.predict(new)["mean"]).all()


def test_the_test_of_space_has_it_and_says_so(tissue):
    by_default, _ = expression(tissue, "test")
    named, _ = expression(tissue, "test", adj_key=KEY)
    nearest, _ = expression(tissue, "test", k_neighbors=6)
    pd.testing.assert_frame_equal(by_default, named)
    assert by_default.attrs["graph"] == f"obsp['{KEY}']"
    assert nearest.attrs["graph"] == "6 nearest neighbors of adata.obsm['spatial']"
    assert not np.allclose(by_default["statistic"], nearest["statistic"])
    del tissue.obsp[KEY]
    without, _ = expression(tissue, "test")
    pd.testing.assert_frame_equal(without, nearest)
    with pytest.raises(InvalidArgumentError, match="adj_key: 'x' is the graph of the spots"):
        expression(tissue, "test", adj_key="x", k_neighbors=6)


def test_predictions_at_new_spots_are_refused_with_a_way_out(tissue):
    model = usages(tissue, {"fitting_method": "marginal_newton", "var_fix_sigma": False})
    model.fit(print_progress=False)
    with pytest.raises(InvalidArgumentError, match="fit with spatial_key and k_neighbors alone"):
        model.predict(tissue.obsm["spatial"][:2] + 0.1)


def test_coordinates_in_columns_are_those_in_obsm_everywhere(tissue, tmp_path):
    del tissue.obsp[KEY]
    columns = tissue.copy()
    del columns.obsm["spatial"]
    new_obs = tissue[:4].copy()
    new_obs.obs["x"] = new_obs.obs["x"] + 0.3
    new_obsm = new_obs.copy()
    new_obsm.obsm["spatial"] = new_obs.obs[["x", "y"]].to_numpy()
    found = []
    for adata, key, new in ((tissue, "spatial", new_obsm), (columns, ["x", "y"], new_obs)):
        model = usages(adata, {"fitting_method": "marginal_newton", "var_fix_sigma": False}, spatial_key=key)
        model.fit(print_progress=False)
        model.save(tmp_path / "model")
        model = SplisosmGLMM.load(tmp_path / "model")
        table = plotting.usage_table(
            model.get_fitted_ratios_anndata(), list(model.filtered_adata.var_names[:3]), spatial_key=key
        )
        held = model.cross_validate("block", n_blocks=3)
        found.append((model.predict(new), table, held))
        assert model._prepared.spatial_key == (key if isinstance(key, str) else tuple(key))
    for a, b in zip(*found, strict=True):
        pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(b))
    assert "NN graph of adata.obs[['x', 'y']]" in repr(model)


def test_expression_reads_columns_too(tissue, tmp_path):
    del tissue.obsp[KEY]
    a, genes = expression(tissue, "test")
    b, _ = expression(tissue, "test", spatial_key=("x", "y"))
    pd.testing.assert_frame_equal(a, b)
    fits = [ExpressionGLM("~ 1", space=Field(), spatial_key=key).fit(genes) for key in ("spatial", ["x", "y"])]
    new = genes[:3].copy()
    new.obs["x"] = new.obs["x"] + 0.25
    new.obsm["spatial"] = new.obs[["x", "y"]].to_numpy()
    pd.testing.assert_frame_equal(*(fit.predict(new) for fit in fits))
    fits[1].save(tmp_path / "fit")
    assert ExpressionGLM.load(tmp_path / "fit").spatial_key == ("x", "y")
    del new.obs["x"]
    with pytest.raises(InvalidArgumentError, match=r"positions of its cells in obs\[\['x', 'y'\]\]"):
        fits[1].predict(new)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (("x",), "expected a key of adata.obsm, or two or three columns"),
        (("x", "x"), "expected different columns"),
        (("x", 3), "expected a key of adata.obsm, or two or three columns"),
        (3, "expected a key of adata.obsm, or two or three columns"),
        (("x", "z"), r"adata.obs has no \['z'\]; it has"),
        (("x", "slide"), "column 'slide' has no numbers"),
        (("x", "gap"), "column 'gap' has 1 value"),
        ("x", r"obsm has no 'x'; it has \['spatial'\]. obs has a column 'x': name all columns"),
    ],
)
def test_columns_that_are_no_coordinates_are_refused(tissue, key, message):
    tissue.obs["gap"] = [np.nan, *range(N - 1)]
    with pytest.raises(InvalidArgumentError, match=f"(?s)spatial_key|adata.obs.*{message}") as error:
        usages(tissue, spatial_key=key)
    error.match(message)
    with pytest.raises(InvalidArgumentError, match=message):
        expression(tissue, "test", spatial_key=key)
    with pytest.raises(InvalidArgumentError):
        ExpressionGLM("~ 1", space=Field(), spatial_key=key).fit(expression(tissue, "test")[1])


def test_sections_and_domains_in_columns(tissue):
    del tissue.obsp[KEY]
    model = usages(tissue, {"graph": "union"}, spatial_key=("x", "y"), section_key="slide")
    expected = section_graph(tissue.obsm["spatial"], tissue.obs["slide"], graph="union")
    assert same(graph_of(model), expected)
    assert Domains(spatial_key=["x", "y"]).spatial_key == ("x", "y")
    with pytest.raises(InvalidArgumentError, match=r"Domains\(spatial_key\): expected a key"):
        Domains(spatial_key=("x",))


@pytest.mark.parametrize("diagonal", [0.0, 1.0])
@pytest.mark.parametrize("key", [KEY, "mine"])
def test_a_graph_without_an_edge_is_refused_everywhere(tissue, key, diagonal):
    del tissue.obsp[KEY]
    tissue.obsp[key] = sp.identity(N, format="csr") * diagonal
    named = {} if key == KEY else {"adj_key": key}
    calls = [
        lambda: usages(tissue, **named),
        lambda: spatially_variable_genes(tissue, layer="counts", **named),
        lambda: ExpressionGLM("~ 1").fit(tissue, layer="counts").test_spatial_variability(**named),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError, match=rf"obsp\['{key}'\]: expected neighbors, found a graph without"):
            call()


@pytest.mark.parametrize("name", ["slide `A`", "a b", "a:b", "a/b", "1", "(1 | x)"])
def test_sections_of_any_name_have_levels_beside_random_terms(tissue, name):
    tissue.obs["donor"] = np.tile(["u", "v", "w"], N // 3)
    given = {"layer": "counts", "formula": "~ (1 | donor)", "k_neighbors": 4}
    plain = spatially_variable_genes(tissue, section_key="slide", **given)
    tissue.obs[name] = tissue.obs["slide"]
    pd.testing.assert_frame_equal(spatially_variable_genes(tissue, section_key=name, **given), plain)
