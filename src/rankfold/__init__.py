"""rankfold: replace a trained network's layers with low-rank factors, method and ranks chosen layer by layer."""
