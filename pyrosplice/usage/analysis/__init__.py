"""An AnnData from counts to tests, effects, posteriors, figures and a file: the parts of SplisosmGLMM."""
