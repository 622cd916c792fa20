"""The graph of RSTG: Nicolicioiu, Duta and Leordeanu, Recurrent Space-time Graph Neural Networks,
NeurIPS 2019, sec. 3.

Letters: B views, T steps, N = 14 nodes (heads/papers/rstg/grid.py), E directed edges j -> i, C
channels (512), K = 3 iterations.

    v = norm(v)                                                     [B,T,N,C]    before the first
    iteration K times
      v_{i,1..T} <- LSTM_intern(v_{i,1..T})                                      from zero; the same
      weights for all nodes and k
      m_ji = MLP_s([v_j | v_i | p_j])                               [B,T,E,C]    eq. (1), (2); two
      layers, ReLU after both
      g_i = sum over neighbours j of (W1 v_i)^T (W2 v_j) m_ji       [B,T,N,C]    eq. (3), (4)
      v_i <- MLP_u([v_i | g_i])                                                  eq. (5); two
      layers, ReLU after both
    v_{i,1..T} <- LSTM_extern(v_{i,1..T})                                        eq. (6); weights of
    its own

p are the 36 numbers of a position. `GraphChoices` holds what the variants do otherwise; the released
code
  takes messages from all 14 nodes, itself included, and weighs them by softmax_j(A_ij (W1 v_i +
  b)^T (W2 v_j + b)), so that nodes that are no neighbours have the logit 0 and not the weight 0;
  adds a bias and applies a ReLU to the sum; appends the receiver's position too; has an MLP_u per
  scale (on Something-Something); on SyncMNIST uses softmax_j(LeakyReLU_0.2(A_ij (f1 v_i + f2 v_j))
  + A_ij), f1 and f2 linear to one number.

Schedulers (Table 1): "all_temporal" as above; "one_temporal" without LSTM_intern; "space_only"
without both; "time_only" without messages; "homogeneous" without LSTMs: a node also gets a message,
by the same MLP, from itself one step earlier.

Differs from the paper: the first layer of MLP_s is applied to the nodes and its halves are added
edge by edge, which is the same and takes 1/N of the products. Not stated in the paper: biases in
W1, W2; `norm` (LN over T, N and C jointly, which the release has on Something-Something: then the
output at t depends on later steps); which steps a homogeneous node hears of; that "time_only" keeps
the K passes of LSTM_intern.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.lstm import LSTM
from heads.interface.masked_layers import masked_softmax
from heads.papers.rstg.grid import NODES, PLACES, SCALES, adjacency, positions

SCHEDULERS = ("all_temporal", "one_temporal", "homogeneous", "space_only", "time_only")
NORMS = ("layer", "batch", "none")

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
FURTHER = {"attention": ("simple",), "positions": ("none",)}  # values that no variant takes


@dataclass(frozen=True)
class GraphChoices:
    """What can be chosen of a graph; the values are those of `VARIANTS`, `FURTHER`, `SCHEDULERS`
    and `NORMS`.

    neighbourhood: who sends. attention: "raw", "dot" and "simple" as at the top of this file; the
    last two have the bias and ReLU. positions: whose are appended. update: one MLP_u or one per
    scale. inner_norm: LN over (E,C) of the messages and over (N,C) after the update.
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
    """An LSTM along T of [B,T,N,C], the nodes of a batch in parallel, from a zero state;
    glorot-uniform, zero biases.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, batch_first=True)
        for name, parameter in self.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            else:
                for gate in parameter.data.chunk(4):
                    nn.init.xavier_uniform_(gate)

    def forward(self, v: Tensor) -> Tensor:
        B, T, N, C = v.shape
        y, _ = LSTM.forward(
            self, v.transpose(1, 2).reshape(B * N, T, C)
        )  # super() is what torch.compile cannot follow here
        return y.view(B, N, T, C).transpose(1, 2)


class NodeNorm(nn.LayerNorm):
    """LN over the last `axes` axes of [...,C] jointly, with a scale and shift per channel, whatever
    the sizes of the others.
    """

    def __init__(self, channels: int, axes: int):
        super().__init__(channels)
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-self.axes :], eps=self.eps) * self.weight + self.bias


def linear(channels_in: int, channels_out: int) -> nn.Linear:
    """A linear layer as TF starts one: glorot-uniform, zero bias."""
    layer = nn.Linear(channels_in, channels_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Messages(nn.Module):
    """m_ji = MLP_s([v_j | v_i | p_j | p_i]) (eq. 1, 2); `whose` positions: "none", "sender" (p_j)
    or "both".
    """

    def __init__(self, channels: int, whose: str, position_map: str):
        super().__init__()
        self.sizes = [channels, channels] + [PLACES] * ("none", "sender", "both").index(whose)
        self.first = linear(sum(self.sizes), channels)
        self.second = linear(channels, channels)
        self.register_buffer("places", positions(position_map), persistent=False)  # [N,36]

    def halves(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """v [B,T,N,C] -> what each node adds to the first layer as a sender, and as a receiver,
        both [B,T,N,C].
        """
        of_sender, of_receiver, *of_places = self.first.weight.split(self.sizes, dim=1)
        halves = [F.linear(v, of_sender), F.linear(v, of_receiver, self.first.bias)]
        for k, weight in enumerate(of_places):
            halves[k] = halves[k] + F.linear(self.places, weight)
        return halves[0], halves[1]

    def finish(self, pairs: Tensor) -> Tensor:
        """The sum of a sender's and a receiver's half [...,C] -> the message [...,C]."""
        return F.relu(self.second(F.relu(pairs)))


class MessageAffinity(nn.Module):
    """(W1 v_i + b)^T (W2 v_j + b), or with `kind` "simple" f1 v_i + f2 v_j: two of [...,N,C] ->
    [...,N,N], rows receive.
    """

    def __init__(self, channels: int, kind: str):
        super().__init__()
        self.kind = kind
        self.receiver = linear(channels, 1 if kind == "simple" else channels)
        self.sender = linear(channels, 1 if kind == "simple" else channels)

    def forward(self, receiving: Tensor, sending: Tensor) -> Tensor:
        q, k = self.receiver(receiving), self.sender(sending)
        return q + k.mT if self.kind == "simple" else q @ k.mT


class SpaceIteration(nn.Module):
    """One iteration in space: send, gather, update (eq. 1-5). `links` is A [N,N], rows receive."""

    def __init__(self, channels: int, choices: GraphChoices, links: Tensor):
        super().__init__()
        self.attention, self.homogeneous = choices.attention, choices.scheduler == "homogeneous"
        self.messages = Messages(channels, choices.positions, choices.position_map)
        self.affinity = MessageAffinity(channels, choices.attention)
        self.bias = None if choices.attention == "raw" else nn.Parameter(torch.zeros(channels))
        self.sizes = [scale * scale for scale in SCALES] if choices.update == "scale" else [NODES]
        self.update = nn.ModuleList(
            nn.Sequential(
                linear(2 * channels, channels), nn.ReLU(), linear(channels, channels), nn.ReLU()
            )
            for _ in self.sizes
        )
        self.message_norm = NodeNorm(channels, axes=2) if choices.inner_norm else nn.Identity()
        self.update_norm = NodeNorm(channels, axes=2) if choices.inner_norm else nn.Identity()
        pairs = links > 0 if choices.neighbourhood == "edges" else torch.ones_like(links) > 0
        receivers, senders = pairs.nonzero(as_tuple=True)
        nodes = torch.arange(NODES, device=links.device)[:, None]
        for name, value in {
            "receivers": receivers,
            "senders": senders,
            "links": links[receivers, senders],  # A of every edge [E]
            "ends": nodes == receivers,  # [N,E]: the edges that end at each node
            "starts": (nodes == senders).float(),  # [N,E]
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """v [B,T,N,C] -> the same, and the weights of the edges in space [B,T,N,E], 0 where an edge
        ends elsewhere.
        """
        s, r = self.messages.halves(v)
        pairs = s[:, :, self.senders] + r[:, :, self.receivers]  # [B,T,E,C]
        logits = self._logits(self.affinity(v, v)[..., self.receivers, self.senders], self.links)
        ends = self.ends
        if self.homogeneous:  # N more edges, from a node at t-1 to itself; none at the first step
            itself = self.affinity(v, _earlier(v)).diagonal(dim1=-2, dim2=-1)
            pairs = torch.cat([pairs, _earlier(s) + r], 2)
            logits = torch.cat([logits, self._logits(itself, itself.new_ones(()))], 2)
            there = torch.eye(NODES, dtype=torch.bool, device=v.device).repeat(v.shape[1], 1, 1)
            there[0] = False
            ends = torch.cat([ends.expand(v.shape[1], -1, -1), there], -1)
        messages = self.message_norm(self.messages.finish(pairs))
        if self.attention == "raw":
            weights = logits[..., None, :].masked_fill(~ends, 0)
        else:
            weights = masked_softmax(logits[..., None, :], ends)
        gathered = weights.to(messages.dtype) @ messages  # [B,T,N,C], eq. (3)
        if self.bias is not None:
            gathered = F.relu(gathered + self.bias)
        both = torch.cat([v, gathered.to(v.dtype)], -1).split(self.sizes, dim=2)
        v = torch.cat(
            [update(nodes) for update, nodes in zip(self.update, both, strict=True)], 2
        )  # eq. (5)
        return self.update_norm(v), weights[..., : len(self.senders)]

    def _logits(self, affinity: Tensor, links: Tensor) -> Tensor:
        """Of edges [...,E] with A = links: a pair that is no neighbour has the logit 0."""
        logits = affinity * links
        return F.leaky_relu(logits, 0.2) + links if self.attention == "simple" else logits


def _earlier(x: Tensor) -> Tensor:
    """x [B,T,...] one step later, zeros at first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


class SpaceTimeGraph(nn.Module):
    """Nodes [B,T,N,C] to nodes; see the top of this file. links: A [N,N] instead of the grid's
    `adjacency`.

    ValueError for values that `choices` cannot have.
    """

    def __init__(self, channels: int, choices: GraphChoices, links: Tensor | None = None):
        super().__init__()
        _check(choices)
        scheduler, self.iterations = choices.scheduler, choices.iterations
        in_time = scheduler in ("all_temporal", "time_only")
        self.before = {
            "layer": NodeNorm(channels, axes=3),
            "batch": BatchNorm(channels),
            "none": nn.Identity(),
        }[choices.norm]
        self.intern = NodeLSTM(channels) if in_time else None
        self.space = (
            SpaceIteration(channels, choices, adjacency() if links is None else links)
            if scheduler != "time_only"
            else None
        )
        self.extern = NodeLSTM(channels) if in_time or scheduler == "one_temporal" else None

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """v [B,T,N,C] -> the same, and the last iteration's weights [B,T,N,N], rows receive (None
        without messages).

        A homogeneous graph's rows lack the weight that a node gives to itself one step earlier.
        """
        v, weights = self.before(v), None
        for _ in range(self.iterations):
            if self.intern is not None:
                v = self.intern(v)
            if self.space is not None:
                v, weights = self.space(v)
        if self.extern is not None:
            v = self.extern(v)
        return v, None if weights is None else weights.to(
            self.space.starts.dtype
        ) @ self.space.starts.mT


class BatchNorm(nn.BatchNorm1d):
    """BN of every channel of [B,T,N,C] over views, steps and nodes (SyncMNIST)."""

    def forward(self, v: Tensor) -> Tensor:
        return super().forward(v.flatten(0, 2)).view_as(v)


def _check(choices: GraphChoices) -> None:
    allowed = {
        option: (*(table[option] for table in VARIANTS.values()), *FURTHER.get(option, ()))
        for option in VARIANTS["paper"]
    }
    for option, values in {**allowed, "scheduler": SCHEDULERS, "norm": NORMS}.items():
        if getattr(choices, option) not in values:
            raise ValueError(
                f"RSTG, {option}: expected one of {', '.join(values)}, got "
                f"{getattr(choices, option)!r}"
            )
    if choices.iterations < 1:
        raise ValueError(f"RSTG, iterations: expected at least 1, got {choices.iterations}")
