"""A Pyro model of a person's own beside the shipped one of isoform usage: which is followed, and what its fit says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from torch.nn import Parameter

from pyrosplice._optimize.convergence import Convergence
from pyrosplice._usage.reading.design import Design
from pyrosplice.effects._isoform_effect import IsoformEffect
from pyrosplice.errors import InvalidArgumentError, RefusedModelError
from pyrosplice.glmm._distributions import EigenCovariance
from pyrosplice.glmm._glm_objective import StandardCoordinates
from pyrosplice.glmm._multinomial import MultinomialGLM
from pyrosplice.guides._agreement import difference_from, overridden, random_values
from pyrosplice.guides._column_sizes import sizes_named
from pyrosplice.guides._own_fit import OwnFit, endless, same_numbers
from pyrosplice.guides._own_model import Program, have_shapes, ignores, latent_values, refuse_ignored
from pyrosplice.likelihoods._by_autograd import refuse_wrong_forms
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.priors._sites import complete_priors, is_flat
from pyrosplice.reasons import Reason

Pairs = tuple[tuple[Program, Program], tuple[Program, Program]]
Change = tuple[str, dict[str, Any]]  # what was given, in words, and attributes of an estimator with something else
REAL = {"beta", "bias_eta", "theta_logit", "nu"}  # sites on the real line; all others are positive
FAR = 12.0  # logits beyond which an estimate may be at infinity


class UsageEstimator(Protocol):
    """An estimator of isoform usage, as the comparison of its two models sees it."""

    n_genes: int
    device: torch.device
    likelihood: Likelihood
    counts: Tensor
    design_mtx: Tensor

    @property
    def model(self) -> Program:
        """The Pyro model of the data: a person's own or the shipped one."""

    def shipped_model(self) -> MultinomialGLM:
        """The library's Pyro model of the data and options."""

    def clone(self) -> Self:
        """A copy with parameters of its own."""

    def parameters(self) -> Iterator[Parameter]:
        """Values of the sites."""

    def update_params_from_dict(self, params: Mapping[str, Any]) -> None:
        """Replace some of them."""


def asked_for(design: Tensor, likelihood: Likelihood, priors: Mapping[str, Any]) -> dict[str, str]:
    """Arguments of a Pyro model of which something was asked for, in words."""
    asked = {"counts": "counts"}
    if design.shape[1]:
        asked["design"] = f"design_mtx: {design.shape[1]} covariates"
    if type(likelihood) is not Multinomial:
        asked["likelihood"] = f"likelihood={likelihood!r}"
    if priors:
        asked["priors"] = f"priors: of {', '.join(priors)}"
    return asked


def effect_asked_for(spatial: bool, share_variance: bool, isoform_effect: IsoformEffect) -> dict[str, str]:
    """Arguments about the random effect of which something was asked for, in words."""
    asked = {"covariance": "corr_sp: a covariance of the spots (IdentityCovariance is none)"} if spatial else {}
    if not share_variance:
        asked["share_variance"] = "share_variance=False"
    if isoform_effect != "independent":
        asked["isoform_effect"] = f"isoform_effect={isoform_effect!r}"
    return asked


def without_options(
    priors: Mapping[str, Any],
    likelihood: Likelihood,
    shapes: Mapping[str, tuple[int, ...]],
    sites: Iterable[str] | None,
) -> Iterator[Change]:
    """Each prior (of ``sites`` only, unless None) and the likelihood, and the options without it."""
    complete = complete_priors(priors, {name: shape for name, shape in shapes.items() if name in priors})
    for site, prior in complete.items():
        if not is_flat(prior) and (sites is None or site in sites):
            yield f"priors[{site!r}]", {"priors": {name: other for name, other in priors.items() if name != site}}
    if type(likelihood) is not Multinomial:
        rest = {name: prior for name, prior in priors.items() if name not in likelihood.free}
        yield f"likelihood={likelihood!r}", {"likelihood": Multinomial(), "priors": rest}


def with_other_data(asked: Mapping[str, str], counts: Tensor, design: Tensor) -> Iterator[Change]:
    """Counts and covariates, and other numbers in their place."""
    spots = torch.randperm(len(design), generator=torch.Generator().manual_seed(0)).to(counts.device)
    yield asked["counts"], {"counts": 2 * counts[:, spots]}
    if "design" in asked:
        yield asked["design"], {"design_mtx": 1 + 2 * design[spots]}


def with_another_effect(asked: Mapping[str, str], space: EigenCovariance | None) -> Iterator[Change]:
    """What was asked of a random effect, and something else; ``space`` is the one of a model."""
    if "isoform_effect" in asked:
        yield asked["isoform_effect"], {"isoform_effect": "independent"}
    if "covariance" in asked and space is not None:
        yield asked["covariance"], {"_eigen": EigenCovariance(2 * space.eigenvalues, space.eigenvectors.flip(0))}
    if "share_variance" in asked:
        yield asked["share_variance"], {"share_variance": True}


def own_program(
    estimator: UsageEstimator,
    name: str,
    held: Mapping[str, Tensor],
    others: Callable[[Mapping[str, Tensor]], Iterable[tuple[str, UsageEstimator]]],
) -> Program | None:
    """The estimator's Pyro model, called ``name``, where its density is not that of the shipped one; else None.

    Parameters
    ----------
    held
        Values of the sites that are not estimated.
    others
        Function of start values of the sites to what was given, in words, and the estimator with something else in its
        place.

    Raises
    ------
    InvalidArgumentError
        The model makes no use of something that was given, or has a site that is held in another shape.
    """
    with sizes_named(estimator.design_mtx, name):
        return _own_program(estimator, name, held, others)


def _own_program(
    estimator: UsageEstimator,
    name: str,
    held: Mapping[str, Tensor],
    others: Callable[[Mapping[str, Tensor]], Iterable[tuple[str, UsageEstimator]]],
) -> Program | None:
    program = estimator.model
    values = latent_values(program, name, n_genes=estimator.n_genes)
    held = {site: value for site, value in held.items() if site in values}
    for site, value in held.items():
        if value.shape != values[site].shape:
            raise InvalidArgumentError(
                f"{site}: it is held at values of shape {tuple(value.shape)}, and {name} has it of shape "
                f"{tuple(values[site].shape)}; give var_fix_sigma=False."
            )
    if held:
        program = poutine.condition(program, data=held)
        values = {site: value for site, value in values.items() if site not in held}
    known = estimator.shipped_model()
    shapes = {site: shape for site, shape in known.latent_shapes().items() if 0 not in shape}
    points = partial(random_values, shapes, lambda site: site not in REAL)
    if have_shapes(values, shapes) and difference_from(program, known, points) is None:
        return None
    for words, other in others(values):
        refuse_ignored(words, name, *_beside(program, known, other, held))
    return program


def unread_sites(estimator: UsageEstimator, name: str, held: Mapping[str, Tensor]) -> list[str]:
    """Held sites of which the estimator's own model knows nothing."""
    values, unread = latent_values(estimator.model, name, n_genes=estimator.n_genes), []
    for site in (site for site in held if site not in values):
        other = estimator.clone()
        other.update_params_from_dict({site: 1 + 2 * held[site]})
        if ignores(*_beside(estimator.model, estimator.shipped_model(), other, {})):
            unread.append(site)
    return unread


def _beside(program: Program, known: Program, other: UsageEstimator, held: Mapping[str, Tensor]) -> Pairs:
    """A model and the shipped one, each beside that of another estimator, which is not made before it is run."""

    def mine() -> object:
        return poutine.condition(other.model, data=dict(held))()

    return (program, mine), (known, lambda: other.shipped_model()())


def known_values(own: OwnFit, shapes: Mapping[str, tuple[int, ...]], kept: Iterable[str]) -> dict[str, Tensor]:
    """Estimates of the known sites ``shapes``; NaN where the model does not have one that is not among the ``kept``."""
    known = {}
    for name, shape in shapes.items():
        if name in own.values:
            value = own.values[name]
            known[name] = value.reshape(shape) if same_numbers(value.shape, shape) else value
        elif name not in kept and 0 not in shape:
            known[name] = torch.full(shape, torch.nan, dtype=torch.float64)
    return known


def record_of(own: OwnFit, counts: Tensor, design: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Convergence:
    """How each gene's fit ended; those that a flat prior leaves without an optimum in the words of the shipped fits."""
    record = own.record()
    empty = (counts.sum((1, 2)) == 0) & ~own.guide.optimum.identified
    record.finish(torch.nonzero(empty).squeeze(-1), Reason.NO_COUNTS)
    away = _endless_coefficients(own, design, shapes)
    if away is not None:
        record.finish(torch.nonzero(away & own.guide.converged & ~empty).squeeze(-1), Reason.SEPARATED)
    return record


def _endless_coefficients(own: OwnFit, design: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Tensor | None:
    """Genes with coefficients at infinity, ``(G,)``; None where there are none, or these are not known."""
    (n_genes, n_logits), sites = shapes["bias_eta"], {}
    for name in ("beta", "bias_eta"):
        site, shape = own.guide.density.latents.get(name), shapes[name]
        if 0 in shape:
            continue
        if site is None or name in own.integrated or not (site.is_real() and same_numbers(site.value_shape, shape)):
            return None
        sites[name] = own.values[name].double().clone().requires_grad_(True)
    scale = StandardCoordinates.of(design).matrix  # of covariates of size one, whatever their units
    coefficients = torch.cat([site.detach().reshape(n_genes, -1, n_logits) for site in sites.values()], 1)
    if not bool((torch.linalg.solve(scale, coefficients).abs() > FAR).any()):
        return None
    with torch.enable_grad():
        slopes = torch.autograd.grad(own.log_density({**own.values, **sites}).sum(), list(sites.values()))
    slope = torch.cat([part.reshape(n_genes, -1, n_logits) for part in slopes], 1)
    information, _ = own.coefficient_information(own.values, design, n_logits)
    return endless((scale.mT @ slope).flatten(1), information)


def require_fittable(estimator: UsageEstimator) -> None:
    """Raise where a model of a person's own could not be fitted, or not alone."""
    if "forward" in overridden(type(estimator))[1]:
        raise InvalidArgumentError(
            f"forward: {type(estimator).__name__} overrides it beside a model, whose density is what is fitted; put "
            "what it adds into the model."
        )
    if estimator.device.type != "cpu":
        raise InvalidArgumentError(f"device: a model of your own is fitted on 'cpu', found {str(estimator.device)!r}.")


def require_followed(estimator: UsageEstimator) -> None:
    """Raise where a subclass has an objective or a predictor of its own, which no fit would follow.

    And where a likelihood of one's own has closed forms that a fit should not follow.
    """
    refuse_wrong_forms(estimator.likelihood, estimator.counts)
    shipped, names = overridden(type(estimator))
    for name in sorted({"forward", "linear_predictor"} & {*names}):
        other = estimator.clone()
        start = torch.Generator().manual_seed(0)
        for value in other.parameters():
            value.data += 0.1 * torch.rand(value.shape, generator=start, dtype=value.dtype).to(value.device)
        with torch.no_grad():
            found, expected = getattr(other, name)(), getattr(shipped, name)(other)
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-9, atol=1e-9):
            raise InvalidArgumentError(
                f"{name}: {type(estimator).__name__} overrides it, and fits follow that of {shipped.__name__}. Give "
                "the Pyro model (model=), which is what is fitted, or change priors= or likelihood=."
            )


def require_plain(design: Design | None, name: str) -> None:
    """Raise where covariates are levels of a factor, which are fitted in a coding that only the shipped model knows."""
    if design is not None and not np.array_equal(design.coding, np.eye(len(design.coding))):
        raise RefusedModelError(
            f"design_mtx: expected columns of numbers with {name}, found the levels of a factor, {list(design.names)}, "
            "which are fitted without one of them and coded again for the shipped model. Give all levels but one."
        )
