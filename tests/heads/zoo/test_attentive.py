"""The attentive probe: torch's own attention, transformers' port of the release, tokens by hand."""

import pytest
import torch
from torch import nn

from heads.config.study_file import read_study
from heads.interface.clips import Dims, clips_of
from heads.interface.members import as_members
from heads.papers.vjepa.probe_blocks import Attention, QueryBlock, SelfBlock
from heads.zoo import build_head

D, HEADS = 16, 4


def torch_attention(own: Attention) -> nn.MultiheadAttention:
    """torch's attention with the same weights; without Wo, it has the identity there."""
    other = nn.MultiheadAttention(D, HEADS, batch_first=True, dtype=own.q.weight.dtype)
    with torch.no_grad():
        weights = [layer.weight for layer in (own.q, own.k, own.v)]
        other.in_proj_weight.copy_(torch.cat(weights))
        other.in_proj_bias.copy_(torch.cat([layer.bias for layer in (own.q, own.k, own.v)]))
        if isinstance(own.out, nn.Identity):
            other.out_proj.weight.copy_(torch.eye(D))
            other.out_proj.bias.zero_()
        else:
            other.out_proj.load_state_dict(own.out.state_dict())
    return other


@pytest.mark.parametrize("projects", [True, False])
def test_attention_and_its_weights_are_those_of_torch(projects):
    torch.manual_seed(0)
    own = Attention(D, HEADS, projects)
    q, x = torch.randn(2, 3, D), torch.randn(2, 7, D)
    read = torch.ones(2, 7, dtype=torch.bool)
    read[0, 4:] = False
    mask = read[:, None, None]
    wanted, weights = torch_attention(own)(
        q, x, x, key_padding_mask=~read, average_attn_weights=False
    )
    torch.testing.assert_close(own(q, x, mask), wanted)
    torch.testing.assert_close(own.weights(q, x, mask), weights)


def test_a_block_is_that_of_torch():
    """nn.TransformerEncoderLayer with norms first, GELU and 4 D is the same block."""
    torch.manual_seed(0)
    own, x = SelfBlock(D, HEADS), torch.randn(2, 7, D)
    other = nn.TransformerEncoderLayer(
        D, HEADS, 4 * D, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    other.self_attn = torch_attention(own.attention)
    other.linear1, other.linear2 = own.mlp.fc1, own.mlp.fc2
    other.norm1, other.norm2 = own.norm1, own.norm2
    torch.testing.assert_close(own(x, None), other(x))


@pytest.mark.parametrize("queries", [1, 2, 3])  # 3 are too many to go without keys and values
def test_queries_add_what_they_read_and_only_tokens_are_normed_before(queries):
    """Values and every gradient are those of torch's attention on normed tokens."""
    torch.manual_seed(0)
    own, x = QueryBlock(D, HEADS).double(), torch.randn(2, 7, D, dtype=torch.float64)
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    q = torch.randn(1, queries, D, dtype=torch.float64, requires_grad=True)
    read = torch.ones(2, 7, dtype=torch.bool)
    read[0, 4:] = False
    weight = torch.randn(2, queries, D, dtype=torch.float64)

    other = torch_attention(own.attention)
    both, normed = q.expand(2, -1, -1), own.norm1(x)
    q1 = both + other(both, normed, normed, key_padding_mask=~read)[0]
    wanted = q1 + own.mlp(own.norm2(q1))
    learned = [q, *own.norm1.parameters(), *own.norm2.parameters(), *own.mlp.parameters()]
    found = own(q, x, read[:, None, None])
    torch.testing.assert_close(found, wanted)
    for one, two in zip(
        torch.autograd.grad((found * weight).sum(), learned, retain_graph=True),
        torch.autograd.grad((wanted * weight).sum(), learned, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(one, two)

    layers = (own.attention.q, own.attention.k, own.attention.v)
    for part in ("weight", "bias"):
        mine = [getattr(layer, part) for layer in layers]
        grads = torch.autograd.grad((found * weight).sum(), mine, retain_graph=True)
        packed = getattr(other, f"in_proj_{part}")
        (torchs,) = torch.autograd.grad((wanted * weight).sum(), packed, retain_graph=True)
        torch.testing.assert_close(torch.cat(grads), torchs)


def port(width: int, heads: int, device: str = "cpu") -> nn.Module:
    """transformers' port of the release's probe."""
    modeling = pytest.importorskip(
        "transformers.models.vjepa2.modeling_vjepa2", reason="pip install 'vidgraph[transformers]'"
    )
    from transformers import VJEPA2Config

    config = VJEPA2Config(hidden_size=width, num_attention_heads=heads, layer_norm_eps=1e-5)
    config._attn_implementation = "sdpa"
    with torch.device(device):
        return modeling.VJEPA2AttentivePooler(config)


def test_at_vit_l_there_are_as_many_parameters_as_in_the_port_of_the_release():
    count = sum(p.numel() for p in port(1024, 16, "meta").parameters())
    assert count == 49_336_320
    with torch.device("meta"):
        head = build_head("attentive", Dims(8, maps={"last": (1024, 16, 16)}), 174)
    assert sum(p.numel() for p in head.parameters()) == count + 174 * 1025
    assert head.pooling.attention.heads == 16


def test_it_gives_what_the_port_gives_with_the_same_weights():
    torch.manual_seed(0)
    there = port(32, 4)
    head = build_head("attentive", Dims(2, maps={"last": (32, 3, 4)}), 5, heads=4).eval()
    state = {"queries": there.query_tokens.detach() + 0.1}
    there.query_tokens.data += 0.1
    pairs = [(f"blocks.{k}", layer) for k, layer in enumerate(there.self_attention_layers)]
    for name, layer in (*pairs, ("pooling", there.cross_attention_layer)):
        attention = getattr(layer, "self_attn", None) or layer.cross_attn
        for own, other in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")):
            for key, tensor in getattr(attention, other, nn.Identity()).state_dict().items():
                state[f"{name}.attention.{own}.{key}"] = tensor
        parts = {"norm1": layer.layer_norm1, "norm2": layer.layer_norm2, "mlp": layer.mlp}
        for part, module in parts.items():
            for key, tensor in module.state_dict().items():
                state[f"{name}.{part}.{key}"] = tensor
    rest = {key: tensor for key, tensor in head.state_dict().items() if key.startswith("fc.")}
    head.load_state_dict(state | rest)
    fmap = torch.randn(2, 2, 32, 3, 4)
    found = head(clips_of({"last": fmap})).logits
    # The order of tokens does not matter to the port, either: T, h, w.
    tokens = torch.stack(
        [fmap[:, t, :, i, j] for t in range(2) for i in range(3) for j in range(4)], 1
    )
    with torch.no_grad():
        torch.testing.assert_close(found, head.fc(there(tokens)), rtol=1e-4, atol=1e-5)


def test_padding_of_a_map_is_never_read_and_attention_sums_to_one():
    torch.manual_seed(0)
    head = build_head("attentive", Dims(2, maps={"last": (8, 4, 4)}), 5, heads=2).eval()
    fmap, grid = torch.randn(2, 2, 8, 4, 4), torch.tensor([[4, 4], [3, 2]])
    out = head(clips_of({"last": fmap, "grid": grid}), want_maps=True)
    alone = head(clips_of({"last": fmap[1:, ..., :3, :2]})).logits
    torch.testing.assert_close(out.logits[1:], alone, rtol=1e-4, atol=1e-5)
    fmap[1, ..., 3:, :], fmap[1, ..., 2:] = float("nan"), float("nan")
    again = head(clips_of({"last": fmap, "grid": grid})).logits
    torch.testing.assert_close(again, out.logits)
    attention = out.maps["attention"]
    assert attention.shape == (2, 1, 2, 4, 4)
    torch.testing.assert_close(attention.flatten(2).sum(-1), torch.ones(2, 1))
    assert not attention[1, ..., 3:, :].any()


def test_class_tokens_are_read_where_they_are_asked_for():
    dims = Dims(2, C=8, maps={"last": (8, 2, 2)})
    head = build_head("attentive", dims, 5, heads=2, class_tokens=True).eval()
    assert head.needs == ("last", "tokens")
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    fmap, tokens = torch.randn(2, 2, 8, 2, 2), torch.randn(2, 2, 1, 8)
    before = head(clips_of({"last": fmap, "tokens": tokens})).logits
    after = head(clips_of({"last": fmap, "tokens": -tokens})).logits
    assert (after - before).abs().max() > 1e-4


def test_members_of_one_shape_can_be_computed_together():
    dims = Dims(2, maps={"last": (8, 2, 2)})
    heads = [build_head("attentive", dims, 5, heads=2).eval() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(heads)
    fmap = torch.randn(4, 2, 8, 2, 2)

    def one(parameters, buffers):
        clips = (clips_of({"last": fmap}),)
        return torch.func.functional_call(heads[0], (parameters, buffers), clips).logits

    with as_members():
        together = torch.func.vmap(one)(parameters, buffers)
    for head, found in zip(heads, together, strict=True):
        torch.testing.assert_close(found, head(clips_of({"last": fmap})).logits)


def test_the_grid_has_the_papers_twenty_probes():
    plan = read_study("attentive_grid")
    found = {(row.recipe.train.lr, row.recipe.train.weight_decay) for row in plan.rows}
    rates, decays = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (0.01, 0.1, 0.4, 0.8)
    assert found == {(lr, decay) for lr in rates for decay in decays}
    train = plan.rows[0].recipe.train
    assert (train.epochs, train.batch, train.optimiser, train.schedule) == (
        *(20, 256),
        *("adamw", "cosine"),
    )


def test_probes_that_share_their_tokens_are_computed_as_one_with_the_same_gradients():
    torch.manual_seed(0)
    probes = [QueryBlock(D, HEADS).double() for _ in range(3)]
    queries = torch.randn(3, 1, 2, D, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(4, 7, D, dtype=torch.float64)
    mask = torch.rand(4, 1, 1, 7) > 0.3
    weights, _ = torch.func.stack_module_state(probes)

    def one(state: dict, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(probes[0], state, (q, x, mask))

    own = torch.stack([tokens + k for k in range(3)])  # tokens that differ
    for x, dim in ((tokens, None), (own, 0)):
        with as_members():
            found = torch.vmap(one, in_dims=(0, 0, dim))(weights, queries, x)
        given = [tokens] * 3 if dim is None else list(own)
        wanted = [probe(q, y, mask) for probe, q, y in zip(probes, queries, given, strict=True)]
        torch.testing.assert_close(found, torch.stack(wanted))

        found = torch.autograd.grad(found.square().sum(), weights["attention.k.weight"])[0]
        for k, probe in enumerate(probes):
            loss = wanted[k].square().sum()
            mine = torch.autograd.grad(loss, probe.attention.k.weight)[0]
            torch.testing.assert_close(found[k], mine)
