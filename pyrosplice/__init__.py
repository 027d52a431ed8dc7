"""Count and mixture models for single-cell and spatial transcriptomics, written as Pyro models."""

import warnings
from importlib import import_module
from importlib.metadata import version

with warnings.catch_warnings():  # in a notebook without ipywidgets its bars are text, and Pyro's import would say so
    warnings.filterwarnings("ignore", "IProgress not found")
    import_module("tqdm.auto")

from pyrosplice.data.triplets import AnnData_TripletDataset, TripletDataset
from pyrosplice.estimators.expression import ExpressionGLM
from pyrosplice.estimators.mixture import GaussianMixture
from pyrosplice.estimators.mixture_criteria import log_likelihood_scorer
from pyrosplice.estimators.mixture_holdout import evaluate_holdout_nll, summarize_holdout_nll, validate_gmm
from pyrosplice.estimators.mixture_module import GaussianMixtureModel, GaussianMixtureModelConfig
from pyrosplice.estimators.mixture_per_patient import fit_gmm
from pyrosplice.estimators.multinomial import MultinomGLM
from pyrosplice.estimators.multinomial_mixed import MultinomGLMM
from pyrosplice.estimators.splisosm import SplisosmGLMM

__all__ = [
    "AnnData_TripletDataset",
    "ExpressionGLM",
    "GaussianMixture",
    "GaussianMixtureModel",
    "GaussianMixtureModelConfig",
    "MultinomGLM",
    "MultinomGLMM",
    "SplisosmGLMM",
    "TripletDataset",
    "__version__",
    "evaluate_holdout_nll",
    "fit_gmm",
    "log_likelihood_scorer",
    "summarize_holdout_nll",
    "validate_gmm",
]
__version__ = version("pyrosplice")
