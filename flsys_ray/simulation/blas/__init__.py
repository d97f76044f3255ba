"""Local training as products of matrices, by the BLAS of numpy: no graph, no compilation."""
