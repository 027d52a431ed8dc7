"""Patients as distributions of cells: the data sets that ``fit_gmm`` fits and writes to."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import anndata
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pyrosplice.data.labels import Labels, read_labels
from pyrosplice.data.rows import in_memory, representation_of
from pyrosplice.data.stored_mixtures import WeightsSource, left_out_of, stored_mixtures
from pyrosplice.data.triplet_input import paired_weights, tensors_of, whole_labels
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option


@dataclass(frozen=True)
class PatientCells:
    """All cells of one patient.

    Attributes
    ----------
    name
        Identifier.
    cells
        ``(N, D)``, float64.
    rows
        Their rows in the table they come from, ``(N,)``.
    weights
        How many cells each counts as, ``(N,)``; None for 1.
    """

    name: str
    cells: Tensor
    rows: NDArray[np.int64]
    weights: Tensor | None = None


class TripletDataset(Dataset):
    """Labelled distributions: points, or components of a mixture with weights and covariances.

    Parameters
    ----------
    supports
        For each of P distributions its points ``(N_p, D)``, of any numbers; or points ``(N, D)`` shared by all when
        ``identical_supports``.
    distribution_labels
        Class of each distribution, ``(P,)``: whole numbers as they are, labels of another type as numbers of their
        sorted levels. A Series that names the distributions pairs ``weights`` of the same names with them.
    n_triplets
        Positive and negative partners of a distribution in :meth:`triplets`.
    weights
        Of the points, ``(P, N)`` or ragged; uniform when None.
    covariances
        Of components, ``(P, N, D, D)`` or ragged; None for points.
    identical_supports
        The distributions differ by their weights alone.

    Attributes
    ----------
    identical_points
        ``identical_supports`` as given; a fit changes the latter, never this.
    supports, weights, covariances
        Tensors in float64, or lists of them when ragged. :func:`~pyrosplice.fit_gmm` replaces them by means
        ``(P, K, D)``, weights ``(P, K)`` and covariances ``(P, K, D, D)``, zero where a patient has fewer components.
    fit_gmm
        :func:`~pyrosplice.fit_gmm` of this data set, as a method with the same options.
    """

    fit_gmm: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        supports: Any,
        distribution_labels: Any,
        n_triplets: int = 3,
        weights: Any = None,
        covariances: Any = None,
        identical_supports: bool = False,
    ) -> None:
        self.distribution_labels = whole_labels(distribution_labels)
        check_option("identical_supports", identical_supports, (True, False))
        self.identical_supports = bool(identical_supports)
        self.n_triplets = check_integer("n_triplets", n_triplets)
        weights = paired_weights(weights, supports, distribution_labels, identical_supports)
        self.supports = tensors_of("supports", supports)
        self.weights = None if weights is None else tensors_of("weights", weights)
        self.covariances = None if covariances is None else tensors_of("covariances", covariances)
        self._check()
        self._points, self._point_weights = self.supports, self.weights
        self.identical_points = identical_supports

    @classmethod
    def from_numpy(cls, *args: Any, **kwargs: Any) -> Self:
        """The same as the constructor."""
        return cls(*args, **kwargs)

    def _check(self) -> None:
        count = len(self.distribution_labels)
        if count == 0:
            raise InvalidArgumentError("distribution_labels: expected at least one distribution, found none.")
        if not self.identical_supports and len(self.supports) != count:
            raise InvalidArgumentError(f"supports: expected {count}, one a label, found {len(self.supports)}.")
        if not self.identical_supports and any(own.dim() != 2 for own in self.supports):
            raise InvalidArgumentError("supports: expected a matrix (points, features) of each distribution.")
        if self.identical_supports and not (isinstance(self.supports, Tensor) and self.supports.dim() == 2):
            raise InvalidArgumentError("supports: expected one matrix (N, D) when identical_supports.")
        if self.weights is not None and len(self.weights) != count:
            raise InvalidArgumentError(f"weights: expected {count}, one a label, found {len(self.weights)}.")
        for i, own in enumerate(self.weights if self.weights is not None and self.identical_supports else ()):
            if own.shape != (len(self.supports),) or bool((own < 0).any()) or float(own.sum()) <= 0:
                raise InvalidArgumentError(
                    f"weights: distribution {i}: expected {len(self.supports)} numbers of at least 0, not all 0."
                )

    def __len__(self) -> int:
        """Number of distributions P."""
        return len(self.distribution_labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Points, covariances, weights and label of a distribution; empty tensors for what it does not have."""
        nothing = torch.empty(0, dtype=torch.float64)
        weights = nothing if self.weights is None else self.weights[index]
        label = self.distribution_labels[index]
        if self.identical_supports:
            return nothing, nothing, weights, label
        return self.supports[index], nothing if self.covariances is None else self.covariances[index], weights, label

    @property
    def names(self) -> list[str]:
        """Identifiers of the distributions."""
        return [str(i) for i in range(len(self))]

    def patients(self) -> list[PatientCells]:
        """All cells of each distribution, never its fitted components.

        Points that all share are the cells of each, weighted as it weights them: as many as there are points in all.
        """
        if self.identical_points:
            every = np.arange(len(self._points))
            given = self._point_weights
            weights = torch.ones(len(self), len(every), dtype=torch.float64) if given is None else torch.stack([*given])
            weights = weights * len(every) / weights.sum(1, keepdim=True)
            return [PatientCells(n, self._points, every, w) for n, w in zip(self.names, weights, strict=True)]
        starts = np.concatenate([[0], np.cumsum([len(p) for p in self._points])])
        return [
            PatientCells(name, points, np.arange(a, b))
            for name, points, a, b in zip(self.names, self._points, starts, starts[1:], strict=False)
        ]

    def attach(
        self,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor,
        schema: dict[str, Any],
        *,
        identical_supports: bool,
    ) -> None:
        """Make fitted components the distributions' supports; ``schema`` is all that is known of the fit."""
        self.gmm: dict[str, Any] = schema
        self.supports, self.covariances, self.weights = means, covariances, weights
        self.identical_supports = identical_supports

    def triplets(self, *, seed: int = 0) -> Tensor:
        """Anchor, positive and negative distributions, ``(T, 3)``: ``n_triplets`` of each for every anchor."""
        rng = np.random.default_rng(seed)
        labels = np.array(self.distribution_labels)
        found = []
        for anchor, label in enumerate(labels):
            same = np.setdiff1d(np.flatnonzero(labels == label), anchor)
            other = np.flatnonzero(labels != label)
            if len(same) and len(other):
                pick = rng.choice(same, self.n_triplets), rng.choice(other, self.n_triplets)
                found.append(np.stack([np.full(self.n_triplets, anchor), *pick], 1))
        return torch.tensor(np.concatenate(found) if found else np.zeros((0, 3), dtype=np.int64))


class AnnData_TripletDataset(TripletDataset):
    """Patients of an AnnData as distributions of their cells.

    Parameters
    ----------
    adata
        Cells. ``uns["ggml_params"]`` and ``uns["ggml_preprocessed"]`` are written to it.
    patient_col, label_col
        Columns of ``obs``: the patient of a cell, and the patient's group.
    n_cells
        Cells drawn from each patient as its support; patients with fewer are left out. With ``group_by`` or
        ``gmm_key`` no cells are drawn and every patient stays (but those that the stored fit left out).
    n_triplets
        See :class:`TripletDataset`.
    use_rep
        Key of ``obsm``; ``X`` when None.
    group_by
        Column of ``obs``: the supports are then the groups' centroids, the weights a patient's shares of them.
    gmm_key
        Key of ``uns`` with mixtures fitted earlier: they become the supports.
    sample_gmm
        With ``gmm_key``: ``n_cells`` points drawn from each patient's mixture instead of its components.
    gmm_weights_source
        With ``gmm_key``: ``"stored"`` weights, or shares of hard labels (``"components"``); ``"auto"`` prefers stored.
    seed
        Of the draws.

    Raises
    ------
    InvalidArgumentError
        A column or key is missing, as is a label or ``X``; a patient has several groups or values that are not finite;
        no patient has enough cells.
    """

    def __init__(
        self,
        adata: anndata.AnnData,
        patient_col: str = "sample",
        label_col: str = "patient_group",
        n_cells: int = 250,
        n_triplets: int = 3,
        use_rep: str | None = None,
        group_by: str | None = None,
        gmm_key: str | None = None,
        sample_gmm: bool = False,
        gmm_weights_source: WeightsSource = "auto",
        seed: int = 0,
    ) -> None:
        check_option("gmm_weights_source", gmm_weights_source, ("auto", "stored", "components"))
        check_option("sample_gmm", sample_gmm, (True, False))
        if not isinstance(adata, anndata.AnnData):
            raise InvalidArgumentError(f"adata: expected an AnnData, found {type(adata).__name__}.")
        for name, column in (("patient_col", patient_col), ("label_col", label_col), ("group_by", group_by)):
            if column is not None and column not in adata.obs:
                raise InvalidArgumentError(f"{name}: expected a column of obs {list(adata.obs)}, found {column!r}.")
        if gmm_key is None and (gmm_weights_source != "auto" or sample_gmm):
            raise InvalidArgumentError("gmm_weights_source, sample_gmm: need gmm_key.")
        if gmm_key is not None and group_by is not None:
            raise InvalidArgumentError("gmm_key, group_by: supports are stored mixtures or centroids; give one.")
        n_cells, n_triplets = check_integer("n_cells", n_cells), check_integer("n_triplets", n_triplets)
        seed = check_integer("seed", seed, least=0)
        representation_of(adata, use_rep)
        self.adata, self.patient_col, self.label_col = adata, patient_col, label_col
        self.use_rep, self.group_by, self.gmm_key = use_rep, group_by, gmm_key
        self._names, self._rows = self._choose_patients(n_cells)
        self._check_finite()
        self.index_mask = self._draw_cells(n_cells, seed)
        self.classes, labels = self._labels()
        supports, covariances, weights, shared = self._supports(n_cells, sample_gmm, gmm_weights_source, seed)
        super().__init__(supports, labels, n_triplets, weights, covariances, shared)
        self._record(n_cells, sample_gmm, gmm_weights_source)

    @classmethod
    def from_anndata(cls, *args: Any, **kwargs: Any) -> Self:
        """The same as the constructor."""
        return cls(*args, **kwargs)

    @property
    def names(self) -> list[str]:
        """Patients, sorted."""
        return self._names

    def patients(self) -> list[PatientCells]:
        """All cells of each patient, not only the ``n_cells`` drawn, whatever their order in the table."""
        x = self.representation()
        return [PatientCells(n, torch.from_numpy(x[r]), r) for n, r in zip(self._names, self._rows, strict=True)]

    def representation(self) -> NDArray[np.float64]:
        """The features of all cells ``(N, D)``."""
        where = "adata.X" if self.use_rep is None else f"adata.obsm[{self.use_rep!r}]"
        return in_memory(representation_of(self.adata, self.use_rep), where)

    def _read(self, argument: str, column: str, *, keep_missing: bool = False) -> Labels:
        return read_labels(self.adata.obs[column], f"{argument}: obs[{column!r}]", keep_missing=keep_missing)

    def _choose_patients(self, n_cells: int) -> tuple[list[str], list[NDArray[np.int64]]]:
        labels = self._read("patient_col", self.patient_col)
        every = {name: np.flatnonzero(labels.codes == i) for i, name in enumerate(labels.levels)}
        rows = {name: every[name] for name in sorted(every)}
        if self.gmm_key is not None:
            few = dict.fromkeys(left_out_of(self.adata, self.gmm_key, rows), "no mixture")
            why = f"without a mixture in uns[{self.gmm_key!r}], which left them out,"
        else:
            few = {n: len(r) for n, r in rows.items() if len(r) < n_cells} if self.group_by is None else {}
            why = f"with fewer than n_cells={n_cells} cells"
        kept = {name: r for name, r in rows.items() if name not in few}
        if not kept:
            raise InvalidArgumentError(f"n_cells: no patient has {n_cells} cells; found {few}.")
        if few:
            warnings.warn(f"Patients {why} are left out: {few}.", stacklevel=4)
        return list(kept), list(kept.values())

    def _check_finite(self) -> None:
        bad = np.logical_not(np.isfinite(self.representation()).all(axis=1))
        for name, rows in zip(self._names, self._rows, strict=True):
            if bad[rows].any():
                raise InvalidArgumentError(
                    f"adata: patient {name!r} has NaN or infinite values; remove those cells "
                    '(GaussianMixture(missing="marginalize") alone takes NaN as missing).'
                )

    def _draw_cells(self, n_cells: int, seed: int) -> NDArray[np.bool_]:
        mask = np.zeros(self.adata.n_obs, dtype=bool)
        whole = self.gmm_key is not None or self.group_by is not None
        for rows in self._rows:
            mask[rows if whole else np.random.default_rng(seed).choice(rows, n_cells, replace=False)] = True
        return mask

    def _labels(self) -> tuple[list[str], list[int]]:
        read = self._read("label_col", self.label_col, keep_missing=True)
        classes, found, column = sorted(read.levels), [], read.names
        for name, rows in zip(self._names, self._rows, strict=True):
            if read.missing[rows].any():
                raise InvalidArgumentError(
                    f"label_col: patient {name!r} has cells without a label in obs[{self.label_col!r}] (missing or "
                    "blank); label them or leave them out."
                )
            own = sorted(set(column[rows]))
            if len(own) > 1:
                raise InvalidArgumentError(f"label_col: patient {name!r} has several groups {own}; expected one.")
            found.append(classes.index(own[0]))
        return classes, found

    def _supports(self, n_cells: int, sample: bool, source: WeightsSource, seed: int) -> tuple[Any, Any, Any, bool]:
        if self.gmm_key is not None:
            rows, n_samples = dict(zip(self._names, self._rows, strict=True)), n_cells if sample else None
            return stored_mixtures(self.adata, self.gmm_key, rows, source=source, n_samples=n_samples, seed=seed)
        x = self.representation()
        if self.group_by is None:
            return [x[r[self.index_mask[r]]] for r in self._rows], None, None, False
        read = self._read("group_by", self.group_by)
        groups, names = read.names, sorted(read.levels)
        centroids = np.stack([x[groups == g].mean(0) for g in names])
        shares = np.array([[(groups[r] == g).mean() for g in names] for r in self._rows])
        return centroids, None, shares, True

    def _record(self, n_cells: int, sample: bool, source: WeightsSource) -> None:
        options = {
            "patient_col": self.patient_col,
            "label_col": self.label_col,
            "n_cells": n_cells,
            "n_triplets": self.n_triplets,
            "use_rep": self.use_rep,
            "group_by": self.group_by,
            "gmm_key": self.gmm_key,
            "sample_gmm": sample,
            "gmm_weights_source": source,
        }
        self.adata.uns["ggml_params"] = {k: v for k, v in options.items() if v is not None}
        self.adata.uns["ggml_preprocessed"] = {
            "distribution_labels": np.array(self.distribution_labels),
            "distribution_ids": np.array(self._names, dtype=object),
            "identical_supports": self.identical_supports,
            "index_mask": self.index_mask,
            "use_rep": self.use_rep or "X",
        }
