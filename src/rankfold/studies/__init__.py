"""Studies that reproduce papers, one file per paper."""

from rankfold.studies import rene, similarity
from rankfold.studies.paper import Paper as Paper
from rankfold.studies.paper import Setup as Setup
from rankfold.studies.paper import Student as Student
from rankfold.studies.paper import reproduce as reproduce

PAPERS: dict[str, Paper] = {paper.name: paper for paper in (rene.PAPER, similarity.PAPER)}
"""The papers by their names on the command line."""
