import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrosplice.errors import InvalidArgumentError, NonSpatialWarning
from pyrosplice.spatial._graph import adjacency_graph, knn_graph, warn_if_disconnected
from pyrosplice.spatial._sections import section_graph, within_sections
from pyrosplice.spatial.car import CarCovariance

POINTS = np.random.default_rng(0).uniform(size=(50, 2))
LABELS = np.where(np.random.default_rng(1).uniform(size=50) < 0.4, "b", "a")


@pytest.mark.parametrize("graph", ["mutual", "union", "connected"])
def test_every_section_has_the_graph_that_it_has_alone(graph):
    whole = section_graph(POINTS, LABELS, graph=graph).toarray()
    for label in "ab":
        spots = label == LABELS
        np.testing.assert_array_equal(whole[np.ix_(spots, spots)], knn_graph(POINTS[spots], graph=graph).toarray())
        assert not whole[np.ix_(spots, ~spots)].any()


def test_one_section_is_the_plain_graph():
    assert (section_graph(POINTS, np.ones(50)) != knn_graph(POINTS)).nnz == 0


def test_the_covariance_is_block_diagonal():
    whole = CarCovariance(section_graph(POINTS, LABELS, graph="union"), rho=0.95).dense().numpy()
    spots = LABELS == "b"
    alone = CarCovariance(knn_graph(POINTS[spots], graph="union"), rho=0.95).dense().numpy()
    np.testing.assert_allclose(whole[np.ix_(spots, spots)], alone, atol=1e-12)
    assert not whole[np.ix_(spots, ~spots)].any()


def test_edges_between_sections_are_left_out_and_counted():
    given = adjacency_graph(2.5 * knn_graph(POINTS, graph="union"))
    spots = LABELS == "a"
    n_between = int((given.toarray()[np.ix_(spots, ~spots)] > 0).sum())
    assert n_between > 0
    with pytest.warns(UserWarning, match=f"{n_between} of the graph's {given.nnz // 2} edges are between its 2"):
        kept = within_sections(given, LABELS).toarray()
    same = LABELS[:, None] == LABELS
    np.testing.assert_array_equal(kept, np.where(same, given.toarray(), 0.0))
    assert within_sections(given, np.zeros(50)) is given


def test_a_component_a_section_is_no_reason_to_warn():
    two = sp.block_diag([np.ones((3, 3)) - np.eye(3)] * 2)
    warn_if_disconnected(two, n_sections=2)
    with pytest.warns(NonSpatialWarning, match="3 components .* each of the 2 sections is in one piece"):
        warn_if_disconnected(sp.block_diag([two, np.zeros((1, 1))]), n_sections=2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.r_[np.repeat("a", 46), np.repeat("b", 4)], "section 'b' has 4 spots, too few for k_neighbors=4"),
        (np.where(np.arange(50) < 2, None, "a"), "2 of 50 missing or blank"),
        (np.zeros(49), "expected 50 labels"),
    ],
)
def test_sections_that_cannot_be_used_say_why(labels, message):
    with pytest.raises(InvalidArgumentError, match=message):
        section_graph(POINTS, labels)


@pytest.mark.parametrize("dtype", ["category", "string", object])
def test_sections_by_name_and_of_any_type(dtype):
    names = [f"spot{i}" for i in range(50)]
    coords, labels = pd.DataFrame(POINTS, index=names), pd.Series(LABELS, index=names).astype(str).astype(dtype)
    expected = section_graph(POINTS, LABELS)
    assert (section_graph(coords, labels.sample(frac=1, random_state=0)) != expected).nnz == 0
    with pytest.raises(InvalidArgumentError, match=r"^sections: expected all 50 names"):
        section_graph(coords, labels.rename({"spot3": "other"}))


@pytest.mark.parametrize("missing", [None, np.nan, "", " "])
def test_spots_without_a_section(missing):
    labels = np.array(["a"] * 50, dtype=object)
    labels[:2] = missing
    for ask in (lambda: section_graph(POINTS, labels), lambda: within_sections(knn_graph(POINTS), labels)):
        with pytest.raises(InvalidArgumentError, match=r"sections: .*2 of 50 missing or blank"):
            ask()


def test_sections_too_small_for_a_graph_can_be_left_without_edges():
    labels = np.r_[np.repeat("a", 46), np.repeat("b", 4)]
    found = section_graph(POINTS, labels, least=5)
    assert found[46:].nnz == 0
    assert (found[:46, :46] != knn_graph(POINTS[:46])).nnz == 0
