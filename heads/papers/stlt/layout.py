"""STLT: a transformer over the boxes of each step, then one over the steps.

    e_i^t = LN(E class + W box (+ w score)), e_0^t for the whole frame                  [B,T,1+N,D]
    l^t = token 0 of blocks over e^t                                                    [B,T,D]
    z^t = LN(l^t + P_t + Q kind of step)                                                [B,T+1,D]
    y = the last step of blocks over z, in which a step reads those before it alone     [B,T+1,D]

Step T+1, "extract", has no boxes: y there is the view's feature.
"""

import torch
from torch import Tensor, nn

from heads.papers.stlt.blocks import Block

# Of every norm outside the transformers' blocks, as in the release.
EPS = 1e-12
# Kinds of a step: with boxes, without one, and the one that is added.
REGULAR, EMPTY, EXTRACT = range(3)


class Boxes(nn.Module):
    """A token for each box, and one for the whole frame.

    Args:
        kinds: how many classes boxes have.
        scores: whether tokens know their scores.
        width: D.
        dropout: on tokens.
        start: a factor of the first embeddings of classes.
    """

    def __init__(self, kinds: int, scores: bool, width: int, dropout: float, start: float = 1.0):
        super().__init__()
        # Row 0, which stays 0, is for boxes without a class; the last row is the whole frame.
        self.kind = nn.Embedding(kinds + 2, width, padding_idx=0)
        with torch.no_grad():
            self.kind.weight.mul_(start)
        self.place = nn.Linear(4, width)
        self.score = nn.Linear(1, width) if scores else None
        self.norm, self.drop = nn.LayerNorm(width, eps=EPS), nn.Dropout(dropout)

    def forward(self, boxes: Tensor, kinds: Tensor, scores: Tensor | None) -> Tensor:
        """Make tokens.

        Args:
            boxes: [B,T,N,4], xyxy in [0,1].
            kinds: int64 [B,T,N], the number of the class plus 1, 0 for none.
            scores: [B,T,N], if tokens know them.

        Returns:
            [B,T,1+N,D].
        """
        # No constant from the host: a GPU would be waited for.
        corner = torch.zeros_like(boxes[:, :, :1, :2])
        boxes = torch.cat([torch.cat([corner, corner + 1], -1), boxes], 2)
        kinds = nn.functional.pad(kinds, (1, 0), value=self.kind.num_embeddings - 1)
        x = self.kind(kinds) + self.place(boxes)
        if self.score is not None:
            x = x + self.score(nn.functional.pad(scores, (1, 0), value=1.0)[..., None])
        return self.drop(self.norm(x))


class Layout(nn.Module):
    """The layout branch.

    Args:
        kinds: how many classes boxes have.
        scores: whether boxes have scores.
        frames: the most steps, "extract" included.
        width: D.
        heads: of every attention.
        depths: blocks over boxes, blocks over steps.
        dropout: everywhere.
        start: a factor of the first embeddings of classes.
    """

    def __init__(
        self,
        kinds: int,
        scores: bool,
        frames: int,
        width: int,
        heads: int,
        depths: tuple[int, int],
        dropout: float,
        start: float = 1.0,
    ):
        super().__init__()
        spatial, temporal = depths
        self.boxes = Boxes(kinds, scores, width, dropout, start)
        self.spatial = nn.ModuleList([Block(width, heads, dropout) for _ in range(spatial)])
        self.position = nn.Embedding(frames, width)
        self.kind = nn.Embedding(3, width)
        self.norm, self.drop = nn.LayerNorm(width, eps=EPS), nn.Dropout(dropout)
        self.temporal = nn.ModuleList([Block(width, heads, dropout) for _ in range(temporal)])

    def forward(
        self, boxes: Tensor, valid: Tensor, kinds: Tensor, scores: Tensor | None = None
    ) -> Tensor:
        """Read the boxes of B views.

        Args:
            boxes: [B,T,N,4], xyxy in [0,1].
            valid: bool [B,T,N].
            kinds: int64 [B,T,N], the number of the class plus 1, 0 for none.
            scores: [B,T,N].

        Returns:
            [B,T+1,D]; the last step is the view's.

        Raises:
            ValueError: more steps than there are positions.
        """
        if boxes.shape[1] >= self.position.num_embeddings:
            raise ValueError(
                f"head stlt: expected at most {self.position.num_embeddings - 1} steps, got "
                f"{boxes.shape[1]}; raise the option frames"
            )
        # Padded rows hold anything, and the step that is added has none.
        boxes = _one_more(boxes.masked_fill(~valid[..., None], 0))
        kinds = _one_more(kinds.masked_fill(~valid, 0))
        if scores is not None:
            scores = _one_more(scores.masked_fill(~valid, 0))
        valid = _one_more(valid)

        x = self.boxes(boxes, kinds, scores).flatten(0, 1)  # [B(T+1),1+N,D]
        read = nn.functional.pad(valid, (1, 0), value=True).flatten(0, 1)
        for block in self.spatial:
            x = block(x, read[:, None, None])
        x = x[:, 0].unflatten(0, valid.shape[:2])  # [B,T+1,D]

        kind = torch.where(valid.any(-1), REGULAR, EMPTY)
        kind = torch.cat([kind[:, :-1], torch.full_like(kind[:, :1], EXTRACT)], 1)
        steps = x.shape[1]
        x = x + self.position.weight[:steps] + self.kind(kind)
        x = self.drop(self.norm(x))
        for block in self.temporal:
            x = block(x, causal(steps, x.device))
        return x


def causal(steps: int, device: torch.device) -> Tensor:
    """Return bool [n,n]: step i reads steps up to i."""
    return torch.ones(steps, steps, dtype=torch.bool, device=device).tril()


def _one_more(x: Tensor) -> Tensor:
    """[B,T,...] -> [B,T+1,...], with zeros in the last step."""
    return torch.cat([x, torch.zeros_like(x[:, :1])], 1)
