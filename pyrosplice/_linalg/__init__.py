"""Linear algebra behind one protocol: sparse, dense and low-rank."""
