"""Patients as distributions of cells: the data sets that ``fit_gmm`` fits and writes to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import anndata
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._mixture.patients.data_set_description import DescribedDataSet, DescribedPatients
from pyrosplice._mixture.patients.points import (
    PatientCells,
    check_covariances,
    read_covariances,
    read_supports,
    read_weights,
    representation_of,
)
from pyrosplice._mixture.patients.stored_mixtures import WeightsSource, patients_left_out, stored_mixtures
from pyrosplice._tables.labels import read_labels
from pyrosplice._tables.names import names_of
from pyrosplice.errors import (
    InvalidArgumentError,
    check_integer,
    check_known,
    check_option,
    is_number,
    own_options_only,
)


class TripletDataset(DescribedDataSet):
    """Labelled distributions: points, or components of a mixture with weights and covariances.

    Parameters
    ----------
    supports
        For each of P distributions its points ``(N_p, D)``, of any numbers; or points ``(N, D)`` shared by all when
        ``identical_supports``. Tables put their features in the order of the first one's, by name.
    distribution_labels
        Class of each distribution, ``(P,)``: whole numbers as they are, labels of any other type as their places
        among the sorted ``classes``. The index of a Series names the distributions: Series and tables of ``supports``
        and ``weights`` with the same names are put in its order.
    n_triplets
        Positive and negative partners of a distribution in :meth:`triplets`.
    weights
        Weights of the points, ``(P, N)`` or ragged; uniform when None.
    covariances
        Covariances of components, ``(P, N, D, D)`` or ragged; None for points.
    identical_supports
        The distributions differ by their weights alone.

    Attributes
    ----------
    classes
        Names of the classes, sorted.
    identical_points
        ``identical_supports`` as given; a fit changes the latter, never this.
    supports, weights, covariances
        Tensors in float64, or lists of them when ragged. :func:`~pyrosplice.fit_gmm` replaces them by means
        ``(P, K, D)``, weights ``(P, K)`` and covariances ``(P, K, D, D)``, zero where a patient has fewer components.

    Raises
    ------
    InvalidArgumentError
        Numbers or labels are missing, shapes do not fit, names fit in part, or there is no such option.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import TripletDataset
    >>> rng = np.random.default_rng(0)
    >>> cells = [rng.normal(size=(60, 2)) + 6 * rng.integers(0, 2, (60, 1)) + shift for shift in (0, 0, 3, 3)]
    >>> dataset = TripletDataset(cells, ["healthy", "healthy", "ill", "ill"])
    >>> dataset.names, dataset.classes
    (['0', '1', '2', '3'], ['healthy', 'ill'])
    """

    fit_gmm: ClassVar[Callable[..., Any]]
    """Fit a mixture to every distribution of this data set, by :func:`~pyrosplice.fit_gmm`."""

    @own_options_only
    def __init__(
        self,
        supports: object,
        distribution_labels: object,
        n_triplets: int = 3,
        weights: object = None,
        covariances: object = None,
        identical_supports: bool = False,
    ) -> None:
        check_option("identical_supports", identical_supports, (True, False))
        check_integer("n_triplets", n_triplets, least=0)
        labels = read_labels(distribution_labels, "distribution_labels")
        whole = all(_is_whole(value) for value in labels.values)
        codes = (
            np.array([int(value) for value in labels.values], dtype=np.int64)[labels.codes] if whole else labels.codes
        )
        self.distribution_labels, self.classes = codes.tolist(), list(labels.levels)
        self.identical_supports, self.n_triplets = bool(identical_supports), n_triplets
        names = names_of(distribution_labels)
        self.supports = read_supports(supports, None if identical_supports else names)
        self.weights = (
            None if weights is None else read_weights(weights, supports, names, identical=self.identical_supports)
        )
        self.covariances = None if covariances is None else read_covariances(covariances)
        self._check()
        self._points, self._point_weights, self._point_covariances = self.supports, self.weights, self.covariances
        self.identical_points = self.identical_supports

    @classmethod
    def from_numpy(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a data set from arrays, as the constructor does.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import TripletDataset
        >>> rng = np.random.default_rng(0)
        >>> cells = [rng.normal(size=(60, 2)) + 6 * rng.integers(0, 2, (60, 1)) + shift for shift in (0, 0, 3, 3)]
        >>> dataset = TripletDataset.from_numpy(cells, ["healthy", "healthy", "ill", "ill"])
        >>> len(dataset.patients())
        4
        """
        return cls(*args, **kwargs)

    def _check(self) -> None:
        count = len(self.distribution_labels)
        if count == 0:
            raise InvalidArgumentError("distribution_labels: expected at least one distribution, found none.")
        if not self.identical_supports and len(self.supports) != count:
            raise InvalidArgumentError(f"supports: expected {count}, one a label, found {len(self.supports)}.")
        if self.identical_supports and not isinstance(self.supports, Tensor):
            raise InvalidArgumentError("supports: expected one matrix (N, D) when identical_supports.")
        if self.weights is not None and len(self.weights) != count:
            raise InvalidArgumentError(f"weights: expected {count}, one a label, found {len(self.weights)}.")
        points = [self.supports] * count if self.identical_supports else self.supports
        for i, own in enumerate(points):
            if own.ndim != 2:
                raise InvalidArgumentError(f"supports: distribution {i}: expected (N, D), found {tuple(own.shape)}.")
        for i, (own, at) in enumerate(zip(self.weights if self.weights is not None else (), points, strict=False)):
            if own.shape != (len(at),) or bool((own < 0).any()) or float(own.sum()) <= 0:
                raise InvalidArgumentError(
                    f"weights: distribution {i}: expected {len(at)} numbers of at least 0, not all 0."
                )
        if self.covariances is not None:
            check_covariances(self.covariances, self.supports)

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
        """The cells of each distribution, all of them, never its fitted components.

        Points that all share are the cells of each, weighted as it weights them: as many as there are points in all.

        Raises
        ------
        InvalidArgumentError
            The data set was made of mixtures, with covariances: it has no cells.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import TripletDataset
        >>> rng = np.random.default_rng(0)
        >>> cells = [rng.normal(size=(60, 2)) + 6 * rng.integers(0, 2, (60, 1)) + shift for shift in (0, 0, 3, 3)]
        >>> dataset = TripletDataset(cells, ["healthy", "healthy", "ill", "ill"])
        >>> [patient.cells.shape for patient in dataset.patients()]
        [torch.Size([60, 2]), torch.Size([60, 2]), torch.Size([60, 2]), torch.Size([60, 2])]
        """
        if self._point_covariances is not None:
            raise InvalidArgumentError("covariances: the distributions are mixtures already; give cells, without them.")
        if self.identical_points:
            every = np.arange(len(self._points))
            given = self._point_weights
            weights = torch.ones(len(self), len(every), dtype=torch.float64) if given is None else torch.stack([*given])
            weights = weights * len(every) / weights.sum(1, keepdim=True)
            return [PatientCells(n, self._points, every, w) for n, w in zip(self.names, weights, strict=True)]
        starts = np.concatenate([[0], np.cumsum([len(p) for p in self._points])])
        return [
            PatientCells(name, points, np.arange(a, b), weights)
            for name, points, a, b, weights in zip(
                self.names, self._points, starts, starts[1:], self._counts(), strict=False
            )
        ]

    def _counts(self) -> Sequence[Tensor | None]:
        """How many cells each of a distribution's own points counts as; None where all count alike."""
        given = self._point_weights
        if given is None or all(bool(torch.isclose(own, own[0]).all()) for own in given):
            return [None] * len(self)
        return [own * len(own) / own.sum() for own in given]

    def attach(
        self,
        means: Tensor,
        covariances: Tensor,
        weights: Tensor,
        schema: dict[str, Any],
        *,
        identical_supports: bool,
    ) -> None:
        """Make fitted components the distributions' supports; ``schema`` is all that is known of the fit.

        Examples
        --------
        >>> import torch
        >>> import numpy as np
        >>> from pyrosplice import TripletDataset
        >>> rng = np.random.default_rng(0)
        >>> cells = [rng.normal(size=(60, 2)) + 6 * rng.integers(0, 2, (60, 1)) + shift for shift in (0, 0, 3, 3)]
        >>> dataset = TripletDataset(cells, ["healthy", "healthy", "ill", "ill"])
        >>> means = torch.zeros(4, 1, 2)
        >>> covariances = torch.eye(2).expand(4, 1, 2, 2)
        >>> dataset.attach(means, covariances, torch.ones(4, 1), {"n_components": 1}, identical_supports=False)
        >>> dataset.supports[0].shape
        torch.Size([1, 2])
        """
        self.gmm: dict[str, Any] = schema
        self.supports, self.covariances, self.weights = means, covariances, weights
        self.identical_supports = identical_supports

    def triplets(self, *, seed: int = 0) -> Tensor:
        """Draw anchor, positive and negative distributions, ``(T, 3)``: ``n_triplets`` of each for every anchor.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import TripletDataset
        >>> rng = np.random.default_rng(0)
        >>> cells = [rng.normal(size=(60, 2)) + 6 * rng.integers(0, 2, (60, 1)) + shift for shift in (0, 0, 3, 3)]
        >>> dataset = TripletDataset(cells, ["healthy", "healthy", "ill", "ill"])
        >>> anchor, positive, negative = dataset.triplets(seed=0).T
        >>> labels = np.array(dataset.distribution_labels)
        >>> bool((labels[anchor] == labels[positive]).all()), bool((labels[anchor] == labels[negative]).any())
        (True, False)
        """
        rng = np.random.default_rng(check_integer("seed", seed, least=0))
        labels = np.array(self.distribution_labels)
        found = []
        for anchor, label in enumerate(labels):
            same = np.setdiff1d(np.flatnonzero(labels == label), anchor)
            other = np.flatnonzero(labels != label)
            if len(same) and len(other):
                pick = rng.choice(same, self.n_triplets), rng.choice(other, self.n_triplets)
                found.append(np.stack([np.full(self.n_triplets, anchor), *pick], 1))
        return torch.tensor(np.concatenate(found) if found else np.zeros((0, 3), dtype=np.int64))


class AnnData_TripletDataset(DescribedPatients, TripletDataset):
    """Patients of an AnnData as distributions of their cells.

    Parameters
    ----------
    adata
        Cells. ``uns["ggml_params"]`` and ``uns["ggml_preprocessed"]`` are written to it.
    patient_col, label_col
        Columns of ``obs``: the patient of a cell, and the patient's group; labels of any type, none missing.
    n_cells
        Cells drawn from each patient as its support; patients with fewer are left out. Without effect where no cells
        are drawn: every patient stays with ``group_by`` and with ``gmm_key`` (where ``sample_gmm`` draws so many
        points of each mixture).
    n_triplets
        See :class:`TripletDataset`.
    use_rep
        Key of ``obsm``; ``X`` when None.
    group_by
        Column of ``obs``: the supports are then the groups' centroids, the weights a patient's shares of them.
    gmm_key
        Key of ``uns`` with mixtures fitted earlier: they become the supports.
    sample_gmm
        Used with ``gmm_key``: ``n_cells`` points drawn from each patient's mixture instead of its components.
    gmm_weights_source
        Used with ``gmm_key``: ``"stored"`` weights, or shares of the hard labels ``obs[gmm_key + "_comp"]``
        (``"components"``); ``"auto"`` takes the labels where no weights are stored.
    seed
        Seed of the draws.

    Raises
    ------
    InvalidArgumentError
        A column or key is missing, a label is, or X; a patient has several groups, or none has enough cells; NaN or
        infinite values; ``"stored"`` where no weights are, ``"components"`` where no labels are; no such option.

    Notes
    -----
    Differs from ggml-ot, which warns of ``group_by`` beside ``gmm_key`` and of a patient in several groups, and goes
    on with one of them: both are errors here.

    Examples
    --------
    >>> import anndata as ad
    >>> import numpy as np
    >>> import pandas as pd
    >>> from pyrosplice import AnnData_TripletDataset
    >>> patients = np.repeat(["P1", "P2", "P3", "P4"], 60)
    >>> x = np.random.default_rng(0).normal(size=(240, 2)) + 6 * (np.arange(240)[:, None] % 2)
    >>> groups = np.repeat(["healthy", "ill"], 120)
    >>> obs = pd.DataFrame({"sample": patients, "patient_group": groups}, index=map(str, range(240)))
    >>> adata = ad.AnnData(x, obs=obs)
    >>> dataset = AnnData_TripletDataset(adata, n_cells=50)
    >>> dataset.names, len(dataset.supports), dataset.supports[0].shape
    (['P1', 'P2', 'P3', 'P4'], 4, torch.Size([50, 2]))
    """

    @own_options_only
    def __init__(  # noqa: PLR0913 (a documented interface)
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
        if not isinstance(adata, anndata.AnnData):
            raise InvalidArgumentError(f"adata: expected an AnnData, found {type(adata).__name__}; see TripletDataset.")
        check_option("gmm_weights_source", gmm_weights_source, ("auto", "stored", "components"))
        check_option("sample_gmm", sample_gmm, (True, False))
        check_integer("n_cells", n_cells, least=1)
        check_integer("seed", seed, least=0)
        if gmm_key is None and (gmm_weights_source != "auto" or sample_gmm):
            raise InvalidArgumentError("gmm_weights_source, sample_gmm: need gmm_key.")
        if gmm_key is not None and group_by is not None:
            raise InvalidArgumentError("group_by, gmm_key: expected one of the two; the supports are either's.")
        if use_rep is not None:
            check_known("use_rep", use_rep, list(adata.obsm), "a key of obsm, or None for X,")
        self.adata, self.patient_col, self.label_col = adata, patient_col, label_col
        self.use_rep, self.group_by, self.gmm_key = use_rep, group_by, gmm_key
        self._names, self._rows_of = self._choose_patients(n_cells)
        classes, labels = self._labels()
        self.index_mask = np.ones(adata.n_obs, dtype=bool)
        if gmm_key is None and group_by is None:
            self.index_mask = self._draw_cells(n_cells, seed)
        supports, covariances, weights, shared = self._supports(n_cells, sample_gmm, gmm_weights_source, seed)
        super().__init__(supports, labels, n_triplets, weights, covariances, shared)
        self.classes = classes
        self._record(n_cells, sample_gmm, gmm_weights_source)

    @classmethod
    def from_anndata(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a data set from an AnnData, as the constructor does.

        Examples
        --------
        >>> import anndata as ad
        >>> import numpy as np
        >>> import pandas as pd
        >>> from pyrosplice import AnnData_TripletDataset
        >>> patients = np.repeat(["P1", "P2", "P3", "P4"], 60)
        >>> x = np.random.default_rng(0).normal(size=(240, 2)) + 6 * (np.arange(240)[:, None] % 2)
        >>> groups = np.repeat(["healthy", "ill"], 120)
        >>> obs = pd.DataFrame({"sample": patients, "patient_group": groups}, index=map(str, range(240)))
        >>> adata = ad.AnnData(x, obs=obs)
        >>> dataset = AnnData_TripletDataset.from_anndata(adata, n_cells=50)
        >>> dataset.names
        ['P1', 'P2', 'P3', 'P4']
        """
        return cls(*args, **kwargs)

    @property
    def names(self) -> list[str]:
        """Patients, sorted."""
        return self._names

    def patients(self) -> list[PatientCells]:
        """The cells of each patient, not only the ``n_cells`` drawn, whatever their order in the table."""
        x = self.representation()
        return [PatientCells(n, torch.from_numpy(x[r]), r) for n, r in zip(self._names, self._rows_of, strict=True)]

    def representation(self) -> NDArray[np.float64]:
        """The features of all cells ``(N, D)``.

        Examples
        --------
        >>> import anndata as ad
        >>> import numpy as np
        >>> import pandas as pd
        >>> from pyrosplice import AnnData_TripletDataset
        >>> patients = np.repeat(["P1", "P2", "P3", "P4"], 60)
        >>> x = np.random.default_rng(0).normal(size=(240, 2)) + 6 * (np.arange(240)[:, None] % 2)
        >>> groups = np.repeat(["healthy", "ill"], 120)
        >>> obs = pd.DataFrame({"sample": patients, "patient_group": groups}, index=map(str, range(240)))
        >>> adata = ad.AnnData(x, obs=obs)
        >>> dataset = AnnData_TripletDataset(adata, n_cells=50)
        >>> dataset.representation().shape
        (240, 2)
        """
        return representation_of(self.adata, self.use_rep)

    def _column(self, argument: str, column: str) -> NDArray[np.object_]:
        """Labels of all cells in a column of ``obs``, as text."""
        check_known(argument, column, list(self.adata.obs), "a column of obs")
        return read_labels(self.adata.obs[column], f"{argument}: obs[{column!r}]").names

    def _choose_patients(self, n_cells: int) -> tuple[list[str], list[NDArray[np.int64]]]:
        column = self._column("patient_col", self.patient_col)
        rows = {name: np.flatnonzero(column == name) for name in sorted(set(column))}
        why = ""
        if self.gmm_key is not None:
            out = patients_left_out(self.adata, self.gmm_key, rows)
            why = f"that the fit in uns[{self.gmm_key!r}] left out"
        elif self.group_by is None:
            out = [name for name, own in rows.items() if len(own) < n_cells]
            why = f"with fewer than n_cells={n_cells} cells"
        else:
            out = []
        few = {name: len(rows.pop(name)) for name in out}
        if not rows:
            raise InvalidArgumentError(f"n_cells: no patient has {n_cells} cells; found {few}.")
        if few:
            warnings.warn(f"Patients {why} are left out: {few}.", stacklevel=4)
        return list(rows), list(rows.values())

    def _finite(self) -> NDArray[np.float64]:
        """The features of all cells, finite for all patients."""
        x = self.representation()
        bad = np.logical_not(np.isfinite(x).all(axis=1))
        for name, rows in zip(self._names, self._rows_of, strict=True):
            if bad[rows].any():
                raise InvalidArgumentError(
                    f"adata: patient {name!r} has NaN or infinite values in {int(bad[rows].sum())} cells; remove them "
                    "(GaussianMixture takes them with missing='marginalize')."
                )
        return x

    def _draw_cells(self, n_cells: int, seed: int) -> NDArray[np.bool_]:
        mask = np.zeros(self.adata.n_obs, dtype=bool)
        for rows in self._rows_of:
            mask[np.random.default_rng(seed).choice(rows, n_cells, replace=False)] = True
        return mask

    def _labels(self) -> tuple[list[str], list[int]]:
        column = self._column("label_col", self.label_col)
        classes = sorted(set(column))
        labels = []
        for name, rows in zip(self._names, self._rows_of, strict=True):
            own = sorted(set(column[rows]))
            if len(own) > 1:
                raise InvalidArgumentError(f"label_col: patient {name!r} has several groups {own}; expected one.")
            labels.append(classes.index(own[0]))
        return classes, labels

    def _supports(self, n_cells: int, sample: bool, source: WeightsSource, seed: int) -> tuple[Any, Any, Any, bool]:
        if self.gmm_key is not None:
            rows, drawn = dict(zip(self._names, self._rows_of, strict=True)), n_cells if sample else None
            return stored_mixtures(self.adata, self.gmm_key, rows, n_samples=drawn, source=source, seed=seed)
        x = self._finite()
        if self.group_by is None:
            return [x[r[self.index_mask[r]]] for r in self._rows_of], None, None, False
        groups = self._column("group_by", self.group_by)
        names = sorted(set(groups))
        centroids = np.stack([x[groups == g].mean(0) for g in names])
        shares = np.array([[(groups[r] == g).mean() for g in names] for r in self._rows_of])
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


def _is_whole(value: object) -> bool:
    return is_number(value) and float(value).is_integer()
