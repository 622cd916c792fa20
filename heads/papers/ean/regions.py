"""Where EAN's transformer looks: saliency maps, tiles and boxes as weights of cells (IJCV 2022, sec. 3.3)."""

import torch
from torch import Tensor, nn

from heads.interface.masked_layers import row_normalise


class SaliencyNet(nn.Module):
    """The maps O (eq. 4): x [B,T,P,C] -> [B,T,M,P], each the softmax over the P = h w cells of its
    step.
    """

    def __init__(self, channels: int, objects: int, released: bool):
        super().__init__()
        kernels = (
            [(1, 1, 1), (3, 3, 3), (1, 3, 3), (1, 3, 3)]
            if released
            else [(1, 1, 1), (3, 1, 1), (1, 5, 5)]
        )
        inner = max(1, channels // (4 if released else 8))
        sizes = [channels, *[inner] * (len(kernels) - 1), objects]
        layers: list[nn.Module] = []
        for i, kernel in enumerate(kernels):
            layers.append(
                nn.Conv3d(sizes[i], sizes[i + 1], kernel, padding=tuple(k // 2 for k in kernel))
            )
            nn.init.kaiming_normal_(layers[-1].weight, mode="fan_out", nonlinearity="relu")
            if i < len(kernels) - 1:
                pair = [nn.BatchNorm3d(inner), nn.ReLU()]
                layers += reversed(pair) if released else pair
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        y = self.layers(x.unflatten(2, grid).movedim(-1, 1))  # [B,M,T,h,w]
        return y.flatten(3).transpose(1, 2).softmax(-1)


def tiles(count: int) -> Tensor:
    """`count` boxes [count,4] that tile the frame in equal rows and columns, as square as the
    number allows.
    """
    rows = max(k for k in range(1, count + 1) if count % k == 0 and k * k <= count)
    columns = count // rows
    corners = [
        (j / columns, i / rows, (j + 1) / columns, (i + 1) / rows)
        for i in range(rows)
        for j in range(columns)
    ]
    return torch.tensor(corners)


def coverage(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """The part of each cell that a box covers, divided by their sum: boxes [...,4] xyxy in [0,1] ->
    [...,h·w]; empty: zeros.
    """
    h, w = grid
    rows, columns = (torch.arange(n, device=boxes.device, dtype=boxes.dtype) for n in grid)
    x1, y1, x2, y2 = (side[..., None] for side in boxes.unbind(-1))
    along_y = (torch.minimum(y2 * h, rows + 1) - torch.maximum(y1 * h, rows)).clamp_min(0)
    along_x = (torch.minimum(x2 * w, columns + 1) - torch.maximum(x1 * w, columns)).clamp_min(0)
    return row_normalise((along_y[..., :, None] * along_x[..., None, :]).flatten(-2))
