"""The non-local block of Wang et al. 2018: every cell of a clip looks at every other one."""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones._base import Conv, MaxPool

KINDS = ("gaussian", "dot_product")


class NonLocal(nn.Module):
    """y = x + BN(out(f(theta(x), phi(x)) g(x))) over all T·h·w cells of x [B,C,T,h,w], C/2 channels
    inside.

    kind "gaussian": f = softmax(theta phi / sqrt(C/2)), embedded Gaussian with the scale of the
    authors' release (the paper has none); "dot_product": f = theta phi / number of cells. pool: phi
    and g see x after a 1×2×2 maximum, the paper's sub-sampling. The BN starts at zero, so that the
    block is the identity at first.
    """

    def __init__(self, channels: int, kind: str = "gaussian", pool: bool = True):
        super().__init__()
        self.kind, inner = kind, channels // 2
        self.theta = Conv(channels, inner, (1, 1, 1))
        self.phi = Conv(channels, inner, (1, 1, 1))
        self.g = Conv(channels, inner, (1, 1, 1))
        self.out = Conv(inner, channels, (1, 1, 1))
        self.bn = nn.BatchNorm3d(channels)
        self.pool = MaxPool((1, 2, 2), (1, 2, 2), (0, 0, 0)) if pool else None
        nn.init.zeros_(self.bn.weight)
        for convolution in (self.theta, self.phi, self.g, self.out):
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x if self.pool is None else self.pool(x)
        # [B, cells, channels]: the layout that the maps already have in channels_last_3d.
        theta, phi, g = (
            m.flatten(2).transpose(1, 2) for m in (self.theta(x), self.phi(pooled), self.g(pooled))
        )
        if self.kind == "gaussian":
            y = F.scaled_dot_product_attention(theta, phi, g)
        else:
            y = theta @ (
                phi.transpose(1, 2) @ g / g.shape[1]
            )  # (theta phi) g regrouped: no cells × cells matrix
        y = y.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.bn(self.out(y))
