"""Count and mixture models for single-cell and spatial transcriptomics, written as Pyro models."""

import warnings
from importlib import import_module
from importlib.metadata import version

with warnings.catch_warnings():  # in a notebook without ipywidgets its bars are text, and Pyro's import would say so
    warnings.filterwarnings("ignore", "IProgress not found")
    import_module("tqdm.auto")

from pyrosplice._expression.expression_glm import ExpressionGLM
from pyrosplice._expression.spatial_genes import spatially_variable_genes
from pyrosplice._mixture.criteria import log_likelihood_scorer
from pyrosplice._mixture.density_module import GaussianMixtureModel, GaussianMixtureModelConfig
from pyrosplice._mixture.em_estimator import GaussianMixture
from pyrosplice._mixture.patients.component_table import mixture_table
from pyrosplice._mixture.patients.distances import patient_distances
from pyrosplice._mixture.patients.fit_gmm import fit_gmm
from pyrosplice._mixture.patients.holdout import evaluate_holdout_nll, summarize_holdout_nll, validate_gmm
from pyrosplice._mixture.patients.selection import selection_table
from pyrosplice._mixture.patients.triplets import AnnData_TripletDataset, TripletDataset
from pyrosplice._usage.analysis.splisosm import SplisosmGLMM
from pyrosplice._usage.glm import MultinomGLM
from pyrosplice._usage.glmm import MultinomGLMM

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
    "mixture_table",
    "patient_distances",
    "selection_table",
    "spatially_variable_genes",
    "summarize_holdout_nll",
    "validate_gmm",
]
__version__ = version("pyrosplice")
