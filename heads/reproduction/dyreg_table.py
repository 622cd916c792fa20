"""DyReg-GNN's Tables 5 and 6: their rows, and the sizes in which they are trained."""

from heads.reproduction.experiments import ExperimentSize, PaperRow, PaperTable

RESNET18 = {"stages": 3, "grey": True}
# Two digits that do or do not move together: an easy question.
EASY_TASK = {
    "digits": 2,
    "canvas": 128,
    "size": 64,
    "reach": 100,
    "frames": 4,
    "none_in": 2,
    # As far of the canvas as 160 pixels of 256.
    "max_distance": 80,
}
# A graph that learns from few videos.
EAGER_GRAPH = {"variant": "released", "iterations": 1, "anchors": "grid", "start": 1.0}


def _dyreg(name: str, title: str, regions: str, figure: float, table: int = 5) -> PaperRow:
    """Return a row of DyReg-GNN's Table 5 or 6; `figure` is the paper's."""
    return PaperRow(
        name,
        title,
        recipe=f"dyreg_table{table}_multisync",
        paper={"multisync": figure},
        head={"regions": regions},
        backbone="resnet18",
        backbone_options=RESNET18,
        shares_lower=True,
    )


DYREG_ROWS = (
    _dyreg("r18", "ResNet-18", "none", 52.29, table=6),
    _dyreg("fixed", "+ GNN, Fixed", "fixed", 78.85),
    _dyreg("static", "Static", "static", 81.48),
    _dyreg("semantic", "DyReg-Semantic", "semantic", 82.41, table=6),
    _dyreg("constant_time", "Ct-Time", "constant_time", 86.77),
    _dyreg("lite", "DyReg-Lite", "lite", 91.43, table=6),
    _dyreg("position_only", "Pos-Only", "position_only", 93.41),
    _dyreg("dyreg", "DyReg", "dynamic", 95.09),
)
DYREG_SIZES = (
    ExperimentSize(
        name="tiny",
        minutes=0,
        classes=3,
        videos=(12, 6, 6),
        # The pre-trained network is a part of the trunk, so there is no digit_cnn to size.
        cnn=0,
        width=4,
        trunk=4,
        epochs=1,
        batch=6,
        task=EASY_TASK,
        graph=EAGER_GRAPH,
        frozen=True,
    ),
    ExperimentSize(
        name="small",
        minutes=20,
        classes=3,
        videos=(8000, 500, 1000),
        cnn=0,
        width=32,
        trunk=16,
        epochs=8,
        task=EASY_TASK,
        graph=EAGER_GRAPH,
        frozen=True,
    ),
    ExperimentSize(
        name="middle",
        minutes=120,
        classes=3,
        videos=(6000, 500, 1000),
        cnn=0,
        width=32,
        trunk=16,
        epochs=8,
        task={"digits": 3, "reach": 40},
    ),
    ExperimentSize(
        name="large",
        minutes=1500,
        classes=5,
        videos=(20000, 1000, 2000),
        cnn=0,
        width=32,
        trunk=32,
        epochs=8,
    ),
    ExperimentSize(
        name="paper",
        minutes=100000,
        classes=10,
        videos=(600000, 10000, 10000),
        cnn=0,
        width=32,
        trunk=64,
        epochs=5,
    ),
)
DYREG = PaperTable(
    "dyreg",
    "DyReg-GNN (NeurIPS 2021), Tables 5 and 6",
    ("multisync",),
    DYREG_ROWS,
    DYREG_SIZES,
    lower="resnet18",
    lower_options={**RESNET18, "stages": 2},
)
