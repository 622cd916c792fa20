"""The graph of RSTG.

Nicolicioiu, Duta and Leordeanu, Recurrent Space-time Graph Neural Networks, NeurIPS 2019, sec. 2.

Letters: B views, T steps, N = 14 nodes (heads/papers/rstg/grid.py), E directed edges j -> i, C
channels (512), K = 3 iterations.

    v = norm(v)                                             [B,T,N,C]
    K times
      v_{i,1..T} <- LSTM_intern(v_{i,1..T})                 [B,T,N,C]
      m_ji = MLP_s([v_j | v_i | p_j])                       [B,T,E,C]   eq. (1), (2)
      g_i = sum over neighbours j of (W1 v_i)^T (W2 v_j) m_ji
                                                            [B,T,N,C]   eq. (3), (4)
      v_i <- MLP_u([v_i | g_i])                             [B,T,N,C]   eq. (5)
    v_{i,1..T} <- LSTM_extern(v_{i,1..T})                   [B,T,N,C]   eq. (6)

The MLPs have two layers with a ReLU after both. The LSTMs start from zero. LSTM_intern has the same
weights for all nodes and iterations, LSTM_extern has weights of its own. p_j are the 36 numbers of
the sender's position.

The weights of eq. (3) and (4) are products that nothing bounds (attention "raw"): without LSTMs the
nodes grow beyond float32 in a few iterations. The published figures come from the released code.

`GraphChoices` holds what the variants do otherwise. The released code
- takes messages from all 14 nodes, the node itself included, and weighs them by softmax_j(A_ij
  (W1 v_i + b)^T (W2 v_j + b)). Nodes that are no neighbours have the logit 0, not the weight 0;
- adds a bias and applies a ReLU to the sum;
- appends the receiver's position too;
- has an MLP_u per scale on Something-Something;
- on SyncMNIST uses softmax_j(LeakyReLU_0.2(A_ij (f1 v_i + f2 v_j)) + A_ij), with f1 and f2 linear
  to one number.

Schedulers (Table 1):
- "all_temporal" as above;
- "one_temporal" without LSTM_intern;
- "space_only" without both LSTMs;
- "time_only" without messages;
- "homogeneous" without LSTMs. A node also gets a message, by the same MLP, from its own state one
  step earlier (h_i^{t-1,k} of eq. (6)). So the last step has heard of all.

Differs from the paper: the first layer of MLP_s is applied to the nodes, and its halves are added
edge by edge. That is the same and takes 1/N of the products.

Not stated in the paper:
- biases in W1 and W2;
- `norm`, LN over T, N and C jointly, which the release has on Something-Something. With it the
  output at t depends on later steps;
- that the homogeneous graph has the same MLPs in space and time;
- that "time_only" keeps the K passes of LSTM_intern.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.lstm import LSTM
from heads.interface.masked_layers import masked_softmax
from heads.papers.rstg.grid import NODES, PLACES, SCALES, adjacency, positions

SCHEDULERS = ("all_temporal", "one_temporal", "homogeneous", "space_only", "time_only")
NORMS = ("layer", "batch", "none")
# Nothing carries earlier steps to the last one, so a readout has to average over time.
WITHOUT_RECURRENCE = ("space_only",)

# Those of the release's TensorFlow 1.13: contrib.layers.layer_norm, layers.batch_normalization.
LAYER_NORM_EPS = 1e-12
BATCH_NORM_EPS = 1e-3

VARIANTS = {
    "paper": {
        "neighbourhood": "edges",
        "attention": "raw",
        "positions": "sender",
        "position_map": "filtered",
        "update": "shared",
    },
    "released": {
        "neighbourhood": "all",
        "attention": "dot",
        "positions": "both",
        "position_map": "window",
        "update": "scale",
    },
}
# Values that no variant takes, but a user may.
FURTHER = {"attention": ("simple",), "positions": ("none",)}

# What both heads with this graph say of their earlier versions (`heads.interface.changes`).
HOMOGENEOUS_CHANGE = (
    "homogeneous sent messages in time from a node's input one step earlier; it sends them from "
    "the node's state"
)
EPSILON_CHANGE = (
    "layer norms had an epsilon of 1e-5 (the last one 1e-9) and batch norm 1e-5; they have the "
    "released code's 1e-12 and 1e-3"
)


def is_homogeneous(options: Mapping[str, Any]) -> bool:
    """Return whether a head with these options has the scheduler that HOMOGENEOUS_CHANGE is of."""
    return options["scheduler"] == "homogeneous"


@dataclass(frozen=True)
class GraphChoices:
    """How a graph is computed; `VARIANTS`, `FURTHER`, `SCHEDULERS` and `NORMS` list the values.

    Attributes:
        neighbourhood: who sends messages: "edges" (neighbours) or "all" nodes.
        attention: "raw", "dot" (softmax) or "simple", as at the top of this file. The last two
            have the bias and the ReLU.
        positions: whose positions a message sees: "none", "sender" or "both".
        position_map: "filtered" or "window", see `heads.papers.rstg.grid.positions`.
        update: "shared" has one MLP_u, "scale" one per scale.
        scheduler: which parts of the graph run, see the top of this file.
        norm: before the first iteration: "layer", "batch" or "none".
        inner_norm: LN over (E,C) of the messages and over (N,C) after the update.
        iterations: K.
    """

    neighbourhood: str = "edges"
    attention: str = "raw"
    positions: str = "sender"
    position_map: str = "filtered"
    update: str = "shared"
    scheduler: str = "all_temporal"
    norm: str = "layer"
    inner_norm: bool = False
    iterations: int = 3


class NodeLSTM(LSTM):
    """An LSTM along T of [B,T,N,C] from a zero state, with the nodes of a batch in parallel.

    Weights are glorot-uniform gate by gate, biases zero.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, batch_first=True)
        for name, parameter in self.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
                continue
            # Four gates [C,C] in one matrix: glorot over all of it would count 4 C outputs.
            for gate in parameter.data.chunk(4):
                nn.init.xavier_uniform_(gate)

    def forward(self, v: Tensor) -> Tensor:
        B, T, N, C = v.shape
        # [B,T,N,C] -> [B*N,T,C]: a node is a row of the batch, so that nodes do not mix in time.
        rows = v.transpose(1, 2).reshape(B * N, T, C)
        # torch.compile cannot follow super() here.
        y, _ = LSTM.forward(self, rows)
        return y.view(B, N, T, C).transpose(1, 2)


class NodeNorm(nn.LayerNorm):
    """LN over the last `axes` axes of [...,C] jointly, with a scale and shift per channel.

    The sizes come from the input, so that any number of steps will do.
    """

    def __init__(self, channels: int, axes: int):
        super().__init__(channels, eps=LAYER_NORM_EPS)
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        # The function's own weight would need a number for every normalised place.
        return F.layer_norm(x, x.shape[-self.axes :], eps=self.eps) * self.weight + self.bias


class NodeBatchNorm(nn.BatchNorm1d):
    """BN of every channel of [B,T,N,C] over views, steps and nodes (SyncMNIST)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=BATCH_NORM_EPS)

    def forward(self, v: Tensor) -> Tensor:
        return super().forward(v.flatten(0, 2)).view_as(v)


def linear(channels_in: int, channels_out: int) -> nn.Linear:
    """Make a linear layer with TensorFlow's start: glorot-uniform, zero bias."""
    layer = nn.Linear(channels_in, channels_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Messages(nn.Module):
    """m_ji = MLP_s([v_j | v_i | p_j | p_i]), eq. (1) and (2).

    Args:
        channels: C.
        of: whose positions the message sees: "none", "sender" (p_j) or "both".
        position_map: "filtered" or "window".
    """

    def __init__(self, channels: int, of: str, position_map: str):
        super().__init__()
        # "none" appends no position map, "sender" one, "both" two.
        self.sizes = [channels, channels] + [PLACES] * ("none", "sender", "both").index(of)
        self.first = linear(sum(self.sizes), channels)
        self.second = linear(channels, channels)
        self.register_buffer("places", positions(position_map), persistent=False)  # [N,36]

    def sender_half(self, v: Tensor) -> Tensor:
        """Apply the first layer's part for senders to nodes [...,N,C]."""
        half = F.linear(v, self._columns(0))
        if len(self.sizes) > 2:
            half = half + F.linear(self.places, self._columns(2))
        return half

    def receiver_half(self, v: Tensor) -> Tensor:
        """Apply the first layer's part for receivers to nodes [...,N,C].

        The sum of a sender's and a receiver's half is the layer's output for their edge.
        """
        half = F.linear(v, self._columns(1), self.first.bias)
        if len(self.sizes) > 3:
            half = half + F.linear(self.places, self._columns(3))
        return half

    def _columns(self, part: int) -> Tensor:
        """The columns of W for one part of [v_j | v_i | p_j | p_i]."""
        return self.first.weight.narrow(1, sum(self.sizes[:part]), self.sizes[part])

    def finish(self, pairs: Tensor) -> Tensor:
        """Turn sums of two halves [...,C] into messages [...,C]."""
        return F.relu(self.second(F.relu(pairs)))


class MessageAffinity(nn.Module):
    """(W1 v_i + b)^T (W2 v_j + b), or f1 v_i + f2 v_j for `kind` "simple"."""

    def __init__(self, channels: int, kind: str):
        super().__init__()
        self.kind = kind
        outputs = 1 if kind == "simple" else channels
        self.receiver = linear(channels, outputs)
        self.sender = linear(channels, outputs)

    def forward(self, v: Tensor) -> Tensor:
        """Compare all nodes [...,N,C] with each other: [...,N,N], rows receive."""
        q, k = self.receiver(v), self.sender(v)
        # "simple": [...,N,1] + [...,1,N] -> [...,N,N]
        return q + k.mT if self.kind == "simple" else q @ k.mT

    def node_by_node(self, receiving: Tensor, sending: Tensor) -> Tensor:
        """Compare node i of one set [...,N,C] with node i of another: [...,N]."""
        q, k = self.receiver(receiving), self.sender(sending)
        return (q + k)[..., 0] if self.kind == "simple" else (q * k).sum(-1)


class SpaceIteration(nn.Module):
    """One iteration in space, eq. (1) to (5): send, gather, update.

    Args:
        channels: C.
        choices: how the graph is computed.
        links: A [N,N] of 0 and 1; rows receive.
    """

    def __init__(self, channels: int, choices: GraphChoices, links: Tensor):
        super().__init__()
        self.attention = choices.attention
        self.messages = Messages(channels, choices.positions, choices.position_map)
        self.affinity = MessageAffinity(channels, choices.attention)
        self.bias = None
        if choices.attention != "raw":
            self.bias = nn.Parameter(torch.zeros(channels))

        # How many nodes in a row share an MLP_u.
        self.sizes = [NODES]
        if choices.update == "scale":
            self.sizes = [scale * scale for scale in SCALES]
        self.update = nn.ModuleList()
        for _ in self.sizes:
            first, second = linear(2 * channels, channels), linear(channels, channels)
            self.update.append(nn.Sequential(first, nn.ReLU(), second, nn.ReLU()))

        self.message_norm, self.update_norm = nn.Identity(), nn.Identity()
        if choices.inner_norm:
            self.message_norm = NodeNorm(channels, axes=2)
            self.update_norm = NodeNorm(channels, axes=2)

        pairs = links > 0
        if choices.neighbourhood == "all":
            pairs = torch.ones_like(pairs)
        receivers, senders = pairs.nonzero(as_tuple=True)
        nodes = torch.arange(NODES, device=links.device)[:, None]
        self._constant("receivers", receivers)  # [E]
        self._constant("senders", senders)  # [E]
        self._constant("links", links[receivers, senders])  # [E], A of every edge
        self._constant("ends", nodes == receivers)  # [N,E], the edges that end at each node
        self._constant("starts", (nodes == senders).float())  # [N,E]

    def _constant(self, name: str, value: Tensor) -> None:
        # The geometry is fixed, so checkpoints do not hold it.
        self.register_buffer(name, value, persistent=False)

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Run one iteration.

        Args:
            v: [B,T,N,C].

        Returns:
            New nodes [B,T,N,C], and the weights of the edges in space [B,T,N,E], 0 where an edge
            ends at another node.
        """
        messages, logits = self._send(v, self.messages.receiver_half(v))
        gathered, weights = self._gather(messages, logits, self.ends)
        return self._update(v, gathered), weights

    def _send(self, v: Tensor, receiver: Tensor) -> tuple[Tensor, Tensor]:
        """Return the messages along the edges [B,T,E,C], not normalised, and the logits [B,T,E]."""
        sender = self.messages.sender_half(v)
        pairs = sender[:, :, self.senders] + receiver[:, :, self.receivers]
        # [B,T,N,N] -> [B,T,E], one number per edge
        affinity = self.affinity(v)[..., self.receivers, self.senders]
        return self.messages.finish(pairs), self._logits(affinity, self.links)

    def _logits(self, affinity: Tensor, links: Tensor) -> Tensor:
        """Logits of edges [...,E] with A = links: a pair that is no neighbour has the logit 0."""
        logits = affinity * links
        if self.attention == "simple":
            return F.leaky_relu(logits, 0.2) + links
        return logits

    def _gather(self, messages: Tensor, logits: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the messages [...,E,C] that end at each node: [...,N,C] and the weights [...,N,E]."""
        messages = self.message_norm(messages)
        if self.attention == "raw":
            # eq. (3) has no softmax: [...,E] -> [...,N,E], 0 where an edge ends elsewhere.
            weights = logits[..., None, :].masked_fill(~ends, 0)
        else:
            weights = masked_softmax(logits[..., None, :], ends)
        gathered = weights.to(messages.dtype) @ messages  # eq. (3)
        if self.bias is not None:
            gathered = F.relu(gathered + self.bias)
        return gathered, weights

    def _update(self, v: Tensor, gathered: Tensor) -> Tensor:
        """Make new nodes [...,N,C] of nodes and what they gathered, eq. (5)."""
        # The nodes of a scale are neighbours along N, so that each MLP_u gets a slice.
        both = torch.cat([v, gathered.to(v.dtype)], -1).split(self.sizes, dim=-2)
        updated = [update(nodes) for update, nodes in zip(self.update, both, strict=True)]
        return self.update_norm(torch.cat(updated, -2))


class HomogeneousIteration(SpaceIteration):
    """An iteration that treats time as one more edge: "homogeneous" of Table 1.

    h_i^t = MLP_u([v_i^t | g_i^t]), where g_i^t gathers over the neighbours v_j^t and over the
    node's own state h_i^{t-1} of the same iteration. The first step has no state before it.
    """

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Run one iteration, step after step; see `SpaceIteration.forward`."""
        receiver = self.messages.receiver_half(v)
        # What does not depend on a state is computed for all steps at once.
        messages, logits = self._send(v, receiver)
        edges = len(self.senders)
        # N more edges, from each node to itself: [N,E+N]
        itself = torch.eye(NODES, dtype=torch.bool, device=v.device)
        ends = torch.cat([self.ends, itself], -1)

        gathered, weights = self._gather(messages[:, 0], logits[:, 0], self.ends)
        states, in_space = [self._update(v[:, 0], gathered)], [weights]
        for t in range(1, v.shape[1]):
            state = states[-1]  # [B,N,C]
            pairs = self.messages.sender_half(state) + receiver[:, t]
            affinity = self.affinity.node_by_node(v[:, t], state)
            in_time = self._logits(affinity, affinity.new_ones(()))  # [B,N]
            gathered, weights = self._gather(
                torch.cat([messages[:, t], self.messages.finish(pairs)], 1),
                torch.cat([logits[:, t], in_time], 1),
                ends,
            )
            states.append(self._update(v[:, t], gathered))
            in_space.append(weights[..., :edges])
        return torch.stack(states, 1), torch.stack(in_space, 1)


class SpaceTimeGraph(nn.Module):
    """The whole graph; see the top of this file.

    Args:
        channels: C.
        choices: how the graph is computed.
        links: A [N,N] in place of the grid's `adjacency`.

    Raises:
        ValueError: a value that `choices` cannot have.
    """

    def __init__(self, channels: int, choices: GraphChoices, links: Tensor | None = None):
        super().__init__()
        _check(choices)
        scheduler, self.iterations = choices.scheduler, choices.iterations

        if choices.norm == "layer":
            self.before = NodeNorm(channels, axes=3)
        elif choices.norm == "batch":
            self.before = NodeBatchNorm(channels)
        else:
            self.before = nn.Identity()

        self.intern = self.space = self.extern = None
        if scheduler in ("all_temporal", "time_only"):
            self.intern = NodeLSTM(channels)
        if scheduler != "time_only":
            links = adjacency() if links is None else links
            iteration = SpaceIteration
            if scheduler == "homogeneous":
                iteration = HomogeneousIteration
            self.space = iteration(channels, choices, links)
        if scheduler in ("all_temporal", "time_only", "one_temporal"):
            self.extern = NodeLSTM(channels)

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the graph.

        Args:
            v: [B,T,N,C].

        Returns:
            Nodes [B,T,N,C], and the weights of the last iteration [B,T,N,N], rows receive; None
            without messages. Rows of a homogeneous graph lack the weight that a node gives to
            itself one step earlier.
        """
        v, weights = self.before(v), None
        for _ in range(self.iterations):
            if self.intern is not None:
                v = self.intern(v)
            if self.space is not None:
                v, weights = self.space(v)
        if self.extern is not None:
            v = self.extern(v)

        if weights is None:
            return v, None
        starts = self.space.starts
        # [B,T,N,E] @ [E,N] -> [B,T,N,N]: an edge's weight goes to the column of its sender.
        return v, weights.to(starts.dtype) @ starts.mT


def _check(choices: GraphChoices) -> None:
    known: dict[str, tuple[str, ...]] = {"scheduler": SCHEDULERS, "norm": NORMS}
    for option in VARIANTS["paper"]:
        values = [table[option] for table in VARIANTS.values()]
        known[option] = (*values, *FURTHER.get(option, ()))

    for option, values in known.items():
        value = getattr(choices, option)
        if value not in values:
            raise ValueError(f"RSTG, {option}: expected one of {', '.join(values)}, got {value!r}")
    if choices.iterations < 1:
        raise ValueError(f"RSTG, iterations: expected at least 1, got {choices.iterations}")
