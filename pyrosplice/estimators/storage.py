"""A fitted :class:`SplisosmGLMM` as named tensors and JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrosplice.data.design import Design
from pyrosplice.data.isoforms import IsoformData
from pyrosplice.estimators.extensions import name_of
from pyrosplice.estimators.fitted import FittedGene
from pyrosplice.estimators.prepare import Prepared, check_size
from pyrosplice.io import anndata_from_tensors, anndata_to_tensors
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance
from pyrosplice.spatial.covariance import GraphMatern

RECORD = ("converged", "reason", "n_iter", "best_loss", "best_epoch", "fitting_time_s")


def pack_data(prepared: Prepared) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Filtered AnnData, gene columns, design and graph."""
    data, design, covariance = prepared.data, prepared.design, prepared.covariance
    tensors = anndata_to_tensors(data.adata)
    content: dict[str, Any] = {
        "layer": data.layer,
        "gene_names": list(data.gene_names),
        "columns": [columns.tolist() for columns in data.columns],
        "group_by_n_iso": prepared.group_by_n_iso,
        "section_key": prepared.section_key,
        "covariance": name_of(covariance),
    }
    if design is not None:
        tensors["design"] = torch.from_numpy(design.values)
        content["design"] = {"names": list(design.names), "factors": list(design.factors)} | (
            {"terms": list(design.given_terms)} if design.given_terms else {}
        )
    if isinstance(covariance, CarCovariance | GraphMatern):
        edges = covariance.adjacency.tocoo()
        tensors["graph.edges"] = torch.from_numpy(np.stack([edges.row, edges.col]).astype(np.int64))
        tensors["graph.weights"] = torch.from_numpy(edges.data)
        names = ("rho",) if isinstance(covariance, CarCovariance) else ("range_", "alpha")
        content |= {name: getattr(covariance, name) for name in names}
    return tensors, content


def unpack_data(tensors: Mapping[str, Tensor], content: Mapping[str, Any], covariance: Any = None) -> Prepared:
    """Inverse of :func:`pack_data`; a ``covariance`` of the user's own has to be given."""
    columns = tuple(np.asarray(positions, dtype=np.intp) for positions in content["columns"])
    data = IsoformData(anndata_from_tensors(tensors), content["layer"], tuple(content["gene_names"]), columns)
    design = None
    if "design" in content:
        names = content["design"]
        design = Design(
            tensors["design"].cpu().numpy(),
            tuple(names["names"]),
            tuple(names["factors"]),
            tuple(names.get("terms", ())),
        )
    n_spots = data.adata.n_obs
    if content["covariance"] in ("CarCovariance", "GraphMatern"):
        row, column = tensors["graph.edges"].cpu().numpy()
        weights = tensors["graph.weights"].cpu().numpy()
        graph = sp.csr_matrix((weights, (row, column)), shape=(n_spots, n_spots))
        if content["covariance"] == "CarCovariance":
            covariance = CarCovariance(graph, rho=content["rho"])
        else:
            covariance = GraphMatern(graph, range_=content["range_"], alpha=content["alpha"])
    elif content["covariance"] == "IdentityCovariance":
        covariance = IdentityCovariance(n_spots)
    elif content["covariance"] is not None:
        check_size(covariance, n_spots)
    return Prepared(data, data.counts(), design, covariance, content["group_by_n_iso"], content.get("section_key"))


def pack_genes(prefix: str, genes: Sequence[FittedGene]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Values as ``<prefix>.<position>.<site>``, the rest as JSON."""
    tensors = {
        f"{prefix}.{position}.{site}": value
        for position, gene in enumerate(genes)
        for site, value in gene.values.items()
    }
    return tensors, [{name: getattr(gene, name) for name in RECORD} for gene in genes]


def unpack_genes(prefix: str, tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]]) -> list[FittedGene]:
    """Inverse of :func:`pack_genes`."""
    values: list[dict[str, Tensor]] = [{} for _ in records]
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            _, position, site = name.split(".")
            values[int(position)][site] = tensor.cpu()
    return [FittedGene(values=value, **record) for value, record in zip(values, records, strict=True)]


def pack_results(prefix: str, results: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays of numbers as tensors, the rest as JSON (arrays of text as lists)."""
    arrays = {name: value for name, value in results.items() if isinstance(value, np.ndarray)}
    numbers = {name: value for name, value in arrays.items() if value.dtype.kind in "biufc"}
    tensors = {f"{prefix}.{name}": torch.from_numpy(np.ascontiguousarray(value)) for name, value in numbers.items()}
    text = {name: value.tolist() for name, value in arrays.items() if name not in numbers}
    return tensors, {name: text.get(name, value) for name, value in results.items() if name not in numbers}


def unpack_results(prefix: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`pack_results`."""
    start = f"{prefix}."
    arrays = {name[len(start) :]: t.cpu().numpy() for name, t in tensors.items() if name.startswith(start)}
    return dict(content) | arrays
