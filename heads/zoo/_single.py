"""One operation of GOS on top of the backbone (CVPR 2020, Table 2): what the files gos_feat_aggr, gos_diff_prop, ... build.

logits = K [ mean over valid nodes of o(x) ; mean of y ] + k        x, y: heads/scene.py, o: heads/operations.py
"""

import torch
from torch import nn

from heads.affinity import Choices, Sizes, linear
from heads.batch import Clips, Dims, HeadOutput
from heads.layers import masked_mean
from heads.operations import new_operation
from heads.scene import REGIONS, Stem
from heads.variants import at_least, one_of


class SingleOperation(nn.Module):
    """`operation` by name; `regions`, `roi`, `roi_size`, `cut` and `width` are the stem's (heads/scene.py)."""

    def __init__(
        self,
        head: str,
        operation: str,
        dims: Dims,
        num_classes: int,
        choices: Choices,
        *,
        cut: str,
        width: int,
        roi: str,
        roi_size: int,
        regions: str,
        dropout: float,
    ):
        super().__init__()
        one_of(head, "regions", regions, REGIONS)
        at_least(head, 1, width=width, roi_size=roi_size)
        dims.require(head, *((cut, "boxes", "valid") if regions == "map" else ("pooled", "nodes", "boxes", "valid")))
        cells = dims.maps[cut][1] * dims.maps[cut][2] if regions == "map" else 0
        self.operation = new_operation(operation, Sizes(width, dims.T, dims.N, cells), choices)
        self.stem = Stem(dims, cut, width, roi, roi_size, regions, self.operation.reads)
        self.drop = nn.Dropout(dropout)
        self.fc = linear(2 * width, num_classes)
        self.needs, self.uses = self.stem.needs, self.stem.uses

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Clips with `needs` -> logits [B,K]; maps: attention, as the operation has it (heads/operations.py)."""
        x, scene, mean, _ = self.stem(clips)
        pooled = masked_mean(self.operation(x, scene), scene.valid)
        logits = self.fc(self.drop(torch.cat([pooled, mean], 1)))
        maps = {"attention": self.operation.attention(x, scene).detach()} if want_maps else {}
        return HeadOutput(logits, maps=maps)
