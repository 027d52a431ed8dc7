"""An AnnData from counts to tests, effects, posteriors and a file: SplisosmGLMM, and what reads its UsageAnalysis."""
