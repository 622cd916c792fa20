"""The digit experiments of RSTG and DyReg-GNN, at a size that fits a budget of minutes.

`tables.TABLES` says what is trained, `reproduce.train_rows` trains it, and `report.write_report`
writes the measured figures beside those of the papers. Imports the rooms `interface`, `config`,
`data`, `runs`, `training` and `finetuning`.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "ExperimentSize": "experiments",
    "PaperRow": "experiments",
    "PaperTable": "experiments",
    "Pretraining": "pretraining",
    "Reproduction": "reproduce",
    "TABLES": "tables",
    "pretrain": "pretraining",
    "record": "report",
    "size_for": "experiments",
    "train_rows": "reproduce",
    "write_report": "report",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
