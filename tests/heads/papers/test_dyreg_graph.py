"""The graph of DyReg-GNN against its equations (NeurIPS 2021, eq. 8 and 9), in both variants."""

import pytest
import torch

from heads.papers.dyreg.graph import PaperGraph, ReleasedGraph
from heads.papers.dyreg.kernels import NODES
from tests.support.small_dyreg import VARIANTS, B, C, T, norm_by_hand, over_time

variants = pytest.mark.parametrize("variant", VARIANTS)


def graph(variant: str, channels=C):
    torch.manual_seed(3)
    net = (PaperGraph if variant == "paper" else ReleasedGraph)(channels).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return net


def vertices(steps=T) -> torch.Tensor:
    return torch.randn(
        B, steps, NODES, C, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )


def attention_by_hand(net, v: torch.Tensor, i: int) -> torch.Tensor:
    query, key = net.attention.query, net.attention.key
    return torch.stack([(query(v[i]) * key(v[j])).sum() for j in range(NODES)]).softmax(0)


def test_the_paper_graph_follows_its_equations():
    net, v = graph("paper"), vertices()
    result = net(v)
    # The first layer reads [v_j ; v_i].
    first = torch.cat([net.messages.sender.weight, net.messages.receiver.weight], 1)
    for _ in range(3):
        frames = []
        for frame in v.flatten(0, 1):
            rows = []
            for i in range(NODES):
                p, total = attention_by_hand(net, frame, i), 0
                for j in range(NODES):
                    hidden = (
                        first @ torch.cat([frame[j], frame[i]]) + net.messages.receiver.bias
                    ).relu()
                    total = total + p[j] * net.messages.second(hidden).relu()
                rows.append(total)
            frames.append(torch.stack(rows))
        v = over_time(net.time, torch.stack(frames).unflatten(0, (B, T)))
    torch.testing.assert_close(result, v, rtol=1e-10, atol=1e-10)


def test_the_released_graph_follows_its_equations():
    net, v = graph("released"), vertices()
    result = net(v)
    v = torch.stack([norm_by_hand(net.norm_in, frame) for frame in v.flatten(0, 1)]).unflatten(
        0, (B, T)
    )
    for _ in range(3):
        frames = []
        for frame in over_time(net.time, v).flatten(0, 1):
            messages = torch.stack(
                [torch.stack([net.messages.linear(a + b).relu() for b in frame]) for a in frame]
            )
            messages = norm_by_hand(net.messages.norm, messages)
            a = torch.stack([attention_by_hand(net, frame, i) @ messages[i] for i in range(NODES)])
            frames.append(norm_by_hand(net.norm, frame + (a + net.beta).relu()))
        v = torch.stack(frames).unflatten(0, (B, T))
    torch.testing.assert_close(result, over_time(net.time_out, v), rtol=1e-10, atol=1e-10)


@variants
def test_rows_of_the_attention_sum_to_one_and_include_the_node_itself(variant):
    p = graph(variant).attention(vertices())
    torch.testing.assert_close(p.sum(-1), torch.ones(B, T, NODES, dtype=torch.float64))
    assert (p.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_messages_are_symmetric_as_sums_only():
    released, paper = graph("released").messages(vertices()), graph("paper").messages(vertices())
    torch.testing.assert_close(released, released.transpose(2, 3), rtol=0, atol=1e-14)
    assert (paper - paper.transpose(2, 3)).abs().max() > 0.1


@variants
def test_the_graph_does_not_know_the_order_of_nodes(variant):
    net, v, order = (
        graph(variant),
        vertices(),
        torch.randperm(NODES, generator=torch.Generator().manual_seed(5)),
    )
    torch.testing.assert_close(net(v[:, :, order]), net(v)[:, :, order], rtol=1e-10, atol=1e-10)


def test_the_iterations_share_their_weights_and_beta_starts_at_zero():
    for width, count in ((8, 11 * 64 + 80), (32, 11 * 1024 + 320)):
        assert sum(p.numel() for p in PaperGraph(width).parameters()) == count
    assert sum(p.numel() for p in ReleasedGraph(32).parameters()) == 15 * 1024 + 22 * 32
    assert (ReleasedGraph(4).beta == 0).all()
