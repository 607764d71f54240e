"""The studies that reproduce a paper: a document of tables and charts."""

from rankfold.reporting.studies import content as content
from rankfold.reporting.studies.record import Amounts as Amounts
from rankfold.reporting.studies.record import Reproduction as Reproduction
from rankfold.reporting.studies.record import Study as Study
from rankfold.reporting.studies.record import Trial as Trial
