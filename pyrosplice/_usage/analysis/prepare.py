"""What ``setup_data`` makes of an AnnData: counts by gene, covariates and the spatial covariance."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._hypothesis.coefficients.surrogates import Patterns
from pyrosplice._hypothesis.coefficients.working_model import Spectra
from pyrosplice._io.storable import split
from pyrosplice._linalg.select import solver_for
from pyrosplice._linalg.solver import SpatialSolver
from pyrosplice._tables.columns import one_column
from pyrosplice._tables.coordinates import SpatialKey, read_coordinates, spatial_key_of
from pyrosplice._tables.labels import Labels, read_labels
from pyrosplice._usage.analysis.data_options import DataOptions
from pyrosplice._usage.analysis.listed_effects import complete, listed_effects
from pyrosplice._usage.analysis.spot_graph import given_adjacency, graph_key, key_of_places, nearest_adjacency
from pyrosplice._usage.reading.design import (
    Design,
    build_design,
    formula_of,
    is_intercept,
    split_design,
)
from pyrosplice._usage.reading.isoforms import IsoformData, check_anndata, check_key, read_isoforms, table_of
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._bound_effects import BoundEffects
from pyrosplice.spatial._graph import component_labels, warn_if_disconnected
from pyrosplice.spatial._sections import wide_section_graph
from pyrosplice.spatial.car import CarCovariance, IdentityCovariance

Covariance = Any  # CarCovariance, IdentityCovariance or what the user wrote (pyrosplice.spatial._covariance), or None


@dataclass(frozen=True)
class Prepared:
    """Everything that fits and tests read; replaced as a whole by the next ``setup_data``.

    Attributes
    ----------
    data
        Filtered AnnData and the columns of each gene.
    counts
        Counts of each gene, ``(N, K_g)``, float64, on the CPU.
    design
        Covariates without intercept, or None.
    covariance
        CAR or identity; None for the GLM.
    group_by_n_iso
        Whether genes are sorted by isoform count before batching.
    section_key
        Column of ``obs`` with the spots' sections; None if they are one.
    spatial_key
        Where (``obsm``, columns of ``obs``) are the positions that the graph is made of; None where it is not.
    formula
        Formula of the covariates; None where they are columns or numbers.
    listed
        The list of random effects that was asked for, those of a formula among them; None where there is none.
    graph_key
        Key of ``obsp`` with the graph, given or squidpy's; None where it is that of the nearest neighbours.
    """

    data: IsoformData
    counts: list[Tensor]
    design: Design | None
    covariance: Covariance
    group_by_n_iso: bool
    section_key: str | None = None
    spatial_key: SpatialKey | None = None
    formula: str | None = None
    listed: BoundEffects | None = None
    graph_key: str | None = None
    summaries: dict[str, pd.DataFrame] = field(default_factory=dict)
    _solvers: dict[tuple[int | None, str], SpatialSolver] = field(default_factory=dict)
    _spectra: dict[int | None, Spectra] = field(default_factory=dict)
    _patterns: list[Patterns] = field(default_factory=list)

    @property
    def n_spots(self) -> int:
        """Number N of spots."""
        return self.data.adata.n_obs

    @property
    def n_sections(self) -> int:
        """Sections with spots left in them; 1 where none were named."""
        return _n_sections(self.data.adata.obs, self.section_key)

    @property
    def groups(self) -> tuple[GroupBlock, ...]:
        """Random effects of groups of spots."""
        return () if self.listed is None else self.listed.groups

    @property
    def sections(self) -> tuple[str, NDArray[np.intp]] | None:
        """Column of the sections, and the section of each spot; None where all are of one."""
        if self.section_key is None:
            return None
        labels = _labels(self.data.adata.obs, self.section_key)
        return None if len(labels.levels) < 2 else (self.section_key, labels.codes)

    @property
    def gene_names(self) -> tuple[str, ...]:
        """Display names, unique."""
        return self.data.gene_names

    @property
    def covariate_names(self) -> tuple[str, ...]:
        """Names of the covariates."""
        return () if self.design is None else self.design.names

    @property
    def design_tensor(self) -> Tensor | None:
        """Covariates as a tensor ``(N, P)``, or None."""
        return None if self.design is None else torch.from_numpy(self.design.values)

    @property
    def coordinates(self) -> NDArray[np.float64] | None:
        """Positions of the spots ``(N, D)``; None where they are not what the graph was made of."""
        adata = self.data.adata
        return None if self.spatial_key is None else read_coordinates(self.spatial_key, adata.obsm, adata.obs)

    def isoform_names(self, gene: int) -> list[str]:
        """Names in ``var`` of the isoforms of a gene."""
        return list(self.data.adata.var_names[self.data.columns[gene]])

    def solver(self, rank: int | None, device: str) -> SpatialSolver:
        """Solver for the covariance, exact or its ``rank`` leading eigenpairs; made once."""
        if self.covariance is None:
            raise AssertionError("models without space need no solver")
        if (rank, device) not in self._solvers:
            values, vectors = (None, None) if rank is None else self.covariance.eigen(rank)
            covariance = self.covariance if rank is None else None
            solver = solver_for(covariance, eigenvalues=values, eigenvectors=vectors, device=device)
            self._solvers[rank, device] = solver
        return self._solvers[rank, device]

    def spectra(self, rank: int | None) -> Spectra:
        """Steeper spectra of space, made once.

        Those of the covariance, or of its ``rank`` leading eigenpairs; where the spots' positions are known, those of a
        graph without bottlenecks: in few links between clusters of spots there are no waves over the tissue.
        """
        if rank not in self._spectra:
            self._spectra[rank] = Spectra.of(self._pattern_solver(rank), self.n_spots)
        return self._spectra[rank]

    def patterns(self) -> Patterns:
        """Patterns of space, all of them, for surrogates of covariates; found once for a covariance."""
        if not self._patterns:
            solver = self._pattern_solver(None)
            if solver is None:
                raise InvalidArgumentError("law='surrogates': expected a spatial covariance, found independent spots.")
            self._patterns.append(Patterns.of(solver))
        return self._patterns[0]

    def _pattern_solver(self, rank: int | None) -> SpatialSolver | None:
        spatial = self.covariance is not None and not isinstance(self.covariance, IdentityCovariance)
        return self._wide_solver() or (self.solver(rank, "cpu") if spatial else None)

    def _wide_solver(self) -> SpatialSolver | None:
        """Solve with the CAR covariance of the positions' wide graph; None where they are not known."""
        if self.spatial_key is None or not isinstance(self.covariance, CarCovariance):
            return None
        sections = None if self.section_key is None else self.data.adata.obs[self.section_key]
        graph = wide_section_graph(self.coordinates, sections)
        return solver_for(CarCovariance(graph, rho=self.covariance.rho))

    def of_counts(self, counts: Sequence[Tensor]) -> Prepared:
        """Copy with the same spots, covariates and space, and other genes, ``(N, K)`` each, called by their numbers."""
        columns = np.split(np.arange(sum(table.shape[1] for table in counts)), np.cumsum([c.shape[1] for c in counts]))
        names = tuple(f"gene_{number + 1}" for number in range(len(counts)))
        matrix = sp.hstack([sp.csr_matrix(table.numpy()) for table in counts], format="csr")
        isoforms = [f"{name}_{k + 1}" for name, own in zip(names, columns, strict=False) for k in range(len(own))]
        key, obsm = self.spatial_key, self.data.adata.obsm
        places = {key: obsm[key]} if isinstance(key, str) else {}
        adata = AnnData(matrix, obs=self.data.adata.obs.copy(), var=pd.DataFrame(index=isoforms), obsm=places)
        data = IsoformData(adata, None, names, tuple(columns[:-1]))
        prepared = replace(self, data=data, counts=list(counts), group_by_n_iso=True, summaries={})
        return replace(prepared, _solvers=dict(self._solvers), _spectra=dict(self._spectra))

    def batches(self, batch_size: int, *, group: bool | None = None) -> list[list[int]]:
        """Positions of genes by batch: at most ``batch_size`` genes, one isoform count each.

        Sorted by isoform count if ``group``, by default as ``setup_data`` was told.
        """
        order = list(range(len(self.counts)))
        if self.group_by_n_iso if group is None else group:
            order.sort(key=lambda gene: self.data.n_isos[gene])
        batches: list[list[int]] = []
        for gene in order:
            fits = batches and len(batches[-1]) < batch_size
            if fits and self.data.n_isos[batches[-1][0]] == self.data.n_isos[gene]:
                batches[-1].append(gene)
            else:
                batches.append([gene])
        return batches


def prepare(adata: AnnData, options: DataOptions) -> Prepared:
    """Check everything, then filter spots, isoforms and genes and build graph and design; see ``setup_data``."""
    check_anndata(adata)
    obs = table_of(adata, "obs")
    covariates, terms = split_design(options.design_mtx, obs)
    if terms:
        options.model.check_groups("of groups in design_mtx")
    options = replace(options, design_mtx=covariates, effects=(*terms, *options.effects))
    check_key(adata, "section_key", options.section_key, "obs")
    check_key(adata, "adj_key", options.adj_key, "obsp")
    spots = complete(obs, options)
    sections = _sections(obs, spots, options.section_key)
    graph, adjacency = _adjacency(adata, obs, spots, sections, options) if options.needs_graph else (None, None)
    if adjacency is not None and options.min_component_size > 1:
        large = _large_components(adjacency, options.min_component_size)
        adjacency = adjacency[large][:, large]
        spots[spots] = large
    kept = None if spots.all() else spots
    formula = formula_of(options.design_mtx, obs)
    alone = bool(options.effects) and formula is not None and is_intercept(formula, obs[spots])
    design = _design(obs, kept, options, only_groups=alone)
    listed = listed_effects(adata, obs, spots, options)
    data = read_isoforms(
        adata,
        layer=options.layer,
        group_iso_by=options.group_iso_by,
        gene_names=options.gene_names,
        min_counts=options.min_counts,
        min_bin_pct=options.min_bin_pct,
        spots=kept,
        n_isos=options.model.likelihood.n_categories,
    )
    split(data.adata)  # raises now, not after the fit, where something cannot be saved
    covariance: Covariance = None if listed is None else listed.field
    graph = graph if listed is None or covariance is None else listed.graph_key
    covariance = _covariance(data.adata, adjacency, options) if covariance is None else covariance
    places = spatial_key_of(options.spatial_key) if options.of_positions and graph is None else None
    keys = options.section_key, places, formula
    return Prepared(data, data.counts(), design, covariance, options.group_gene_by_n_iso, *keys, listed, graph)


def _design(
    obs: pd.DataFrame, spots: NDArray[np.bool_] | None, options: DataOptions, *, only_groups: bool
) -> Design | None:
    """Covariates of some spots; None where a formula has random terms only."""
    if options.design_mtx is None or only_groups:
        if options.covariate_names is not None:
            raise InvalidArgumentError("covariate_names: expected None without covariates beside the random terms.")
        return None
    design = build_design(options.design_mtx, obs, covariate_names=options.covariate_names, spots=spots)
    design.check()
    return design.against_first if options.effects else design


def _covariance(adata: AnnData, adjacency: object, options: DataOptions) -> Covariance | None:
    """Covariance of the spots that are left."""
    if options.model.model_type == "glmm-null":
        return IdentityCovariance(adata.n_obs)
    if options.model.model_type == "glm":
        return None
    if options.covariance is not None:
        check_size(options.covariance, adata.n_obs)
        return options.covariance
    warn_if_disconnected(adjacency, n_sections=_n_sections(adata.obs, options.section_key), stacklevel=4)
    return CarCovariance(adjacency, rho=options.model.rho)


def check_size(covariance: object, n_spots: int) -> None:
    """Raise unless a given covariance is one of ``n_spots`` spots."""
    precision, dense = (getattr(covariance, name, None) for name in ("precision", "dense"))
    if precision is not None:
        size = precision.shape[0]
    elif dense is not None:
        size = dense().shape[0]
    else:
        raise InvalidArgumentError(
            f"covariance: expected an object with precision or dense(), found {type(covariance).__name__}."
        )
    found = getattr(covariance, "n_spots", size)
    if found != n_spots:
        raise InvalidArgumentError(f"covariance: expected that of the {n_spots} spots left, found one of {found}.")


def _n_sections(obs: pd.DataFrame, key: str | None) -> int:
    """Sections that have spots; 1 where none are named."""
    return 1 if key is None else len(_labels(obs, key).levels)


def _labels(obs: pd.DataFrame, key: str) -> Labels:
    return read_labels(one_column(obs, key, "section_key"), "section_key")


def _sections(obs: pd.DataFrame, spots: NDArray[np.bool_], key: str | None) -> NDArray[np.object_] | None:
    """Name of the section of some spots."""
    if key is None:
        return None
    return read_labels(one_column(obs, key, "section_key")[spots], f"section_key: adata.obs[{key!r}]").names


def _adjacency(
    adata: AnnData,
    obs: pd.DataFrame,
    spots: NDArray[np.bool_],
    sections: NDArray[np.object_] | None,
    options: DataOptions,
) -> tuple[str | None, sp.csr_matrix]:
    """Adjacency, by its key, in ``obsp``, or the k-NN graph of the coordinates, of some spots, within sections."""
    key = graph_key(adata, options.adj_key, options.spatial_key, *options.asked_neighbors)
    if key is not None:
        return key, given_adjacency(adata, key, spots, sections)
    places = adata, obs, key_of_places(options.spatial_key, adata)
    return None, nearest_adjacency(places, spots, sections, options.neighbors, least=options.min_component_size)


def _large_components(adjacency: object, least: int) -> NDArray[np.bool_]:
    """Mask of the spots whose component has at least ``least`` spots."""
    labels = component_labels(adjacency)[1]
    kept = np.bincount(labels)[labels] >= least
    if not kept.any():
        raise InvalidArgumentError(f"min_component_size: no component of the spatial graph has {least} spots.")
    if not kept.all():
        warnings.warn(
            f"min_component_size={least}: {int((~kept).sum())} of {len(kept)} spots are in smaller components of the "
            "spatial graph and are left out.",
            stacklevel=4,
        )
    return kept
