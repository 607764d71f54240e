"""Networks and data sets by name, and small weights included in rankfold.

>>> from rankfold import zoo
>>> net = zoo.create("lenet5_mnist5k", weights="bundled")
>>> zoo.entry("lenet5_mnist5k").data
'mnist5k'
"""

from rankfold.zoo.building import create as create
from rankfold.zoo.entries import ExampleInput as ExampleInput
from rankfold.zoo.entries import entry as entry
from rankfold.zoo.entries import example_input as example_input
from rankfold.zoo.entries import names as names
from rankfold.zoo.info import NetworkInfo as NetworkInfo
from rankfold.zoo.loading import DATA_SPECS as DATA_SPECS
from rankfold.zoo.loading import SPLITS as SPLITS
from rankfold.zoo.loading import data as data
