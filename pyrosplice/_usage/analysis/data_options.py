"""What ``setup_data`` is given beside the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyrosplice._usage.analysis.options import AnalysisOptions
from pyrosplice.effects._effect_list import GivenEffect, field_of
from pyrosplice.effects._field import Field
from pyrosplice.errors import InvalidArgumentError, check_option, check_switches, is_whole
from pyrosplice.spatial._connectivities import documented_edges
from pyrosplice.spatial._graph import Graph

MISSING = ("raise", "drop")
OF_SPACE = {"k_neighbors": 4, "rho": 0.99, "graph": None}  # defaults of what the type's own field is


@dataclass(frozen=True)
class DataOptions:
    """Arguments of ``setup_data`` beside the data, which documents them; checked where they are given.

    Attributes
    ----------
    model
        Options of the models, which say what the covariance is for.
    """

    model: AnalysisOptions
    spatial_key: Any
    adj_key: str | None
    layer: str | None
    group_iso_by: str
    gene_names: str | None
    group_gene_by_n_iso: bool
    design_mtx: Any
    covariate_names: Sequence[str] | None
    min_counts: float
    min_bin_pct: float
    min_component_size: int
    covariance: Any
    section_key: str | None
    missing: str
    effects: tuple[GivenEffect, ...] = ()

    def __post_init__(self) -> None:
        if not is_whole(self.min_component_size, 1):
            raise InvalidArgumentError(
                f"min_component_size: expected a whole number ≥ 1, found {self.min_component_size!r}."
            )
        check_switches(group_gene_by_n_iso=self.group_gene_by_n_iso)
        check_option("missing", self.missing, MISSING)
        if self.design_mtx is None and self.covariate_names is not None:
            raise InvalidArgumentError("covariate_names: expected None without a design_mtx.")
        if isinstance(self.covariate_names, str):
            raise InvalidArgumentError(f"covariate_names: expected a list of names, found {self.covariate_names!r}.")
        if self.covariance is not None and self.adj_key is not None and self.min_component_size == 1:
            raise InvalidArgumentError(
                "adj_key: expected None beside a covariance, which is used instead of the graph's."
            )
        kind = self.model.model_type
        if self.effects:
            self._check_effects(kind)
        if self.covariance is not None and kind != "glmm-full":
            raise InvalidArgumentError(
                f"covariance: a {kind!r} has no spatial effect; expected None, or model_type='glmm-full'."
            )

    @property
    def needs_graph(self) -> bool:
        """Whether who is whose neighbour has to be known of spots before any is left out."""
        own = self.model.model_type == "glmm-full" and self.covariance is None and self.field is None
        return own or self.min_component_size > 1

    @property
    def of_positions(self) -> bool:
        """Whether the covariance is one of a graph of the positions."""
        own = self.covariance is None and self.adj_key is None
        return self.model.model_type == "glmm-full" and own and (self.field is None or self.field.covariance is None)

    @property
    def field(self) -> Field | None:
        """The field in the list of effects; None where there is none."""
        return field_of(self.effects)

    @property
    def neighbors(self) -> Field:
        """The field whose neighbours make the graph."""
        given = self.field
        if given is not None and given.covariance is None:
            return given
        return Field(k_neighbors=int(self.model.k_neighbors), graph=documented_edges(self.model.graph))

    @property
    def asked_neighbors(self) -> tuple[int | None, Graph | None]:
        """Number of neighbours and kind of graph as they were given, for what squidpy has left."""
        given = self.field
        if given is not None and given.covariance is None:
            return given.k_neighbors, given.graph
        return self.model.k_neighbors, self.model.graph

    def _check_effects(self, kind: str) -> None:
        """Raise where the list of effects and the model's type, or what is said of space, do not go together."""
        self.model.check_groups("in effects")
        given = self.field
        if given is None:
            return
        if kind != "glmm-full":
            raise InvalidArgumentError(
                f"effects: {given!r} is a field, and a {kind!r} has no space; expected model_type='glmm-full', whose "
                "field it is then."
            )
        beside = {"covariance": self.covariance, "adj_key": self.adj_key}
        own = {name: getattr(self.model, name) for name in OF_SPACE if getattr(self.model, name) != OF_SPACE[name]}
        for name, value in {**beside, **own}.items():
            if value is not None:
                raise InvalidArgumentError(
                    f"{name}: {given!r} in effects says what the field is, found {name}={value!r} beside it; leave "
                    "one of them out."
                )
