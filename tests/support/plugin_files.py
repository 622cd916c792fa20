"""Plug-ins for tests: a head, a backbone, and a source of boxes, as other people write them."""

HEAD = '''
from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput


class Mean(nn.Module):
    """The mean of the pooled features, and a linear layer."""

    needs = ("pooled",)

    def __init__(self, channels, num_classes, width):
        super().__init__()
        self.first = nn.Linear(channels, width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        return HeadOutput(self.fc(self.first(clips.get("pooled").mean(1)).relu()))


def build(dims: Dims, num_classes: int, *, width: int = 8):
    dims.require("mean", *Mean.needs)
    return Mean(dims.C, num_classes, width)
'''

BACKBONE = """
from torch import nn

from pipeline.backbones import Backbone, Conv


class Block(nn.Module):
    def __init__(self, channels_in, channels):
        super().__init__()
        self.conv = Conv(channels_in, channels, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.channels, self.path = channels, (self.conv,)

    def forward(self, x):
        return self.conv(x).relu()


class Small(Backbone):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = Block(3, width), Block(width, width)

    def units(self):
        return [(("conv1",), self.conv1), (("conv2",), self.conv2)]


def build(width: int = 8) -> Backbone:
    return Small(width)
"""

BOXES = '''
import numpy as np


class Halves:
    """The whole frame and its left half."""

    frame_size = None
    in_view = False
    num_boxes = 2
    weights_sha256 = ""

    def to(self, device, precision="fp32"):
        return self

    def propose(self, frames, clip, info, numbers):
        boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1]], np.float32)
        return np.repeat(boxes[None], len(numbers), 0), np.ones((len(numbers), 2), np.float32)


def build() -> Halves:
    return Halves()
'''

# As a recipe for a tiny cache; NAME is the head's.
RECIPE = """
source = "ours"
[head]
name = "NAME"
[train]
epochs = 2
lr = 0.05
"""


def marked(source: str, mark) -> str:
    """A plug-in that leaves a line in the file `mark` whenever it is executed."""
    return f"with open({str(mark)!r}, 'a') as file:\n    file.write('ran ')\n{source}"
