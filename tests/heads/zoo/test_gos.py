"""The GOS heads: exact sizes, search and discrete structures, the stem, single operations."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from heads.config.recipe import recipe_from
from heads.interface.clips import Clips, Dims, clips_of
from heads.interface.masked_layers import masked_mean
from heads.papers.gos.affinity import VARIANTS
from heads.papers.gos.cell import diversity_of, edges_of
from heads.papers.gos.operation_inputs import layout_of, old_roi_mean
from heads.papers.gos.operations import OPERATIONS, SPACES, Skip, Zero
from heads.runs.run_files import load_checkpoint, save_checkpoint
from heads.training.learner import Learner
from heads.training.train import train
from heads.zoo import build_head, head_changes, head_options
from tests.support.tiny_cache import Tiny

B, T, N, K, W = 3, 8, 3, 5, 6
CHANNELS, H = 10, 4
DIMS = Dims(T, N, 7, {"res5": (CHANNELS, H, H)})
SMALL = {"width": W, "top": 4}
PAPERS = Dims(16, 10, 2048, {"res5": (2048, 7, 7)})
SINGLE = ("gos_feat_aggr", "gos_diff_prop", "gos_temp_conv", "gos_back_incor", "gos_node_att")
variants = pytest.mark.parametrize("variant", VARIANTS)
singles = pytest.mark.parametrize("name", SINGLE)


def views(size: int = B, T: int = T, H: int = H, missing: bool = True, seed: int = 0) -> Clips:
    """float64 views; with `missing` some boxes and one whole frame are padding."""
    g = torch.Generator().manual_seed(seed)
    valid = torch.ones(size, T, N, dtype=torch.bool)
    if missing:
        valid = torch.rand(size, T, N, generator=g) < 0.8
        valid[0, 1] = False
    corner = torch.rand(size, T, N, 2, generator=g, dtype=torch.float64) * 0.5
    fields = {
        "boxes": torch.cat([corner, corner + 0.4], -1) * valid[..., None],
        "valid": valid,
        "nodes": torch.randn(size, T, N, 7, generator=g, dtype=torch.float64) * valid[..., None],
        "pooled": torch.randn(size, T, 7, generator=g, dtype=torch.float64),
        "res5": torch.randn(size, T, CHANNELS, H, H, generator=g, dtype=torch.float64),
    }
    return clips_of(fields, dtype=None)


def gos(
    name: str = "gos", seed: int = 0, random: bool = True, dims: Dims = DIMS, **options
) -> nn.Module:
    """Build the narrow head in float64 and eval mode; `random` draws every weight anew."""
    torch.manual_seed(seed)
    wanted = {k: v for k, v in SMALL.items() if k == "width" or name in ("gos", "gos_node_att")}
    head = build_head(name, dims, K, **{**wanted, **options}).double().eval()
    if random:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return head


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- sizes


def test_parameters_of_the_paper_variant():
    """Full temporal kernels and 2048 features for alpha give more than 37.3 M, see gos.py."""
    head = build_head("gos", PAPERS, 174)
    assert [count(edge) for edge in head.cells[0].edges] == [263_721 + 591_401 + 276_265] * 6
    assert (count(head.stem), count(head.structure), count(head.fc)) == (524_544, 61_470, 133_806)
    assert count(head) == 7_508_142


@pytest.mark.parametrize(
    ("supernodes", "cells", "edges"), [(2, 1, 3), (3, 1, 6), (4, 1, 10), (3, 2, 12)]
)
def test_edges_structure_and_classifier_follow_supernodes_and_cells(supernodes, cells, edges):
    head = build_head("gos", PAPERS, 174, variant="released", supernodes=supernodes, cells=cells)
    assert count(head.cells) == 740_350 * edges
    assert count(head.structure) == 257 * 5 * edges
    assert count(head.joins) == (cells - 1) * (supernodes * 256 + 1) * 256
    assert count(head.fc) == 174 * (256 * supernodes + 256 + 1)


@pytest.mark.parametrize(
    ("name", "own"), [*zip(SINGLE, (131_840, 131_840, 68_096, 144_384, 170), strict=True)]
)
def test_parameters_of_a_single_operation(name, own):
    assert count(build_head(name, PAPERS, 174, variant="released")) == 524_544 + own + 174 * 513


def test_multiplications_are_our_count():
    """By torch's counter, which sees only matrix products and convolutions."""
    n, C, G, frames, boxes, taps, positions = 160, 256, 49, 16, 10, 7, 10
    layers = 16 * G * 2048 * C + C * 30 + 1024 * 174  # reduction, alpha, classifier
    # Of the edges; node_att's cosines are below.
    layers += 6 * (4 * n * C * C + n * (C + G) * C + 3 * n * 9)
    convolutions = 6 * positions * n * taps * C
    # What the paper's tool counts: 0.76 G with norms and activations, where n x n differences would
    # add 10 G.
    assert 0.74e9 < layers + convolutions < 0.76e9
    assert 10e9 < 6 * (n * n - n) * C * C < 10.1e9
    products = {
        "feat_aggr": 3 * 2 * n * n * C,
        "diff_prop": 2 * n * n * C,
        "temp_conv": n * C
        + n * n * C
        + positions * n * (taps * boxes + 1) * C,  # mean, nearest nodes, taps by the one-hot matrix
        "back_incor": 2 * n * G * C,
        "node_att": 3 * 2 * n * C,
    }
    # RoIAlign, mean of the background, means of the supernodes.
    around = n * G * C + frames * G * C + 3 * n * C
    head = build_head("gos", PAPERS, 174, variant="released").eval()
    clips = clips_of(
        {
            "res5": torch.zeros(1, 16, 2048, 7, 7),
            "boxes": torch.rand(1, 16, 10, 4),
            "valid": torch.ones(1, 16, 10, dtype=torch.bool),
        }
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        head(clips)
    assert counter.get_total_flops() == 2 * (layers + 6 * sum(products.values()) + around)


@pytest.mark.parametrize("name", ["gos", *SINGLE])
def test_earlier_runs_of_the_paper_variant_are_other_networks_and_released_ones_are_not(name):
    assert [change.version for change in head_changes(name, 1, {})] == [2]
    assert head_changes(name, 1, {"variant": "released"}) == []
    assert head_changes(name, 2, {}) == []
    if name in ("gos", "gos_temp_conv"):
        # The released variant with the paper's nearest nodes.
        assert head_changes(name, 1, {"variant": "released", "nearest": "inner"})
    # The paper's variant with all that has changed as it was before.
    before = {"similarity": "cosine", "nearest": "affinity", "offset": "to_neighbour"}
    before = {option: value for option, value in before.items() if option in head_options(name)}
    assert head_changes(name, 1, before) == []
    for option in before:
        asked = {key: value for key, value in before.items() if key != option}
        assert [change.version for change in head_changes(name, 1, asked)] == [2]
    if "offset" in before:
        # Attention to all nodes has no differences of places to the nearest.
        assert head_changes(name, 1, {**before, "attention": "all", "offset": ""}) == []
    if name == "gos":
        asked = {"variant": "released", "structures": "shared_test"}
        assert [change.version for change in head_changes(name, 2, asked)] == [3]


# ---- structures


def test_edges_are_grouped_by_where_they_end():
    assert edges_of(3) == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert gos().edges == edges_of(3)
    assert gos(space="original").space == SPACES["original"]


@variants
@pytest.mark.parametrize("mode", ["search", "discrete"])
def test_supernodes_sum_the_operations_of_their_edges(variant, mode):
    """Equations (1), (10), (11), (12) and the classifier, from the operations one by one."""
    head, clips = gos(variant=variant, mode=mode), views()
    out = head(clips, want_maps=True)
    x, scene, mean, g = head.stem(clips)
    alpha = head.structure.alpha(g if variant == "paper" else mean).view(B, 6, 5)
    weights = alpha.softmax(-1)
    if mode == "discrete":
        weights = (alpha == alpha.amax(-1, keepdim=True)).double()
    s = [x]
    for j in (1, 2, 3):
        terms = []
        for (i, end), edge, w in zip(
            edges_of(3), head.cells[0].edges, weights.unbind(1), strict=True
        ):
            if end == j:
                terms += [
                    w[:, o, None, None, None] * op(s[i], scene)
                    for o, op in enumerate(edge.values())
                ]
        s.append(sum(terms))
    pooled = [masked_mean(state, clips.valid) for state in s[1:]] + (
        [mean] if variant == "released" else []
    )
    torch.testing.assert_close(out.logits, head.fc(torch.cat(pooled, 1)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.maps["weights"], alpha.softmax(-1)[:, None])
    assert out.maps["structure"].equal(alpha.argmax(-1)[:, None])
    # Structures differ between views.
    assert len(out.maps["structure"].flatten(1).unique(dim=0)) > 1


def test_discrete_mode_computes_only_what_was_chosen_for_the_views_that_chose_it():
    head, clips = gos(mode="discrete"), views()
    seen = {}
    for e, edge in enumerate(head.cells[0].edges):
        for o, operation in enumerate(edge.values()):
            operation.register_forward_hook(
                lambda m, args, out, key=(e, o): seen.__setitem__(key, len(args[0]))
            )
    structure = head(clips, want_maps=True).maps["structure"][:, 0]
    wanted = {(e, o): int((structure[:, e] == o).sum()) for e in range(6) for o in range(5)}
    assert len({o for (_, o), views in wanted.items() if views}) > 2
    for key, views_of_it in wanted.items():
        # `none` is computed for nobody, unless a whole batch chose it.
        whole = views_of_it == B or key[1] > 0
        assert seen.get(key, 0) == (views_of_it if whole else 0)


def test_a_one_hot_mixture_is_the_chosen_operation():
    head, clips = gos(), views()
    x, scene, *_ = head.stem(clips)
    edge = head.cells[0].edges[0]
    for o, (name, operation) in enumerate(edge.items()):
        w = torch.zeros(B, 5, dtype=torch.float64)
        w[:, o] = 1
        expected = torch.zeros_like(x) if name == "none" else operation(x, scene)
        torch.testing.assert_close(head.cells[0]._mixed(edge, x, scene, w), expected)
        torch.testing.assert_close(head.cells[0]._chosen(edge, x, scene, w), expected)


@variants
def test_with_no_operation_chosen_only_the_global_feature_is_left(variant):
    head = gos(variant=variant, mode="discrete", structures="shared")
    with torch.no_grad():
        head.structure.alpha.zero_()
        head.structure.alpha.view(6, 5)[:, 0] = 1.0
    clips = views()
    before = head(clips).logits
    clips.boxes, clips.valid = clips.boxes.flip(0), clips.valid.flip(0)
    assert head(clips).logits.equal(before)
    blank = head.fc.bias.expand(B, K)
    assert torch.allclose(before, blank) == (variant == "paper")


def test_a_search_run_continues_in_discrete_mode_with_its_weights():
    search, discrete = gos(), gos(mode="discrete", seed=1)
    discrete.load_state_dict(search.state_dict())
    assert (
        discrete(views(), want_maps=True)
        .maps["structure"]
        .equal(search(views(), want_maps=True).maps["structure"])
    )
    assert not any(p.requires_grad for p in discrete.structure.parameters())
    assert discrete(views()).losses == {}


@variants
def test_at_first_every_view_has_the_same_structure(variant):
    head = gos(variant=variant, random=False)
    weights = head(views(), want_maps=True).maps["weights"]
    assert (weights == weights[:1]).all()
    assert weights.std() > 0  # the bias is not zero: some operations lead
    inputs = CHANNELS if variant == "paper" else W
    assert head.structure.alpha.bias.abs().max() <= inputs**-0.5


def test_a_shared_structure_is_the_same_for_every_view():
    shared = gos(structures="shared")
    weights = shared(views(), want_maps=True).maps["weights"]
    assert (weights == weights[:1]).all()
    assert count(shared.structure) == 6 * 5


def structure_of(head: nn.Module, clips: Clips) -> torch.Tensor:
    return head(clips, want_maps=True).maps["structure"]


def test_shared_at_test_evaluates_with_the_structure_that_most_training_views_chose():
    """Table 1, footnote: adaptive in all of training, in testing the one of most videos."""
    head = gos(structures="shared_test", mode="discrete")
    one, other = views(seed=0), views(seed=1)
    own = structure_of(head, one)
    assert structure_of(head, other).ne(own[1]).any()

    head.train()
    rows = torch.tensor([0, 1, 1, 2, 1])
    batch = clips_of({name: tensor[rows] for name, tensor in one.tensors().items()}, dtype=None)
    # Training stays adaptive, and counts.
    assert structure_of(head, batch).equal(own[rows])
    head.eval()
    for clips in (one, other):
        assert structure_of(head, clips).equal(own[1].expand(B, 1, 6))
    forced = gos(mode="discrete")
    forced.load_state_dict(head.state_dict())
    forced.force(own[1])
    assert forced(other).logits.equal(head(other).logits)


def test_the_common_structure_is_of_the_last_epoch_and_in_the_checkpoint():
    head, clips = gos(mode="discrete"), views()
    own = structure_of(head, clips)
    assert head.common is None
    for row in (2, 0):
        head.train()
        head(clips_of({k: v[[row, row]] for k, v in clips.tensors().items()}, dtype=None))
        # A checkpoint inside the epoch counts what it has seen.
        assert head.state_dict()["structure.common"].equal(own[row])
        head.eval()
        assert head.common.equal(own[row])
    # Only structures="shared_test" evaluates with it by itself.
    assert structure_of(head, clips).equal(own)
    again = gos(mode="discrete", seed=5)
    again.load_state_dict(head.state_dict())
    assert again.common.equal(own[0])


def part(clips: Clips, rows: list[int]) -> Clips:
    return clips_of({name: v[rows] for name, v in clips.tensors().items()}, dtype=None)


def learner_of(seed: int = 0) -> Learner:
    """Two mini-batches are an epoch; the structure does not move."""
    training = recipe_from(
        {
            "name": "a",
            "source": "a test",
            "head": {"name": "gos"},
            "train": {"epochs": 2, "batch": 3, "lr": 1e-3},
        }
    ).train
    head = gos(mode="discrete", seed=seed).train()
    return Learner(head, training, "single", 2, 0, "fp32")


def test_a_training_that_is_continued_within_an_epoch_counts_the_whole_epoch():
    clips, targets = views(), torch.zeros(3, dtype=torch.long)
    own = structure_of(gos(mode="discrete"), clips)
    assert own[0].ne(own[2]).any()
    first, second = part(clips, [0, 0, 0]), part(clips, [2, 2, 0])

    learner = learner_of()
    learner.step(part(clips, [2, 2, 2]), targets)
    saved = learner.state()
    again = learner_of(seed=5)
    again.load(saved)
    # As the loop does after a check of the logits and at the start of an epoch's rest.
    again.head.eval()
    again.head.train()
    # Alone, this mini-batch would make another structure the common one.
    again.step(part(clips, [0, 0, 2]), targets)
    again.head.eval()
    assert again.head.common.equal(own[2])

    # The votes of an epoch that ended are not those of the next one.
    again.end_epoch(math.nan, math.nan)
    later = learner_of(seed=6)
    later.load(again.state())
    later.head.train()
    later.step(first, targets)
    assert later.head.state_dict()["structure.common"].equal(own[0])
    later.step(second, targets)
    later.head.eval()
    assert later.head.common.equal(own[0])


def test_checkpoints_without_a_common_structure_still_load():
    old = {k: v for k, v in gos().state_dict().items() if k != "structure.common"}
    head = gos(seed=4)
    head.load_state_dict(old)
    assert head.common is None
    with pytest.raises(RuntimeError, match="Missing key"):
        head.load_state_dict({k: v for k, v in old.items() if k != "fc.bias"})


def test_a_forced_structure_is_computed_for_every_view_in_both_modes():
    """Figure 5: what a video's nodes become under the structure of another one."""
    clips = views()
    for mode in ("search", "discrete"):
        head = gos(mode=mode)
        own = structure_of(head, clips)
        before = head(clips).logits
        head.force(own[2])
        out = head(clips, want_maps=True)
        assert out.maps["structure"].equal(own[2].expand(B, 1, 6))
        assert out.stored["structure"].equal(out.maps["structure"])
        discrete = gos(mode="discrete")
        discrete.load_state_dict(head.state_dict())
        assert out.logits[2].allclose(discrete(clips).logits[2])
        assert not out.logits[0].allclose(discrete(clips).logits[0])
        head.force(None)
        assert head(clips).logits.equal(before)


def test_a_structure_that_does_not_fit_is_not_forced():
    head = gos()
    with pytest.raises(ValueError, match="1 cells and 6 edges, got 1 and 3"):
        head.force(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="operations 0 to 4"):
        head.force(torch.full((1, 6), 5))


def test_the_discrete_form_of_a_search_is_the_head_in_discrete_mode():
    head, clips = gos(), views()
    form = head.forms["discrete"]
    discrete = gos(mode="discrete")
    discrete.load_state_dict(head.state_dict())
    assert form(clips).logits.equal(discrete(clips).logits)
    assert not head.discrete
    assert discrete.forms == {}


def test_stacked_cells_that_are_tied_share_the_structure_of_one():
    """Supplement, Table 8: the cell is searched alone and then stacked."""
    search = gos()
    stacked = gos(cells=2, tied=True, mode="discrete", seed=1)
    # Shapes of the searched cell: all of its weights can be taken.
    taken = search.state_dict()
    assert all(stacked.state_dict()[name].shape == taken[name].shape for name in taken)
    stacked.load_state_dict(taken, strict=False)
    out = stacked(views(), want_maps=True)
    assert out.maps["structure"].shape == (B, 2, 6)
    for k in (0, 1):
        assert out.maps["structure"][:, k].equal(structure_of(search, views())[:, 0])
    assert count(stacked.cells[1]) == count(stacked.cells[0])
    assert count(stacked.structure) == count(search.structure)
    untied = gos(cells=2)
    assert count(untied.structure) == 2 * count(search.structure)


def test_diversity_is_zero_only_when_the_operations_weigh_the_same():
    alpha = torch.randn(B, 1, 6, 5, dtype=torch.float64)
    assert diversity_of(alpha) > 0
    level = alpha - (alpha.sum(2, keepdim=True) - alpha.sum((2, 3), keepdim=True) / 5) / 6
    assert abs(diversity_of(level)) < 1e-12
    by_hand = torch.stack([a.sum((0, 1)).var(unbiased=True) for a in alpha]).mean()
    torch.testing.assert_close(diversity_of(alpha), by_hand)


@pytest.mark.parametrize(("variant", "of"), [("paper", "raw"), ("released", "softmax")])
def test_diversity_is_of_the_raw_structure_or_of_its_softmax(variant, of):
    head, clips = gos(variant=variant, diversity=0.3), views()
    _, _, mean, g = head.stem(clips)
    alpha = head.structure(g if variant == "paper" else mean)
    wanted = 0.3 * diversity_of(alpha if of == "raw" else alpha.softmax(-1))
    torch.testing.assert_close(head(clips).losses["diversity"], wanted)


# ---- transfer


def a_run(tmp_path, head: nn.Module):
    save_checkpoint(tmp_path / "best.pt", {"state": head.state_dict()})
    return tmp_path / "best.pt"


def test_a_transferred_structure_is_the_other_runs_and_fixed(tmp_path):
    other = gos(seed=3)
    path = a_run(tmp_path, other)
    torch.manual_seed(7)
    head = build_head("gos", DIMS, K, **SMALL, transfer=str(path)).double().eval()
    torch.testing.assert_close(head.structure.alpha.weight, other.structure.alpha.weight)
    assert (
        not head.cells[0]
        .edges[0]["comb1"]
        .operations[1]
        .linear.weight.equal(other.cells[0].edges[0]["comb1"].operations[1].linear.weight)
    )
    theirs = other(views(), want_maps=True).maps["structure"]
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        out = head(views(), want_maps=True)
        assert out.maps["structure"].equal(theirs)
        assert out.losses == {}
        out.logits.square().sum().backward()
        optimiser.step()


def test_a_run_is_trained_and_its_structure_used_by_another(tmp_path):
    cache = Tiny(fields=("boxes", "valid", "res5")).write(tmp_path / "tiny")
    runs = {}
    for name, options in (
        ("search", {}),
        ("discrete", {"mode": "discrete", "transfer": str(tmp_path / "search/last.pt")}),
    ):
        table = {
            "name": name,
            "source": "a test",
            "head": {"name": "gos", "width": W, "supernodes": 2, **options},
            "train": {"epochs": 2, "batch": 5, "lr": 0.01},
        }
        train(
            recipe_from(table),
            cache,
            tmp_path / name,
            device="cpu",
            tensorboard=False,
            say=lambda line: None,
        )
        runs[name] = load_checkpoint(tmp_path / name / "last.pt")["state"]
    for key in ("structure.alpha.weight", "structure.alpha.bias"):
        assert runs["discrete"][key].equal(runs["search"][key])
    assert runs["search"]["structure.alpha.weight"].any()


def test_a_structure_of_a_run_that_counted_none_can_be_transferred(tmp_path):
    other = gos(seed=3)
    old = {k: v for k, v in other.state_dict().items() if k != "structure.common"}
    save_checkpoint(tmp_path / "old.pt", {"state": old})
    head = gos(random=False, transfer=str(tmp_path / "old.pt"))
    assert structure_of(head, views()).shape == (B, 1, 6)
    assert head.structure.alpha.weight.float().allclose(other.structure.alpha.weight.float())


def test_what_cannot_be_transferred_is_refused(tmp_path):
    path = str(a_run(tmp_path, gos()))
    with pytest.raises(ValueError, match="no such checkpoint"):
        gos(transfer=str(tmp_path / "nothing.pt"))
    with pytest.raises(ValueError, match="1 cells, 6 edges, 5 operations, expected 1, 6, 7"):
        gos(transfer=path, space="original")
    with pytest.raises(ValueError, match="depends on other features"):
        gos(transfer=path, variant="released")
    with pytest.raises(ValueError, match="depends on other features"):
        gos(transfer=path, structures="shared")
    save_checkpoint(tmp_path / "pool.pt", {"state": build_head("pool", DIMS, K).state_dict()})
    with pytest.raises(ValueError, match="holds no structure"):
        gos(transfer=str(tmp_path / "pool.pt"))


# ---- the stem


def test_the_reduction_comes_before_the_alignment():
    head, clips = gos(), views(missing=False)
    clips.boxes[:] = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    x, scene, mean, g = head.stem(clips)
    reduced = head.stem.reduce(clips.maps["res5"].movedim(2, -1))  # [B,T,h,w,W]
    torch.testing.assert_close(scene.y, nn.functional.leaky_relu(reduced, 0.01).flatten(2, 3))
    torch.testing.assert_close(mean, scene.y.mean((1, 2)))
    torch.testing.assert_close(g, clips.maps["res5"].mean((1, 3, 4)))
    whole = nn.functional.leaky_relu(head.stem.reduce(clips.maps["res5"].mean((3, 4))), 0.01)
    # What reducing after the pooling would give.
    assert not torch.allclose(x[:, :, 0], whole, rtol=0.1)


def test_layout_holds_corners_centre_size_and_time():
    boxes = torch.tensor([0.1, 0.2, 0.5, 1.0]).expand(1, 4, 1, 4)
    wanted = torch.tensor([0.1, 0.2, 0.5, 1.0, 0.3, 0.6, 0.4, 0.8])
    layout = layout_of(boxes)
    torch.testing.assert_close(layout[0, :, 0, :8], wanted.expand(4, 8))
    torch.testing.assert_close(layout[0, :, 0, 8], torch.tensor([0.0, 0.25, 0.5, 0.75]))


@pytest.mark.parametrize(
    ("box", "value"),
    [
        ((0.0, 0.0, 1.0, 1.0), 36 / 49),
        ((0.5, 0.0, 1.0, 1.0), 30 / 49),
        ((0.25, 0.25, 0.75, 0.75), 1.0),
        ((0.5, 0.5, 0.5, 0.5), 1.0),
        ((1.0, 0.0, 1.0, 0.5), 0.0),
    ],
)
def test_the_old_alignment_of_ones_is_what_the_release_gives(box, value):
    boxes = torch.tensor(box, dtype=torch.float64).view(1, 1, 1, 4)
    ones, valid = (
        torch.ones(1, 1, 7, 7, 1, dtype=torch.float64),
        torch.ones(1, 1, 1, dtype=torch.bool),
    )
    found = old_roi_mean(ones, boxes, valid, torch.tensor([[7, 7]]), 7)
    assert found.item() == pytest.approx(value, abs=1e-12)
    assert old_roi_mean(ones, boxes, ~valid, torch.tensor([[7, 7]]), 7).item() == 0
    wide = nn.functional.pad(ones, (0, 0, 0, 2, 0, 1), value=5.0)  # cells beyond the true grid
    assert old_roi_mean(wide, boxes, valid, torch.tensor([[7, 7]]), 7).item() == pytest.approx(
        value, abs=1e-12
    )


def test_the_old_alignment_continues_linearly_beyond_the_last_centre():
    ramp = torch.arange(7, dtype=torch.float64).view(1, 1, 1, 7, 1).expand(1, 1, 7, 7, 1)
    # Width 0 after the + 1.
    box = torch.tensor([6.5 / 7, 0.0, 6.5 / 7 - 1 / 7, 0.5], dtype=torch.float64).view(1, 1, 1, 4)
    found = old_roi_mean(
        ramp, box, torch.ones(1, 1, 1, dtype=torch.bool), torch.tensor([[7, 7]]), 7
    )
    assert found.item() == pytest.approx(6.5)


def test_nodes_follow_a_painted_cell():
    for roi in ("aligned", "old"):
        head, clips = gos(roi=roi, random=False), views(missing=False)
        with torch.no_grad():
            head.stem.reduce.weight.fill_(1.0)
        clips.maps["res5"][:] = 0
        clips.maps["res5"][:, :, :, 0, 0] = 1.0  # the upper left cell
        clips.boxes[:, :, 0] = torch.tensor([0.05, 0.05, 0.1, 0.1], dtype=torch.float64)
        clips.boxes[:, :, 1:] = torch.tensor([0.6, 0.6, 0.7, 0.7], dtype=torch.float64)
        x = head.stem(clips)[0]
        assert (x[:, :, 0] > 0.8).all(), roi
        assert (x[:, :, 1:].abs() < 1e-6).all(), roi


def test_cells_in_the_padding_of_a_narrower_map_do_not_count():
    for name in ("gos", "gos_back_incor"):
        for variant in VARIANTS:
            head, clips = gos(name, variant=variant), views()
            clips.grid = torch.tensor([[H, H], [H - 1, H - 2], [H, H - 1]])
            before = head(clips).logits
            clips.maps["res5"][1, :, :, H - 1 :], clips.maps["res5"][1, :, :, :, H - 2 :] = 9.0, 9.0
            torch.testing.assert_close(head(clips).logits, before)
            clips.grid = None
            assert not torch.allclose(head(clips).logits, before)


@variants
def test_a_map_of_another_size_is_refused_where_cells_have_weights(variant):
    for name in ("gos", "gos_back_incor"):
        with pytest.raises(ValueError, match=f"a {H} x {H} map of res5, got 6 x 6"):
            gos(name, variant=variant)(views(H=6))
    for name in ("gos_feat_aggr", "gos_diff_prop"):
        assert gos(name, variant=variant)(views(H=6)).logits.shape == (B, K)


def test_other_step_counts_are_refused_where_steps_have_weights():
    for name in ("gos", "gos_node_att"):
        with pytest.raises(ValueError, match=f"a weight for each of {T * N} nodes, got {7 * N}"):
            gos(name, variant="released")(views(T=7))
        assert gos(name)(views(T=7)).logits.shape == (B, K)


# ---- options, single operations, learning


@singles
@variants
def test_a_single_operation_is_pooled_beside_the_global_feature(name, variant):
    head, clips = gos(name, variant=variant), views()
    x, scene, mean, _ = head.stem(clips)
    z = masked_mean(head.operation(x, scene), clips.valid)
    out = head(clips, want_maps=True)
    torch.testing.assert_close(out.logits, head.fc(torch.cat([z, mean], 1)))
    assert out.maps["attention"].equal(head.operation.attention(x, scene))
    assert type(head.operation) is OPERATIONS[name.removeprefix("gos_")]


@pytest.mark.parametrize("name", [s for s in SINGLE if s != "gos_back_incor"])
def test_cached_nodes_may_stand_for_the_map(name):
    head, clips = gos(name, regions="nodes"), views()
    assert "res5" not in head.needs
    assert ("boxes" in head.needs) == (name == "gos_node_att")
    least = clips.without(*(set(clips.tensors()) - set(head.needs)))
    x = head.stem(least)[0]
    torch.testing.assert_close(x, nn.functional.leaky_relu(head.stem.reduce(clips.nodes), 0.01))
    assert head(least).logits.shape == (B, K)


def test_cached_neighbours_are_needed_where_they_are_read():
    assert gos().needs == ("res5", "boxes", "valid")
    assert set(gos(neighbours="cached").needs) == {"res5", "boxes", "valid", "nearest", "similar"}
    assert set(gos(neighbours="cached", variant="released").needs) == {
        "res5",
        "boxes",
        "valid",
        "nearest",
    }
    assert "nearest" in gos("gos_temp_conv", neighbours="cached").needs
    assert "similar" in gos("gos_node_att", neighbours="cached").needs
    clips = views()
    clips.nearest = torch.zeros(B, T, N, T, dtype=torch.long)
    clips.similar = torch.randint(0, T * N, (B, T, N, 4))
    assert gos(neighbours="cached")(clips).logits.shape == (B, K)
    with pytest.raises(ValueError, match="no nearest"):
        gos(neighbours="cached")(views())


@pytest.mark.parametrize(
    "options",
    [
        {"supernodes": 2},
        {"supernodes": 4},
        {"cells": 2},
        {"space": "original"},
        {"space": "original", "mode": "discrete"},
        {"structures": "shared"},
        {"background": "softmax", "normalise": False, "scale": 1},
        {
            "attention": "all",
            "kernel": "depthwise",
            "padding": "valid",
            "nearest": "affinity",
            "affinity": "diagonal",
        },
    ],
    ids=str,
)
@variants
def test_every_option_gives_logits_that_do_not_depend_on_the_batch(options, variant):
    head, clips = gos(variant=variant, **options), views()
    together = head(clips).logits
    for k in range(B):
        alone = clips_of(
            {name: tensor[k : k + 1] for name, tensor in clips.tensors().items()}, dtype=None
        )
        torch.testing.assert_close(head(alone).logits, together[k : k + 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("variant", "code", "expected one of paper, released"),
        ("space", "free", "expected one of fixed, original"),
        ("structures", "none", "expected one of adaptive, shared, shared_test"),
        ("mode", "final", "expected one of search, discrete"),
        ("neighbours", "near", "expected one of live, cached"),
        ("background", "sum", "expected one of raw, softmax"),
        ("kernel", "wide", "expected one of full, depthwise"),
        ("supernodes", 0, "expected at least 1, got 0"),
        ("top", 0, "expected at least 1, got 0"),
    ],
)
def test_unknown_values_are_refused_with_what_there_is(option, value, message):
    with pytest.raises(ValueError, match=f"head gos, option {option}: {message}"):
        build_head("gos", DIMS, K, **{option: value})


@pytest.mark.parametrize("name", ["gos", *SINGLE])
@variants
def test_every_parameter_moves_in_three_steps_but_for_the_known_dead_ones(name, variant):
    head = gos(name, variant=variant, random=False).train()
    before = {key: p.detach().clone() for key, p in head.named_parameters()}
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
    target = torch.tensor([0, 1, 2])
    for _ in range(3):
        optimiser.zero_grad()
        out = head(views())
        (nn.functional.cross_entropy(out.logits, target) + sum(out.losses.values())).backward()
        optimiser.step()
    still = {key for key, p in head.named_parameters() if p.equal(before[key])}
    if variant == "released" and name in ("gos", "gos_temp_conv"):
        # the U of temp_conv, which argmax hides
        assert still == {
            key
            for key in before
            if key.endswith(("comb2.operations.0.affinity.U", "operation.affinity.U"))
        }
    else:
        assert still == set()
    for key, p in head.named_parameters():
        if variant == "released" and key.endswith("affinity.U"):
            assert p[~torch.eye(W, dtype=torch.bool)].eq(0).all()


def test_spaces_hold_the_papers_operations():
    head = gos()
    assert head.space == ("none", "skip", "comb1", "comb2", "comb3")
    assert isinstance(head.cells[0].edges[0]["none"], Zero)
    assert isinstance(head.cells[0].edges[0]["skip"], Skip)
    ids = [id(p) for p in head.cells.parameters()]
    assert len(ids) == len(set(ids))  # every edge has weights of its own


def test_dropout_is_before_the_classifier_and_off_by_default():
    assert gos().drop.p == 0.0
    head = gos("gos_feat_aggr", dropout=1.0).train()
    torch.testing.assert_close(head(views()).logits, head.fc.bias.expand(B, K))
