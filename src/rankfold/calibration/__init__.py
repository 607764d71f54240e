"""Statistics that are collected from data without labels, and reconstruction with them."""

from rankfold.calibration.batchnorm import Renewal as Renewal
from rankfold.calibration.batchnorm import is_tracking_norm as is_tracking_norm
from rankfold.calibration.batchnorm import reestimate_batchnorm as reestimate_batchnorm
from rankfold.calibration.feature_maps import Place as Place
from rankfold.calibration.feature_maps import compared_places as compared_places
from rankfold.calibration.feature_maps import similarities as similarities
from rankfold.calibration.second_moments import LayerMoments as LayerMoments
from rankfold.calibration.second_moments import collect_moments as collect_moments
from rankfold.calibration.sequential import adopt_ as adopt_
from rankfold.calibration.sequential import reconstruct_sequentially as reconstruct_sequentially
from rankfold.calibration.sequential_config import Reconstruction as Reconstruction
from rankfold.calibration.sequential_config import Sequential as Sequential
