"""One operation of GOS on top of the backbone (CVPR 2020, Table 2).

The files gos_feat_aggr, gos_diff_prop, gos_temp_conv, gos_back_incor and gos_node_att build it.

    z = o(x)                                                        [B,T,N,C]
    logits = K [ mean over valid nodes of z ; mean of y ] + k       [B,K]

The operations o are in heads/papers/gos/operations.py, x and y in
heads/papers/gos/operation_inputs.py.

Differs from the paper: as those files say.
"""

from typing import Any

import torch
from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import masked_mean
from heads.interface.variants import at_least, one_of, resolve
from heads.papers.gos.affinity import (
    FURTHER,
    VARIANTS,
    Operation,
    OperationSizes,
    linear,
    operation_choices,
)
from heads.papers.gos.operation_inputs import REGIONS, NodeStem
from heads.papers.gos.operations import new_operation


class SingleOperation(nn.Module):
    """An operation between the stem and a classifier.

    Args:
        stem: makes the nodes and what the operation reads.
        operation: the operation.
        width: C of the nodes.
        classes: K.
        dropout: before the classifier.
    """

    def __init__(
        self, stem: NodeStem, operation: Operation, width: int, classes: int, dropout: float
    ):
        super().__init__()
        self.stem, self.operation = stem, operation
        self.drop = nn.Dropout(dropout)
        self.fc = linear(2 * width, classes)
        self.needs, self.uses = stem.needs, stem.uses

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the fields of `needs`.
            want_maps: whether to return the operation's `attention`.

        Returns:
            logits [B,K].
        """
        x, inputs, mean, _ = self.stem(clips)
        pooled = masked_mean(self.operation(x, inputs), inputs.valid)
        logits = self.fc(self.drop(torch.cat([pooled, mean], 1)))

        maps = {}
        if want_maps:
            maps["attention"] = self.operation.attention(x, inputs).detach()
        return HeadOutput(logits, maps=maps)


def single_operation(
    head: str,
    dims: Dims,
    num_classes: int,
    variant: str,
    decided: dict[str, str],
    chosen: dict[str, Any],
    *,
    cut: str,
    width: int,
    roi_size: int,
    regions: str,
    dropout: float,
) -> SingleOperation:
    """Build the head gos_OPERATION.

    Args:
        head: its name, which names the operation too.
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released".
        decided: options that the variant decides where they are "": `roi`, `similarity` and those
            of the operation.
        chosen: the operation's other options, by their names in `operation_choices`.
        cut: the map.
        width: C.
        roi_size: bins per side of RoIAlign.
        regions: "map" or "nodes".
        dropout: before the classifier.

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: a value that an option cannot have.
        MissingFields: the cache lacks what the head needs.
    """
    one_of(head, "regions", regions, REGIONS)
    at_least(head, 1, width=width, roi_size=roi_size)
    decided = resolve(head, VARIANTS, variant, decided, FURTHER)
    roi = decided.pop("roi")
    choices = operation_choices(head, decided, **chosen)

    # back_incor has a weight per cell, so it is built for one grid.
    cells = 0
    if regions == "map":
        dims.require(head, cut, "boxes", "valid")
        _, h, w = dims.maps[cut]
        cells = h * w
    else:
        dims.require(head, "pooled", "nodes", "boxes", "valid")

    sizes = OperationSizes(width, dims.T, dims.N, cells)
    operation = new_operation(head.removeprefix("gos_"), sizes, choices)
    stem = NodeStem(dims, cut, width, roi, roi_size, regions, operation.reads)
    return SingleOperation(stem, operation, width, num_classes, dropout)
