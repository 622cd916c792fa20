"""The graph of DyReg-GNN: a recurrent space-time graph (RSTG) without positions.

Duta, Nicolicioiu and Leordeanu, Discovering Dynamic Salient Regions for Spatio-Temporal Graph
Neural Networks, NeurIPS 2021, eq. (8) and (9).

Nodes v_{i,t} are [B,T,N,C], N = 9. There are no edges between steps: time is left to GRUs, each
shared by all nodes, from a zero state.

    p_ij = softmax_j( (W_q v_i + b_q) . (W_k v_j + b_k) )          [B,T,N,N]

    variant "paper", K = 3 times                                               eq. (8), (9)
        v_i <- sum_j p_ij MLP([v_j ; v_i])                         [B,T,N,C]
        v_{i,1..T} <- GRU(v_{i,1..T})

    variant "released": v <- LN_(N,C)(v), then K = 3 times
        v_{i,1..T} <- GRU(v_{i,1..T})
        m_ij = LN_(N,N,C)( ReLU(W (v_i + v_j) + b) )               [B,T,N,N,C]
        v_i <- LN_(N,C)( v_i + ReLU(sum_j p_ij m_ij + beta) )      [B,T,N,C]
    and at the end v_{i,1..T} <- GRU'(v_{i,1..T})

The softmax is over all j, i itself included, and is not scaled. The MLP is 2C -> C -> C with a ReLU
after both layers. m_ij is symmetric in i and j; beta = 0 at first; GRU' has weights of its own. The
K iterations share all weights. Parameters: paper 11 C^2 + 10 C (3 C^2 + 2 C of the MLP), released
15 C^2 + 22 C.

Differs from the paper: the first linear layer of a message is applied to the N nodes, not to the
N^2 pairs, and its results are added pair by pair. That is the same and takes 1/N of the products.
Not stated in the paper, and chosen: two layers in the MLP, weights shared by the iterations, no
norms in variant "paper".
"""

import torch
from torch import Tensor, nn

from heads.interface.joint_norm import JointNorm

ITERATIONS = 3  # K
VARIANTS = ("paper", "released")


class NodeGRU(nn.GRU):
    """A GRU along T of [B,T,N,C] from a zero state, with the nodes of a batch in parallel.

    Output t depends on inputs up to t.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        B, T, N, C = x.shape
        # [B,T,N,C] -> [B*N,T,C]: a node is a row of the batch, so that nodes do not mix in time.
        rows = x.transpose(1, 2).reshape(B * N, T, C)
        # torch.compile cannot follow super() here.
        y, _ = nn.GRU.forward(self, rows)
        return y.view(B, N, T, C).transpose(1, 2)


class MessageAttention(nn.Module):
    """p [..,N,N] from nodes [..,N,C]; rows sum to 1."""

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)

    def forward(self, v: Tensor) -> Tensor:
        return (self.query(v) @ self.key(v).mT).softmax(-1)


class ConcatMessages(nn.Module):
    """m_ij = MLP([v_j ; v_i]), eq. (8): nodes [..,N,C] -> [..,N,N,C]."""

    def __init__(self, channels: int):
        super().__init__()
        # The halves of one layer on [v_j ; v_i]; the bias is in one of them.
        self.sender = nn.Linear(channels, channels, bias=False)
        self.receiver = nn.Linear(channels, channels)
        self.second = nn.Linear(channels, channels)

    def forward(self, v: Tensor) -> Tensor:
        # [..,N,N,C]: rows receive (v_i), columns send (v_j).
        pairs = self.receiver(v)[..., :, None, :] + self.sender(v)[..., None, :, :]
        return self.second(pairs.relu()).relu()


class SumMessages(nn.Module):
    """The release's m_ij = LN(ReLU(W (v_i + v_j) + b)), LN over (N,N,C).

    Nodes [..,N,C] give [..,N,N,C].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        self.norm = JointNorm(channels, axes=3)

    def forward(self, v: Tensor) -> Tensor:
        # W v + b/2: two of them add up to W (v_i + v_j) + b.
        u = self.linear(v) - self.linear.bias / 2
        return self.norm((u[..., :, None, :] + u[..., None, :, :]).relu())


class PaperGraph(nn.Module):
    """Variant "paper" of the graph; see the top of this file.

    Args:
        channels: C.
        iterations: K.
    """

    def __init__(self, channels: int, iterations: int = ITERATIONS):
        super().__init__()
        self.iterations = iterations
        self.attention, self.messages = MessageAttention(channels), ConcatMessages(channels)
        self.time = NodeGRU(channels)

    def forward(self, v: Tensor) -> Tensor:
        """Map nodes [B,T,N,C] to nodes [B,T,N,C]."""
        for _ in range(self.iterations):
            # eq. (8): [B,T,N,N] x [B,T,N,N,C] -> [B,T,N,C]
            v = torch.einsum("...ij,...ijc->...ic", self.attention(v), self.messages(v))
            v = self.time(v)
        return v


class ReleasedGraph(nn.Module):
    """Variant "released" of the graph; see the top of this file.

    Args:
        channels: C.
        iterations: K.
    """

    def __init__(self, channels: int, iterations: int = ITERATIONS):
        super().__init__()
        self.iterations = iterations
        self.norm_in = JointNorm(channels, axes=2)
        self.time = NodeGRU(channels)
        self.attention, self.messages = MessageAttention(channels), SumMessages(channels)
        self.beta = nn.Parameter(torch.zeros(channels))
        self.norm = JointNorm(channels, axes=2)
        self.time_out = NodeGRU(channels)

    def forward(self, v: Tensor) -> Tensor:
        """Map nodes [B,T,N,C] to nodes [B,T,N,C]."""
        v = self.norm_in(v)
        for _ in range(self.iterations):
            v = self.time(v)
            # [B,T,N,N] x [B,T,N,N,C] -> [B,T,N,C]
            gathered = torch.einsum("...ij,...ijc->...ic", self.attention(v), self.messages(v))
            v = self.norm(v + (gathered + self.beta).relu())
        return self.time_out(v)
