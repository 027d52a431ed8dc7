"""Tests of the coefficients of covariates."""
