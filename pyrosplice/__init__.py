"""Count and mixture models for single-cell and spatial transcriptomics, written as Pyro models."""

from importlib.metadata import version

__version__ = version("pyrosplice")
