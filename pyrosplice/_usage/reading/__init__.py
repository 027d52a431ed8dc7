"""What a person hands in, as the counts, covariates and tables of an analysis of usage."""
