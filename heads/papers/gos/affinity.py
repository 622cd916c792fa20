"""What GOS's operations have in common: their choices, and the affinity of two sets of nodes.

Li et al., Adaptive Interaction Modeling via Graph Operations Search, CVPR 2020, sec. 3.2. The
operations and the letters are in heads/papers/gos/operations.py.

    A_ij = x_i^T U y_j,  U = 1 at first                       affinity
    P = softmax_j(A)                                          its rows, which sum to 1
    act(z) = LeakyReLU_0.01(LayerNorm_C(z))                   supplement

Where the paper and its released code differ (`VARIANTS`), each row is an option of its own:

    option        value       meaning
    similarity    inner       paper: A and P as above
                  cosine      release: A sees x^ = x / |x|, and P is softmax(5 A)
    affinity      full        paper: U is a C x C matrix
                  diagonal    release: only U's diagonal is read, the rest gets no gradient
    kernel        full        paper: C -> C channels
                  depthwise   release
    padding       same        paper: T positions
                  valid       release: T - 6
    nearest       inner       paper: largest x_i . x_j; in its own frame, the node itself
                  affinity    release: largest A_ij (a hard choice, so that U gets no gradient)
    attention     top         paper: similarities to the M most similar other nodes, in this order,
                              and the differences of their places s = (cx, cy, t)
                  all         release: cosines to all n nodes and the node's layout; built for one n
    offset        from_neighbour
                              paper: the difference is s_i - s_j
                  to_neighbour
                              neither on its own: s_j - s_i, with attention "top"
    background    raw         both: V reads A itself
                  softmax     neither: V reads P
    roi           aligned     paper: torchvision's RoIAlign, then the mean
                  old         release: one sample per bin, 0 outside the map
    alpha_input   backbone    paper: g is the mean of the map [2048]
                  reduced     release: g is the mean of V [256]
    diversity_on  raw         paper: alpha summed over the edges
                  softmax     release: w summed over the edges, none and skip included
    classifier    nodes       paper
                  nodes_global
                              release: also the mean of V

Differs from the paper: with cosines, nodes of length 0 have affinity 0. Not stated in the paper:
that rows are normalised by a softmax, and the slope 0.01.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.variants import at_least, one_of, resolve

VARIANTS = {
    "paper": {
        "similarity": "inner",
        "affinity": "full",
        "kernel": "full",
        "padding": "same",
        "nearest": "inner",
        "attention": "top",
        "offset": "from_neighbour",
        "background": "raw",
        "roi": "aligned",
        "alpha_input": "backbone",
        "diversity_on": "raw",
        "classifier": "nodes",
    },
    "released": {
        "similarity": "cosine",
        "affinity": "diagonal",
        "kernel": "depthwise",
        "padding": "valid",
        "nearest": "affinity",
        "attention": "all",
        "offset": "to_neighbour",
        "background": "raw",
        "roi": "old",
        "alpha_input": "reduced",
        "diversity_on": "softmax",
        "classifier": "nodes_global",
    },
}
# Values that neither variant takes, but a user may.
FURTHER = {"background": ("softmax",)}
# Those that operations read; the others are of the searched head and its stem.
OPERATION_OPTIONS = (
    "similarity",
    "affinity",
    "kernel",
    "padding",
    "nearest",
    "attention",
    "offset",
    "background",
)
# What variant "paper" computed before version 2, for `CHANGES` of the heads.
PAPER_CHANGE = (
    "variant='paper' compared nodes by 5 times their cosines, let a longer node of the own frame "
    "stand for a node (eq. 4) and had s_j - s_i in eq. (9), and now has plain inner products, the "
    "node itself and s_i - s_j"
)


def paper_change_affects(options: Mapping[str, Any]) -> bool:
    """Return whether `PAPER_CHANGE` concerns a head with these options, defaults filled in."""
    given = {}
    for name in ("similarity", "nearest", "attention", "offset"):
        # A head of one operation has only the options that this one reads.
        if name in options:
            given[name] = options[name]
    values = resolve("gos", VARIANTS, options["variant"], given, FURTHER)
    if values.get("similarity") == "inner" or values.get("nearest") == "inner":
        return True
    places = values.get("attention"), values.get("offset")
    return places == ("top", "from_neighbour")


# The factor before a softmax of affinities, by `similarity`.
SCALES = {"inner": 1.0, "cosine": 5.0}


@dataclass(frozen=True)
class OperationChoices:
    """How operations are computed.

    Attributes:
        head: the head's name, for messages.
        affinity, kernel, padding, nearest, attention, offset, background: see the top of this
            file.
        neighbours: "live" chooses neighbours among the nodes at hand, "cached" takes those that
            stage two found.
        scale: the factor before a softmax of affinities.
        normalise: whether affinities see x^ (similarity "cosine") or x ("inner").
        top: M of node_att.
        taps: the length of the temporal kernel.
        skip_dropout: dropout of the operation skip.

    Raises:
        ValueError: a value out of range.
    """

    head: str
    affinity: str = "full"
    kernel: str = "full"
    padding: str = "same"
    nearest: str = "inner"
    attention: str = "top"
    offset: str = "to_neighbour"
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
        # An even kernel has no middle: T positions would need one more step on one side.
        if self.padding == "same" and self.taps % 2 == 0:
            raise ValueError(
                f"head {self.head}, option taps: expected an odd number with padding='same', got "
                f"{self.taps}"
            )


def operation_choices(
    head: str, decided: Mapping[str, str], scale: float, normalise: bool, **others: Any
) -> OperationChoices:
    """Make the choices of a head whose variant is decided.

    Args:
        head: the head's name, for messages.
        decided: the options of `VARIANTS` that the operations read, with `similarity`.
        scale: the factor before a softmax of affinities; 0 is that of `similarity`.
        normalise: False lets "cosine" see x in place of x^.
        **others: further attributes of `OperationChoices`.

    Raises:
        ValueError: a value out of range.
    """
    forms = dict(decided)
    similarity = forms.pop("similarity")
    return OperationChoices(
        head,
        **forms,
        scale=scale or SCALES[similarity],
        normalise=normalise and similarity == "cosine",
        **others,
    )


@dataclass(frozen=True)
class OperationSizes:
    """The sizes that an operation is built for.

    Attributes:
        channels: C.
        steps: T.
        nodes: N per step.
        cells: G, cells of the background per step; 0 without a background.
    """

    channels: int
    steps: int
    nodes: int
    cells: int = 0


class Operation(nn.Module):
    """A module `operation(x, inputs)` from nodes [B,T,N,C] to nodes [B,T,N,C].

    `reads` names the fields of `OperationInputs` that it takes: "y", "layout", "nearest",
    "similar". The paper's five operations also have `attention(x, inputs)` for a person to look
    at: who listens to whom, or how much a node counts.
    """

    reads: tuple[str, ...] = ()


class BilinearAffinity(nn.Module):
    """A_ij = x_i^T U y_j, of features that the method `features` has prepared.

    U [C,C] is a whole matrix in both forms, as the paper counts its parameters.

    Args:
        channels: C.
        choices: `affinity` and `normalise` are read.
    """

    def __init__(self, channels: int, choices: OperationChoices):
        super().__init__()
        self.U = nn.Parameter(torch.eye(channels))
        self.diagonal, self.normalise = choices.affinity == "diagonal", choices.normalise

    def features(self, x: Tensor) -> Tensor:
        """Return x^ or x, as `normalise` says."""
        return unit(x) if self.normalise else x

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute A.

        Args:
            x: [...,n,C].
            y: [...,m,C].

        Returns:
            [...,n,m].
        """
        # temp_conv calls this with float64.
        U = self.U.to(x.dtype)
        return (x * U.diagonal() if self.diagonal else x @ U) @ y.mT


def unit(x: Tensor) -> Tensor:
    """Return x / |x| along the last axis; a zero vector stays zero and its gradient finite."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # A norm of 0 is replaced before the division: a NaN masked afterwards keeps a NaN gradient.
    return x / torch.where(norm > 1e-12, norm, 1)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Make a linear layer with GOS's start: Kaiming-normal (fan in, gain sqrt 2), zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def activated(norm: nn.LayerNorm, z: Tensor) -> Tensor:
    """Return act(z), see the top of this file."""
    # In place, because the gradient of the norm needs its input and not its output.
    return F.leaky_relu(norm(z), 0.01, inplace=True)
