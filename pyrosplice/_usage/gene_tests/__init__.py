"""Tests of covariates and of space from fitted genes, one batch of genes at a time."""
