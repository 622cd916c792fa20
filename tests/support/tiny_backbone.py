"""Narrow backbones and small frames for the tests of backbones, checkpoints and freezing.

Their batch norms have statistics far from those of the identity.
"""

import torch
from torch import nn

from pipeline.backbones import build_backbone

NAMES = (
    *("c2d_r50", "digit_cnn", "digit_i3d", "digit_nl", "ean_r50", "i3d_r101", "i3d_r101_nl"),
    *("i3d_r50", "i3d_r50_nl", "resnet18", "tsm_r18", "tsm_r50"),
)


def tiny(name, seed=0, width=8, **options):
    """The backbone `name` in evaluation mode, with batch norms as after some training."""
    torch.manual_seed(seed)
    return lively(build_backbone(name, width=width, **options)).eval()


def lively(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


def frames(batch=1, length=8, height=48, width=40, seed=0):
    """Random RGB frames uint8 [B,F,H,W,3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 256, (batch, length, height, width, 3), dtype=torch.uint8, generator=generator
    )


def relative(a, b):
    """The largest difference over the largest value."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())
