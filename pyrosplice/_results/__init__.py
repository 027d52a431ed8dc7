"""Results where people look for them: in an AnnData, in the structures and columns of scanpy, pertpy and decoupler."""
