"""What a file of a fitted :class:`SplisosmGLMM` holds, and the model that it is made of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from anndata import AnnData

from pyrosplice._io.archive import Archive, check_arguments, damage_named
from pyrosplice._io.atomic import as_path
from pyrosplice._io.codec import NEW, check_keys, check_sizes
from pyrosplice._io.older import usage_1
from pyrosplice._linalg.select import solver_for
from pyrosplice._tables.coordinates import has_coordinates, spatial_key_of
from pyrosplice._usage.analysis.extensions import Extensions, covariance_of, own_model, pack, unpack
from pyrosplice._usage.analysis.fits import Analyzed, Holder
from pyrosplice._usage.analysis.options import OPTIONS
from pyrosplice._usage.analysis.prepare import Prepared
from pyrosplice._usage.reading.design import Design
from pyrosplice._usage.reading.isoforms import IsoformData
from pyrosplice._usage.records import UsageFit
from pyrosplice.effects._effect_list import GivenEffect, described, field_of, read_effects, restored
from pyrosplice.effects._field import ESTIMATE, Independent
from pyrosplice.effects._field_family import car_family
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._group_terms import random_effects
from pyrosplice.errors import InvalidArgumentError, ModelFileError
from pyrosplice.glmm._bound_effects import BoundEffects
from pyrosplice.guides._own_model import takes

CLASSES = ("likelihood", "priors")  # arguments that may be objects of a person's own
OWN = ("adata", "model", "_read", "_priors_name")  # attributes beside the options
RESULTS = ("gene", "statistic", "pvalue", "pvalue_adj", "method", "reason")  # of every test


@dataclass(frozen=True)
class SavedData:
    """What ``setup_data`` made: filtered counts, positions of each gene's isoforms, covariates."""

    adata: AnnData
    layer: str | None
    gene_names: tuple[str, ...]
    columns: list[list[int]]
    group_by_n_iso: bool
    section_key: str | None
    design: Design | None
    spatial_key: Any = field(default=None, metadata={NEW: True})
    formula: str | None = field(default=None, metadata={NEW: True})
    groups: tuple[GroupBlock, ...] = field(default=(), metadata={NEW: True})
    effects: Any = field(default=None, metadata={NEW: True})
    graph_key: str | None = field(default=None, metadata={NEW: True})


@dataclass(frozen=True)
class SavedUsage:
    """The constructor's options, the data, classes that may be a person's own, the fit, results of the tests."""

    options: dict[str, Any]
    data: SavedData
    extensions: Extensions
    fit: UsageFit | None
    sv: dict[str, Any]
    du: dict[str, Any]


def save(self: Analyzed, path: str | os.PathLike[str]) -> None:
    """Write options, filtered data, fits and results to one file (safetensors; no pickle), in place of an old one.

    The AnnData that was given is not saved, only ``filtered_adata``, with columns and ``uns`` of any type: what a
    file cannot hold is refused by ``setup_data``.

    Examples
    --------
    >>> import tempfile
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(simulate_isoforms(n_spots=64, n_genes=3, seed=0))
    >>> model.fit(print_progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/usage.safetensors")
    ...     print(SplisosmGLMM.load(f"{folder}/usage.safetensors").gene_names)
    ['gene_1', 'gene_2', 'gene_3']
    """
    analysis = self.analysis
    options, prepared = analysis.options, analysis.prepared
    kept, priors = options.saved(), options.priors if isinstance(options.priors, Mapping) else {}
    check_arguments(type(self), _arguments(type(self)))
    _warn_of_attributes(self)
    extensions = pack(options.likelihood, priors, prepared.covariance, options.model)
    results = (analysis.results.get(test, {}) for test in ("sv", "du"))
    saved = SavedUsage(kept, _saved_data(prepared), extensions, analysis.fitted, *results)
    Archive.of(type(self).__name__, saved).save(path)


def _arguments(kind: type) -> set[str]:
    """Constructor arguments that a file holds, or that ``load`` takes; a class may be without a ``model``."""
    return {*OPTIONS, *CLASSES, *(["model"] if takes(kind, "model") else [])}


def _warn_of_attributes(analysis: Analyzed) -> None:
    """Warn of attributes that a person has added, which a file does not hold."""
    added = sorted(set(vars(analysis)) - {*_arguments(type(analysis)), *OWN})
    if added:
        warnings.warn(
            f"save: {', '.join(added)} of this {type(analysis).__name__} is not saved, only what SplisosmGLMM has; a "
            "loaded one has what its constructor sets.",
            stacklevel=3,
        )


def _saved_data(prepared: Prepared) -> SavedData:
    """What is saved of the data."""
    data, columns = prepared.data, [positions.tolist() for positions in prepared.data.columns]
    rest = prepared.group_by_n_iso, prepared.section_key, prepared.design, prepared.spatial_key
    listed = None if prepared.listed is None else [described(one) for one in prepared.listed.given]
    more = prepared.formula, prepared.groups, listed, prepared.graph_key
    return SavedData(data.adata, data.layer, data.gene_names, columns, *rest, *more)


Kind = TypeVar("Kind", bound=Holder)


def loaded_analysis(
    kind: type[Kind], file: str | os.PathLike[str], map_location: str | None, given: Mapping[str, Any]
) -> Kind:
    """An analysis as ``save`` wrote it, with the objects that a person has ``given``."""
    path = os.fspath(as_path(file))
    archive = Archive.load(path, kind.__name__, {1: usage_1})
    check_arguments(kind, _arguments(kind))
    helped = map_location is not None or any(value is not None and value != () for value in given.values())
    with damage_named(repr(path), keep=(InvalidArgumentError,) if helped else ()):
        saved = archive.to(SavedUsage)
        effects = read_effects(given["effects"])
        field = field_of(effects)
        covariance = given["covariance"] if field is None or field.covariance is None else field.covariance
        own = unpack(saved.extensions, given["likelihood"], given["priors"], covariance, path=path)
        own |= own_model(saved.extensions, given["model"], path=path)
        device = {} if map_location is None else {"device": str(map_location)}
        analysis = kind(**saved.options | device, **own)
        check_keys(saved.options, OPTIONS, "options")
        prepared = _prepared_of(saved, covariance)
        prepared = replace(prepared, listed=_listed(saved.data, prepared, effects, path))
        analysis.hold(prepared, saved.fit, {"sv": saved.sv, "du": saved.du})
        return analysis


def _prepared_of(saved: SavedUsage, covariance: object = None) -> Prepared:
    """The data as ``setup_data`` had made them; a ``covariance`` of the user's own has to be given."""
    stored, n_spots = saved.data, saved.data.adata.n_obs
    _check(saved, n_spots)
    columns = tuple(np.asarray(positions, dtype=np.intp) for positions in stored.columns)
    data = IsoformData(stored.adata, stored.layer, stored.gene_names, columns)
    space = covariance_of(saved.extensions.covariance, covariance, n_spots)
    keys = stored.section_key, stored.spatial_key, stored.formula, None, stored.graph_key
    return Prepared(data, data.counts(), stored.design, space, stored.group_by_n_iso, *keys)


def _listed(stored: SavedData, prepared: Prepared, given: Sequence[GivenEffect], path: str) -> BoundEffects | None:
    """The list of random effects again; those of one's own are among the ``given``."""
    obs = stored.adata.obs
    if stored.effects is None:
        terms = [term for block in stored.groups for term in random_effects(f"~ ({block.name})", obs, "groups")[1]]
        return BoundEffects(tuple(terms), stored.groups) if terms else None
    found = [restored(one, given, repr(path)) for one in stored.effects]
    effects = tuple(one for one in found if one is not None)
    unused = [one for one in given if not any(one is other for other in effects)]
    if unused:
        raise ModelFileError(f"effects: {path} was saved without {unused[0]!r}; leave it out.")
    noise, field = any(isinstance(one, Independent) for one in effects), field_of(effects)
    if field is None:
        return BoundEffects(effects, stored.groups, noise=noise)
    covariance = prepared.covariance
    family = car_family(covariance.adjacency) if field.rho == ESTIMATE else None
    of_field = covariance, solver_for(covariance), field.multiplier(obs), noise, family, prepared.sections
    return BoundEffects(effects, stored.groups, *of_field)


def _check(saved: SavedUsage, n_spots: int) -> None:
    """Raise where parts are of different numbers of genes, spots or covariates."""
    data, design, spots = saved.data, saved.data.design, range(n_spots)
    check_sizes(gene_names=(data.gene_names, "G"), columns=(data.columns, "G"))
    if any(position < 0 for positions in data.columns for position in positions):
        raise ModelFileError("data.columns: expected positions in adata, found a negative one.")
    if design is not None:
        check_sizes(
            spots=(spots, "N"), design=(design.values, "NP"), names=(design.names, "P"), factors=(design.factors, "P")
        )
    for block in data.groups:
        check_sizes(
            spots=(spots, "N"), levels=(block.levels, "N"), columns=(block.columns, "Nq"), basis=(block.basis, "Jqq")
        )
    _check_places(data)
    for name, results in (("sv", saved.sv), ("du", saved.du)):
        lacking = [column for column in RESULTS if results and column not in results]
        if lacking:
            raise ModelFileError(f"{name}: {lacking} of the test are missing.")
    for genes in () if saved.fit is None else (saved.fit.genes, saved.fit.null):
        check_sizes(gene_names=(data.gene_names, "G"), fit=(data.gene_names if genes is None else genes, "G"))
        for gene in genes or ():
            effect = {"nu": (gene.values["nu"], "NQ")} if "nu" in gene.values else {}
            check_sizes(spots=(spots, "N"), bias_eta=(gene.values["bias_eta"], "Q"), **effect)


def _check_places(data: SavedData) -> None:
    """Raise where the positions of the spots are not where the file says."""
    if data.spatial_key is None:
        return
    try:
        there = has_coordinates(spatial_key_of(data.spatial_key), data.adata.obsm, data.adata.obs)
    except InvalidArgumentError as error:
        raise ModelFileError(f"data.{error}") from error
    if not there:
        raise ModelFileError(
            f"data.spatial_key: expected one of {sorted(data.adata.obsm)}, found {data.spatial_key!r}."
        )
