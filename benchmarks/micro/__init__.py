"""rankfold against its peers, in one process: ``python -m benchmarks.micro``."""
