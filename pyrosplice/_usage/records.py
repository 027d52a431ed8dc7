"""Fitting many genes: batches in, one small record a gene out, and models rebuilt from the records."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pyrosplice._optimize.convergence import Convergence
from pyrosplice._usage.fitted_gene import FittedGene, stacked
from pyrosplice._usage.glm import MultinomGLM
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice._usage.reading.design import Design
from pyrosplice.errors import InvalidArgumentError


class IsoFullModel(MultinomGLMM):
    """GLMM of a gene with a spatial random effect, as ``SplisosmGLMM(model_type="glmm-full")`` fits it."""


class IsoNullNoSpVar(MultinomGLMM):
    """GLMM of a gene without spatial variance, as ``SplisosmGLMM(model_type="glmm-null")`` fits it."""


MODELS: dict[str, type[MultinomGLM]] = {"glm": MultinomGLM, "glmm-full": IsoFullModel, "glmm-null": IsoNullNoSpVar}


@dataclass(frozen=True)
class ModelSpec:
    """How to make the model of one batch.

    Attributes
    ----------
    model_type
        ``"glm"``, ``"glmm-full"`` or ``"glmm-null"``.
    options
        Constructor arguments of the model.
    spatial
        Spatial covariance as arguments of ``setup_data``; empty for the GLM.
    design
        Covariates; None for an intercept only. Models are fitted with its ``reduced`` form, and records and rebuilt
        models have one coefficient for every covariate, those of a factor's levels summing to zero.
    device
        Where to compute.
    """

    model_type: str
    options: Mapping[str, Any]
    spatial: Mapping[str, Any]
    design: Design | None
    device: str

    @property
    def with_priors(self) -> bool:
        """Whether any site has a prior."""
        return bool(self.options.get("priors"))

    def informed(self, counts: Tensor) -> Tensor:
        """Which spots inform about each gene, ``(B, N)`` for counts ``(B, N, K)``."""
        likelihood = self.options.get("likelihood")
        return (counts.sum(-1) > 0) | (likelihood is not None and not likelihood.conditional)

    def with_design(self, design: Design | None) -> ModelSpec:
        """Copy with other covariates."""
        return replace(self, design=design)

    def with_rows(self, rows: Tensor) -> ModelSpec:
        """Copy with the covariates of the spots in another order."""
        return self if self.design is None else self.with_design(self.design.take(rows.numpy()))

    def fit(self, counts: Tensor, *, quiet: bool = True, random_seed: int | None = None) -> list[FittedGene]:
        """Fit a batch ``(B, N, K)``."""
        begin = time.perf_counter()
        model = self._build(counts, None if self.design is None else self.design.reduced)
        model.fit(quiet=quiet, random_seed=random_seed)
        return self._recoded(self._records(model, (time.perf_counter() - begin) / len(counts)))

    def rebuild(self, counts: Tensor, genes: Sequence[FittedGene]) -> MultinomGLM:
        """The fitted model of some genes, ``counts`` ``(B, N, K)``."""
        with warnings.catch_warnings():  # that levels of a factor sum to one is known here, and dealt with
            warnings.filterwarnings("ignore", "design_mtx: columns", UserWarning)
            model = self._build(counts, None if self.design is None else self.design.values)
        if self.options.get("model") is not None:  # whose sites are not among the records
            model.fit(quiet=True)
            return model
        model.update_params_from_dict(stacked(genes))
        model.logger = Convergence(
            reason=[gene.reason for gene in genes],
            n_iter=torch.tensor([gene.n_iter for gene in genes]),
            best_loss=torch.tensor([gene.best_loss for gene in genes], dtype=torch.float64),
            best_epoch=torch.tensor([gene.best_epoch for gene in genes]),
        )
        model.fitting_time = sum(gene.fitting_time_s for gene in genes)
        return model

    def rebuild_estimable(self, counts: Tensor, genes: Sequence[FittedGene]) -> MultinomGLM:
        """Build the model with only the covariates that can be estimated together: all but one level of a factor."""
        design = None if self.design is None else self.design.only(self.design.estimable)
        return self.with_design(design).rebuild(counts, self.estimable(genes))

    def estimable(self, genes: Sequence[FittedGene]) -> list[FittedGene]:
        """Records with the coefficients of those covariates only."""
        if self.design is None:
            return list(genes)
        inverse, reduced = torch.linalg.pinv(torch.from_numpy(self.design.coding)), []
        for gene in genes:
            weights = inverse @ torch.cat([gene.values["beta"], gene.values["bias_eta"].unsqueeze(0)])
            reduced.append(gene.with_values(beta=weights[:-1], bias_eta=weights[-1]))
        return reduced

    def _recoded(self, genes: list[FittedGene]) -> list[FittedGene]:
        """A coefficient for every covariate."""
        if self.design is None:
            return genes
        coding = torch.from_numpy(self.design.coding)
        recoded = []
        for gene in genes:
            weights = coding @ torch.cat([gene.values["beta"], gene.values["bias_eta"].unsqueeze(0)])
            recoded.append(gene.with_values(beta=weights[:-1], bias_eta=weights[-1]))
        return recoded

    def _build(self, counts: Tensor, design: NDArray[np.float64] | None) -> MultinomGLM:
        model = MODELS[self.model_type](**self.options)
        model.setup_data(counts, design_mtx=design, device=self.device, **self.spatial)
        return model

    def _records(self, model: MultinomGLM, seconds: float) -> list[FittedGene]:
        logger = model.logger
        if logger is None:
            raise AssertionError("fit keeps a record")
        values = {name: value.detach().cpu() for name, value in model.named_parameters(recurse=False)}
        return [
            FittedGene(
                values={name: value[g].clone() for name, value in values.items()},
                converged=bool(logger.converged[g]),
                reason=logger.reason[g],
                n_iter=int(logger.n_iter[g]),
                best_loss=float(logger.best_loss[g]),
                best_epoch=int(logger.best_epoch[g]),
                fitting_time_s=seconds,
            )
            for g in range(model.n_genes)
        ]


class Fitter(Protocol):
    """What fits a batch of genes ``(B, N, K)``."""

    def fit(self, counts: Tensor, *, quiet: bool = True, random_seed: int | None = None) -> list[FittedGene]:
        """Fit them."""


@dataclass(frozen=True)
class FitPlan:
    """What to fit to every batch.

    Attributes
    ----------
    full
        The model that was asked for.
    null
        Model without spatial variance, fitted too when given.
    random_seed, quiet
        Passed to the models.
    """

    full: Fitter
    null: Fitter | None = None
    random_seed: int | None = None
    quiet: bool = True

    def run(self, counts: Tensor) -> tuple[list[FittedGene], list[FittedGene] | None]:
        """Fitted genes of the full model and, when asked for, of the null."""
        settings: dict[str, Any] = {"quiet": self.quiet, "random_seed": self.random_seed}
        null = None if self.null is None else self.null.fit(counts, **settings)
        return self.full.fit(counts, **settings), null


@dataclass(frozen=True)
class UsageFit:
    """Fitted genes in the order of ``gene_names``.

    Attributes
    ----------
    genes, null
        The model that was asked for; the one without spatial variance when ``from_null``.
    with_design
        Whether covariates are in the models.
    n_jobs
        Processes, for the fits that tests need too.
    """

    genes: list[FittedGene]
    null: list[FittedGene] | None
    with_design: bool
    n_jobs: int = 1


def check_jobs(n_jobs: int, device: str) -> int:
    """Number of processes: as asked on the CPU, one (with a warning) on accelerators."""
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int | np.integer) or n_jobs == 0:
        raise InvalidArgumentError(f"n_jobs: expected a whole number other than 0, found {n_jobs!r}.")
    if n_jobs != 1 and device != "cpu":
        warnings.warn(f"n_jobs={n_jobs}: on {device!r} genes are fitted in one process.", stacklevel=3)
        return 1
    return int(n_jobs)


def fit_genes(
    plan: FitPlan,
    counts: Sequence[Tensor],
    batches: Sequence[Sequence[int]],
    *,
    n_jobs: int = 1,
    description: str = "fit",
    print_progress: bool = False,
) -> tuple[list[FittedGene], list[FittedGene] | None]:
    """Run a plan on every batch; results in the order of ``counts``, None for a gene that is in no batch."""
    stacks = (torch.stack([counts[gene] for gene in batch]) for batch in batches)
    tasks = (delayed(plan.run)(stack) for stack in stacks)
    results = Parallel(n_jobs=n_jobs, return_as="generator")(tasks)
    full: list[Any] = [None] * len(counts)
    null: list[Any] = [None] * len(counts)
    hidden = not print_progress or not batches
    with tqdm(total=sum(map(len, batches)), desc=description, unit="gene", disable=hidden) as bar:
        for batch, (fitted, fitted_null) in zip(batches, results, strict=True):
            for i, gene in enumerate(batch):
                full[gene] = fitted[i]
                null[gene] = None if fitted_null is None else fitted_null[i]
            bar.update(len(batch))
    return full, null if plan.null is not None else None
