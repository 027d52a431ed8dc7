"""From fitted genes to tests of covariates and of space, one batch of genes at a time."""
