"""STRG against its equations: graphs, branches, sizes, and what holds without training."""

import re
import shlex

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from heads.config.recipe import FOLDER, read_recipe
from heads.interface.clips import Clips, Dims, clips_of
from heads.interface.masked_layers import dense_graph, front_back, next_frame_iou
from heads.papers.strg.graph import LAYERS, GraphBranch
from heads.zoo import build_head
from pipeline.backbones import build_backbone
from pipeline.backbones._non_local import NonLocal

T, N, C, K, B = 4, 3, 6, 5, 2
DIMS = Dims(T, N, C, {"res5": (10, 5, 6)})


def views(seed: int = 0, T: int = T, valid: torch.Tensor | None = None) -> Clips:
    """float64 views of distinct, overlapping boxes."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(B, T, N, 2, generator=g, dtype=torch.float64) * 0.5
    valid = torch.ones(B, T, N, dtype=torch.bool) if valid is None else valid
    fields = {
        "boxes": torch.cat([corner, corner + 0.4], -1) * valid[..., None],
        "valid": valid,
        "nodes": torch.randn(B, T, N, C, generator=g, dtype=torch.float64) * valid[..., None],
        "pooled": torch.randn(B, T, C, generator=g, dtype=torch.float64),
        "res5": torch.randn(B, T, 10, 5, 6, generator=g, dtype=torch.float64),
    }
    return clips_of(fields, dtype=None)


def strg(seed: int = 0, random: bool = True, dims: Dims = DIMS, **options) -> nn.Module:
    """Build the head in float64 and eval mode; `random` draws every weight anew."""
    torch.manual_seed(seed)
    head = build_head("strg", dims, K, **options).double().eval()
    if random:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return head


def similarity_by_hand(head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x [n,C] -> G^sim [n,n]."""
    return ((x @ head.similarity.w.weight.T) @ (x @ head.similarity.w2.weight.T).T).softmax(1)


def by_hand(head: nn.Module, clips: Clips, each_layer: bool = False) -> torch.Tensor:
    """Compute logits by the paper's equations, view by view, with dense n x n matrices."""
    rows = []
    for b in range(B):
        keep = clips.valid[b].flatten()
        x = clips.nodes[b].reshape(-1, C)[keep]
        overlap = torch.zeros(T * N, T * N, dtype=torch.float64)
        iou = next_frame_iou(clips.boxes[b : b + 1])[0]
        for t in range(T - 1):
            overlap[t * N : (t + 1) * N, (t + 1) * N : (t + 2) * N] = iou[t]
        overlap = overlap[keep][:, keep]
        front, back = (torch.nan_to_num(s / s.sum(1, keepdim=True)) for s in (overlap, overlap.T))
        total = 0
        for branch, graphs in (
            (head.branch_s, [similarity_by_hand(head, x)]),
            (head.branch_st, [front, back]),
        ):
            z = x
            for k in range(LAYERS):
                if each_layer and branch is head.branch_s:
                    graphs = [similarity_by_hand(head, z)]
                z = sum(
                    graph @ z @ linear.weight.T
                    for graph, linear in zip(graphs, branch.weights[k], strict=True)
                )
                if k < LAYERS - 1:
                    z = branch.norms[k](z).relu()
            total = total + z.mean(0)
        rows.append(head.fc(torch.cat([clips.pooled[b].mean(0), total])))
    return torch.stack(rows)


def test_logits_follow_the_equations():
    torch.testing.assert_close(
        strg()(views()).logits, by_hand(strg(), views()), rtol=1e-10, atol=1e-10
    )


def test_logits_follow_the_equations_when_boxes_are_missing():
    valid = torch.rand(B, T, N, generator=torch.Generator().manual_seed(3)) < 0.6
    valid[0, 2] = False  # a frame without boxes
    clips = views(valid=valid)
    torch.testing.assert_close(strg()(clips).logits, by_hand(strg(), clips), rtol=1e-10, atol=1e-10)


def test_similarity_rows_are_a_distribution_over_valid_nodes():
    valid = torch.ones(B, T, N, dtype=torch.bool)
    valid[:, 1, 2] = False
    graph = strg()(views(valid=valid), want_maps=True).maps["similarity"]
    flat = valid.flatten(1)
    assert (graph >= 0).all()
    torch.testing.assert_close(graph.sum(-1), flat.double())
    assert (graph[:, :, ~flat[0]] == 0).all()


def test_zero_projections_make_similarity_uniform():
    head = strg()
    nn.init.zeros_(head.similarity.w.weight)
    nn.init.zeros_(head.similarity.w2.weight)
    graph = head(views(), want_maps=True).maps["similarity"]
    torch.testing.assert_close(graph, torch.full_like(graph, 1 / (T * N)))


def test_front_is_nilpotent_and_ends_have_no_edges():
    maps = strg()(views(), want_maps=True).maps
    front, back = dense_graph(maps["front"], 1), dense_graph(maps["back"], -1)
    assert (torch.linalg.matrix_power(front, T) == 0).all()
    assert (torch.linalg.matrix_power(back, T) == 0).all()
    assert (torch.linalg.matrix_power(front, T - 1) != 0).any()
    assert (front[:, -N:] == 0).all()
    assert (back[:, :N] == 0).all()
    for graph in (front, back):
        sums = graph.sum(-1)
        assert torch.all((sums == 0) | ((sums - 1).abs() < 1e-12))
    steps = torch.arange(T * N) // N
    assert (front[:, (steps[None] - steps[:, None]) != 1] == 0).all()


def test_back_is_the_transpose_of_front_only_before_the_division():
    clips = views()
    front, back = front_back(next_frame_iou(clips.boxes), clips.valid)
    assert not torch.allclose(back, front.mT)
    overlap = next_frame_iou(clips.boxes)
    torch.testing.assert_close(
        back * overlap.mT.sum(-1, keepdim=True), (front * overlap.sum(-1, keepdim=True)).mT
    )


def test_reversing_time_swaps_front_and_back():
    clips = views()
    maps = strg()(clips, want_maps=True).maps
    backwards = strg()(
        clips_of({name: x.flip(1) for name, x in clips.tensors().items()}, None), want_maps=True
    ).maps
    torch.testing.assert_close(backwards["front"], maps["back"].flip(1))
    torch.testing.assert_close(backwards["back"], maps["front"].flip(1))


def test_boxes_that_stay_in_place_make_front_a_shift():
    clips = views()
    still = torch.tensor(
        [[0, 0, 0.1, 0.1], [0.3, 0.3, 0.4, 0.4], [0.7, 0.7, 0.9, 0.9]], dtype=torch.float64
    )
    clips.boxes = still.expand(B, T, N, 4).clone()
    front = dense_graph(strg()(clips, want_maps=True).maps["front"], 1)[0]
    torch.testing.assert_close(front, torch.diag(torch.ones((T - 1) * N, dtype=torch.float64), N))


def test_boxes_that_never_overlap_give_no_nan():
    clips = views()
    clips.boxes = torch.rand(B, T, N, 4).double() * 0
    out = strg()(clips, want_maps=True)
    assert torch.isfinite(out.logits).all()
    assert (out.maps["front"] == 0).all()


def test_logits_do_not_depend_on_the_order_of_nodes_in_a_frame():
    clips, g = views(), torch.Generator().manual_seed(5)
    before = strg()(clips).logits
    for b in range(B):
        for t in range(T):
            order = torch.randperm(N, generator=g)
            for x in (clips.nodes, clips.boxes):
                x[b, t] = x[b, t, order]
    torch.testing.assert_close(strg()(clips).logits, before, rtol=1e-10, atol=1e-10)


def test_logits_depend_on_which_frame_a_node_is_in():
    """Moving nodes between frames must change the space-time branch: it is not a bag of regions."""
    clips = views()
    before = strg(form="spatial_temporal")(clips).logits
    order = torch.tensor([2, 0, 3, 1])
    clips.nodes, clips.boxes = clips.nodes[:, order], clips.boxes[:, order]
    assert (strg(form="spatial_temporal")(clips).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["similarity", "spatial_temporal", "joint"])
def test_at_first_the_logits_are_those_of_the_baseline(form):
    head, base = strg(random=False, form=form), build_head("pool", DIMS, K).double().eval()
    with torch.no_grad():
        base.fc.weight.copy_(head.fc.weight[:, :C])
        base.fc.bias.copy_(head.fc.bias)
    clips = views()
    torch.testing.assert_close(head(clips).logits, base(clips).logits, rtol=0, atol=1e-15)


def test_branches_meet_only_at_the_end():
    head = strg()
    similar, spatial = strg(form="similarity"), strg(form="spatial_temporal")
    similar.similarity, similar.branch_s, spatial.branch_st = (
        head.similarity,
        head.branch_s,
        head.branch_st,
    )
    similar.fc = spatial.fc = head.fc
    clips = views()
    bias_and_global = head.fc(torch.cat([clips.pooled.mean(1), torch.zeros(B, C).double()], 1))
    torch.testing.assert_close(
        head(clips).logits - bias_and_global,
        similar(clips).logits + spatial(clips).logits - 2 * bias_and_global,
    )


def test_one_frame_leaves_the_space_time_branch_empty():
    clips = views(T=1)
    head = strg(form="spatial_temporal")
    expected = head.fc(torch.cat([clips.pooled.mean(1), torch.zeros(B, C).double()], 1))
    for norm in head.branch_st.norms:  # LN of a zero vector is its bias
        nn.init.zeros_(norm.bias)
    torch.testing.assert_close(head(clips).logits, expected)


@pytest.mark.parametrize(("each_layer", "times"), [(False, 1), (True, LAYERS)])
def test_similarity_is_computed_once_unless_every_layer_shall_have_its_own(each_layer, times):
    head, calls = strg(similarity_each_layer=each_layer), []
    head.similarity.register_forward_hook(lambda *_: calls.append(1))
    clips = views()
    torch.testing.assert_close(
        head(clips).logits, by_hand(head, clips, each_layer), rtol=1e-10, atol=1e-10
    )
    assert len(calls) == times
    assert not torch.allclose(by_hand(head, clips, True), by_hand(head, clips, False))


# What the paper's 153 -> 158 GFLOPs count (dense products; the backbone's 152.47 G is in
# test_backbones.py), and what we do.
def test_multiplications_settle_that_similarity_is_computed_once():
    n, C = 16 * 50, 512
    similarity, product = 2 * n * C * C + n * n * C, n * C * C + n * n * C
    assert round((152_470_814_720 + similarity + 9 * product) / 1e9) == 158
    assert round((152_470_814_720 + 3 * similarity + 9 * product) / 1e9, 1) == 159.5
    for each_layer, macs in ((False, 3_105_817_600), (True, 4_600_038_400)):
        with torch.device("meta"):
            head = build_head("strg", Dims(16, 50, C), 157, similarity_each_layer=each_layer).eval()
            fields = {
                "boxes": torch.empty(1, 16, 50, 4),
                "valid": torch.ones(1, 16, 50, dtype=torch.bool),
            }
            clips = clips_of(
                fields | {"nodes": torch.empty(1, 16, 50, C), "pooled": torch.empty(1, 16, C)}
            )
            with FlopCounterMode(display=False) as counter:
                head(clips)
        assert counter.get_total_flops() // 2 == macs


def test_dropout_touches_the_global_half_alone():
    head, clips = strg(dropout=0.9).train(), views()
    several = torch.stack([head(clips).logits for _ in range(4)])
    assert several.std(0).max() > 0
    clips.pooled = torch.zeros_like(clips.pooled)
    torch.testing.assert_close(head(clips).logits, head(clips).logits, rtol=0, atol=0)


def test_cached_overlaps_give_what_boxes_give():
    clips = views()
    expected = strg()(clips).logits
    clips.iou = next_frame_iou(clips.boxes)
    clips.boxes = None
    torch.testing.assert_close(strg()(clips).logits, expected)


# 512 channels: 9 matrices of the layers, w and w', 4 LayerNorms, the convolution, the classifier.
@pytest.mark.parametrize(
    ("form", "reduce", "graph"),
    [
        ("joint", "cached", 2_883_584 + 4_096),
        ("similarity", "cached", 3 * 262_144 + 524_288 + 2_048),
        ("spatial_temporal", "cached", 6 * 262_144 + 2_048),
        ("joint", "conv", 2_883_584 + 4_096 + 1_048_576 + 512),
    ],
)
def test_parameters_are_the_papers(form, reduce, graph):
    head = build_head(
        "strg", Dims(16, 10, 512, {"res5": (2048, 14, 14)}), 174, form=form, reduce=reduce
    )
    assert sum(p.numel() for p in head.parameters()) == graph + 2 * 512 * 174 + 174


def test_layer_norm_is_over_channels():
    assert all(
        norm.normalized_shape == (C,)
        for branch in (strg().branch_s, strg().branch_st)
        for norm in branch.norms
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduce": "conv", "width": C, "roi_pool": "mean"},
        {"last": "norm_relu", "last_init": "xavier"},
        {"last": "norm", "last_init": "normal", "layer_init": "normal"},
        {"similarity_each_layer": True},
    ],
    ids=str,
)
def test_after_three_steps_every_parameter_has_moved(options):
    head = strg(random=False, **options).train()
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    optimiser, clips = torch.optim.SGD(head.parameters(), 0.1), views()
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(clips).logits, torch.tensor([0, 1])).backward()
        optimiser.step()
    assert [name for name, p in head.named_parameters() if p.equal(before[name])] == []


def test_the_dead_initialisation_is_refused_and_is_dead():
    with pytest.raises(ValueError, match="can never learn"):
        build_head("strg", DIMS, K, last="norm_relu")
    branch = GraphBranch(C, 1, "norm_relu", ("xavier", "zero"), bias=False)
    branch(
        torch.randn(B, T, N, C), (lambda x: x,), torch.ones(B, T, N, dtype=torch.bool)
    ).sum().backward()
    assert all((p.grad == 0).all() for p in branch.parameters())


def test_layer_three_starts_at_zero_and_the_others_do_not():
    head = strg(random=False)
    for branch in (head.branch_s, head.branch_st):
        assert all((w.weight == 0).all() for w in branch.weights[-1])
        assert all((w.weight != 0).all() for layer in branch.weights[:-1] for w in layer)


def test_a_fresh_reduction_equals_the_cached_one():
    """The head makes from the map what the cache holds for `reduced`."""
    from pipeline.regions.roi_align import roi_align

    head, clips = strg(reduce="conv", width=C), views(valid=torch.rand(B, T, N) < 0.7)
    v = head.reduction.conv(clips.maps["res5"].flatten(0, 1)).view(B, T, C, 5, 6)
    clips.nodes = roi_align(v.movedim(2, 1), clips.boxes, clips.valid, 7, "max").double()
    clips.pooled = v.mean((-1, -2))
    cached = strg()
    cached.load_state_dict(
        {k: p for k, p in head.state_dict().items() if not k.startswith("reduction")}
    )
    torch.testing.assert_close(head(clips).logits, cached(clips).logits)
    assert head.needs == ("res5", "boxes", "valid")


def test_padding_of_a_map_never_changes_logits():
    head, clips = strg(reduce="conv", width=C), views()
    expected = head(clips).logits
    clips.maps["res5"] = nn.functional.pad(clips.maps["res5"], (0, 3, 0, 2), value=7.0)
    clips.grid = torch.tensor([[5, 6]] * B)
    torch.testing.assert_close(head(clips).logits, expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"form": "both"}, "option form: expected one of similarity, spatial_temporal, joint"),
        ({"reduce": "conv", "cut": "res4"}, "needs res4"),
        ({"similarity_init": "big"}, "option similarity_init"),
        ({"layer_init": "zero"}, "option layer_init: expected one of xavier, normal"),
        ({"roi_pool": "sum"}, "option roi_pool: expected one of max, mean"),
        ({"proposals": N + 1}, f"option proposals: expected at most the {N} boxes"),
        ({"box_pixel": -0.1}, "option box_pixel: expected at least 0"),
    ],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        build_head("strg", DIMS, K, **options)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("options", [{}, {"reduce": "conv", "width": C}], ids=str)
def test_fewer_proposals_are_those_of_an_extraction_with_fewer(options, stored):
    """The first boxes are the best: one cache of 100 serves the rows of 25, 50 and 100."""
    clips = views()
    if stored:
        clips.iou = next_frame_iou(clips.boxes)
    fewer = Clips(
        clips.boxes[:, :, :2],
        None,
        clips.valid[:, :, :2],
        clips.nodes[:, :, :2],
        clips.pooled,
        clips.maps,
    )
    cut, whole = strg(proposals=2, **options), strg(dims=Dims(T, 2, C, DIMS.maps), **options)
    torch.testing.assert_close(cut(clips).logits, whole(fewer).logits, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(cut(clips).logits, strg(**options)(clips).logits)


def test_inclusive_pixels_count_one_more_on_each_side_and_leave_the_stored_overlaps_alone():
    """Boxes of 10 pixels that share 5 columns: 5/15 continuous, 66 / (2 x 121 - 66) inclusive."""
    clips = views(T=2)
    clips.boxes = torch.zeros(B, 2, N, 4).double()
    clips.valid = torch.tensor([True, False, False]).expand(B, 2, N)
    clips.boxes[:, 0, 0] = torch.tensor([10, 10, 20, 20]) / 224
    clips.boxes[:, 1, 0] = torch.tensor([15, 10, 25, 20]) / 224
    clips.iou = next_frame_iou(clips.boxes)
    for pixel, expected in ((0.0, 5 / 15), (1 / 224, 66 / 176)):
        head = strg(form="spatial_temporal", box_pixel=pixel)
        torch.testing.assert_close(
            head._overlaps(clips)[:, 0, 0, 0],
            torch.full((B,), expected).double(),
            rtol=1e-6,
            atol=0,
        )
    assert "iou" not in head.uses


def test_biases_start_at_zero_and_say_nothing_about_a_view_without_boxes():
    plain, head = strg(random=False), strg(random=False, bias=True)
    biased = dict(head.named_parameters())
    assert {name for name in biased if name.endswith("bias")} - {
        name for name, _ in plain.named_parameters()
    }
    plain.load_state_dict({name: p for name, p in biased.items() if name in plain.state_dict()})
    torch.testing.assert_close(head(views()).logits, plain(views()).logits)
    clips, head = views(valid=torch.zeros(B, T, N, dtype=torch.bool)), strg(bias=True)
    expected = head.fc(torch.cat([clips.pooled.mean(1), torch.zeros(B, C).double()], 1))
    torch.testing.assert_close(head(clips).logits, expected)


def test_no_release_differs():
    paper, released = strg(), strg(variant="released")
    torch.testing.assert_close(paper(views()).logits, released(views()).logits, rtol=0, atol=0)


# The settings of the papers' tables: the command in a recipe's comment makes the cache that its
# head reads.
SETTINGS = {  # recipe: frames per second, F, size, N, steps and side of the grid
    "strg_table2a_charades_i3d": (6, 32, 224, 50, 16, 14),
    "strg_table2a_charades_avgpool": (6, 32, 224, 50, 16, 14),
    "strg_table2a_charades_joint": (6, 32, 224, 50, 16, 14),
    "strg_table2b_charades_nl": (6, 32, 224, 50, 16, 14),
    "strg_table2b_charades_nl_joint": (6, 32, 224, 50, 16, 14),
    "strg_table3_charades_r101": (24, 128, 288, 50, 16, 18),
    "strg_table3_charades_r101_gcn": (24, 128, 288, 50, 16, 18),
    "strg_table3_charades_r101_nl": (24, 128, 288, 50, 16, 18),
    "strg_table3_charades_r101_nl_gcn": (24, 128, 288, 50, 16, 18),
    "strg_table4_sth_i3d": (6, 32, 224, 10, 16, 14),
    "strg_table4_sth_nl": (6, 32, 224, 10, 16, 14),
    "strg_table4_sth_gcn": (6, 32, 224, 10, 16, 14),
    "strg_table4_sth_nl_gcn": (6, 32, 224, 10, 16, 14),
    "strg_table4_sth_gcn_res5": (6, 32, 224, 10, 16, 14),
}


def test_every_row_has_its_recipe():
    assert set(SETTINGS) == {path.stem for path in FOLDER.glob("strg_table*.toml")}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_command_of_a_recipe_makes_the_cache_that_its_head_reads(name):
    from cli._shared.extraction import config_of
    from cli.extract import command

    comment = " ".join(
        line.lstrip("# ")
        for line in (FOLDER / f"{name}.toml").read_text().splitlines()
        if line.startswith("#")
    )
    comment = comment.replace("(the six classes of left and right)", "x")
    words = shlex.split(re.search(r"vidgraph extract (.*?) +(?:\(I3D|vidgraph)", comment).group(1))
    config = config_of(command.make_context("extract", words).params)
    fps, frames, size, boxes, steps, side = SETTINGS[name]
    charades = "charades" in name
    sampling = config.sampling
    assert (sampling.sampling, sampling.fps, sampling.frames, sampling.size) == (
        "stride",
        fps,
        frames,
        size,
    )
    assert (sampling.train_crop, sampling.test_crops, sampling.test_clips) == (
        "short_side",
        "full",
        10 if charades else 2,
    )
    assert (config.proposal_options["num_boxes"], config.roi_pool) == (boxes, "max")
    with torch.device("meta"):
        backbone = build_backbone(config.backbone, **config.backbone_options)
    cut = config.cut or backbone.last
    T, (h, w), C = (
        backbone.steps(frames, cut),
        backbone.grid(cut, (size, size)),
        backbone.channels(cut),
    )
    assert (T, h, w) == (steps, side, side)
    taps = [block.conv1.kernel_size[0] for block in backbone.res4]
    assert taps == [3 - 2 * (k % 2) for k in range(len(taps))]
    assert len(taps) == (23 if "r101" in name else 6)
    assert any(isinstance(module, NonLocal) for module in backbone.modules()) == ("_nl" in name)
    recipe = read_recipe(name)
    assert (recipe.data.target, recipe.evaluate.aggregate) == (
        "multi" if charades else "single",
        "max",
    )
    maps = {cut: (C, h, w)} if cut in config.keep else {}
    dims = Dims(T, boxes, C if "nodes" in config.keep else 0, maps)
    head = build_head(recipe.head.name, dims, 157 if charades else 174, **recipe.head.options)
    assert head.fc.in_features == (512 if recipe.head.name == "pool" else 1024)
    assert set(head.needs) <= set(config.keep)
