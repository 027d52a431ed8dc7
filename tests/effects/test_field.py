"""Fields as people describe them: what is refused, and that the solver is that of the covariance meant."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyrosplice.effects import Field, Independent
from pyrosplice.errors import InvalidArgumentError, NonSpatialWarning
from pyrosplice.spatial import CarCovariance, GraphMatern, knn_graph, section_graph

GRID = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0)), -1).reshape(-1, 2)
SCATTERED = np.random.default_rng(0).uniform(size=(40, 2))


@pytest.mark.parametrize("options", [{}, {"rho": 0.5}, {"k_neighbors": 6, "graph": "connected"}, {"graph": "union"}])
@pytest.mark.parametrize("sectioned", [False, True])
def test_the_solver_is_that_of_the_graph_within_sections(options, sectioned):
    coords, field = (GRID, Field(**options))
    sections = np.repeat(["b", "a"], [8, 12]) if sectioned else None
    k, graph = field.n_nearest, field.edges
    adjacency = (
        section_graph(coords, sections, k_neighbors=k, graph=graph)
        if sectioned
        else knn_graph(coords, k_neighbors=k, graph=graph)
    )
    expected = CarCovariance(adjacency, rho=field.rho).dense()
    found = field.solver(coords, sections).dense_covariance()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    if sectioned:
        assert not found[:8, 8:].any()


def test_a_covariance_of_ones_own():
    covariance = GraphMatern(knn_graph(GRID), range_=3.0)
    field = Field(covariance=covariance)
    for coords in (GRID, None):
        torch.testing.assert_close(field.solver(coords).dense_covariance(), covariance.dense(), rtol=0, atol=1e-9)
    with pytest.raises(InvalidArgumentError, match="expected that of 40 spots, found one of 20"):
        field.solver(SCATTERED)
    with pytest.raises(InvalidArgumentError, match="covariance of its own"):
        field.adjacency(GRID)


def test_graphs_in_pieces_and_spots_at_one_place_are_told():
    with pytest.warns(NonSpatialWarning, match="components"):
        Field(k_neighbors=1).solver(SCATTERED)
    with pytest.warns(UserWarning, match="coords: 4 of 42 spots share their position.*by sections"):
        Field(graph="connected").adjacency(np.vstack([SCATTERED, SCATTERED[:2]]))
    with pytest.raises(InvalidArgumentError, match="sections: expected 40 labels, found 3"):
        Field().adjacency(SCATTERED, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k_neighbors": 0}, "k_neighbors"),
        ({"rho": 1.0}, "rho"),
        ({"rho": "estimated"}, "rho"),
        ({"graph": "nearest"}, "graph"),
        ({"by": ""}, "by"),
        ({"by": 3}, "by"),
        ({"covariance": 3}, "covariance: expected an object"),
        (
            {"covariance": GraphMatern(knn_graph(GRID)), "rho": 0.5, "k_neighbors": 5},
            "leave out k_neighbors=5, rho=0.5",
        ),
    ],
)
def test_arguments_are_checked_when_a_field_is_made(options, says):
    with pytest.raises(InvalidArgumentError, match=says):
        Field(**options)


def test_what_multiplies_a_field():
    table = pd.DataFrame({"x": [0.5, 1, 2], "tumour": [True, False, True], "kind": list("aba"), "one": 1.0})
    assert Field().multiplier(table) is None
    np.testing.assert_array_equal(Field(by="x").multiplier(table), [0.5, 1, 2])
    np.testing.assert_array_equal(Field(by="tumour").multiplier(table), [1, 0, 1])
    for column, says in [("kind", "found labels"), ("one", "1 at every spot"), ("nope", "no column 'nope'")]:
        with pytest.raises(InvalidArgumentError, match=says):
            Field(by=column).multiplier(table)
    with pytest.raises(InvalidArgumentError, match="1 value"):
        Field(by="x").multiplier(table.assign(x=[1.0, np.nan, 2.0]))


def test_they_say_what_they_are():
    assert [repr(e) for e in (Field(), Field(k_neighbors=4, by="tumour"), Independent())] == [
        "Field()",
        "Field(k_neighbors=4, by='tumour')",
        "Independent()",
    ]
