"""Strategies, one file each: a problem in, a plan out; importing the package registers them all."""

from rankfold.strategies import compressnas as compressnas
from rankfold.strategies import energy as energy
from rankfold.strategies import manual as manual
from rankfold.strategies import uniform as uniform
from rankfold.strategies import vbmf as vbmf
from rankfold.strategies.contract import Strategy as Strategy
from rankfold.strategies.contract import get as get
from rankfold.strategies.contract import registry as registry
