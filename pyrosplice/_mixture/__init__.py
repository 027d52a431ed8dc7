"""Cell states: Gaussian mixtures, one for all cells or one a patient."""
