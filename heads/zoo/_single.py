"""One operation of GOS on top of the backbone (CVPR 2020, Table 2): what the files gos_feat_aggr,
gos_diff_prop, ... build.

    o(x)                                                        [B,T,N,C]
    heads/papers/gos/operations.py; x and y: heads/papers/gos/operation_inputs.py
    logits = K [ mean over valid nodes of o(x) ; mean of y ] + k    [B,K]

Differs from the paper: as the files that build it say.
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
    OperationChoices,
    OperationSizes,
    linear,
)
from heads.papers.gos.operation_inputs import REGIONS, NodeStem
from heads.papers.gos.operations import new_operation


class SingleOperation(nn.Module):
    """An operation between the stem and a classifier of `classes`; see the top of this file."""

    def __init__(
        self, stem: NodeStem, operation: Operation, width: int, classes: int, dropout: float
    ):
        super().__init__()
        self.stem, self.operation = stem, operation
        self.drop = nn.Dropout(dropout)
        self.fc = linear(2 * width, classes)
        self.needs, self.uses = stem.needs, stem.uses

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Clips with `needs` -> logits [B,K]; maps: attention, as the operation has it
        (heads/papers/gos/operations.py).
        """
        x, scene, mean, _ = self.stem(clips)
        pooled = masked_mean(self.operation(x, scene), scene.valid)
        logits = self.fc(self.drop(torch.cat([pooled, mean], 1)))
        maps = {"attention": self.operation.attention(x, scene).detach()} if want_maps else {}
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
    """The head gos_OPERATION for views of `dims`.

    `decided`: `roi` of the stem and the options of the operation that `variant` decides where they
    are ""; `chosen`: its other options, by their names in `OperationChoices`. The rest is the stem's
    (heads/papers/gos/operation_inputs.py) and the classifier's.
    """
    one_of(head, "regions", regions, REGIONS)
    at_least(head, 1, width=width, roi_size=roi_size)
    decided = resolve(head, VARIANTS, variant, decided, FURTHER)
    roi = decided.pop("roi")
    choices = OperationChoices(head, **decided, **chosen)
    dims.require(
        head,
        *((cut, "boxes", "valid") if regions == "map" else ("pooled", "nodes", "boxes", "valid")),
    )
    cells = dims.maps[cut][1] * dims.maps[cut][2] if regions == "map" else 0
    operation = new_operation(
        head.removeprefix("gos_"), OperationSizes(width, dims.T, dims.N, cells), choices
    )
    stem = NodeStem(dims, cut, width, roi, roi_size, regions, operation.reads)
    return SingleOperation(stem, operation, width, num_classes, dropout)
