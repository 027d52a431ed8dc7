"""Tests of hypotheses and the distributions behind their p-values."""
