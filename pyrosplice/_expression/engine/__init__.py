"""The fit of an expression model: pseudo-cells, joint Newton over location and scale, what comes after."""
