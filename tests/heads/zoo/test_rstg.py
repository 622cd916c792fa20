"""RSTG against its equations, and what holds without training: geometry, graph, maps, heads."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heads.interface.clips import Dims, clips_of
from heads.papers.rstg.graph import SCHEDULERS, VARIANTS, GraphChoices, SpaceTimeGraph
from heads.papers.rstg.grid import NODES, SCALES, adjacency, pool_weights, positions, remap_weights
from heads.papers.rstg.module import RSTG, pool_nodes, remap
from heads.zoo import build_head
from pipeline.backbones import build_backbone

C = 6
SLICES = (slice(0, 9), slice(9, 13), slice(13, 14))


def graph(seed=0, links=None, channels=C, **choices):
    """Build a graph in float64; every weight is drawn anew, as a start at zero hides the rest."""
    torch.manual_seed(seed)
    found = (
        SpaceTimeGraph(channels, GraphChoices(**{"norm": "none", **choices}), links).double().eval()
    )
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return found


def nodes(B=2, T=4, channels=C, seed=1):
    return torch.randn(
        B, T, NODES, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


# Geometry.


@pytest.mark.parametrize("size", [(7, 7), (6, 6), (14, 14), (5, 8), (1, 1), (2, 3)])
def test_each_scale_of_nodes_averages_to_the_mean_of_the_map_and_rows_sum_to_1(size):
    pool = pool_weights(torch.tensor(size), size)
    assert torch.allclose(pool.sum(1), torch.ones(NODES))
    fmap = torch.randn(2, 3, 4, *size)
    v = pool_nodes(fmap)
    for scale in SLICES:
        assert torch.allclose(v[:, :, scale].mean(2), fmap.mean((-1, -2)), atol=1e-5)
    assert torch.allclose(v[:, :, -1], fmap.mean((-1, -2)), atol=1e-5)


def test_area_resize_takes_exact_shares_of_cut_cells():
    """A map blown up by the number of parts has no cut cells, and the same means."""
    fmap = torch.randn(1, 1, 2, 7, 5, dtype=torch.float64)
    v = pool_nodes(fmap)
    for scale, where in zip(SCALES, SLICES, strict=True):
        blown = fmap[0, 0].repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        means = F.avg_pool2d(blown[None], (7, 5))[0]  # [C,scale,scale], row by row
        assert torch.allclose(v[0, 0, where].T, means.flatten(1), atol=1e-6)


def test_nodes_of_a_padded_map_are_those_of_its_true_grid():
    fmap = torch.randn(3, 2, 4, 6, 7)
    grid = torch.tensor([[6, 7], [5, 4], [6, 3]])
    v = pool_nodes(fmap, grid)
    for k, (h, w) in enumerate(grid.tolist()):
        torch.testing.assert_close(v[k], pool_nodes(fmap[k : k + 1, ..., :h, :w])[0])


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (5, 8)])
def test_remapping_is_the_transposed_pooling_scaled_and_triples_constant_nodes(size):
    pool, up = pool_weights(torch.tensor(size), size), remap_weights(size)
    for scale, where in zip(SCALES, SLICES, strict=True):
        assert torch.allclose(up[:, where], pool[where].T * (size[0] * size[1] / scale**2))
    v = torch.randn(2, 3, 1, 4).expand(-1, -1, NODES, -1)
    y = remap(v, size)
    assert y.shape == (2, 3, 4, *size)
    assert torch.allclose(y, 3 * v[:, :, 0, :, None, None].expand_as(y), atol=1e-5)


def test_nodes_go_back_to_where_they_came_from():
    v = torch.zeros(1, 1, NODES, 1)
    v[0, 0, 2] = 1  # the upper right cell of 3 x 3
    y = remap(v, (6, 6))[0, 0, 0]
    assert (y > 0).nonzero().tolist() == [[0, 4], [0, 5], [1, 4], [1, 5]]


def test_adjacency_has_45_edges_and_the_degrees_of_the_paper():
    links = adjacency()
    assert torch.equal(links, links.T)
    assert links.diagonal().sum() == 0
    assert links.sum() == 90
    assert links.sum(1).tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4, 7, 7, 7, 7, 13]
    assert links[0, 4] == 0, "a corner alone is no contact"
    assert links[0, 1] == 1, "a side is"


def test_position_windows_are_the_releases():
    window = positions("window").view(NODES, 6, 6)
    assert torch.allclose(window[0, :2, :2], torch.tensor(0.939), atol=1e-3)
    assert window[0].count_nonzero() == 4
    assert torch.allclose(
        window[9, :3, :3][[0, 0, 1], [0, 1, 1]], torch.tensor([0.779, 0.882, 1.0]), atol=1e-3
    )
    assert window[13].count_nonzero() == 36


@pytest.mark.parametrize("kind", ["filtered", "window"])
def test_positions_tell_every_node_from_every_other_and_are_centred_on_it(kind):
    maps = positions(kind)
    assert torch.cdist(maps, maps).fill_diagonal_(9).min() > 0.05
    for k in range(9):
        y, x = divmod(int(maps[k].argmax()), 6)
        assert (y // 2, x // 2) == divmod(k, 3)


# The graph.


def by_hand(g, v, choices):
    """One iteration in space by the equations, pair by pair: v [N,C] -> [N,C]."""
    space, links = g.space, adjacency()
    out = []
    for i in range(NODES):
        logits, messages = [], []
        for j in range(NODES):
            if choices["neighbourhood"] == "edges" and not links[i, j]:
                continue
            parts = [v[j], v[i]]
            parts += [space.messages.places[j]] if choices["positions"] != "none" else []
            parts += [space.messages.places[i]] if choices["positions"] == "both" else []
            messages.append(
                space.messages.second(space.messages.first(torch.cat(parts)).relu()).relu()
            )
            q, k, a = (
                space.affinity.receiver(v[i]),
                space.affinity.sender(v[j]),
                links[i, j].double(),
            )
            if choices["attention"] == "simple":
                logits.append(F.leaky_relu(a * (q + k)[0], 0.2) + a)
            else:
                logits.append(a * (q @ k))
        weights = torch.stack(logits)
        if choices["attention"] == "raw":
            got = weights @ torch.stack(messages)
        else:
            got = (weights.softmax(0) @ torch.stack(messages) + space.bias).relu()
        scale = next(k for k, where in enumerate(SLICES) if i < where.stop)
        update = space.update[scale if choices["update"] == "scale" else 0]
        out.append(update(torch.cat([v[i], got])))
    return torch.stack(out)


@pytest.mark.parametrize(
    "choices",
    [
        VARIANTS["paper"],
        VARIANTS["released"],
        {**VARIANTS["released"], "attention": "simple", "update": "shared"},
        {**VARIANTS["paper"], "positions": "none", "attention": "dot", "update": "scale"},
    ],
    ids=["paper", "released", "released SyncMNIST", "mixed"],
)
@torch.no_grad()
def test_an_iteration_is_its_equations_pair_by_pair(choices):
    g, v = graph(**choices, scheduler="space_only", iterations=1), nodes(1, 2)
    found, _ = g(v)
    for t in range(2):
        torch.testing.assert_close(
            found[0, t], by_hand(g, v[0, t], choices), rtol=1e-10, atol=1e-10
        )


@torch.no_grad()
def test_the_whole_schedule_is_three_times_intern_and_space_then_extern():
    g, v = graph(), nodes()
    x = v
    for _ in range(3):
        x, _ = g.space(g.intern(x))
    assert torch.equal(g(v)[0], g.extern(x))


@torch.no_grad()
def test_the_lstms_run_along_time_node_by_node_from_zero():
    g, v = graph(), nodes()
    for b, i in ((0, 0), (1, 13)):
        alone, _ = nn.LSTM.forward(g.intern, v[b : b + 1, :, i])
        torch.testing.assert_close(g.intern(v)[b, :, i], alone[0])


@torch.no_grad()
def test_intern_is_shared_by_the_iterations_and_extern_comes_once_at_the_end():
    g, v = graph(), nodes()
    seen = []
    g.space.register_forward_hook(lambda _, __, result: seen.append(result[0].clone()))
    before = g(v)[0]
    first, seen[:] = list(seen), []
    g.extern.weight_ih_l0.add_(0.1)
    assert not torch.allclose(g(v)[0], before)
    assert all(torch.equal(a, b) for a, b in zip(first, seen, strict=True))
    seen.clear()
    g.intern.weight_ih_l0.add_(0.1)
    g(v)
    assert len(seen) == 3
    assert not any(torch.allclose(a, b) for a, b in zip(first, seen, strict=True))


@torch.no_grad()
def test_inner_norms_are_over_all_messages_and_over_all_nodes_of_a_step():
    g, v = (
        graph(inner_norm=True, neighbourhood="all", scheduler="space_only", iterations=1),
        nodes(),
    )
    for norm in (g.space.message_norm, g.space.update_norm):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    seen = {}
    g.space.message_norm.register_forward_hook(lambda _, given, y: seen.update(given=given[0], y=y))
    y, _ = g(v)
    assert seen["given"].shape == (2, 4, NODES * NODES, C)
    for normed in (y, seen["y"]):
        assert normed.mean(3).abs().max() > 0.01, "not node by node"
        torch.testing.assert_close(
            normed.mean((2, 3)), torch.zeros(2, 4, dtype=torch.float64), rtol=0, atol=1e-10
        )
        torch.testing.assert_close(
            normed.var((2, 3), correction=0),
            torch.ones(2, 4, dtype=torch.float64),
            rtol=1e-3,
            atol=0,
        )


@pytest.mark.parametrize("attention", ["dot", "simple"])
@pytest.mark.parametrize("neighbourhood", ["edges", "all"])
@torch.no_grad()
def test_attention_rows_sum_to_1(attention, neighbourhood):
    _, weights = graph(attention=attention, neighbourhood=neighbourhood)(nodes())
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    apart = weights[:, :, adjacency() == 0]
    assert (apart == 0).all() if neighbourhood == "edges" else (apart > 0).all()


@torch.no_grad()
def test_without_links_the_released_gather_is_a_uniform_mean_and_the_papers_is_zero():
    links = torch.zeros(NODES, NODES)
    _, weights = graph(links=links, **VARIANTS["released"])(nodes())
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / NODES))
    g, v = graph(links=links, scheduler="space_only", iterations=1), nodes()
    expected = g.space.update[0](torch.cat([v, torch.zeros_like(v)], -1))
    torch.testing.assert_close(g(v)[0], expected)
    y, weights = graph(links=links, attention="dot")(v)
    assert torch.isfinite(y).all()
    assert (weights == 0).all()


@torch.no_grad()
def test_two_messages_run_along_every_edge():
    sizes = {}
    for name, choices in VARIANTS.items():
        g = graph(**choices)
        g.space.messages.second.register_forward_hook(
            lambda _, __, y, name=name: sizes.update({name: y.shape[2]})
        )
        g(nodes())
    assert sizes == {"paper": 90, "released": NODES * NODES}


@torch.no_grad()
def test_a_message_is_not_the_one_in_the_other_direction_and_its_halves_say_which():
    g, v = graph(positions="none"), nodes(1, 1)
    messages = g.space.messages

    def message(j, i):
        s, r = messages.sender_half(v), messages.receiver_half(v)
        return messages.finish(s[0, 0, j] + r[0, 0, i])

    there, back = message(3, 4), message(4, 3)
    assert not torch.allclose(there, back)
    weight = messages.first.weight
    weight.copy_(torch.cat([weight[:, C:], weight[:, :C]], 1))
    torch.testing.assert_close(message(3, 4), back)


@torch.no_grad()
def test_positions_of_sender_and_receiver_count_where_they_should():
    same = nodes()[:, :, :1].expand(-1, -1, NODES, -1).contiguous()
    for whose, differ in (("none", False), ("sender", False), ("both", True)):
        messages = graph(positions=whose).space.messages
        s, r = messages.sender_half(same), messages.receiver_half(same)
        assert (s[:, :, 0] != s[:, :, 1]).any() == (whose != "none")
        assert (r[:, :, 0] != r[:, :, 1]).any() == differ


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@torch.no_grad()
def test_no_scheduler_looks_ahead(scheduler):
    g, v = graph(scheduler=scheduler), nodes(T=5)
    changed = v.clone()
    changed[:, 3] += 1
    same = (g(v)[0] == g(changed)[0]).all(-1).all(-1).all(0)
    assert same[:3].all()
    assert not same[3]
    assert bool(same[4]) == (scheduler == "space_only")


@torch.no_grad()
def test_normalising_over_time_looks_ahead_and_per_channel_does_not():
    v = nodes(T=5)
    changed = v.clone()
    changed[:, 4] += torch.randn_like(changed[:, 4])
    for norm, causal in (("layer", False), ("batch", True)):
        g = graph(norm=norm)
        assert torch.equal(g(v)[0][:, :4], g(changed)[0][:, :4]) == causal


def homogeneous_by_hand(g, v, attention):
    """One homogeneous iteration over all places, step by step and pair by pair: v [T,N,C]."""
    space, links, states = g.space, adjacency(), []
    for nodes_now in v:
        state, new = (states[-1] if states else None), []
        for i in range(NODES):
            senders = [nodes_now[j] for j in range(NODES) if links[i, j]]
            if state is not None:
                senders.append(state[i])
            logits, messages = [], []
            for sender in senders:
                pair = torch.cat([sender, nodes_now[i]])
                messages.append(space.messages.second(space.messages.first(pair).relu()).relu())
                q, k = space.affinity.receiver(nodes_now[i]), space.affinity.sender(sender)
                if attention == "simple":
                    logits.append(F.leaky_relu((q + k)[0], 0.2) + 1)
                else:
                    logits.append(q @ k)
            weights = torch.stack(logits)
            if attention == "raw":
                got = weights @ torch.stack(messages)
            else:
                got = (weights.softmax(0) @ torch.stack(messages) + space.bias).relu()
            new.append(space.update[0](torch.cat([nodes_now[i], got])))
        states.append(torch.stack(new))
    return torch.stack(states)


@pytest.mark.parametrize("attention", ["raw", "dot", "simple"])
@torch.no_grad()
def test_a_homogeneous_iteration_gathers_from_the_nodes_own_state_one_step_earlier(attention):
    """Sec. 2 with h_i^{t-1,k} of eq. (6) as one more sender."""
    g = graph(scheduler="homogeneous", iterations=1, positions="none", attention=attention)
    v = nodes(1, 3)
    torch.testing.assert_close(
        g(v)[0][0], homogeneous_by_hand(g, v[0], attention), rtol=1e-10, atol=1e-10
    )


@torch.no_grad()
def test_every_later_step_of_a_homogeneous_graph_hears_of_the_first():
    for K in (1, 2):
        g = graph(scheduler="homogeneous", iterations=K, attention="dot", channels=16)
        v = nodes(T=10, channels=16)
        # Equal weights: a softmax of large logits would round a weight in time to 0.
        for parameter in g.space.affinity.parameters():
            nn.init.zeros_(parameter)
        changed = v.clone()
        changed[:, 0] += 1
        touched = (g(v)[0] != g(changed)[0]).any(-1).any(-1).any(0)
        assert touched.all()


@torch.no_grad()
def test_the_first_step_of_a_homogeneous_graph_hears_nothing_from_before():
    for attention in ("raw", "dot"):
        g, v = graph(scheduler="homogeneous", attention=attention), nodes()
        plain = graph(scheduler="space_only", attention=attention)
        torch.testing.assert_close(g(v)[0][:, 0], plain(v)[0][:, 0])
        assert not torch.allclose(g(v)[0][:, 1], plain(v)[0][:, 1])


@torch.no_grad()
def test_space_only_does_not_know_the_order_of_frames():
    for norm in ("none", "layer"):
        g, v = graph(scheduler="space_only", norm=norm), nodes(T=5)
        order = torch.tensor([3, 1, 4, 0, 2])
        torch.testing.assert_close(g(v[:, order])[0], g(v)[0][:, order])


def test_time_only_nodes_do_not_interact():
    g, v = graph(scheduler="time_only"), nodes(1, 3).requires_grad_()
    g(v)[0][:, :, 4].sum().backward()
    touched = v.grad.abs().sum((0, 1, 3)) > 0
    assert touched.nonzero()[:, 0].tolist() == [4]


@torch.no_grad()
def test_permuting_nodes_permutes_the_outcome_only_if_their_links_go_along():
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(0))
    v, links = nodes(), adjacency()
    expected = graph(positions="none", links=links)(v)[0][:, :, order]
    moved = graph(positions="none", links=links[order][:, order])
    torch.testing.assert_close(moved(v[:, :, order])[0], expected)
    for choices in (
        {"positions": "none"},
        {"positions": "sender", "links": links[order][:, order]},
    ):
        stays = graph(**choices)(v[:, :, order])[0]
        assert not torch.allclose(stays, graph(positions=choices["positions"])(v)[0][:, :, order])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_parameter_gets_a_gradient_and_one_step_is_enough(scheduler):
    for variant in VARIANTS.values():
        for T in (1, 3):
            torch.manual_seed(0)
            g = SpaceTimeGraph(8, GraphChoices(**variant, scheduler=scheduler, inner_norm=True))
            y, _ = g(torch.randn(2, T, NODES, 8))
            assert y.shape == (2, T, NODES, 8)
            (y * torch.randn_like(y)).sum().backward()
            still = {name for name, p in g.named_parameters() if not p.grad.abs().sum() > 0}
            # From a zero state a single step never uses the recurrent weights, and no bias reaches
            # a softmax's differences.
            spared = {
                name
                for name in still
                if ("weight_hh" in name and T == 1) or name == "space.affinity.receiver.bias"
            }
            assert still == spared, (scheduler, T)


# To a map.


def test_the_module_is_the_identity_at_first_and_then_its_three_parts():
    torch.manual_seed(0)
    module = RSTG(8, 4, GraphChoices()).eval()
    x = torch.randn(2, 8, 3, 5, 6)
    with torch.no_grad():
        assert torch.equal(module(x), x)
        module.residual.scale.copy_(torch.randn(8))
        module.residual.shift.copy_(torch.randn(8))
        v, _ = module.nodes.graph(module.nodes.enter(pool_nodes(x.transpose(1, 2))))
        y = remap(module.nodes.leave(v), (5, 6)).transpose(1, 2)  # [B,C,T,h,w]
        flat = y.flatten(1)
        normed = (
            (flat - flat.mean(1, keepdim=True))
            / (flat.var(1, keepdim=True, correction=0) + 1e-12).sqrt()
        ).view_as(y)
        by_channel = (8, 1, 1, 1)
        expected = x + (
            normed + module.residual.shift.view(by_channel)
        ) * module.residual.scale.view(by_channel)
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


INSIDE = {"backbone": "resnet18", "backbone_options": {"width": 8}, "width": 8}


def lively(network, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn_like(p) * 0.2)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize(
    ("at", "cut"), [("res3.1", "res3.1"), ("res3.0,res4.1", "res3.0"), ("res4.1.conv1", "res4.0")]
)
@torch.no_grad()
def test_logits_from_the_cached_map_equal_those_from_frames(at, cut):
    backbone = lively(build_backbone("resnet18", width=8)).eval()
    frames = backbone.prepare(torch.randint(0, 256, (2, 4, 64, 48, 3), dtype=torch.uint8))
    cached = backbone(frames, upto=cut)  # [B,C,T,h,w]
    dims = Dims(T=4, maps={cut: (cached.shape[1], *cached.shape[-2:])})
    head = lively(build_head("rstg_map", dims, 5, at=at, **INSIDE), seed=1).eval()
    assert head.needs == (cut,)
    # The joint network: the trained part above the cut on the frozen part below it.
    for key, value in head.network.state_dict().items():
        if key in backbone.state_dict():
            backbone.state_dict()[key].copy_(value)
    for point in at.split(","):
        backbone.insert(point, head.network.inserted[point])
    live = head.fc(backbone(frames).mean((2, 3, 4)))
    found = head(clips_of({cut: cached.transpose(1, 2)})).logits
    torch.testing.assert_close(found, live, rtol=1e-5, atol=1e-5)


def test_only_what_is_above_the_cut_learns_and_all_of_it_does():
    torch.manual_seed(0)
    dims = Dims(T=4, maps={"res4.0": (32, 4, 4)})
    head = build_head("rstg_map", dims, 5, at="res4.0", dropout=0.0, **INSIDE).train()
    assert {
        name.split(".")[1] for name, _ in head.named_parameters() if name.startswith("network")
    } == {
        "res4",
        "res5",
        "inserted",
    }
    clips = clips_of({"res4.0": torch.randn(3, 4, 32, 4, 4)})
    statistics = {name: b.clone() for name, b in head.named_buffers()}
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(head(clips).logits, torch.tensor([0, 1, 2])).backward()
        optimiser.step()
    assert [name for name, p in head.named_parameters() if torch.equal(p, before[name])] == []
    assert all(torch.equal(b, statistics[name]) for name, b in head.named_buffers()), (
        "batch norms keep their statistics"
    )


# The heads.


def some_map(B=2, T=4, channels=8, size=(5, 5)):
    return torch.randn(B, T, channels, *size, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_the_vector_is_the_residual_of_the_nodes_read_out_as_each_variant_says():
    dims, fmap = Dims(T=4, maps={"res5": (8, 5, 5)}), some_map()
    for variant in ("paper", "released"):
        head = lively(build_head("rstg", dims, 5, variant=variant, width=6)).eval()
        v, _ = head.nodes.graph(head.nodes.enter(pool_nodes(fmap)))
        z = head.nodes.leave(v[:, -1].sum(1) if variant == "paper" else v.mean(1).sum(1))
        u = (
            fmap.mean((1, 3, 4))
            + (F.layer_norm(z, (8,), eps=1e-12) + head.residual.shift) * head.residual.scale
        )
        torch.testing.assert_close(
            head(clips_of({"res5": fmap})).logits, head.fc(u), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_every_step_reaches_the_logits(scheduler, variant):
    dims, fmap = Dims(T=10, maps={"res5": (8, 5, 5)}), some_map(T=10).requires_grad_()
    # Without norm="layer", which mixes the steps by itself.
    options = {"scheduler": scheduler, "variant": variant, "norm": "batch", "residual": False}
    head = build_head("rstg", dims, 5, width=6, **options).eval()
    head(clips_of({"res5": fmap})).logits.square().sum().backward()
    assert (fmap.grad.abs().amax((0, 2, 3, 4)) > 0).all()


@torch.no_grad()
def test_space_only_reads_the_mean_over_time_unless_it_is_told_otherwise():
    dims, fmap = Dims(T=4, maps={"res5": (8, 5, 5)}), some_map()
    options = {"scheduler": "space_only", "residual": False, "width": 6}
    for readout in ("", "mean", "last"):
        head = lively(build_head("rstg", dims, 5, readout=readout, **options)).eval()
        v, _ = head.nodes.graph(head.nodes.enter(pool_nodes(fmap)))
        expected = v[:, -1].sum(1) if readout == "last" else v.mean(1).sum(1)
        found = head(clips_of({"res5": fmap})).logits
        torch.testing.assert_close(found, head.fc(expected))


@torch.no_grad()
def test_norms_have_the_epsilons_of_the_release():
    """TensorFlow 1.13's defaults: 1e-12 for contrib's layer norm, 1e-3 for batch norm."""
    v = 1e-4 * nodes()  # a variance of 1e-8
    g = graph(norm="layer", inner_norm=True)
    for norm, axes in (
        (g.before, (1, 2, 3)),
        (g.space.message_norm, (2, 3)),
        (g.space.update_norm, (2, 3)),
    ):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
        variance = norm(v).var(axes, correction=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-3, atol=0)

    batch = graph(norm="batch").before.train()
    nn.init.ones_(batch.weight)
    of_channel = v.var((0, 1, 2), correction=0)
    torch.testing.assert_close(
        batch(v).var((0, 1, 2), correction=0), of_channel / (of_channel + 1e-3)
    )


@torch.no_grad()
def test_both_heads_start_as_the_plain_pooling_baseline():
    dims, clips = Dims(T=4, maps={"res5": (8, 5, 5)}), clips_of({"res5": some_map()})
    for name in ("rstg", "rstg_map"):
        head = build_head(name, dims, 5, width=6).eval()
        torch.testing.assert_close(
            head(clips).logits, head.fc(clips.get("res5").mean((1, 3, 4))), rtol=1e-5, atol=1e-5
        )


@torch.no_grad()
def test_padding_of_a_map_never_changes_logits():
    dims, fmap = Dims(T=4, maps={"res5": (8, 5, 5)}), some_map()
    padded = F.pad(fmap, (0, 2, 0, 1), value=7)
    for name in ("rstg", "rstg_map"):
        head = lively(build_head(name, dims, 5, width=6)).eval()
        found = head(clips_of({"res5": padded, "grid": torch.tensor([[5, 5]] * 2)})).logits
        torch.testing.assert_close(
            found, head(clips_of({"res5": fmap})).logits, rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_cached_grid_nodes_that_are_exact_give_what_the_map_gives():
    fmap = some_map()
    v = pool_nodes(fmap)
    dims = Dims(T=4, N=NODES, C=8, maps={"res5": (8, 5, 5)})
    heads = [
        lively(build_head("rstg", dims, 5, width=6, regions=regions)).eval()
        for regions in ("map", "nodes")
    ]
    assert heads[1].needs == ("pooled", "nodes")
    expected = heads[0](clips_of({"res5": fmap})).logits
    torch.testing.assert_close(
        heads[1](clips_of({"nodes": v, "pooled": v[:, :, -1]})).logits,
        expected,
        rtol=1e-4,
        atol=1e-5,
    )


def test_attention_is_shown_when_asked():
    dims, clips = Dims(T=4, maps={"res5": (8, 5, 5)}), clips_of({"res5": some_map()})
    shown = build_head("rstg", dims, 5, width=6)(clips, want_maps=True).maps
    assert shown["attention"].shape == (2, 4, NODES, NODES)
    assert (
        build_head("rstg", dims, 5, width=6, scheduler="time_only")(clips, want_maps=True).maps
        == {}
    )


def test_what_does_not_fit_is_refused():
    dims = Dims(T=4, N=10, C=8, maps={"res5": (8, 5, 5), "res4.0": (32, 4, 4)})
    for options, message in (
        ({"variant": "mine"}, "option variant: expected one of paper, released"),
        ({"attention": "softmax"}, "option attention: expected one of raw, dot, simple"),
        ({"scheduler": "none"}, "scheduler: expected one of all_temporal"),
        ({"norm": "group"}, "norm: expected one of layer, batch, none"),
        ({"iterations": 0}, "iterations: expected at least 1"),
        ({"regions": "boxes"}, "option regions: expected one of map, nodes"),
        (
            {"regions": "nodes"},
            "expected 14 boxes per step, got 10; extract with --proposals grid --roi-pool area",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build_head("rstg", dims, 5, **options)
    for options, message in (
        ({"at": "res4.0"}, "backbone and at go together"),
        ({**INSIDE, "at": "res4.7"}, "cut 'res4.7' is not one of resnet18"),
        ({**INSIDE, "at": "stem.conv1"}, "no cut of resnet18 lies before stem.conv1"),
        (
            {**INSIDE, "at": "res4.0", "backbone_options": {"width": 4}},
            "the cached res4.0 has 32 channels, that of resnet18 16",
        ),
        ({**INSIDE, "at": "res3.0"}, "head rstg_map needs res3.0"),
    ):
        with pytest.raises(ValueError, match=message):
            build_head("rstg_map", dims, 5, **options)
    head = build_head("rstg_map", dims, 5, at="res4.0", **INSIDE)
    with pytest.raises(ValueError, match="2 sizes in a batch; evaluate with batches of 1"):
        head(
            clips_of(
                {"res4.0": torch.randn(2, 4, 32, 4, 4), "grid": torch.tensor([[4, 4], [4, 3]])}
            )
        )


@torch.no_grad()
def test_conv_lstm_is_its_formula():
    head = lively(
        build_head("conv_lstm", Dims(T=4, maps={"res5": (8, 6, 6)}), 5, width=4, hidden=6)
    ).eval()
    fmap, states = some_map(size=(6, 6)), []
    for t in range(4):
        y = fmap[:, t]
        for conv in head.convs:
            y = F.conv2d(y, conv.weight, conv.bias).relu()
        states.append(y.flatten(1))
    _, (last, _) = head.lstm(torch.stack(states, 1))
    torch.testing.assert_close(head(clips_of({"res5": fmap})).logits, head.fc(last[0]))


@torch.no_grad()
def test_conv_lstm_sees_where_things_are_and_not_only_that_they_are_there():
    dims = Dims(T=4, maps={"res5": (8, 6, 6)})
    head = lively(build_head("conv_lstm", dims, 5, width=4, hidden=6)).eval()
    fmap = some_map(size=(6, 6))
    assert not torch.allclose(
        head(clips_of({"res5": fmap})).logits, head(clips_of({"res5": fmap.flip(-1)})).logits
    )
    with pytest.raises(ValueError, match=r"conv_lstm reads a 6 x 6 map of res5, got 5 x 5"):
        head(clips_of({"res5": some_map()}))
    with pytest.raises(ValueError, match="2 convolutions need 5 cells a side, res5 has 4 x 9"):
        build_head("conv_lstm", Dims(T=4, maps={"res5": (8, 4, 9)}), 5)
