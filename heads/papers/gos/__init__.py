"""GOS, Adaptive Interaction Modeling via Graph Operations Search (CVPR 2020).

    operation_inputs    nodes, background and layout of a view, and the stem that makes them
    affinity            the table of what paper and release do differently; affinities
    operations          the graph operations; neighbours: those that choose neighbours
    cell                the searched cell and its structure

`heads.zoo.gos` is the searched head, `heads.zoo.gos_*` are heads of one operation.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "Cell": "cell",
    "NodeStem": "operation_inputs",
    "OperationChoices": "affinity",
    "OperationInputs": "operation_inputs",
    "OperationSizes": "affinity",
    "Structure": "cell",
    "new_operation": "operations",
}

__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
