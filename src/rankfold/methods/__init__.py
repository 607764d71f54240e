"""Factorizations, one file each; importing the package registers them all."""

from rankfold.methods import cp as cp
from rankfold.methods import filterwise_cp as filterwise_cp
from rankfold.methods import qr as qr
from rankfold.methods import spatial_svd as spatial_svd
from rankfold.methods import svd as svd
from rankfold.methods import tt as tt
from rankfold.methods import tt3 as tt3
from rankfold.methods import ttm as ttm
from rankfold.methods import tucker as tucker
from rankfold.methods._choices import check_choice as check_choice
from rankfold.methods._choices import chosen_blueprint as chosen_blueprint
from rankfold.methods.contract import Method as Method
from rankfold.methods.contract import Prepared as Prepared
from rankfold.methods.contract import check_finite as check_finite
from rankfold.methods.contract import check_ranks as check_ranks
from rankfold.methods.contract import check_supported as check_supported
from rankfold.methods.contract import get as get
from rankfold.methods.contract import prepare as prepare
from rankfold.methods.contract import registry as registry
from rankfold.methods.contract import to_canonical as to_canonical
from rankfold.methods.contract import without_autocast as without_autocast
