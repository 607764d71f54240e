"""The verbs: each takes the previous stage's record and returns the next."""

from rankfold.api.analyzing import analyze as analyze
from rankfold.api.applying import apply as apply
from rankfold.api.applying import apply_ as apply_
from rankfold.api.compressing import compress as compress
from rankfold.api.explaining import gradcam as gradcam
from rankfold.api.exporting import export as export
from rankfold.api.factorizing import factorize as factorize
from rankfold.api.options import Search as Search
from rankfold.api.planning import plan as plan
from rankfold.api.pretrained import load_pretrained as load_pretrained
from rankfold.api.realizing import Result as Result
from rankfold.api.realizing import realize as realize
from rankfold.api.sweeping import sweep as sweep
from rankfold.api.timing import layer_times as layer_times
