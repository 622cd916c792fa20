"""The non-local block (Wang et al., CVPR 2018): every cell of a clip looks at every other one.

    y = x + BN(out(Σ_j f(x_i, x_j) g(x_j)))        eq. 1 and 6, over all T·h·w cells
    "gaussian":    f = softmax_j(θ(x_i)·φ(x_j) / √(C/2))    eq. 3 (embedded Gaussian)
    "dot_product": f = θ(x_i)·φ(x_j) / number of cells      eq. 4

θ, φ, g: 1×1×1 convolutions to C/2 channels (sec. 3.3). From the authors' released code, not from
the paper: the factor 1/√(C/2), the biases, and normal weights of standard deviation 0.01. Where
that code freezes norms, the block has none, and `out` starts at 0.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones._layers import Conv, MaxPool

KINDS = ("gaussian", "dot_product")


class NonLocal(nn.Module):
    """A non-local block on maps [B,C,T,h,w], which is the identity at first.

    Args:
        channels: C; C/2 inside.
        kind: "gaussian" or "dot_product".
        pool: let φ and g see x after a 1×2×2 maximum, the paper's sub-sampling (sec. 3.3).
    """

    def __init__(self, channels: int, kind: str = "gaussian", pool: bool = True):
        super().__init__()
        self.kind, inner = kind, channels // 2
        self.theta = Conv(channels, inner, (1, 1, 1))
        self.phi = Conv(channels, inner, (1, 1, 1))
        self.g = Conv(channels, inner, (1, 1, 1))
        self.out = Conv(inner, channels, (1, 1, 1))
        self.bn = nn.BatchNorm3d(channels)
        self.pool = None
        if pool:
            self.pool = MaxPool((1, 2, 2), (1, 2, 2), (0, 0, 0))
        # The norm starts at zero, so the block starts as the identity (sec. 4.1 of the paper).
        nn.init.zeros_(self.bn.weight)
        for convolution in (self.theta, self.phi, self.g, self.out):
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(convolution.bias)

    @property
    def is_identity(self) -> bool:
        """Whether the norm's scale is still 0 everywhere.

        Only the norm has a gradient then. Where norms are frozen, that of such a block must be
        trained, or the block stays the identity.
        """
        scale = self.bn.weight
        # A network on the device "meta", which is built to be counted, has no values.
        return not scale.is_meta and not scale.any()

    def forward(self, x: Tensor) -> Tensor:
        """Add to every cell what it finds in all others.

        Args:
            x: [B,C,T,h,w].

        Returns:
            [B,C,T,h,w].
        """
        pooled = x
        if self.pool is not None:
            pooled = self.pool(x)
        # [B,cells,C/2]: in channels_last_3d the maps lie in this order already.
        theta = self.theta(x).flatten(2).transpose(1, 2)
        phi = self.phi(pooled).flatten(2).transpose(1, 2)
        g = self.g(pooled).flatten(2).transpose(1, 2)

        if self.kind == "gaussian":
            # With an axis for one head: the fused kernels of CUDA want four axes.
            heads = (theta[:, None], phi[:, None], g[:, None])
            y = F.scaled_dot_product_attention(*heads)[:, 0]
        else:
            # (θ φᵀ) g as θ (φᵀ g): there is no matrix of cells × cells.
            y = theta @ (phi.transpose(1, 2) @ g / g.shape[1])
        y = y.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.bn(self.out(y))
