"""Statistics streamed from data without labels."""

from rankfold.calibration.batchnorm import reestimate_batchnorm as reestimate_batchnorm
from rankfold.calibration.second_moments import collect_moments as collect_moments
