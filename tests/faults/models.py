"""The three families as tests of files see them: two small fits each, and the numbers that tell them apart."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load as tensors_of

from pyrosplice import ExpressionGLM, GaussianMixture, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.mixture.mixture_prior import MixturePrior


@dataclass(frozen=True)
class Family:
    """A class, how to make one of its objects from a seed, and what it says of a tissue."""

    kind: Any
    make: Callable[[int], Any]
    numbers: Callable[[Any], list[Any]]

    @cache  # noqa: B019 (there are three of them)
    def model(self, seed: int) -> Any:
        return self.make(seed)

    def loaded(self, path: Path) -> list[Any]:
        return self.numbers(self.kind.load(path))

    def is_model(self, path: Path, *seeds: int) -> bool:
        """Whether what is at ``path`` is the fit of one of the seeds, to the last bit."""
        found = self.loaded(path)
        return any(same(found, self.numbers(self.model(seed))) for seed in seeds)


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))


def _equal(one: Any, other: Any) -> bool:
    a, b = np.asarray(one), np.asarray(other)
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc")


def usage(seed: int) -> SplisosmGLMM:
    model = SplisosmGLMM("glm", rho=0.9 + seed / 100)
    model.setup_data(simulate_isoforms(n_spots=16, n_genes=2, covariates=("iid",), seed=seed), design_mtx="iid")
    model.fit(print_progress=False, with_design_mtx=True)
    model.test_differential_usage("wald", print_progress=False)
    return model


def expression(seed: int) -> ExpressionGLM:
    table = pd.DataFrame({"g": ["a", "b", "c"] * 8, "t": np.linspace(0, 1, 24)})
    counts = np.random.default_rng(seed).poisson(5.0, (24, 3))
    return ExpressionGLM("~1 + g + bs(t, df=3)", as_numeric="t").fit(counts, sample_description=table)


def mixture(seed: int) -> GaussianMixture:
    cells = np.random.default_rng(seed).normal(size=(40, 2)) + 4 * (np.arange(40)[:, None] % 2)
    prior = MixturePrior(concentration=1.5, covariance_dof=4.0, covariance_scale=torch.eye(2, dtype=torch.float64))
    options = {"prior": prior, "init_means": cells[:2], "trainer_params": {"max_epochs": 3}}
    frame = pd.DataFrame(cells, columns=["u", "v"])
    return GaussianMixture(2, covariance_type="full", random_state=seed, **options).fit(frame)


def of_usage(model: SplisosmGLMM) -> list[Any]:
    fits, table = model.get_fitted_models(), model.get_formatted_test_results("du")
    numbers = [gene.beta.numpy() for gene in fits] + [table[c].to_numpy() for c in ("gene", "pvalue", "pvalue_adj")]
    data = model.filtered_adata
    options = [str(value) for value in model.analysis.options.saved().values()]
    return [*numbers, data.layers["counts"].toarray(), data.obs_names, data.var_names, model.gene_names, options]


def of_expression(model: ExpressionGLM) -> list[Any]:
    summary, table = model.summary(), model.test(factor="g").summary()
    numbers = [summary[c].to_numpy() for c in ("gene", "coefficient", "effect", "se", "fit_ended")]
    settings = [model.formula_loc, model.formula_scale, *model.as_numeric, model.noise_model]
    return [*numbers, table["pval"].to_numpy(), model.cond(g="b", t=0.3), settings, model._mean]


def of_mixture(model: GaussianMixture) -> list[Any]:
    fit = [model.nll_, model.num_iter_, model.converged_, model.n_features_in_, model.feature_names_in_]
    asked = {name: value for name, value in model.get_params().items() if name not in ("prior", "init_means")}
    prior = [model.prior.concentration, model.prior.covariance_dof, model.prior.covariance_scale, model.init_means]
    return [*(value.numpy() for value in model.model_.state_dict().values()), *fit, *prior, str(asked)]


FAMILIES = [
    Family(SplisosmGLMM, usage, of_usage),
    Family(ExpressionGLM, expression, of_expression),
    Family(GaussianMixture, mixture, of_mixture),
]


def content_of(path: Path) -> dict[str, bytes]:
    """Every file of a saved model: one under the name "", or those of its folder."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def put(path: Path, files: dict[str, bytes]) -> Path:
    """A saved model of these files, and of no others."""
    for name in {*(content_of(path) if path.exists() else ()), *files} - {""}:
        (path / name).unlink(missing_ok=True)
    for name, data in files.items():
        file = path / name if name else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def tensors_and_header(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What a safetensors file holds."""
    length = int.from_bytes(data[:8], "little")
    return tensors_of(data), json.loads(data[8 : 8 + length])["__metadata__"]
