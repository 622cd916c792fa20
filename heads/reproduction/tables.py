"""What `vidgraph reproduce` trains: RSTG's Table 1 and DyReg-GNN's Tables 5 and 6."""

from heads.reproduction.dyreg_table import DYREG
from heads.reproduction.rstg_table import RSTG

TABLES = {table.name: table for table in (RSTG, DYREG)}
