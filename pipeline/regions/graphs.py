"""Graphs over the nodes of a view, from its boxes and node features.

Node (t,i) is box i of step t; its flat index is t*N+i. Nothing here is learned, and nothing is
normalised: heads do that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.regions import boxes as box_geometry

GRAPHS = {
    "iou": ("iou",),
    "nearest": ("nearest",),
    "similar": ("similar", "similarity"),
}  # what is asked for -> fields stored
NEEDS = {"iou": ("boxes", "valid"), "nearest": ("nodes", "valid"), "similar": ("nodes", "valid")}


def iou_graph(boxes: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """IoU of every box with every box of the next step (STRG eq. 3 before normalisation).

    boxes [...,T,N,4] xyxy, continuous coordinates; valid [...,T,N] bool. Returns float32
    [...,T-1,N,N]; rows and columns of invalid boxes are 0. T = 1 gives an empty result.
    """
    both = valid[..., :-1, :, None] & valid[..., 1:, None, :]
    return np.where(both, box_geometry.iou(boxes[..., :-1, :, :], boxes[..., 1:, :, :]), 0).astype(
        np.float32
    )


def inner_products(nodes: Tensor, valid: Tensor) -> Tensor:
    """nodes [B,T,N,C], valid [B,T,N] -> float32 [B,T*N,T*N] of x_i·x_j; columns of invalid nodes
    are -inf.
    """
    flat = nodes.flatten(1, 2).float()
    products = flat @ flat.mT
    return products.masked_fill_(~valid.flatten(1)[:, None, :], -torch.inf)


def nearest_nodes(products: Tensor, valid: Tensor) -> Tensor:
    """For every node the one of each step with the largest inner product, itself included (GOS eq.
    4).

    products [B,T*N,T*N] of `inner_products`; valid [B,T,N]. Returns int32 [B,T,N,T] of box numbers,
    the lowest among equals. Rows of invalid nodes are 0, and so is the entry of a step without any
    valid box: `valid` tells it from box 0.
    """
    steps, count = valid.shape[1:]
    best = products.unflatten(2, (steps, count)).argmax(
        -1
    )  # the first of equals; 0 where all are -inf
    return torch.where(valid[..., None], best.unflatten(1, (steps, count)), 0).int()


def similar_nodes(products: Tensor, valid: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """For every node the `neighbours` other nodes of the view with the largest inner products, best
    first (GOS eq. 9).

    products [B,T*N,T*N] of `inner_products`, which are changed; valid [B,T,N]. Returns (int32
    [B,T,N,M] flat indices, float32 [B,T,N,M] inner products); equals in the order of their indices.
    A view with V valid nodes fills the first min(M, V-1) entries of their rows; the other entries,
    and rows of invalid nodes, are 0 in both. ValueError if M > T*N-1.
    """
    total = products.shape[1]
    require_neighbours(neighbours, total)
    products.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    # Key: the float's bits, made to order as integers do, then the index backwards. No two are
    # equal, so top-k has one answer.
    bits = (products + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    order = torch.arange(total - 1, -1, -1, device=products.device)
    best = torch.topk((bits.long() << 32) | order, neighbours).values
    index = total - 1 - (best & 0xFFFFFFFF)
    value = products.gather(2, index)
    real = torch.isfinite(value) & valid.flatten(1)[..., None]
    shape = (*valid.shape[1:], neighbours)
    return torch.where(real, index, 0).int().unflatten(1, shape[:2]), torch.where(
        real, value, 0.0
    ).unflatten(1, shape[:2])


def require_neighbours(neighbours: int, nodes: int) -> None:
    """ValueError unless a view of `nodes` nodes has `neighbours` others."""
    if not 1 <= neighbours < nodes:
        raise ValueError(
            f"neighbours: expected 1 to {nodes - 1} (a view has {nodes} nodes), got {neighbours}; "
            f"change --neighbours"
        )


@dataclass(frozen=True)
class GraphOptions:
    """Which graphs, and how many neighbours per node of `similar`. ValueError for a name that is
    not in GRAPHS.
    """

    which: tuple[str, ...] = tuple(GRAPHS)
    neighbours: int = 10

    def __post_init__(self) -> None:
        if not self.which or not set(self.which) <= set(GRAPHS):
            raise ValueError(
                f"graphs: expected some of {', '.join(GRAPHS)}, got "
                f"{', '.join(self.which) or 'none'}"
            )
        object.__setattr__(self, "which", tuple(name for name in GRAPHS if name in self.which))

    @property
    def record(self) -> dict:
        """As a shard's statistics hold it; `neighbours` says nothing where `similar` is not
        computed.
        """
        return {
            "which": list(self.which),
            "neighbours": self.neighbours if "similar" in self.which else 0,
        }


def graphs_of(
    tensors: Mapping[str, np.ndarray], options: GraphOptions, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """The graphs of a batch of views: boxes [B,T,N,4], valid [B,T,N] and nodes [B,T,N,C], as far as
    `options` needs them.
    """
    graphs = {}
    if "iou" in options.which:
        graphs["iou"] = iou_graph(tensors["boxes"], tensors["valid"])
    if set(options.which) != {"iou"}:
        valid = torch.from_numpy(tensors["valid"]).to(device)
        products = inner_products(torch.from_numpy(tensors["nodes"]).to(device), valid)
        if "nearest" in options.which:
            graphs["nearest"] = nearest_nodes(products, valid).cpu().numpy()
        if "similar" in options.which:
            index, value = similar_nodes(products, valid, options.neighbours)
            graphs |= {"similar": index.cpu().numpy(), "similarity": value.cpu().numpy()}
    return graphs
