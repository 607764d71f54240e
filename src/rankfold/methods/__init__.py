"""Factorizations, one file each; importing the package registers all of them."""

from rankfold.methods._choices import check_choice as check_choice
from rankfold.methods._choices import chosen_blueprint as chosen_blueprint
from rankfold.methods.composition import compose as compose
from rankfold.methods.contract import Method as Method
from rankfold.methods.contract import Prepared as Prepared
from rankfold.methods.contract import Unfolds as Unfolds
from rankfold.methods.contract import check_finite as check_finite
from rankfold.methods.contract import check_ranks as check_ranks
from rankfold.methods.contract import check_supported as check_supported
from rankfold.methods.contract import get as get
from rankfold.methods.contract import prepare as prepare
from rankfold.methods.contract import registry as registry
from rankfold.methods.contract import to_canonical as to_canonical
from rankfold.methods.contract import without_autocast as without_autocast
from rankfold.methods.cp import CP as CP
from rankfold.methods.filterwise_cp import FilterwiseCP as FilterwiseCP
from rankfold.methods.qr import QR as QR
from rankfold.methods.sharing import sharing_prepared as sharing_prepared
from rankfold.methods.spatial_svd import SpatialSVD as SpatialSVD
from rankfold.methods.svd import SVD as SVD
from rankfold.methods.tt import TT as TT
from rankfold.methods.tt3 import TT3 as TT3
from rankfold.methods.ttm import TTM as TTM
from rankfold.methods.tucker import Tucker as Tucker
