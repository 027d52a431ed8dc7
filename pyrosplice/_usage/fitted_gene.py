"""What is kept of one gene's fit of isoform usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pyrosplice._io.codec import NEW
from pyrosplice._usage.infinite import ENDLESS_SIGMA
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.reasons import Reason


@dataclass(frozen=True)
class GeneEffects:
    """A list of random effects of one gene.

    Attributes
    ----------
    parameters, sds
        Of the effects of groups (J,), and standard deviations of the spots' own, field and noise (I,).
    modes, errors
        Effects u (D, q, Q) of every level of each effect, and their posterior standard deviations.
    covariance
        Of intercept and coefficients, logits fastest, given the variances.
    space_values
        What the field depends on, where that was estimated (1,), else (0,); NaN where nothing is known of it.
    """

    parameters: Tensor
    sds: Tensor
    modes: tuple[Tensor, ...]
    errors: tuple[Tensor, ...]
    covariance: Tensor
    space_values: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64), metadata={NEW: True})


@dataclass(frozen=True)
class FittedGene:
    """What is kept of one gene's fit.

    Attributes
    ----------
    values
        Sites of the model without the gene dimension: ``beta`` (P, Q), ``bias_eta`` (Q,), and for the GLMM ``nu``
        (N, Q), ``sigma`` and ``theta_logit`` (1 or Q,); also the likelihood's free hyper-parameters (1,).
    effects
        Those of a list; None where there is none.
    best_loss
        Minus the model's objective at these values (log likelihood, joint or marginal), nats.
    converged, reason, n_iter, best_epoch, fitting_time_s
        How the fit went; seconds are the batch's divided by its number of genes.
    """

    values: Mapping[str, Tensor]
    converged: bool
    reason: Reason
    n_iter: int
    best_loss: float
    best_epoch: int
    fitting_time_s: float
    effects: GeneEffects | None = field(default=None, metadata={NEW: True})

    @property
    def n_logits(self) -> int:
        """Number Q of logits."""
        return len(self.values["bias_eta"])

    @property
    def has_endless_sigma(self) -> bool:
        """Whether σ is at infinity or so near that Wald and ratio tests of coefficients are wrong."""
        sigma = self.values.get("sigma")
        return self.reason == Reason.ALL_OR_NOTHING or (sigma is not None and bool((sigma > ENDLESS_SIGMA).any()))

    def with_values(self, **values: Tensor) -> FittedGene:
        """Copy with other values of some sites."""
        return replace(self, values={**self.values, **values})

    def fixed_predictor(self, n_spots: int, design: Tensor | None) -> Tensor:
        """η without the random effect, ``(N, Q)``; ``design`` is the one that the gene was fitted with."""
        eta = self.values["bias_eta"].expand(n_spots, -1)
        return eta if design is None else eta + design @ self.values["beta"]

    def linear_predictor(self, n_spots: int, design: Tensor | None) -> Tensor:
        """η ``(N, Q)``, the spots' random effect included; that of groups is :meth:`group_predictor`."""
        return self.fixed_predictor(n_spots, design) + self.values.get("nu", 0.0)

    def group_predictor(self, groups: Sequence[GroupBlock]) -> Tensor | float:
        """Part of the random effects of ``groups`` in η, ``(N, Q)``; zero where there are none."""
        modes = () if self.effects is None else self.effects.modes
        return sum((block.at_levels(mode) for block, mode in zip(groups, modes, strict=True)), 0.0)


def stacked(genes: Sequence[FittedGene]) -> dict[str, Tensor]:
    """Values of several genes with the gene dimension first."""
    return {name: torch.stack([gene.values[name] for gene in genes]) for name in genes[0].values}
