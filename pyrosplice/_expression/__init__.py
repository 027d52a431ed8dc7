"""Expression: negative-binomial GLM with formulas for location and scale, and its tests."""
