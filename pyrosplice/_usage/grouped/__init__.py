"""Isoform usage with random effects of groups."""
