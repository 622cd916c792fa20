"""The attentive probe: learned queries read all tokens of a view.

Bardes et al., Revisiting Feature Prediction for Learning Visual Representations from Video
(V-JEPA), TMLR 2024, with one block; Assran et al., V-JEPA 2, 2025, with four blocks and 16 heads.

    x = the cells of the map at `cut`, the regions of a view, or both      [B,n,D]
    x = block(x), depth - 1 times                                          [B,n,D]
    q = pooling(queries, x)                                                [B,Q,D]
    y = W drop(mean over queries of q) + b                                 [B,K]

The blocks are in heads/papers/vjepa/probe_blocks.py. A region is a node and its place:
x = V node + U (x1, y1, x2, y2, t/T), which the papers do not have. Where D is not the number of
channels of a map, a linear layer comes before.

At ViT-L (D = 1024, depth 4) the probe has 49,336,320 parameters and 1,025 per class, as that of
transformers' port of the release (`VJEPA2AttentivePooler`).

Differs from the paper: nothing that is stated. Stated nowhere, and as we remember the release: the
norms' eps of 1e-5, and that a block's last weights start smaller by sqrt(2 × its number).
"""

import re

import torch
from torch import Tensor, nn

from heads.interface.clips import Clips, Dims, HeadOutput, MissingFields
from heads.interface.variants import SAME, at_least, one_of
from heads.papers.vjepa.probe_blocks import STD, QueryBlock, SelfBlock, initialise

READS = ("map", "nodes", "both")
MOST_HEADS = 16


class AttentiveHead(nn.Module):
    """Queries that read the tokens of a view, and the classifier.

    Args:
        cut: the cached map; "" for regions alone.
        channels: of the map and of a node; None for what is not read.
        width: D.
        depth: blocks, that of the queries included.
        heads: of every attention.
        queries: Q.
        num_classes: K.
        dropout: before the classifier.
        class_tokens: whether the field `tokens` is read too.
    """

    def __init__(
        self,
        cut: str,
        channels: dict[str, int],
        width: int,
        depth: int,
        heads: int,
        queries: int,
        num_classes: int,
        dropout: float,
        class_tokens: bool,
    ):
        super().__init__()
        self.cut, self.class_tokens = cut, class_tokens
        self.enter = nn.ModuleDict()
        for name, count in channels.items():
            self.enter[name] = nn.Identity() if count == width else nn.Linear(count, width)
        self.place = nn.Linear(5, width) if "nodes" in channels else None
        self.blocks = nn.ModuleList([SelfBlock(width, heads) for _ in range(depth - 1)])
        self.pooling = QueryBlock(width, heads)
        self.queries = nn.Parameter(torch.empty(1, queries, width))
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.queries, std=STD)
        initialise(self.blocks, self.pooling)
        nn.init.trunc_normal_(self.fc.weight, std=STD)
        nn.init.zeros_(self.fc.bias)

        self.needs: tuple[str, ...] = (cut,) if cut else ()
        if "nodes" in channels:
            self.needs += ("nodes", "boxes", "valid")
        if class_tokens:
            self.needs += ("tokens",)
        self.uses = ("grid",) if cut else ()

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the fields of `needs`, and grid [B,2] where the cache has it.
            want_maps: whether to return the map "attention" [B,Q,T,h,w] of the queries over the
                map, the mean over heads; and "node_attention" [B,Q,T,N] over regions.

        Returns:
            logits [B,K].
        """
        x, mask = self._tokens(clips)
        for block in self.blocks:
            x = block(x, mask)
        q = self.pooling(self.queries, x, mask)
        logits = self.fc(self.drop(q.mean(1)))
        if not want_maps:
            return HeadOutput(logits)
        queries = self.queries.expand(len(x), -1, -1)
        weights = self.pooling.attention.weights(queries, self.pooling.norm1(x), mask).mean(1)
        return HeadOutput(logits, maps=self._as_maps(weights.detach(), clips))

    def _tokens(self, clips: Clips) -> tuple[Tensor, Tensor | None]:
        """The tokens [B,n,D] of a view, and which of them are read [B,1,1,n] (None: all)."""
        parts, masks = [], []
        if self.cut:
            fmap = clips.get(self.cut)  # [B,T,C,h,w]
            inside = _inside(fmap, clips.grid)  # [B,T·h·w]
            cells = fmap.movedim(2, -1).flatten(1, 3)
            # Not a product with the mask: the padding may hold NaN.
            parts.append(self.enter["map"](cells.masked_fill(~inside[..., None], 0)))
            masks.append(inside)
        if self.place is not None:
            parts.append(self._regions(clips))
            masks.append(clips.get("valid").flatten(1))
        if self.class_tokens:
            tokens = clips.get("tokens").flatten(1, 2)
            parts.append(self.enter["tokens"](tokens))
            masks.append(tokens.new_ones(tokens.shape[:2], dtype=torch.bool))
        mask = torch.cat(masks, 1)
        # A view without a token reads its padding, which is all zeros: no row without an entry.
        mask = mask | ~mask.any(1, keepdim=True)
        return torch.cat(parts, 1), mask[:, None, None]

    def _regions(self, clips: Clips) -> Tensor:
        """[B,T·N,D]; padded rows are the same whatever they hold."""
        nodes, boxes, valid = (clips.get(name) for name in ("nodes", "boxes", "valid"))
        B, T, N = valid.shape
        time = torch.arange(T, device=nodes.device, dtype=nodes.dtype) / T
        place = torch.cat([boxes.to(nodes.dtype), time[:, None, None].expand(B, T, N, 1)], -1)
        padded = ~valid[..., None]
        x = self.enter["nodes"](nodes.masked_fill(padded, 0))
        return (x + self.place(place.masked_fill(padded, 0))).flatten(1, 2)

    def _as_maps(self, weights: Tensor, clips: Clips) -> dict[str, Tensor]:
        """The attention of queries [B,Q,n], over cells and over regions."""
        maps, used = {}, 0
        if self.cut:
            T, _, h, w = clips.get(self.cut).shape[1:]
            used = T * h * w
            maps["attention"] = weights[..., :used].unflatten(-1, (T, h, w))
        if self.place is not None:
            T, N = clips.get("valid").shape[1:]
            maps["node_attention"] = weights[..., used : used + T * N].unflatten(-1, (T, N))
        return maps


def _inside(fmap: Tensor, grid: Tensor | None) -> Tensor:
    """[B,T·h·w] bool: the cells of a map [B,T,C,h,w] that are no padding."""
    B, T, _, h, w = fmap.shape
    if grid is None:
        return torch.ones(B, T * h * w, dtype=torch.bool, device=fmap.device)
    rows = torch.arange(h, device=fmap.device) < grid[:, :1]  # [B,h]
    columns = torch.arange(w, device=fmap.device) < grid[:, 1:]  # [B,w]
    inside = rows[:, :, None] & columns[:, None]  # [B,h,w]
    return inside[:, None].expand(B, T, h, w).flatten(1)


def _latest(dims: Dims) -> str:
    """`last` if the cache has it, else the map of the latest cut by its name."""
    if "last" in dims.maps or not dims.maps:
        return "last"
    return max(dims.maps, key=lambda cut: [int(n) for n in re.findall(r"\d+", cut)])


def _heads_for(width: int) -> int:
    """16, or the largest power of two below that divides the width."""
    heads = MOST_HEADS
    while width % heads:
        heads //= 2
    return heads


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    reads: str = "map",
    cut: str = "",
    depth: int = 4,
    heads: int = 0,
    queries: int = 1,
    width: int = 0,
    class_tokens: bool = False,
    dropout: float = 0.0,
) -> AttentiveHead:
    """Build the head: V-JEPA 2's attentive probe.

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released", which are the same here.
        reads: "map", "nodes" (with boxes: the tokens of regions), or "both".
        cut: the map; "" is `last` where the cache has it, else the latest.
        depth: blocks, that of the queries included (V-JEPA 1, V-JEPA 2 4).
        heads: of every attention; 0 is 16 (V-JEPA 2), or less where 16 does not divide the width.
        queries: learned queries, whose outputs are averaged (1).
        width: D; 0 is the number of channels that are read.
        class_tokens: read the field `tokens` too (class and register tokens of the encoder).
        dropout: before the classifier (0).

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: an unknown value, or a width that the heads do not divide.
        MissingFields: the cache lacks what the head reads.
    """
    one_of("attentive", "variant", variant, SAME)
    one_of("attentive", "reads", reads, READS)
    at_least("attentive", 1, depth=depth, queries=queries)
    at_least("attentive", 0, heads=heads, width=width)
    channels: dict[str, int] = {}
    if reads in ("map", "both"):
        cut = cut or _latest(dims)
        dims.require("attentive", cut)
        channels["map"] = dims.maps[cut][0]
    else:
        cut = ""
    if reads in ("nodes", "both"):
        dims.require("attentive", "nodes", "boxes", "valid")
        channels["nodes"] = dims.C
    if class_tokens:
        # They are those of the last cut, and have its channels.
        if not dims.C and not cut:
            raise MissingFields("attentive", ("tokens",))
        channels["tokens"] = dims.C or channels["map"]
    width = width or next(iter(channels.values()))
    heads = heads or _heads_for(width)
    if width % heads:
        raise ValueError(
            f"head attentive: expected heads that divide the width {width}, got {heads}; the width "
            f"is that of the map unless it is given"
        )
    return AttentiveHead(
        cut, channels, width, depth, heads, queries, num_classes, dropout, class_tokens
    )
