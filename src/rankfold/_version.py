"""The version of rankfold, for packaging and provenance."""

__version__ = "0.1.0"
