"""Options of the models and of the tests of usage, checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, get_args

from torch import Tensor

from pyrosplice.effects.isoform_effect import check_isoform_effect
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option, check_switches
from pyrosplice.likelihoods.contract import Likelihood
from pyrosplice.usage.gene_tests.linearized import PermutationNull
from pyrosplice.usage.gene_tests.terms import By, TestLaw, Variance

EFFECT = (
    "share_variance",
    "var_fix_sigma",
    "var_prior_model",
    "var_prior_model_params",
    "init_ratio",
    "isoform_effect",
)
SPACE = ("k_neighbors", "rho", "approx_rank", "graph")
OPTIONS = ("model_type", *EFFECT, "fitting_method", "fitting_configs", *SPACE, "device")
USAGE_OPTIONS = {
    "method": ("score", "wald", "lrt"),
    "by": get_args(By),
    "variance": get_args(Variance),
    "law": get_args(TestLaw),
}
NEEDED = {
    "n_draws": "importance=True",
    "early_stop": "use_perm_null=True",
    "null_law": "method='llr', neither permuted nor bootstrapped,",
}


def check_logits(isoform_effect: str, likelihood: Likelihood, counts: Sequence[Tensor]) -> None:
    """Raise unless the effect has a meaning for genes ``(N, K)`` of each number of isoforms."""
    for gene in {table.shape[1]: table for table in counts}.values():
        check_isoform_effect(isoform_effect, share_variance=True, likelihood=likelihood, counts=gene.unsqueeze(0))


def check_usage_options(covariates: Sequence[str], **given: str) -> None:
    """Raise unless the options of a test of differential usage exist; says so where one names a covariate."""
    for name, value in given.items():
        if isinstance(value, str) and value in covariates and value not in USAGE_OPTIONS[name]:
            raise InvalidArgumentError(
                f"{name}: expected one of {', '.join(map(repr, USAGE_OPTIONS[name]))}, found {value!r}, a covariate. "
                f"All of them are tested, {list(covariates)}, and named in the results."
            )
        check_option(name, value, USAGE_OPTIONS[name])


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


def surrogate_settings(
    law: str | None, method: str, variance: str | None, given: dict[str, int | None]
) -> dict[str, int] | None:
    """``n_surrogates`` and ``random_seed`` of ``law="surrogates"``, 999 and 0 if not ``given``; None for other laws.

    Raises where they, the method or the variance exclude each other.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    if law != "surrogates":
        for name in asked:
            raise InvalidArgumentError(f"{name}: expected law='surrogates' with it, found law={law!r}.")
        return None
    if method != "score":
        raise InvalidArgumentError(f"law='surrogates': expected method='score' with it, found {method!r}.")
    if variance not in (None, "model"):
        raise InvalidArgumentError(
            f"law='surrogates': expected no variance, or 'model', as p-values are ranks; found {variance!r}."
        )
    for name, least in (("n_surrogates", 19), ("random_seed", 0)):
        check_integer(name, asked.get(name, least), least=least)
    return {"n_surrogates": 999, "random_seed": 0, **asked}


def variability_settings(
    method: str, use_perm_null: bool, importance: bool, n_bootstrap: int | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Options of a test of spatial variability; raises where they are unknown, exclude each other or out of range."""
    settings: dict[str, Any] = {"random_seed": 0, "early_stop": None, "n_jobs": None, "n_draws": 400}
    settings["null_law"] = "finite-sample"
    for name in given:
        check_option("test_spatial_variability(...)", name, settings)
    check_switches(use_perm_null=use_perm_null, importance=importance)
    unused = {"n_draws": not importance, "early_stop": not use_perm_null}
    unused["null_law"] = method != "llr" or use_perm_null or n_bootstrap is not None
    for name in given:
        if unused.get(name):
            raise InvalidArgumentError(f"{name}: expected {NEEDED[name]} with it, without which it has no effect.")
    settings |= {**given, "importance": importance, "n_bootstrap": n_bootstrap}
    check_option("null_law", settings["null_law"], ("finite-sample", "boundary"))
    names = [name for name in ("importance", "n_bootstrap") if settings[name] not in (None, False)]
    if names and method != "llr":
        raise InvalidArgumentError(f"{names[0]}: expected method='llr' with it, found method={method!r}.")
    names += ["use_perm_null"] if use_perm_null else []
    if len(names) > 1:
        raise InvalidArgumentError(f"expected one of importance, n_bootstrap and use_perm_null, found {names}.")
    least = {"n_bootstrap": 1, "early_stop": 1, "n_draws": 1, "random_seed": 0}
    for name, value in settings.items():
        if name in least and value is not None:
            check_integer(name, value, least=least[name])
    return settings


def permutation_null_of(
    n_permutations: int | None, settings: dict[str, Any], use_perm_null: bool
) -> PermutationNull | None:
    """How to permute, 20 times if not said; None for not at all, with a warning where a number is given."""
    if not use_perm_null:
        if n_permutations is not None:
            warnings.warn("n_perms_per_gene: nothing is permuted without use_perm_null=True.", stacklevel=4)
        return None
    n_permutations = 20 if n_permutations is None else n_permutations
    check_integer("n_perms_per_gene", n_permutations)
    return PermutationNull(n_permutations, settings["random_seed"], settings["early_stop"])
