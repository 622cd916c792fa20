"""What GOS's operations have in common: the choices between paper and released code, the affinity
of two sets of nodes.

Li et al., Adaptive Interaction Modeling via Graph Operations Search, CVPR 2020, sec. 3.2; the
operations and the letters are in heads/papers/gos/operations.py.

    x^ = x / |x|,  A_ij = x^_i^T U y^_j,  U = 1 at first          affinity
    act(z) = LeakyReLU_0.01(LayerNorm_C(z))

Where the paper and its released code differ (`VARIANTS`); every entry is an option of its own:

    option       paper                                         released
    affinity     full: U a C x C matrix                        diagonal: U's diagonal alone is read,
                 the rest gets no gradient
    kernel       full: C -> C channels                         depthwise
    padding      same: T positions                             valid: T - 6
    nearest      inner: largest x_i . x_j                      affinity: largest A_ij (a choice,
                 which gives U no gradient)
    attention    top: the M most similar other nodes and       all: the cosines to all n nodes in
                 their order, and the node's
                 their (cx, cy, t) minus the node's own        own layout; built for one n
    background   raw: V reads A itself                         raw ("softmax": V reads P)
    roi          aligned: torchvision's, then the mean         old: one sample per bin, 0 outside
                 the map
    alpha_input  backbone: g = mean of the map [2048]          reduced: g = mean of V [256]
    diversity_on raw: alpha summed over the edges              softmax: w summed over the edges,
    none and skip included
    classifier   nodes                                         nodes_global: beside them the mean of
                 V

Differs from the paper: nodes of length 0 have affinity 0. Not stated in the paper: that affinities
see x^, and the slope 0.01.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.variants import at_least, one_of

VARIANTS = {
    "paper": {
        "affinity": "full",
        "kernel": "full",
        "padding": "same",
        "nearest": "inner",
        "attention": "top",
        "background": "raw",
        "roi": "aligned",
        "alpha_input": "backbone",
        "diversity_on": "raw",
        "classifier": "nodes",
    },
    "released": {
        "affinity": "diagonal",
        "kernel": "depthwise",
        "padding": "valid",
        "nearest": "affinity",
        "attention": "all",
        "background": "raw",
        "roi": "old",
        "alpha_input": "reduced",
        "diversity_on": "softmax",
        "classifier": "nodes_global",
    },
}
FURTHER = {"background": ("softmax",)}  # what neither variant takes


@dataclass(frozen=True)
class OperationChoices:
    """How operations are computed: the table at the top, and `neighbours` ("live", "cached"),
    `scale`, the factor 5 before a softmax, `normalise`, whether affinities see x^ or x, `top`, M of
    node_att, `taps`, the length of the temporal kernel, and `skip_dropout`. `head` is named in
    errors. ValueError for values out of range.
    """

    head: str
    affinity: str = "full"
    kernel: str = "full"
    padding: str = "same"
    nearest: str = "inner"
    attention: str = "top"
    background: str = "raw"
    neighbours: str = "live"
    scale: float = 5.0
    normalise: bool = True
    top: int = 10
    taps: int = 7
    skip_dropout: float = 0.5

    def __post_init__(self) -> None:
        one_of(self.head, "neighbours", self.neighbours, ("live", "cached"))
        at_least(self.head, 1, top=self.top, taps=self.taps)
        if self.padding == "same" and self.taps % 2 == 0:
            raise ValueError(
                f"head {self.head}, option taps: expected an odd number with padding='same', got "
                f"{self.taps}"
            )


@dataclass(frozen=True)
class OperationSizes:
    """What an operation is built for: `channels` C, `steps` T, `nodes` N per frame, `cells` G (0:
    there is no background).
    """

    channels: int
    steps: int
    nodes: int
    cells: int = 0


class Operation(nn.Module):
    """A module `operation(x, scene)`, nodes [B,T,N,C] -> [B,T,N,C].

    `reads` names what it takes from the scene: "y", "layout", "nearest", "similar". The five
    operations of the paper also have `attention(x, scene)`, which a person may look at: who listens
    to whom, or how much a node counts.
    """

    reads: tuple[str, ...] = ()


class BilinearAffinity(nn.Module):
    """A_ij = x_i^T U y_j of features that `features` made ready. U [C,C] is whole in both forms, as
    the paper counts it.
    """

    def __init__(self, channels: int, choices: OperationChoices):
        super().__init__()
        self.U = nn.Parameter(torch.eye(channels))
        self.diagonal, self.normalise = choices.affinity == "diagonal", choices.normalise

    def features(self, x: Tensor) -> Tensor:
        return unit(x) if self.normalise else x

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [...,n,C], y [...,m,C] -> [...,n,m]."""
        U = self.U.to(x.dtype)
        return (x * U.diagonal() if self.diagonal else x @ U) @ y.mT


def unit(x: Tensor) -> Tensor:
    """x / |x| along the last axis; a zero vector stays zero, with a gradient that is finite."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 1e-12, norm, 1)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer as GOS starts it: Kaiming-normal weights (fan in, gain sqrt 2), zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def activated(norm: nn.LayerNorm, z: Tensor) -> Tensor:
    """act(z) at the top of this file."""
    return F.leaky_relu(
        norm(z), 0.01, inplace=True
    )  # in place: the norm's gradient needs its input, not its output
