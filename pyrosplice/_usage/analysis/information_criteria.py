"""Information criteria of fits of usage, gene by gene."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyrosplice._usage.analysis.fits import Analyzed, UsageAnalysis, batches_alike
from pyrosplice.errors import NoResultsError
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.reasons import OPTIMA, Reason

Array = NDArray[np.float64]
AT_OPTIMUM = (*OPTIMA, Reason.SEPARATED, Reason.NOT_REFINED)  # whose likelihood is the largest, or nears it


def usage_aic(self: Analyzed) -> Array:
    """Akaike's information criterion of each gene ``(G,)``, ``2 k - 2 log L``; smaller is better, NaN without a fit.

    L is the largest likelihood: of a GLMM the **marginal** one by Laplace's method, random effects integrated out; with
    groups at its own maximum, not at that of the restricted likelihood of the estimates. The k parameters are
    intercepts and coefficients (those that can be estimated together), σ where it is estimated, θ of a spatial effect,
    every standard deviation and correlation of groups, and the likelihood's own; effects of spots and levels are none.
    The conditional criterion, whose k is a number of effective parameters of the random effect, is not offered. A
    variance at zero counts as a parameter, which errs on the side of the smaller model.

    Raises
    ------
    NotReadyError
        Before ``fit``.
    InvalidArgumentError
        A joint mode, whose objective is no likelihood, or priors, which are part of the objective.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> beta = [[[1.0, 0.0]], [[0.0, 0.0]]]  # the first gene follows the covariate
    >>> adata = simulate_isoforms(n_spots=100, n_genes=2, covariates=("iid",), beta=beta, seed=0)
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="iid")
    >>> model.fit(with_design_mtx=True, print_progress=False)
    >>> with_covariate = model.aic()
    >>> model.fit(print_progress=False)
    >>> bool((model.aic() > with_covariate)[0])  # the first gene needs it
    True
    """
    value, k, _ = _likelihoods(self.analysis)
    return 2 * k - 2 * value


def usage_bic(self: Analyzed) -> Array:
    """Schwarz's (Bayesian) information criterion of each gene ``(G,)``, ``k log n - 2 log L``; as :meth:`aic`.

    n is the number of spots that have counts of the gene. They are no independent observations beside a spatial effect
    or groups, of which the criterion takes them to be.

    Examples
    --------
    >>> from pyrosplice import SplisosmGLMM
    >>> from pyrosplice.data import simulate_isoforms
    >>> beta = [[[1.0, 0.0]], [[0.0, 0.0]]]  # the first gene follows the covariate
    >>> adata = simulate_isoforms(n_spots=100, n_genes=2, covariates=("iid",), beta=beta, seed=0)
    >>> model = SplisosmGLMM("glm")
    >>> model.setup_data(adata, design_mtx="iid")
    >>> model.fit(with_design_mtx=True, print_progress=False)
    >>> with_covariate = model.bic()
    >>> model.fit(print_progress=False)
    >>> bool((model.bic() > with_covariate)[0])  # the first gene needs it
    True
    """
    value, k, n = _likelihoods(self.analysis)
    return np.log(np.maximum(n, 1.0)) * k - 2 * value


def _likelihoods(analysis: UsageAnalysis) -> tuple[Array, Array, Array]:
    """Largest log likelihoods ``(G,)``, numbers of parameters, and of spots with counts."""
    analysis.shipped_only("aic, bic")
    options, fit, prepared = analysis.options, analysis.fit, analysis.prepared
    if options.has_priors:
        raise NoResultsError("aic, bic: the fits have priors, which are part of what was maximized; fit without.")
    if analysis.model_type != "glm" and not options.fitting_method.startswith("marginal"):
        raise NoResultsError(
            f"aic, bic: fitting_method={options.fitting_method!r} maximizes a joint density, which is no likelihood of "
            "the parameters; fit by 'marginal_newton' or 'marginal_gd'."
        )
    n = np.array([float((table.sum(1) > 0).sum()) for table in prepared.counts])
    if prepared.listed is not None:
        value, variances = _of_groups(analysis), _variances_of_groups(analysis)
    else:
        value = np.array([-gene.best_loss for gene in fit.genes])
        variances = np.array([_variances(analysis, gene.n_logits) for gene in fit.genes])
        ended = np.array([gene.reason in AT_OPTIMUM for gene in fit.genes])
        value = np.where(ended, value, np.nan)
    columns = 1 + (len(prepared.design.estimable) if fit.with_design and prepared.design is not None else 0)
    own = len(options.likelihood.free)
    return value, np.array([columns * gene.n_logits + own for gene in fit.genes]) + variances, n


def _variances(analysis: UsageAnalysis, n_logits: int) -> int:
    """Number of variances that are estimated beside coefficients."""
    options = analysis.options
    if analysis.model_type == "glm":
        return 0
    each = 1 if options.share_variance else n_logits
    return each * ((not options.var_fix_sigma) + (analysis.model_type == "glmm-full"))


def _variances_of_groups(analysis: UsageAnalysis) -> Array:
    effects = [gene.effects for gene in analysis.fit.genes]
    return np.array([0 if e is None else len(e.parameters) + len(e.sds) + len(e.space_values) for e in effects])


def _of_groups(analysis: UsageAnalysis) -> Array:
    """Maximum of the marginal likelihood ``(G,)``, beside random effects of groups."""
    spec, out = analysis.grouped_spec(with_design=analysis.fit.with_design), np.full(analysis.n_genes, np.nan)
    for batch in batches_alike(analysis, spec, analysis.fit.genes):
        own = spec.at([analysis.fit.genes[gene] for gene in batch])
        fit = fit_effects(own.problem(analysis.counts(batch)), restricted=False)
        ended = np.isin(fit.reason, [reason.value for reason in AT_OPTIMUM])
        out[batch] = np.where(ended, fit.log_likelihood.numpy(), np.nan)
    return out
