"""Spatial graphs, and covariances on them."""

from pyrosplice.spatial._covariance import GraphMatern, SpatialCovariance
from pyrosplice.spatial._graph import adjacency_graph, component_labels, knn_graph, warn_if_disconnected
from pyrosplice.spatial._sections import section_graph, within_sections
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance, get_cov_sp

__all__ = [
    "CarCovariance",
    "GraphMatern",
    "IdentityCovariance",
    "SpatialCovariance",
    "adjacency_graph",
    "component_labels",
    "get_cov_sp",
    "knn_graph",
    "section_graph",
    "warn_if_disconnected",
    "within_sections",
]
