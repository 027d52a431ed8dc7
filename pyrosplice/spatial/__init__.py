"""Spatial graphs and the CAR covariance on them."""

from pyrosplice.spatial.car import CarCovariance, IdentityCovariance, get_cov_sp
from pyrosplice.spatial.graph import adjacency_graph, component_labels, knn_graph, warn_if_disconnected
from pyrosplice.spatial.sections import section_graph, within_sections

__all__ = [
    "CarCovariance",
    "IdentityCovariance",
    "adjacency_graph",
    "component_labels",
    "get_cov_sp",
    "knn_graph",
    "section_graph",
    "warn_if_disconnected",
    "within_sections",
]
