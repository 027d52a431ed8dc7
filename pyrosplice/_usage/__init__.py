"""Isoform usage: GLM and GLMM of a gene's isoforms, and the analysis of a tissue."""
