"""Figures: one function a figure, from a table, returning Axes."""
