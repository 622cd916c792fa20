"""EAN's trunk, Event Adaptive Blocks, motion code and transformer, against equations and sizes."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heads.interface.clips import Clips, Dims
from heads.interface.masked_layers import masked_mean
from heads.papers.ean.regions import coverage, tiles
from heads.papers.ean.transformer import RowNorm
from heads.zoo import build_head, head_changes, head_version
from pipeline.backbones import build_backbone
from pipeline.backbones._ean import (
    Design,
    EventAdaptiveBlock,
    MotionExcitation,
    TrainableShift,
    fuse,
    shuffled,
    thirds,
)
from tests.support.tiny_backbone import frames, lively, relative, tiny

VARIANTS = ("paper", "released")
variants = pytest.mark.parametrize("variant", VARIANTS)


# Sizes; those that the paper reports are in published.py. Its parameters leave E out
# (position="none").


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@cache
def trunk(variant, **options):
    """Parameters of the backbone."""
    with torch.device("meta"):
        return parameters(build_backbone("ean_r50", variant=variant, **options))


def classifier(variant, position):
    """Parameters of the head with 174 classes."""
    with torch.device("meta"):
        dims = Dims(8, maps={"res5": (2048, 7, 7)})
        return parameters(build_head("ean", dims, 174, variant=variant, position=position))


@pytest.mark.parametrize(
    ("variant", "blocks", "matrices", "soi", "positions", "total"),
    [
        ("released", 5_551_355, 5_059_927, 6_444_676, 8 * 49 * 512, 36_239_953),
        ("paper", 7_334_362, 6_306_392, 5_931_844, 49 * 512, 37_334_512),
    ],
)
def test_parts_have_the_parameters_that_their_equations_give(
    variant, blocks, matrices, soi, positions, total
):
    """The sizes of the released code, less the 3 712 parameters of its unused batch norms.

    The paper's variant has 3 % more than Table 5: its 1×1×1 convolutions have no groups.
    """
    plain, full = trunk(variant, eab="none"), trunk(variant)
    assert plain == 23_686_692
    assert full - plain == blocks
    assert full - trunk(variant, fusion="identity") == matrices
    fc = 2048 * 174 + 174
    assert classifier(variant, "none") - fc == soi
    assert classifier(variant, "auto") - fc == soi + positions
    assert full + classifier(variant, "auto") == total


# The trunk.


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shift_by_index(x):
    fold, y = x.shape[1] // 8, torch.zeros_like(x)
    y[:, :fold, :-1] = x[:, :fold, 1:]
    y[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
    y[:, 2 * fold :] = x[:, 2 * fold :]
    return y


def test_the_trainable_shift_starts_as_tsms_shift_in_every_block():
    x = noise(2, 16, 5, 3, 4)
    assert torch.equal(TrainableShift(16).double()(x), shift_by_index(x))
    backbone = build_backbone("ean_r50", width=16)
    shifts = [module for module in backbone.modules() if isinstance(module, TrainableShift)]
    assert len(shifts) == 16
    assert all(
        torch.equal(shift.weight, TrainableShift(len(shift.weight)).weight) for shift in shifts
    )


@torch.no_grad()
def test_motion_excitation_is_its_formula_and_the_last_frame_has_no_motion():
    module = lively(MotionExcitation(32)).double().eval()
    x = noise(2, 32, 4, 5, 3)
    u = module.bn1(torch.einsum("oc,bcthw->bothw", module.conv1.weight[:, :, 0, 0, 0], x))
    after = torch.stack(
        [
            F.conv2d(u[:, :, t], module.depthwise.weight[:, :, 0], padding=1, groups=2)
            for t in range(4)
        ],
        2,
    )
    d = torch.zeros_like(u)
    for t in range(3):
        d[:, :, t] = after[:, :, t + 1] - u[:, :, t]
    pooled = d.mean((3, 4), keepdim=True)
    assert torch.allclose(module.difference(x), pooled)
    assert not module.difference(x)[:, :, -1].any()
    s = (
        module.bn2(
            torch.einsum("oc,bcthw->bothw", module.conv2.weight[:, :, 0, 0, 0], pooled)
        ).sigmoid()
        - 0.5
    )
    assert torch.allclose(module(x), x + x * s)
    assert torch.isfinite(module(x[:, :, :1])).all()


@torch.no_grad()
def test_a_bottleneck_excites_then_shifts_between_its_first_relu_and_its_second_convolution():
    block = tiny("ean_r50", width=16).res2[1].double()
    nn.init.normal_(block.shift.weight)
    x = noise(1, 64, 4, 5, 6)
    y = block.shift(block.me(F.relu(block.bn1(block.conv1(x)))))
    y = block.bn3(block.conv3(F.relu(block.bn2(block.conv2(y)))))
    assert torch.allclose(block(x), F.relu(y + x))


# Event Adaptive Blocks.


def block(variant="paper", channels=32, seed=0, **options):
    """A block in float64 and eval mode whose last convolution is as large as the others."""
    torch.manual_seed(seed)
    made = lively(EventAdaptiveBlock(channels, Design(variant, **options))).double().eval()
    if options.get("expand") != "zero":
        nn.init.normal_(made.expand.weight, std=0.3)
    return made


def with_matrix(made, matrix):
    """The block with its ESP-Net answering `matrix` for every sample."""
    nn.init.zeros_(made.matrix.fc.weight)
    made.matrix.fc.bias.data.copy_(matrix.flatten())
    return made


@variants
@torch.no_grad()
def test_identity_matrix_reduces_the_block_to_the_incep_block_and_a_permutation_to_channel_shuffle(
    variant,
):
    x, dynamic = noise(2, 32, 4, 6, 5), block(variant)
    for fusion, matrix in (("identity", torch.eye(8)), ("shuffle", torch.eye(8)[shuffled(8)])):
        other = block(variant, fusion=fusion)
        other.load_state_dict(
            {k: v for k, v in dynamic.state_dict().items() if not k.startswith("matrix")}
        )
        assert torch.allclose(with_matrix(dynamic, matrix)(x), other(x), rtol=1e-10, atol=1e-10)
    assert shuffled(8).tolist() == [0, 2, 4, 1, 3, 5, 6, 7]


def test_the_matrix_maps_columns_to_rows_at_every_position():
    matrix, z = noise(2, 3, 3), noise(2, 3, 2, 4, 5, seed=1)
    assert torch.allclose(fuse(matrix, z), torch.einsum("boi,bithw->bothw", matrix, z))
    made = with_matrix(block(), torch.arange(64.0).view(8, 8))
    assert (
        made.matrix(noise(2, 32, 4, 6, 5)).tolist() == [torch.arange(64.0).view(8, 8).tolist()] * 2
    )


@variants
@torch.no_grad()
def test_a_block_whose_last_convolution_starts_at_zero_is_the_identity_and_a_small_one_nearly(
    variant,
):
    x = noise(2, 32, 4, 6, 5)
    assert torch.equal(block(variant, expand="zero")(x), x)
    torch.manual_seed(0)
    small = EventAdaptiveBlock(32, Design(variant)).double().eval()
    assert 0 < (small(x) - x).abs().max() < 0.1 * x.abs().max()
    fan_in = small.expand.weight[0].numel()
    assert 0.5 < small.expand.weight.abs().max() * fan_in**0.5 / 0.01 <= 1


@variants
@pytest.mark.parametrize("dilation", [True, False])
@pytest.mark.parametrize("factorised", [True, False])
@torch.no_grad()
def test_the_three_groups_reach_one_three_and_five_along_their_axes_in_the_order_of_the_variant(
    variant, dilation, factorised
):
    # 12 channels inside, 4 in each group.
    made = block(variant, 48, dilation=dilation, factorised=factorised)
    for layer, along_time in (
        (made.first, variant == "released"),
        (made.second, variant == "paper"),
    ):
        impulse = torch.zeros(1, 12, 9, 9, 9, dtype=torch.float64)
        impulse[..., 4, 4, 4] = 1
        response = (layer(impulse) - layer(torch.zeros_like(impulse))).abs() > 1e-12
        for group, reach in enumerate((1, 3, 5)):
            seen = response[0, 4 * group : 4 * group + 4].any(0).nonzero()
            extent = (seen.amax(0) - seen.amin(0) + 1).tolist()
            assert extent == ([reach, 1, 1] if along_time else [1, reach, reach])


def test_channel_groups_take_the_remainder_last_and_none_where_there_are_too_few():
    assert [thirds(u) for u in (16, 64, 2)] == [[5, 5, 6], [21, 21, 22], [0, 0, 2]]
    x = noise(1, 8, 2, 3, 3)
    assert block("released", 8)(x).shape == x.shape


@variants
@pytest.mark.parametrize("pool", ["max", "avg", "none"])
@pytest.mark.parametrize("inter_relu", [True, False])
@torch.no_grad()
def test_a_block_is_its_formula(variant, pool, inter_relu):
    made, x = block(variant, pool=pool, inter_relu=inter_relu), noise(2, 32, 4, 6, 5)
    groups = 4 if variant == "released" else 1
    assert made.compress.groups == made.expand.groups == groups
    z = F.conv3d(x, made.compress.weight, groups=groups)
    y = made.first(z)
    y = y.relu() if inter_relu else y
    y = torch.einsum("boi,bithw->bothw", made.matrix(z if variant == "released" else x), y)
    y = made.second(y)
    if pool == "max":
        y = y + F.conv3d(F.max_pool3d(z, 3, 1, 1), made.pooled.weight)
    if pool == "avg":
        cells = F.avg_pool3d(torch.ones_like(z), 3, 1, 1)
        y = y + F.conv3d(F.avg_pool3d(z, 3, 1, 1) / cells, made.pooled.weight)
    if pool == "none":
        y = y + F.conv3d(z, made.pooled.weight)
    assert torch.allclose(made(x), x + F.conv3d(y, made.expand.weight, groups=groups))


@variants
@torch.no_grad()
def test_the_matrix_is_that_of_its_own_sample_and_follows_it(variant):
    made, x = block(variant), noise(3, 32, 4, 6, 5)
    together = made(x)
    for b in range(3):
        assert torch.allclose(made(x[b : b + 1]), together[b : b + 1], rtol=1e-10, atol=1e-10)
    source = made.compress(x) if variant == "released" else x
    assert (made.matrix(source)[0] - made.matrix(source)[1]).abs().max() > 1e-4


@variants
@torch.no_grad()
def test_blocks_move_with_their_input_except_near_the_border(variant):
    made = block(variant, fusion="identity")
    x = noise(1, 32, 9, 14, 14)
    moved = x.roll((1, 1), (3, 4))
    y, z = made(x).roll((1, 1), (3, 4)), made(moved)
    assert torch.allclose(y[..., 4:-4, 4:-4], z[..., 4:-4, 4:-4], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(y, z)


@torch.no_grad()
def test_the_maximum_branch_is_monotone():
    made, z = block(), noise(1, 8, 4, 5, 5)
    assert (made.pool(z + noise(1, 8, 4, 5, 5, seed=1).abs()) >= made.pool(z)).all()


def test_the_static_matrix_starts_near_the_identity_and_is_learned():
    made = block(fusion="static")
    off = made.matrix.matrix - torch.eye(8)
    assert 0.003 < off.std() < 0.03
    made(noise(1, 32, 2, 4, 4)).square().sum().backward()
    assert made.matrix.matrix.grad.abs().max() > 0


@torch.no_grad()
def test_a_stage_is_the_map_behind_its_block_and_its_last_block_the_map_before():
    backbone = tiny("ean_r50", width=16, eab="res4,res5")
    nn.init.normal_(backbone.eab["res4"].expand.weight)
    maps = backbone.maps(backbone.prepare(frames()), ("res4.5", "res4"))
    assert list(backbone.eab) == ["res4", "res5"]
    assert relative(backbone.eab["res4"](maps["res4.5"]), maps["res4"]) < 1e-6
    assert relative(maps["res4.5"], maps["res4"]) > 1e-2
    assert backbone.stages == ("stem", "res2", "res3", "res4", "res5")
    assert len(tiny("ean_r50", eab="none").eab) == 0


@torch.no_grad()
def test_a_block_can_be_inserted_into_any_backbone():
    backbone = tiny("resnet18")
    plain = backbone(backbone.prepare(frames()))
    backbone.insert(
        "res3", EventAdaptiveBlock(backbone.channels("res3"), Design(expand="zero")).eval()
    )
    assert torch.equal(backbone(backbone.prepare(frames())), plain)


# Latent Motion Code.


def with_code(variant="paper", segments=8, **options):
    torch.manual_seed(0)
    options = {"eab": "none", "lmc": True, "segments": segments, "width": 16} | options
    return build_backbone("ean_r50", variant=variant, **options).double().eval()


@variants
@pytest.mark.parametrize("segments", [8, 16])
@torch.no_grad()
def test_a_still_clip_has_no_motion_and_a_moving_one_has(variant, segments):
    backbone = with_code(variant, segments)
    still = noise(1, 3, 1, 32, 64).expand(-1, -1, 5 * segments, -1, -1)
    assert not backbone.stem.lmc(still).any()
    plain = build_backbone("ean_r50", eab="none", width=16).double().eval()
    plain.load_state_dict(backbone.state_dict(), strict=False)
    rgb, stem = plain(still[:, :, :segments], upto="stem"), backbone(still, upto="stem")
    stack = backbone.stem.stack
    assert (stack is not None) == (variant == "released" and segments == 16)
    if stack is None:
        assert torch.allclose(stem, rgb)
    else:
        # The second branch has a bias, which a still clip leaves.
        assert torch.allclose(stem, 0.6 * rgb + 0.2 * stack(still))
        assert torch.equal(stack(still)[..., 4, 4], stack(still)[..., 5, 9])
    assert backbone.stem.lmc(noise(1, 3, 5 * segments, 32, 64)).abs().max() > 0
    assert backbone.steps(5 * segments) == segments
    assert stem.shape == (1, 16, segments, 8, 16)


@pytest.mark.parametrize(("variant", "picked"), [("paper", 0), ("released", 2)])
@torch.no_grad()
def test_the_trunk_sees_the_variants_frame_of_each_segment_and_the_code_all_of_them(
    variant, picked
):
    backbone = with_code(variant)
    x = noise(1, 3, 40, 32, 32)
    before = backbone(x, upto="stem")
    backbone.stem.lmc.back.weight.zero_()
    rgb = backbone(x, upto="stem")
    for frame in range(5):
        changed = x.clone()
        changed[:, :, 15 + frame] += noise(1, 3, 32, 32, seed=1)
        difference = (backbone(changed, upto="stem") - rgb).abs().amax((0, 1, 3, 4))
        assert (difference > 0).tolist() == [frame == picked and t == 3 for t in range(8)]
        assert with_code(variant).stem.lmc(changed).sub(before - rgb)[:, :, 3].abs().max() > 1e-9


@variants
@torch.no_grad()
def test_a_difference_lands_in_its_own_cells_and_channels(variant):
    code = with_code(variant).stem.lmc
    # Nothing is mixed.
    if variant == "released":
        nn.init.zeros_(code.first[-1].weight)
        nn.init.zeros_(code.second[-1].weight)
    else:
        code.first = code.second = nn.Identity()
    x = torch.zeros(1, 3, 40, 64, 96, dtype=torch.float64)
    x[:, :, 10, 40, 70] = 1  # the first frame of segment 2: only its first difference sees it
    touched = code(x).nonzero()
    # Four channels of each difference, the differences side by side.
    assert set(touched[:, 1].tolist()) == {0, 4, 8, 12}
    assert set(touched[:, 2].tolist()) == {2}
    assert (touched[:, 3] // 8).unique().tolist() == [1]
    assert (touched[:, 4] // 8).unique().tolist() == [2]
    patch = 16 if variant == "released" else 32
    assert code.project.weight.shape == (64 if variant == "released" else 32, 3, 1, patch, patch)
    kernel = code.project.weight[:, :, 0].sum(1)
    pixel = (20 % 16, 35 % 16) if variant == "released" else (40 % 32, 70 % 32)
    values = -kernel[:, pixel[0], pixel[1]]
    if variant == "paper":
        values = values.relu()
    cells = torch.einsum("oi,i->o", code.back.weight[:, :, 0, 0, 0], values).view(4, 8, 8)
    assert torch.allclose(code(x)[0, [0, 4, 8, 12], 2, 8:16, 16:24], cells)


@pytest.mark.parametrize(
    ("variant", "segments"), [("paper", 8), ("paper", 16), ("released", 8), ("released", 16)]
)
@torch.no_grad()
def test_the_code_has_residuals_and_outer_layers_in_the_release_alone(variant, segments):
    """The release with numbers of its own is in tests/parity; this is the paper's beside it."""
    code = lively(with_code(variant, segments).stem.lmc).double().eval()
    x = noise(1, 3, 4, 16 if variant == "released" else 32, 32)
    h = F.conv3d(x, code.project.weight, stride=code.project.stride)
    if variant == "paper":
        wanted = code.second(F.relu(code.first(h)))
        assert [type(layer) for layer in code.first] == [type(code.first[0]), nn.BatchNorm3d]
        assert (code.enter, code.leave) == (None, None)
    else:
        deep = segments == 16
        h = code.enter(h) if deep else h
        h = h + code.first(h)
        wanted = h + code.second(h)
        wanted = code.leave(wanted) if deep else wanted
        assert (code.enter is not None) == deep
    assert torch.allclose(code.code(x), wanted)


@torch.no_grad()
def test_motion_of_one_segment_stays_in_it():
    code = lively(with_code().stem.lmc).eval()
    for module in code.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.zeros_(module.running_mean)
            nn.init.zeros_(module.bias)
    x = torch.zeros(1, 3, 40, 32, 32, dtype=torch.float64)
    x[:, :, 16] = 1
    assert code(x).abs().amax((0, 1, 3, 4)).gt(0).tolist() == [t == 3 for t in range(8)]


def test_clips_that_do_not_fit_the_code_are_refused():
    backbone = with_code()
    for shape in ((1, 3, 8, 32, 32), (1, 3, 40, 48, 32)):
        with pytest.raises(
            ValueError, match=r"expects 40 frames, 5 adjacent ones for each of 8 segments, .* got"
        ):
            backbone(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eab": "res6"}, "eab='res6': expected none, or names among stem, res2"),
        ({"eab": "res2,res2"}, "each once"),
        ({"segments": 12}, "segments=12: expected 8 or 16"),
        ({"variant": "code"}, "variant='code': expected one of paper, released"),
        (
            {"fusion": "learned"},
            "fusion='learned': expected one of dynamic, static, shuffle, identity",
        ),
        ({"lmc": True, "width": 6}, "with lmc a multiple of 4"),
    ],
)
def test_options_of_the_trunk_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("ean_r50", **options)


@pytest.mark.parametrize(
    ("options", "segments"), [({"variant": "released"}, 16), ({"fusion": "static"}, 8)]
)
def test_motion_code_learns_in_every_parameter(options, segments):
    backbone = with_code(segments=segments, eab="res4", **options).train()
    backbone(noise(1, 3, 5 * segments, 32, 32)).square().sum().backward()
    dead = [
        name
        for name, p in backbone.named_parameters()
        if p.grad is None or p.grad.abs().max() < 1e-12
    ]
    found = [name for name in dead if ".matrix.convs." not in name or not name.endswith(".bias")]
    # The release's last norm for 16 segments removes this one.
    assert found == (["stem.lmc.second.1.bias"] if segments == 16 else [])


# The transformer.

B, T, C, H, W, K = 3, 4, 12, 3, 5, 6
SIZES = Dims(T, N=2, C=0, maps={"res5": (C, H, W)})


def head(seed=0, random=True, **options):
    """The head in float64 and eval mode; `random` draws every weight and statistic."""
    torch.manual_seed(seed)
    made = build_head("ean", SIZES, K, width=16, **options).double().eval()
    if random:
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.5)
        for module in made.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return made


def clips(size=B, seed=1, **more):
    return Clips(maps={"res5": noise(size, T, C, H, W, seed=seed)}, **more)


def norm_by_hand(norm, x, channel):
    shape = [-1 if axis == channel % x.dim() else 1 for axis in range(x.dim())]
    mean, variance, gain, offset = (
        v.view(shape) for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (variance + norm.eps).sqrt() * gain + offset


def logits_by_hand(made, fmap, variant):
    """View by view, object by object."""
    soi, rows = made.objects, []
    for view in fmap:
        x = torch.einsum("oc,tchw->othw", soi.squeeze.weight, view)  # [16,T,h,w]
        o, layers = x[None], list(soi.saliency.layers)
        for layer in layers:
            if isinstance(layer, nn.Conv3d):
                o = F.conv3d(
                    o, layer.weight, layer.bias, padding=tuple(k // 2 for k in layer.kernel_size)
                )
            else:
                o = o.relu() if isinstance(layer, nn.ReLU) else norm_by_hand(layer, o, 1)
        o = o[0].flatten(2).softmax(-1)  # [M,T,P]
        cells = x.flatten(2).permute(1, 2, 0) + soi.position  # [T,P,16]
        f = torch.stack([o[m, t] @ cells[t] for t in range(T) for m in range(len(o))])
        for layer in soi.layers:
            n = norm_by_hand(layer.norm1, f, 1)
            q, k, v = (n @ w.T for w in layer.attention.qkv.weight.chunk(3))
            # 8 heads of 16 / 8 channels
            each = [slice(2 * i, 2 * i + 2) for i in range(8)]
            heads = [(q[:, s] @ k[:, s].T / 2**0.5).softmax(-1) @ v[:, s] for s in each]
            f = f + layer.attention.out(torch.cat(heads, 1))
            y = norm_by_hand(layer.norm2, f, 1)
            for i in range(2):
                y = norm_by_hand(layer.norms[i], layer.linears[i](y), 1).relu()
            f = f + layer.linears[2](y)
        out = norm_by_hand(soi.norm, (f.mean(0) @ soi.out.weight.T)[None], 1)[0]
        rows.append(made.fc(view.mean((0, 2, 3)) + out))
    return torch.stack(rows)


@variants
@torch.no_grad()
def test_the_head_is_its_equations(variant):
    made, views = head(variant=variant), clips()
    expected = logits_by_hand(made, views.maps["res5"], variant)
    torch.testing.assert_close(made(views).logits, expected, rtol=1e-9, atol=1e-9)


def test_saliency_nets_have_the_kernels_and_order_of_their_variants():
    def order(variant):
        layers = head(variant=variant).objects.saliency.layers
        return [
            layer.kernel_size if isinstance(layer, nn.Conv3d) else type(layer).__name__
            for layer in layers
        ]

    norm, relu = "BatchNorm3d", "ReLU"
    between = (norm, relu)
    assert order("paper") == [
        *((1, 1, 1), *between),
        *((3, 1, 1), *between),
        *((1, 5, 5), *between),
        (1, 1, 1),
    ]
    assert order("released") == [
        (1, 1, 1),
        relu,
        norm,
        (3, 3, 3),
        relu,
        norm,
        (1, 3, 3),
        relu,
        norm,
        (1, 3, 3),
    ]


@variants
@torch.no_grad()
def test_a_fresh_head_classifies_the_mean_of_the_map_bit_for_bit(variant):
    made, plain = head(random=False, variant=variant), head(random=False, regions="none")
    plain.fc.load_state_dict(made.fc.state_dict())
    assert torch.equal(made(clips()).logits, plain(clips()).logits)
    assert torch.allclose(plain(clips()).logits, plain.fc(clips().maps["res5"].mean((1, 3, 4))))
    assert 0.0003 < made.fc.weight.std() < 0.003
    assert not made.fc.bias.any()


@variants
@torch.no_grad()
def test_saliency_sums_to_one_over_the_cells_and_attention_over_the_tokens(variant):
    maps = head(variant=variant, objects=3)(clips(), want_maps=True).maps
    assert maps["regions"].shape == (B, T, 3, H * W)
    assert maps["attention"].shape == (B, 2, 8, 3 * T, 3 * T)
    for name in maps:
        assert torch.allclose(maps[name].sum(-1), torch.ones_like(maps[name].sum(-1)))


@torch.no_grad()
def test_uniform_saliency_makes_every_token_the_mean_of_its_step():
    made, seen = head(), []
    nn.init.zeros_(made.objects.saliency.layers[-1].weight)
    made.objects.layers[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    views = clips()
    made(views)
    x = made.objects.squeeze(views.maps["res5"].flatten(3).mT) + made.objects.position
    assert torch.allclose(seen[0], x.mean(2).repeat_interleave(4, 1))


@torch.no_grad()
def test_the_order_of_the_tokens_changes_nothing_but_that_of_the_steps_matters():
    made = head(variant="released")
    tokens, valid = noise(B, 16, 16), torch.ones(B, 16, dtype=torch.bool)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))

    def pooled(x):
        for layer in made.objects.layers:
            x, _ = layer(x, valid, None)
        return masked_mean(x, valid)

    assert torch.allclose(pooled(tokens[:, order]), pooled(tokens))
    views = clips()
    backwards = Clips(maps={"res5": views.maps["res5"].flip(1)})
    # E differs between the steps.
    assert relative(made(backwards).logits, made(views).logits) > 1e-3


@torch.no_grad()
def test_regions_are_tiles_boxes_or_every_cell():
    assert tiles(4).tolist() == [
        [0, 0, 0.5, 0.5],
        [0.5, 0, 1, 0.5],
        [0, 0.5, 0.5, 1],
        [0.5, 0.5, 1, 1],
    ]
    assert tiles(3)[:, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    whole, cell, half, empty = coverage(
        torch.tensor(
            [[0, 0, 1, 1], [1 / 4, 1 / 2, 1 / 2, 1], [0, 0, 3 / 8, 1 / 2], [0.3, 0.3, 0.3, 0.3]]
        ),
        (2, 4),
    )
    assert whole.tolist() == pytest.approx([1 / 8] * 8)
    assert cell.tolist() == pytest.approx([0, 0, 0, 0, 0, 1, 0, 0])
    assert half.tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0, 0, 0, 0, 0])
    assert not empty.any()
    assert head(regions="all")(clips(), want_maps=True).maps["attention"].shape[-1] == T * H * W
    fixed = head(regions="fixed", objects=4)(clips(), want_maps=True).maps["regions"]
    assert torch.equal(fixed, coverage(tiles(4).double(), (H, W)).expand(B, T, -1, -1))


def boxed(size=B):
    corner = noise(size, T, 2, 2, seed=4).sigmoid() * 0.5
    valid = torch.ones(size, T, 2, dtype=torch.bool)
    valid[:, 1, 1] = False
    return clips(size, boxes=torch.cat([corner, corner + 0.4], -1) * valid[..., None], valid=valid)


def test_padded_boxes_change_neither_logits_nor_statistics():
    results = []
    for fill in (0.0, 0.7):
        made, views = head(regions="boxes").train(), boxed()
        made.drop.eval()
        views.boxes[~views.valid] = torch.tensor([0, 0, fill, fill], dtype=torch.float64)
        logits = made(views).logits
        results.append(
            (
                logits,
                [
                    module.running_var.clone()
                    for module in made.modules()
                    if isinstance(module, RowNorm)
                ],
            )
        )
    assert torch.equal(results[0][0], results[1][0])
    assert all(map(torch.equal, results[0][1], results[1][1]))
    more = boxed()
    more.boxes, more.valid = (
        torch.cat([x, torch.zeros_like(x)], 2) for x in (more.boxes, more.valid)
    )
    assert torch.allclose(head(regions="boxes")(more).logits, head(regions="boxes")(boxed()).logits)
    views.valid[:] = False
    assert torch.isfinite(head(regions="boxes")(views).logits).all()
    assert torch.isfinite(head(regions="boxes").train()(views).logits).all()
    with pytest.raises(ValueError, match="no boxes"):
        head(regions="boxes")(boxed().without("boxes"))


@variants
def test_a_batch_of_one_view_can_be_learned_from(variant):
    made = head(variant=variant).train()
    made(clips(1)).logits.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())
    backbone = build_backbone("ean_r50", variant=variant, width=8).train()
    assert torch.isfinite(backbone(backbone.prepare(frames(1, 8, 64, 64)))).all()


def test_another_number_of_steps_is_refused_where_each_has_its_positions():
    short = Clips(maps={"res5": noise(B, T - 1, C, H, W)})
    with pytest.raises(ValueError, match=r"each of 4 steps, got 3 steps: sample the views alike"):
        head(variant="released")(short)
    assert head()(short).logits.shape == (B, K)


def interpolated_by_hand(plane, size):
    """Values [h,w] at the centres of size cells, from those at the centres of h x w cells."""
    results = torch.zeros(size, dtype=plane.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            for axis, (k, n) in enumerate(((i, size[0]), (j, size[1]))):
                at = (k + 0.5) / n * plane.shape[axis] - 0.5
                at = min(max(at, 0.0), plane.shape[axis] - 1.0)
                low = min(int(at), plane.shape[axis] - 2)
                if axis == 0:
                    row = plane[low] * (1 - (at - low)) + plane[low + 1] * (at - low)
                else:
                    results[i, j] = row[low] * (1 - (at - low)) + row[low + 1] * (at - low)
    return results


@variants
@torch.no_grad()
def test_positions_are_interpolated_on_the_grid_of_larger_views(variant):
    """As 256x256 test views, which have 8x8 cells, behind training views of 7x7."""
    made, size = head(variant=variant), (H + 1, W + 2)
    wide = Clips(maps={"res5": noise(B, T, C, *size)})
    wanted = torch.stack(
        [
            torch.stack(
                [interpolated_by_hand(plane, size) for plane in step.T.unflatten(1, (H, W))]
            )
            for step in made.objects.position
        ]
    )
    found = made.objects.positions(size, T)
    torch.testing.assert_close(found, wanted.flatten(2).mT)
    other = head(variant=variant)
    other.objects.grid, other.objects.position = size, nn.Parameter(found)
    assert torch.equal(made(wide).logits, other(wide).logits)
    assert made.objects.positions((H, W), T) is made.objects.position


def test_padding_of_the_map_is_left_out_of_its_mean_and_refused_by_the_transformer():
    grid = torch.tensor([[H, W]] * (B - 1) + [[H, W - 1]])
    narrow = clips().maps["res5"][-1:, ..., :-1]
    plain = head(regions="none")
    assert torch.allclose(
        plain(clips(grid=grid)).logits[-1], plain(Clips(maps={"res5": narrow})).logits[0]
    )
    with pytest.raises(ValueError, match=r"maps of 3×5 cells of which some are padding"):
        head()(clips(grid=grid))
    assert torch.equal(
        head()(clips(grid=torch.tensor([[H, W]] * B))).logits, head()(clips()).logits
    )


@variants
def test_every_parameter_moves_within_three_steps_but_the_biases_that_a_norm_removes(variant):
    made = head(random=False, variant=variant).train()
    start = {name: p.detach().clone() for name, p in made.named_parameters()}
    optimiser = torch.optim.SGD(made.parameters(), lr=1.0)
    for step in range(3):
        optimiser.zero_grad()
        F.cross_entropy(made(clips(4, seed=step)).logits, torch.arange(4)).backward()
        optimiser.step()
    still = {name for name, p in made.named_parameters() if (p - start[name]).abs().max() < 1e-12}
    biases = [
        f"layers.{i}.{name}.bias"
        for i in (0, 1)
        for name in ("norm2", "attention.out", "linears.0", "linears.1", "linears.2")
    ]
    biases += {
        "paper": [f"saliency.layers.{i}.bias" for i in (0, 3, 6, 9)],
        "released": ["saliency.layers.9.bias"],
    }[variant]
    assert still == {f"objects.{name}" for name in biases}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "code"}, "option variant: expected one of paper, released"),
        (
            {"regions": "detector"},
            "option regions: expected one of saliency, fixed, all, boxes, none",
        ),
        ({"position": "learned"}, "option position: expected one of auto"),
        ({"objects": 0}, "at least 1, got objects=0"),
    ],
)
def test_options_of_the_head_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_head("ean", SIZES, K, **options)


# Runs of before, whose options now mean something else.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["Saliency-Net"]),
        ({"variant": "released"}, []),
        ({"regions": "fixed"}, []),
        ({"regions": "none", "width": 16}, []),
        ({"variant": "released", "width": 16}, ["attention heads"]),
        ({"variant": "released", "soi_at": "res4"}, ["attention heads"]),
        ({"regions": "all", "backbone_options": {"pool": "none"}}, ["without a pool"]),
    ],
)
def test_only_runs_whose_options_compute_something_else_are_of_an_older_version(options, words):
    found = head_changes("ean", 1, options)
    assert len(found) == len(words)
    assert all(word in change.what for change, word in zip(found, words, strict=True))
    assert head_changes("ean", head_version("ean"), options) == []


# Transformers at earlier stages, as the rows 1-2 and 1-3 of Table 6 have them.

ABOVE = {
    "backbone": "ean_r50",
    "backbone_options": {"eab": "stem,res2", "width": 8},
    "cut": "res3",
    "width": 64,
}


def at_stages(soi_at, **options):
    torch.manual_seed(0)
    maps = {"res3": (64, 6, 6)}
    made = build_head("ean", Dims(4, maps=maps), 5, **ABOVE | {"soi_at": soi_at} | options).double()
    return made.eval(), Clips(maps={"res3": noise(2, 4, 64, 6, 6)})


@torch.no_grad()
def test_transformers_at_earlier_stages_are_the_identity_at_first_and_their_formula_then():
    (made, clips), (plain, _) = at_stages("res3,res4"), at_stages("")
    plain.load_state_dict(made.state_dict(), strict=False)
    assert torch.equal(made(clips).logits, plain(clips).logits)
    assert list(made.network.inserted) == ["res3", "res4"]
    added = made.network.inserted["res4"]
    nn.init.normal_(added.objects.norm.weight)
    assert not torch.allclose(made(clips).logits, plain(clips).logits)
    x = noise(2, 128, 4, 3, 3)
    v, _ = added.objects(x.transpose(1, 2).flatten(3).mT, (3, 3), Clips())
    assert torch.equal(added(x) - x, (x + v[:, :, None, None, None]) - x)
    assert v.shape == (2, 128)
    # A quarter, as 64 of the last stage's 256.
    assert added.objects.squeeze.weight.shape == (32, 128)


def test_transformers_at_earlier_stages_learn():
    made, clips = at_stages("res3,res4")
    made.train()
    for module in made.modules():
        if isinstance(module, RowNorm):
            nn.init.ones_(module.weight)
    made(clips).logits.square().sum().backward()
    for point in ("res3", "res4"):
        assert made.network.inserted[point].objects.squeeze.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soi_at": "res2"}, "expected cuts from res3 on and before res5, got 'res2'"),
        ({"soi_at": "res5"}, "before res5, got 'res5'"),
        ({"soi_at": "res4", "regions": "none"}, "regions of the map alone"),
        ({"soi_at": "res4", "backbone": ""}, "expected a backbone"),
    ],
)
def test_places_that_take_no_transformer_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        at_stages(**options)
