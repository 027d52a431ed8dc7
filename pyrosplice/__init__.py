"""Count and mixture models for single-cell and spatial transcriptomics, written as Pyro models."""

from importlib.metadata import version

from pyrosplice.estimators.multinomial import MultinomGLM
from pyrosplice.estimators.multinomial_mixed import MultinomGLMM
from pyrosplice.estimators.splisosm import SplisosmGLMM

__all__ = ["MultinomGLM", "MultinomGLMM", "SplisosmGLMM", "__version__"]
__version__ = version("pyrosplice")
