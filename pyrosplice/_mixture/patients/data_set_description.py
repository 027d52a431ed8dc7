"""What a data set of distributions says about itself, in rows: whose they are, their classes, what they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import anndata
from torch.utils.data import Dataset

from pyrosplice._representation import Described

MOST_NAMED = 8  # patients and classes that are named, the first of more


class DescribedDataSet(Described, Dataset[Any]):
    """A data set of labelled distributions that describes itself; its classes, supports and weights are its own."""

    if TYPE_CHECKING:
        classes: list[str]
        distribution_labels: list[int]
        identical_supports: bool
        n_triplets: int
        supports: Any
        weights: Any
        covariances: Any

    def _rows(self) -> dict[str, str]:
        names = dict(enumerate(self.classes))
        sizes = Counter(names.get(label, str(label)) for label in self.distribution_labels)
        return {
            "distributions": f"{len(self.distribution_labels)}",
            "classes": named(f"{name} ({size})" for name, size in sizes.items()),
            "supports": self._describe_supports(),
            "weights": "uniform" if self.weights is None else "given",
            "triplets": f"{self.n_triplets} partners of either kind a distribution",
        }

    def _describe_supports(self) -> str:
        """How many points or components each distribution has, in how many features."""
        what = "points" if self.covariances is None else "components (means and covariances)"
        own = [self.supports] if self.identical_supports else list(self.supports)
        sizes, features = [len(support) for support in own], own[0].shape[-1]
        shared = ", the same for all" if self.identical_supports else " each"
        number = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        return f"{number} {what}{shared}, {features} feature{'s' * (features > 1)}"


class DescribedPatients(DescribedDataSet):
    """A data set of the patients of an AnnData, which says where they come from too."""

    if TYPE_CHECKING:
        adata: anndata.AnnData
        patient_col: str
        use_rep: str | None
        group_by: str | None
        gmm_key: str | None

        @property
        def names(self) -> list[str]: ...

    def _rows(self) -> dict[str, str]:
        features = "X" if self.use_rep is None else f"obsm[{self.use_rep!r}]"
        rows = {
            "cells": f"{self.adata.n_obs:,}, features of {features}",
            "patients": f"obs[{self.patient_col!r}]: {named(self.names)}",
            **super()._rows(),
        }
        if self.group_by is not None:
            rows["supports"] += f": centroids of obs[{self.group_by!r}]"
        return rows | {"mixtures": self._describe_mixtures()}

    def _describe_mixtures(self) -> str:
        """What the fit that the data set has says of itself."""
        if self.gmm_key is None:
            return "not fitted; call fit_gmm"
        where, stored = f"uns[{self.gmm_key!r}]", self.adata.uns.get(self.gmm_key)
        if not isinstance(stored, Mapping):
            return f"{where}, which is not in the AnnData any more"
        kept = stored.get("distribution_n_components", ())
        numbers = Counter(int(number) for number in (kept.values() if isinstance(kept, Mapping) else kept))
        sizes = ", ".join(
            f"{number} component{'s' * (number > 1)} ({count})" for number, count in sorted(numbers.items())
        )
        selection = stored.get("selection")
        chosen = f", chosen by {selection['score_name']}" if isinstance(selection, Mapping) else ""
        return f"{where}: {sizes}{chosen}" if sizes else where


def named(names: Iterable[str]) -> str:
    """List names, the first of them where there are many, and how many there are."""
    every = list(names)
    more = f", … ({len(every)} in all)" if len(every) > MOST_NAMED else ""
    return ", ".join(every[:MOST_NAMED]) + more
