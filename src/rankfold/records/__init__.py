"""The data that flows between the stages: frozen records, without any module or weight."""

from rankfold.records.blueprint import BiasSpec as BiasSpec
from rankfold.records.blueprint import Blueprint as Blueprint
from rankfold.records.blueprint import ConvSpec as ConvSpec
from rankfold.records.blueprint import GaugedSpec as GaugedSpec
from rankfold.records.blueprint import LinearSpec as LinearSpec
from rankfold.records.blueprint import ReshapeSpec as ReshapeSpec
from rankfold.records.blueprint import Stage as Stage
from rankfold.records.budget import Bound as Bound
from rankfold.records.budget import Budget as Budget
from rankfold.records.candidates import Candidate as Candidate
from rankfold.records.candidates import CandidateTable as CandidateTable
from rankfold.records.cost import RESOURCES as RESOURCES
from rankfold.records.cost import Cost as Cost
from rankfold.records.gauging import gauge_blueprint as gauge_blueprint
from rankfold.records.gauging import gauge_obstacle as gauge_obstacle
from rankfold.records.layer import Call as Call
from rankfold.records.layer import Inventory as Inventory
from rankfold.records.layer import LayerInfo as LayerInfo
from rankfold.records.layer import OtherModule as OtherModule
from rankfold.records.layer import Ranks as Ranks
from rankfold.records.layer import Size as Size
from rankfold.records.plan import Choice as Choice
from rankfold.records.plan import Plan as Plan
from rankfold.records.plan import Provenance as Provenance
from rankfold.records.problem import Problem as Problem
