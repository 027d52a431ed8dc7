"""Options of the models and of the tests of usage, checked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from torch import Tensor

from pyrosplice._devices import as_device
from pyrosplice._hypothesis.variance.permutation import PermutationNull
from pyrosplice._usage.gene_tests.terms import By, TestLaw, Variance
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice._usage.grouped.grouped_fit import refuse_options
from pyrosplice._usage.records import MODELS
from pyrosplice.effects._isoform_effect import IsoformEffect, check_isoform_effect
from pyrosplice.effects._reference_df import DfRule, degrees_of_freedom
from pyrosplice.errors import (
    InvalidArgumentError,
    NoResultsError,
    check_integer,
    check_option,
    check_switches,
    is_whole,
)
from pyrosplice.guides._own_model import Program
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.priors._named import Priors, named_priors
from pyrosplice.priors._sites import SITES
from pyrosplice.spatial._connectivities import documented_edges
from pyrosplice.spatial._graph import Graph, check_k_neighbors
from pyrosplice.spatial.car import check_rho

GLM_METHODS = ("iwls", "newton", "gd")
EFFECT = (
    "share_variance",
    "var_fix_sigma",
    "var_prior_model",
    "var_prior_model_params",
    "init_ratio",
    "isoform_effect",
)
SPACE = ("k_neighbors", "rho", "approx_rank", "graph")
OPTIONS = ("model_type", *EFFECT, "fitting_method", "fitting_configs", *SPACE, "device")  # of a file
USAGE_OPTIONS = {
    "method": ("score", "wald", "lrt"),
    "by": get_args(By),
    "variance": get_args(Variance),
    "law": get_args(TestLaw),
}
MAPPINGS = ("var_prior_model_params", "fitting_configs", "priors")
NEEDED = {
    "n_draws": "importance=True",
    "early_stop": "use_perm_null=True",
    "null_law": "method='llr', neither permuted nor bootstrapped,",
}


def _same(before: object, after: object) -> bool:
    """Whether an option is what it was: equal, or for objects of a person's own the same one."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return before.keys() == after.keys() and all(_same(value, after[name]) for name, value in before.items())
    plain = isinstance(before, str | int | float | None) and isinstance(after, str | int | float | None)
    return before is after or (plain and before == after)


def snapshot(option: object) -> object:
    """Copy an option's mapping, and those in it: a change in place of the person's own is not one of the copy."""
    return {name: snapshot(value) for name, value in option.items()} if isinstance(option, Mapping) else option


@dataclass(frozen=True)
class AnalysisOptions:
    """Arguments of :class:`~pyrosplice.SplisosmGLMM`, which documents them, as they were when this was made."""

    model_type: str
    share_variance: bool
    var_fix_sigma: bool
    var_prior_model: str
    var_prior_model_params: Mapping[str, float] | None
    init_ratio: str
    fitting_method: str
    fitting_configs: Mapping[str, Any] | None
    k_neighbors: int
    rho: float
    approx_rank: int | str | None
    device: str
    graph: Graph | None
    likelihood: Likelihood
    priors: Priors
    isoform_effect: IsoformEffect
    model: Program | None
    held: Mapping[str, Any] = field(init=False)  # hyper-parameters of the likelihood, which can change in place

    def __post_init__(self) -> None:
        for name in MAPPINGS:
            object.__setattr__(self, name, snapshot(getattr(self, name)))
        names = self.likelihood.hyperparameters if isinstance(self.likelihood, Likelihood) else ()
        object.__setattr__(self, "held", {name: getattr(self.likelihood, name, None) for name in names})

    def check(self) -> None:
        """Raise where an option is wrong."""
        check_option("model_type", self.model_type, MODELS)
        check_option("isoform_effect", self.isoform_effect, get_args(IsoformEffect))
        as_device(self.device)  # raises where there is none
        check_k_neighbors(self.k_neighbors)
        check_option("graph", documented_edges(self.graph), get_args(Graph))
        check_rho(self.rho)
        rank = self.approx_rank
        if not (rank is None or rank == "auto" or is_whole(rank, 1)):
            raise InvalidArgumentError(f"approx_rank: expected None, 'auto' or a whole number ≥ 1, found {rank!r}.")
        MODELS[self.model_type](**self.model_options())
        if self.model_type == "glm":  # which takes those of a GLMM too, for compatibility
            method = "joint_gd" if self.fitting_method in GLM_METHODS else self.fitting_method
            MultinomGLMM(**{name: getattr(self, name) for name in EFFECT}, fitting_method=method)

    def check_unchanged(self, now: AnalysisOptions) -> None:
        """Raise where an option is another ``now`` than when the data were read: fits would half follow it."""
        for option in fields(self):
            before, after = getattr(self, option.name), getattr(now, option.name)
            if not _same(before, after):
                name = "likelihood" if option.name == "held" else option.name
                raise InvalidArgumentError(
                    f"{name}: set to {after!r} after setup_data, which had {before!r}; call setup_data and fit "
                    "again, or make another analysis."
                )

    def check_groups(self, where: str) -> None:
        """Raise where an option is another than those of a fit with random effects ``where`` they were given."""
        effect = self.model_type != "glm"
        newton = "marginal_newton" if effect else "iwls"
        wrong = {
            "model": (self.model is not None, "None: the model is pyrosplice.glmm.CountGLMM"),
            "fitting_method": (
                self.fitting_method != newton if effect else self.fitting_method == "gd",
                f"{newton!r}, the one search that there is",
            ),
            "var_fix_sigma": (effect and self.var_fix_sigma, "False: every variance is estimated"),
            "share_variance": (effect and not self.share_variance, "True, one variance for all logits"),
            "var_prior_model": (self.var_prior_model != "none", "'none': priors are not among what is maximized"),
            "priors": (bool(self.priors), "None: priors are not among what is maximized"),
            "fitting_configs": (self.fitting_configs is not None, "None: the search has no options"),
            "approx_rank": (effect and is_whole(self.approx_rank, 1), "'auto': the field is not truncated"),
            "device": (self.device != "cpu", "'cpu'"),
        }
        found = {name: (getattr(self, name), refused, expected) for name, (refused, expected) in wrong.items()}
        free = ", var_fix_sigma=False" if effect else ""
        refuse_options(found, where, f"SplisosmGLMM({self.model_type!r}, fitting_method={newton!r}{free})")

    def rank(self, n_spots: int) -> int | None:
        """Number of eigenpairs of the spatial covariance to keep; None for all of it.

        The sparse path needs no truncation, so ``"auto"`` is exact on the CPU; on accelerators, whose solvers are
        dense, it is exact up to 5,000 spots and ``ceil(4 √N)`` above.
        """
        if self.approx_rank is None:
            if self.device != "cpu" and n_spots > 5000:
                warnings.warn(
                    f"approx_rank=None: the full eigendecomposition of {n_spots} spots on {self.device!r} is "
                    "expensive; leave approx_rank out, or give a rank.",
                    stacklevel=6,
                )
            return None
        if self.approx_rank == "auto":
            return None if self.device == "cpu" or n_spots <= 5000 else math.ceil(4 * math.sqrt(n_spots))
        return min(int(self.approx_rank), n_spots)

    @property
    def is_marginal(self) -> bool:
        """Whether fits are at the marginal optimum with σ estimated, which is what tests rest on."""
        marginal = self.fitting_method.startswith("marginal") and not self.var_fix_sigma
        return self.model_type == "glm" or marginal

    @property
    def has_priors(self) -> bool:
        """Whether any site has a prior."""
        return bool(self.priors) or self.var_prior_model != "none"

    def model_options(self, **changed: Any) -> dict[str, Any]:
        """Constructor arguments of the model of one batch; ``changed`` ones go before these."""
        configs = {"max_epochs": 500} if self.fitting_configs is None else deepcopy(self.fitting_configs)
        own: dict[str, Any] = {"likelihood": self.likelihood, "priors": self.priors, "model": self.model}
        if self.model_type == "glm":
            method = self.fitting_method if self.fitting_method in GLM_METHODS else "iwls"
            return {"fitting_method": method, "fitting_configs": configs, **own, **changed}
        options = {name: getattr(self, name) for name in EFFECT}
        return options | {"fitting_method": self.fitting_method, "fitting_configs": configs} | own | changed

    def saved(self) -> dict[str, Any]:
        """Copies of what a file holds of them."""
        return {name: deepcopy(getattr(self, name)) for name in OPTIONS} | {"k_neighbors": int(self.k_neighbors)}

    def test_options(self, model_type: str, *, priors: bool) -> dict[str, Any]:
        """What tests change of them: a GLMM is at its marginal optimum with σ estimated, with priors or without."""
        tolerance = {name: value for name, value in (self.fitting_configs or {}).items() if name == "tol"}
        changed: dict[str, Any] = {"fitting_configs": tolerance or None, "fitting_method": "iwls"}
        if model_type != "glm":
            changed |= {"fitting_method": "marginal_newton", "var_fix_sigma": False}
            changed |= {} if priors else {"var_prior_model": "none", "var_prior_model_params": None}
        return changed | ({} if priors else {"priors": None})

    def named_priors(self, name: str, covariance: object) -> dict[str, Any]:
        """The priors of that name for the sites of the model; ``covariance`` is that of the spots."""
        own = SITES if self.model_type != "glm" else SITES[:2]
        space = covariance if self.model_type == "glmm-full" else None
        given: dict[str, Any] = {"likelihood": self.likelihood, "isoform_effect": self.isoform_effect}
        return named_priors(name, (*own, *self.likelihood.free), covariance=space, **given)


@dataclass(frozen=True, kw_only=True)
class VariabilityOptions:
    """Options of a test of spatial variability, which ``test_spatial_variability`` documents; None is the default."""

    method: str
    use_perm_null: bool
    n_perms_per_gene: int | None
    importance: bool
    n_bootstrap: int | None
    adjust_for_design: bool
    random_seed: int = 0
    early_stop: int | None = None
    n_jobs: int | None = None
    n_draws: int | None = None
    null_law: str | None = None

    def __post_init__(self) -> None:
        check_option("method", self.method, ("llr", "score"))
        check_switches(
            use_perm_null=self.use_perm_null, importance=self.importance, adjust_for_design=self.adjust_for_design
        )
        ratio = self.method == "llr"
        used = {"n_draws": self.importance, "early_stop": self.use_perm_null}
        used["null_law"] = ratio and not self.use_perm_null and self.n_bootstrap is None
        for name, needed in used.items():
            if getattr(self, name) is not None and not needed:
                raise InvalidArgumentError(f"{name}: expected {NEEDED[name]} with it, without which it has no effect.")
        if self.null_law is not None:
            check_option("null_law", self.null_law, ("finite-sample", "boundary"))
        names = [name for name in ("importance", "n_bootstrap") if getattr(self, name) not in (None, False)]
        if names and not ratio:
            raise InvalidArgumentError(f"{names[0]}: expected method='llr' with it, found method={self.method!r}.")
        names += ["use_perm_null"] if self.use_perm_null else []
        if len(names) > 1:
            raise InvalidArgumentError(f"expected one of importance, n_bootstrap and use_perm_null, found {names}.")
        for name, least in (("n_bootstrap", 1), ("early_stop", 1), ("n_draws", 1), ("random_seed", 0)):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), least=least)

    @property
    def sampling(self) -> tuple[int, int]:
        """Draws and their seed, of importance sampling."""
        return 400 if self.n_draws is None else self.n_draws, self.random_seed

    @property
    def permutations(self) -> PermutationNull | None:
        """How to permute, 20 times if not said; None for not at all."""
        if not self.use_perm_null:
            return None
        n_permutations = 20 if self.n_perms_per_gene is None else self.n_perms_per_gene
        check_integer("n_perms_per_gene", n_permutations)
        return PermutationNull(n_permutations, self.random_seed, self.early_stop)


@dataclass(frozen=True, kw_only=True)
class UsageTestOptions:
    """Options of a test of differential usage, which ``test_differential_usage`` documents."""

    method: str
    by: By
    contrasts: Any
    variance: Variance | None
    law: TestLaw | None
    n_surrogates: int | None
    random_seed: int | None
    df: DfRule | float | None = None

    @property
    def df_used(self) -> DfRule | float:
        """How the degrees of freedom of units of groups are found."""
        return "clip" if self.df is None else self.df

    @property
    def variance_used(self) -> Variance:
        """Variance of the score: the model's for surrogates, whose p-values are ranks; else by default residuals'."""
        return self.variance or ("model" if self.law == "surrogates" else "robust")

    @property
    def surrogates(self) -> tuple[int, int] | None:
        """Number and seed of the surrogates; None for other laws."""
        n_surrogates = 999 if self.n_surrogates is None else self.n_surrogates
        return (int(n_surrogates), int(self.random_seed or 0)) if self.law == "surrogates" else None

    def check(self, covariates: Sequence[str]) -> None:
        """Raise unless the options exist, and go together; says so where one names a covariate."""
        self._check_surrogates()
        for name, known in USAGE_OPTIONS.items():
            value = self.variance_used if name == "variance" else getattr(self, name)
            if isinstance(value, str) and value in covariates and value not in known:
                raise InvalidArgumentError(
                    f"{name}: expected one of {', '.join(map(repr, known))}, found {value!r}, a covariate. "
                    f"All of them are tested, {list(covariates)}, and named in the results."
                )
            if name != "law" or value is not None:
                check_option(name, value, known)

    def _check_surrogates(self) -> None:
        given = {"n_surrogates": (self.n_surrogates, 19), "random_seed": (self.random_seed, 0)}
        for name, (value, least) in given.items():
            if value is not None and self.law != "surrogates":
                raise InvalidArgumentError(f"{name}: expected law='surrogates' with it, found law={self.law!r}.")
            check_integer(name, least if value is None else value, least=least)
        if self.law != "surrogates":
            return
        if self.method != "score":
            raise InvalidArgumentError(f"law='surrogates': expected method='score' with it, found {self.method!r}.")
        if self.variance not in (None, "model"):
            raise InvalidArgumentError(
                f"law='surrogates': expected no variance, or 'model', as p-values are ranks; found {self.variance!r}."
            )

    def check_fit(self, *, with_design: bool) -> None:
        """Raise where the models were not fitted for this method."""
        if self.method != "lrt" and with_design != (self.method == "wald"):
            raise NoResultsError(
                f"method={self.method!r}: expected models fitted with with_design_mtx={self.method == 'wald'}, found "
                f"{with_design}. Fit again, or use method={'wald' if with_design else 'score'!r} or 'lrt'."
            )
        if self.contrasts is not None and self.method != "wald":
            raise InvalidArgumentError(f"contrasts: expected method='wald' with them, found method={self.method!r}.")

    def check_unequal(self, names: Sequence[str], tested: Sequence[Sequence[int]]) -> None:
        """Raise where the variance of the field is to depend on what is not one covariate."""
        if self.variance != "het":
            return
        if self.method == "lrt":
            raise InvalidArgumentError("variance='het': expected method='score' or 'wald' with it, found 'lrt'.")
        joint = [name for name, columns in zip(names, tested, strict=True) if len(columns) != 1]
        if joint:
            raise InvalidArgumentError(
                f"variance='het': {joint[0]!r} is of several covariates, and the field's variance can depend on one; "
                "expected by='covariate' without contrasts."
            )


def check_units(variance: str | None, law: str | None, df: DfRule | float | None, *, grouped: bool) -> None:
    """Raise where an option is one of tests without random effects of groups, or ``df`` one of those with them."""
    if not grouped:
        if df is not None:
            raise InvalidArgumentError(
                f"df: it is of the units of random effects of groups, and design_mtx has none, found {df!r}; leave it "
                "out, or write design_mtx='~ condition + (1 | section)'."
            )
        return
    degrees_of_freedom(1.0, 1.0, "clip" if df is None else df)
    for name, value, known in (("variance", variance, (None, "model")), ("law", law, (None, "plugin"))):
        if value not in known:
            raise InvalidArgumentError(
                f"{name}: with random effects of groups tests are by the model's variance at the estimates, and by the "
                f"units' degrees of freedom (df); expected one of {known}, found {value!r}."
            )


def check_logits(isoform_effect: str, likelihood: Likelihood, counts: Sequence[Tensor]) -> None:
    """Raise unless the effect has a meaning for genes ``(N, K)`` of each number of isoforms."""
    for gene in {table.shape[1]: table for table in counts}.values():
        check_isoform_effect(isoform_effect, share_variance=True, likelihood=likelihood, counts=gene.unsqueeze(0))


def check_of_isoforms(likelihood: Likelihood, what: str) -> None:
    """Raise where the likelihood is of one count a spot, which has no usage of isoforms."""
    if likelihood.n_categories[1] == 1:
        raise NoResultsError(f"likelihood: {likelihood!r} is of one count a spot, and {what}.")


def law_name(law: str | None, variance: str, model_type: str) -> str | None:
    """What the tests take the covariance to be: ``"averaged"`` by default with a spatial effect, None without any.

    Raises where model, variance and law exclude each other.
    """
    if model_type == "glm" and law is not None:
        raise InvalidArgumentError(f"law: model_type='glm' has no random effect; expected None, found {law!r}.")
    if variance == "het" and model_type != "glmm-full":
        raise InvalidArgumentError(
            f"variance='het': model_type={model_type!r} has no field whose variance could differ; expected 'glmm-full'."
        )
    if variance == "het" and law == "plugin":
        raise InvalidArgumentError("variance='het': expected law='averaged' with it, found law='plugin'.")
    if law in ("averaged", "surrogates") and model_type != "glmm-full":
        raise InvalidArgumentError(f"law={law!r}: model_type={model_type!r} has no field; expected law='plugin'.")
    return None if model_type == "glm" else law or ("averaged" if model_type == "glmm-full" else "plugin")
