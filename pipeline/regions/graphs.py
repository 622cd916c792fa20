"""Graphs over the nodes of a view, from its boxes and node features.

Node (t,i) is box i of step t; its flat index is t*N+i. Nothing here is learned, and nothing is
normalised: heads do that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.regions.boxes import iou
from pipeline.regions.tracks import link_tracks

# Name of a graph -> the fields that a cache stores for it.
GRAPHS = {"iou": ("iou",), "nearest": ("nearest",), "similar": ("similar", "similarity")}
# Name of a graph -> the fields that it is computed from.
NEEDS = {"iou": ("boxes", "valid"), "nearest": ("nodes", "valid"), "similar": ("nodes", "valid")}


def iou_graph(boxes: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the IoU of every box with every box of the next step.

    STRG, eq. 3 before normalisation.

    Args:
        boxes: [...,T,N,4] xyxy, continuous coordinates.
        valid: [...,T,N] bool.

    Returns:
        float32 [...,T-1,N,N]; rows and columns of invalid boxes are 0. Empty for T = 1.
    """
    both = valid[..., :-1, :, None] & valid[..., 1:, None, :]
    overlap = iou(boxes[..., :-1, :, :], boxes[..., 1:, :, :])
    return np.where(both, overlap, 0).astype(np.float32)


def iou_of_tensors(boxes: Tensor, valid: Tensor) -> Tensor:
    """Return what `iou_graph` returns, computed where the boxes are.

    Args:
        boxes: [...,T,N,4] xyxy, continuous coordinates.
        valid: [...,T,N] bool.

    Returns:
        float32 [...,T-1,N,N], equal to that of `iou_graph` bit for bit on a CPU.
    """
    a, b = boxes[..., :-1, :, :], boxes[..., 1:, :, :]
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    sides = (high - low).clamp(min=0)  # [...,T-1,N,N,2]
    intersection = sides[..., 0] * sides[..., 1]

    extents = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    areas = extents[..., 0] * extents[..., 1]
    union = areas[..., :-1, :, None] + areas[..., 1:, None, :] - intersection
    both = valid[..., :-1, :, None] & valid[..., 1:, None, :]
    return torch.where(both & (union > 0), intersection / union, 0).float()


def inner_products(nodes: Tensor, valid: Tensor) -> Tensor:
    """Return the inner products of all pairs of nodes.

    Args:
        nodes: [B,T,N,C].
        valid: [B,T,N] bool.

    Returns:
        float32 [B,T*N,T*N]; columns of invalid nodes are -inf.
    """
    flat = nodes.flatten(1, 2).float()
    products = flat @ flat.mT
    return products.masked_fill_(~valid.flatten(1)[:, None, :], -torch.inf)


def nearest_nodes(products: Tensor, valid: Tensor) -> Tensor:
    """Return for every node the node of each step with the largest inner product.

    GOS, eq. 4. In its own step, a node may be its own nearest node.

    Args:
        products: [B,T*N,T*N] of `inner_products`.
        valid: [B,T,N] bool.

    Returns:
        int32 [B,T,N,T], box numbers; the lowest among equals. Rows of invalid nodes are 0, and
        so are the entries of steps without a valid box: `valid` tells them from box 0.
    """
    steps, count = valid.shape[1:]
    # argmax takes the first of equals, and 0 where all are -inf.
    best = products.unflatten(2, (steps, count)).argmax(-1)
    return torch.where(valid[..., None], best.unflatten(1, (steps, count)), 0).int()


def similar_nodes(products: Tensor, valid: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return for every node the other nodes of the view with the largest inner products.

    GOS, eq. 9. A view with V valid nodes fills the first min(M, V-1) entries of their rows. The
    other entries, and rows of invalid nodes, are 0 in both results.

    Args:
        products: [B,T*N,T*N] of `inner_products`; overwritten.
        valid: [B,T,N] bool.
        neighbours: M, at most T*N-1.

    Returns:
        int32 [B,T,N,M], flat indices, best first, equals by index; float32 [B,T,N,M], the inner
        products.

    Raises:
        ValueError: too many neighbours.
    """
    total = products.shape[1]
    require_neighbours(neighbours, total)
    products.diagonal(dim1=1, dim2=2).fill_(-torch.inf)

    # The sorting key: the bits of the float, changed to sort as integers do, then the index
    # backwards. No two keys are equal, so top-k has one answer on every device.
    bits = (products + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    backwards = torch.arange(total - 1, -1, -1, device=products.device)
    best = torch.topk((bits.long() << 32) | backwards, neighbours).values
    index = total - 1 - (best & 0xFFFFFFFF)

    value = products.gather(2, index)
    real = torch.isfinite(value) & valid.flatten(1)[..., None]
    index = torch.where(real, index, 0).int()
    value = torch.where(real, value, 0.0)
    return index.unflatten(1, valid.shape[1:]), value.unflatten(1, valid.shape[1:])


def require_neighbours(neighbours: int, nodes: int) -> None:
    """Raise ValueError unless each of `nodes` nodes of a view has `neighbours` others."""
    if not 1 <= neighbours < nodes:
        raise ValueError(
            f"neighbours: expected 1 to {nodes - 1} (a view has {nodes} nodes), got {neighbours}; "
            "change --neighbours"
        )


@dataclass(frozen=True)
class GraphOptions:
    """Which graphs to compute.

    Attributes:
        which: names in GRAPHS; stored in the order of GRAPHS.
        neighbours: neighbours per node in the graph "similar".
        tracks: whether boxes are linked over time, as `pipeline.regions.tracks` does.

    Raises:
        ValueError: no name, or one that is not in GRAPHS.
    """

    which: tuple[str, ...] = tuple(GRAPHS)
    neighbours: int = 10
    tracks: bool = False

    def __post_init__(self) -> None:
        if not (self.which or self.tracks) or not set(self.which) <= set(GRAPHS):
            raise ValueError(
                f"graphs: expected some of {', '.join(GRAPHS)}, got "
                f"{', '.join(self.which) or 'none'}"
            )
        object.__setattr__(self, "which", tuple(name for name in GRAPHS if name in self.which))

    @property
    def record(self) -> dict:
        """The options in a shard's record; `neighbours` is 0 where "similar" is not computed."""
        neighbours = self.neighbours if "similar" in self.which else 0
        record = {"which": list(self.which), "neighbours": neighbours}
        # Records without tracks stay as they were before there were any.
        return record | {"tracks": True} if self.tracks else record


def graphs_of(
    tensors: Mapping[str, np.ndarray], options: GraphOptions, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Compute the graphs of a batch of views.

    Args:
        tensors: boxes [B,T,N,4], valid [B,T,N] and nodes [B,T,N,C], those that NEEDS lists. For
            tracks boxes and valid, and nodes and box_class [B,T,N] if there are any.
        options: which graphs.
        device: where to compute inner products.

    Returns:
        Field -> array, see GRAPHS and the functions above.
    """
    graphs = {}
    if options.tracks:
        optional = [tensors.get("nodes"), tensors.get("box_class")]
        tracks = []
        for k, boxes in enumerate(tensors["boxes"]):
            known = [None if array is None else array[k] for array in optional]
            tracks.append(link_tracks(boxes, tensors["valid"][k], *known))
        graphs["track"] = np.stack(tracks)
    if "iou" in options.which:
        graphs["iou"] = iou_graph(tensors["boxes"], tensors["valid"])
    others = tuple(name for name in options.which if name != "iou")
    if others:
        there = {}
        for name in ("valid", "nodes"):
            there[name] = torch.from_numpy(tensors[name]).to(device)
        found = graphs_of_tensors(there, GraphOptions(others, options.neighbours))
        graphs |= {name: tensor.cpu().numpy() for name, tensor in found.items()}
    return graphs


def graphs_of_tensors(tensors: Mapping[str, Tensor], options: GraphOptions) -> dict[str, Tensor]:
    """Compute the graphs of a batch of views where the tensors are.

    Args:
        tensors: boxes [B,T,N,4], valid [B,T,N] and nodes [B,T,N,C], those that NEEDS lists.
        options: which graphs.

    Returns:
        Field -> tensor, see GRAPHS and the functions above.
    """
    valid = tensors["valid"]
    graphs = {}
    if "iou" in options.which:
        graphs["iou"] = iou_of_tensors(tensors["boxes"], valid)
    if set(options.which) == {"iou"}:
        return graphs

    # Half precision is too coarse to compare nodes with.
    with torch.autocast(valid.device.type, enabled=False):
        products = inner_products(tensors["nodes"], valid)
    # `similar_nodes` overwrites the products, so it comes last.
    if "nearest" in options.which:
        graphs["nearest"] = nearest_nodes(products, valid)
    if "similar" in options.which:
        index, value = similar_nodes(products, valid, options.neighbours)
        graphs |= {"similar": index, "similarity": value}
    return graphs
