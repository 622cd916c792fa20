"""Where EAN's transformer looks: weights of the cells of a map.

Tian et al., EAN: Event Adaptive Network for Enhanced Action Recognition, IJCV 2022, sec. 3.2. The
weights are learned saliency maps (eq. 4), equal tiles, or boxes (Table 7).

Not stated in the paper, and chosen: the last of Saliency-Net's four layers is a 1x1x1 convolution
to M maps. Fixed regions are a grid of equal tiles (2x2 for 4). A box weighs each cell by the part
of it that the box covers.
"""

import torch
from torch import Tensor, nn

from heads.interface.masked_layers import row_normalise

# Kernels of Saliency-Net over (T, h, w).
PAPER_KERNELS = [(1, 1, 1), (3, 1, 1), (1, 5, 5), (1, 1, 1)]
RELEASED_KERNELS = [(1, 1, 1), (3, 3, 3), (1, 3, 3), (1, 3, 3)]


class SaliencyNet(nn.Module):
    """The maps O (eq. 4), each a softmax over the P = h w cells of its step.

    Args:
        channels: C of x.
        objects: M, maps per step.
        released: whether to build the released layers: other kernels and widths, and batch norm
            after the ReLU.
    """

    def __init__(self, channels: int, objects: int, released: bool):
        super().__init__()
        kernels = RELEASED_KERNELS if released else PAPER_KERNELS
        inner = max(1, channels // (4 if released else 8))
        sizes = [channels, *[inner] * (len(kernels) - 1), objects]

        layers: list[nn.Module] = []
        for i, kernel in enumerate(kernels):
            padding = tuple(k // 2 for k in kernel)
            convolution = nn.Conv3d(sizes[i], sizes[i + 1], kernel, padding=padding)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers.append(convolution)
            # The last convolution gives the logits of the softmax: no norm and no ReLU follow it.
            if i < len(kernels) - 1:
                norm = nn.BatchNorm3d(inner)
                layers += [nn.ReLU(), norm] if released else [norm, nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute the maps.

        Args:
            x: [B,T,P,C].
            grid: (h, w).

        Returns:
            O [B,T,M,P].
        """
        y = self.layers(x.unflatten(2, grid).movedim(-1, 1))  # [B,M,T,h,w]
        return y.flatten(3).transpose(1, 2).softmax(-1)


def tiles(count: int) -> Tensor:
    """Cut the frame into equal tiles, in rows and columns as square as the number allows.

    Args:
        count: how many tiles.

    Returns:
        Boxes [count,4], xyxy in [0,1].
    """
    # The largest divisor up to the square root: 6 tiles are 2 x 3, a prime number is one row.
    rows = max(k for k in range(1, count + 1) if count % k == 0 and k * k <= count)
    columns = count // rows
    corners = []
    for i in range(rows):
        for j in range(columns):
            corners.append((j / columns, i / rows, (j + 1) / columns, (i + 1) / rows))
    return torch.tensor(corners)


def coverage(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the part of each cell that a box covers, divided by their sum.

    Args:
        boxes: [...,4], xyxy in [0,1].
        grid: (h, w).

    Returns:
        [...,h w]; zeros for an empty box.
    """
    h, w = grid
    rows = torch.arange(h, device=boxes.device, dtype=boxes.dtype)
    columns = torch.arange(w, device=boxes.device, dtype=boxes.dtype)
    x1, y1, x2, y2 = boxes[..., None, :].unbind(-1)
    along_y = (torch.minimum(y2 * h, rows + 1) - torch.maximum(y1 * h, rows)).clamp_min(0)
    along_x = (torch.minimum(x2 * w, columns + 1) - torch.maximum(x1 * w, columns)).clamp_min(0)
    return row_normalise((along_y[..., :, None] * along_x[..., None, :]).flatten(-2))
