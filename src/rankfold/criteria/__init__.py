"""Criteria that rank the filters of a layer for pruning; importing the package registers all of them."""

from rankfold.criteria.contract import Criterion as Criterion
from rankfold.criteria.contract import Filters as Filters
from rankfold.criteria.contract import get as get
from rankfold.criteria.contract import registry as registry
from rankfold.criteria.similarity import CSA as CSA
from rankfold.criteria.similarity import PABS as PABS
from rankfold.criteria.similarity import VBD as VBD
from rankfold.criteria.similarity import pabs_distances as pabs_distances
from rankfold.criteria.weights import L1 as L1
from rankfold.criteria.weights import L2 as L2
from rankfold.criteria.weights import GeometricMedian as GeometricMedian
from rankfold.criteria.weights import Random as Random
