"""The verbs: each takes the previous stage's record and returns the next."""

from rankfold.api.analyzing import analyze as analyze
from rankfold.api.compressing import Result as Result
from rankfold.api.compressing import compress as compress
from rankfold.api.stages import apply as apply
from rankfold.api.stages import apply_ as apply_
from rankfold.api.stages import factorize as factorize
from rankfold.api.stages import plan as plan
