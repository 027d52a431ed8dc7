"""NUTS on the same Pyro model, one gene at a time, for the genes that one wants to be sure of."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.models.distributions import SpatialEffect
from pyrosplice.models.multinomial import MultinomialGLM, MultinomialGLMM

if TYPE_CHECKING:
    from pyrosplice.estimators.multinomial import MultinomGLM

logger = logging.getLogger("pyrosplice")
WHITE = "nu_white"


@dataclass(frozen=True)
class NutsOptions:
    """Settings of the sampler: warm-up iterations, chains, target acceptance and greatest tree depth."""

    warmup_steps: int = 400
    num_chains: int = 1
    target_accept_prob: float = 0.85
    max_tree_depth: int = 7


class WhitenedEffect(Reparam):
    """The random effect as standard normal numbers in V's eigenbasis: what NUTS moves in without a funnel."""

    def apply(self, msg: Any) -> Any:
        """Replace the site by a standard normal one and a deterministic function of it."""
        effect: SpatialEffect = msg["fn"]
        zeros = torch.zeros(effect.event_shape, dtype=effect.sigma.dtype)
        white = pyro.sample(WHITE, dist.Normal(zeros, 1.0).to_event(2).expand(effect.batch_shape))
        value = coloured(effect, white)
        return {"fn": dist.Delta(value, event_dim=2).mask(False), "value": value, "is_observed": True}


def coloured(effect: SpatialEffect, white: Tensor) -> Tensor:
    """ν from standard normal numbers in V's eigenbasis."""
    return effect.covariance.eigenvectors @ (white * effect.eigen_variances.sqrt())


def nuts(
    model: MultinomGLM, genes: Tensor, num_samples: int, seed: int, options: NutsOptions
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws by site ``(C, S, G, ...)`` and sampler statistics: ``diverging`` ``(C, S, G)``.

    Raises
    ------
    InvalidArgumentError
        A prior that differs between genes.
    """
    found = []
    with torch.random.fork_rng():
        for gene in genes.tolist():
            program = single_gene(model, gene)
            torch.manual_seed(seed + gene)  # NUTS draws from the global generator, which is put back afterwards
            chains = [_chain(program, num_samples, options) for _ in range(options.num_chains)]
            found.append({name: torch.stack([chain[name] for chain in chains]) for name in chains[0]})
            logger.info("nuts: gene %d, %d divergent", gene, int(found[-1]["diverging"].sum()))
    draws = {name: torch.stack([one[name] for one in found], 2) for name in found[0]}
    return draws, {"diverging": draws.pop("diverging")}


def single_gene(model: MultinomGLM, gene: int) -> MultinomialGLM:
    """The Pyro model of one gene."""
    rows, whole = torch.tensor([gene]), model.model
    differing = [name for name, prior in model.priors.items() if _differs(prior, whole.priors[name])]
    if differing:
        raise InvalidArgumentError(f"method='nuts': expected the same prior for every gene, not so for {differing}.")
    settings: dict[str, Any] = {"likelihood": model.likelihood.select(rows), "priors": model.priors}
    if isinstance(whole, MultinomialGLMM):
        fixed = {name: value[rows] for name, value in whole.fixed.items()}
        space: dict[str, Any] = {"covariance": whole.covariance, "share_variance": whole.share_variance, "fixed": fixed}
        return MultinomialGLMM(whole.counts[rows], whole.design, **space, **settings)
    return MultinomialGLM(whole.counts[rows], whole.design, **settings)


def _differs(prior: Any, complete: Any) -> bool:
    n_dims = len(complete.batch_shape + complete.event_shape)
    shape = tuple(prior.batch_shape) + tuple(prior.event_shape)
    return len(shape) == n_dims and shape[0] > 1


def _chain(model: MultinomialGLM, num_samples: int, options: NutsOptions) -> dict[str, Tensor]:
    program: Any = pyro.poutine.reparam(model, config={"nu": WhitenedEffect()})
    kernel = NUTS(
        program,
        target_accept_prob=options.target_accept_prob,
        max_tree_depth=options.max_tree_depth,
        jit_compile=True,
        ignore_jit_warnings=True,
    )
    with pyro.validation_enabled(False):
        mcmc = MCMC(kernel, num_samples, options.warmup_steps, disable_progbar=True)
        mcmc.run()
    values = mcmc.get_samples()
    diverging = torch.zeros(num_samples, dtype=torch.bool)
    diverging[torch.tensor(mcmc.diagnostics()["divergences"]["chain 0"], dtype=torch.int64)] = True
    if isinstance(model, MultinomialGLMM):
        values |= {name: value.expand(num_samples, *value.shape) for name, value in model.fixed.items()}
        n_logits = values["bias_eta"].shape[-1]
        effect = SpatialEffect(model.covariance, values["sigma"], values["theta_logit"], n_logits)
        values["nu"] = coloured(effect, values.pop(WHITE))
    if "beta" not in values:
        values["beta"] = values["bias_eta"].new_zeros(num_samples, 1, 0, values["bias_eta"].shape[-1])
    return {**{name: value.squeeze(1) for name, value in values.items()}, "diverging": diverging}
