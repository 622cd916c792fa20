"""GOS's operations against their equations, node by node, in float64 and without training."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from heads.papers.gos.affinity import (
    OPERATION_OPTIONS,
    VARIANTS,
    OperationChoices,
    OperationSizes,
    operation_choices,
    unit,
)
from heads.papers.gos.operation_inputs import OperationInputs, layout_of
from heads.papers.gos.operations import SPACES, new_operation
from pipeline.regions.graphs import inner_products, nearest_nodes, similar_nodes

B, T, N, C, G = 2, 8, 3, 6, 5
RELATIONS = ("feat_aggr", "diff_prop", "temp_conv", "back_incor", "node_att")
RELEASED = {
    "feat_aggr": 131_840,
    "diff_prop": 131_840,
    "temp_conv": 68_096,
    "back_incor": 144_384,
    "node_att": 170,
}
variants = pytest.mark.parametrize("variant", VARIANTS)
relations = pytest.mark.parametrize("name", RELATIONS)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def choices(variant: str = "paper", **changes) -> OperationChoices:
    decided = {name: VARIANTS[variant][name] for name in OPERATION_OPTIONS}
    for name in OPERATION_OPTIONS:
        decided[name] = changes.pop(name, decided[name])
    others = {"scale": 0.0, "normalise": True, "top": 4, **changes}
    return operation_choices("test", decided, **others)


def operation(
    name: str,
    variant: str = "paper",
    random: bool = True,
    sizes: OperationSizes | None = None,
    **changes,
):
    """The operation in float64 and eval mode; `random` draws every weight."""
    torch.manual_seed(0)
    op = (
        new_operation(name, sizes or OperationSizes(C, T, N, G), choices(variant, **changes))
        .double()
        .eval()
    )
    if random:
        with torch.no_grad():
            for parameter in op.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    return op


def some_scene(missing: bool = False, seed: int = 1) -> OperationInputs:
    """Make the inputs of B views; `missing` leaves out boxes, a whole frame and most of a view."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(B, T, N, 2, generator=g, dtype=torch.float64) * 0.5
    valid = torch.ones(B, T, N, dtype=torch.bool)
    cells = torch.ones(B, G, dtype=torch.bool)
    if missing:
        valid = torch.rand(B, T, N, generator=g) < 0.7
        valid[0, 2], valid[1, 1:], valid[1, 0] = False, False, torch.tensor([True, True, False])
        cells[1, 3:] = False
    layout = layout_of(torch.cat([corner, corner + 0.4], -1))
    return OperationInputs(valid, layout=layout, y=draw(B, T, G, C, seed=seed + 1), cells=cells)


def nodes(seed: int = 3) -> torch.Tensor:
    return draw(B, T, N, C, seed=seed)


def act(op, z: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(F.layer_norm(z, (C,), op.norm.weight, op.norm.bias), 0.01)


def affinity(op, x: torch.Tensor, y: torch.Tensor, variant: str) -> torch.Tensor:
    """Plain products by the paper; of unit vectors and U's diagonal by the release."""
    if variant == "paper":
        return x @ op.affinity.U @ y.T
    return F.normalize(x, dim=-1) @ op.affinity.U.diagonal().diag() @ F.normalize(y, dim=-1).T


def by_hand(
    name: str, op, x: torch.Tensor, scene: OperationInputs, b: int, variant: str
) -> torch.Tensor:
    """One view by the naive equations, over its valid nodes and nothing else -> [V,C]."""
    paper = variant == "paper"
    scale = 1 if paper else 5
    valid = scene.valid[b]
    frame = torch.arange(T)[:, None].expand(T, N)[valid]
    x, layout = x[b][valid], scene.layout[b][valid]
    V = len(x)
    if name == "feat_aggr":
        return act(op, (scale * affinity(op, x, x, variant)).softmax(1) @ op.linear(x))
    if name == "diff_prop":
        P = (scale * affinity(op, x, x, variant)).exp() * (1 - torch.eye(V, dtype=x.dtype))
        P = P / P.sum(1, keepdim=True).clamp_min(1e-300)
        return act(op, torch.einsum("ij,ijc->ic", P, op.linear(x[:, None] - x)))
    if name == "temp_conv":
        scores = x @ x.T if paper else affinity(op, x, x, variant)
        rows = []
        for i in range(V):
            sequence = torch.zeros(T, C, dtype=x.dtype)
            for f in range(T):
                there = (frame == f).nonzero()[:, 0]
                if paper and f == frame[i]:
                    sequence[f] = x[i]
                elif len(there):
                    sequence[f] = x[there[scores[i, there].argmax()]]
            depthwise = op.conv.weight.shape[1] == 1
            z = F.conv1d(
                sequence.T[None],
                op.conv.weight,
                op.conv.bias,
                padding=op.pad,
                groups=C if depthwise else 1,
            )
            rows.append(act(op, z[0].T).mean(0))
        return torch.stack(rows)
    if name == "back_incor":
        rows, on = [], scene.cells[b]
        for i in range(V):
            y = scene.y[b, frame[i]]
            a = affinity(op, x[i : i + 1], y, variant)[0]
            p = (scale * a[on]).softmax(0)
            rows.append(op.linear(torch.cat([p @ y[on], torch.where(on, a, 0)])))
        return act(op, torch.stack(rows))
    similar = x @ x.T if paper else F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    rows = []
    for i in range(V):
        if op.all:
            given = torch.zeros(B, T, N, dtype=x.dtype)[0]
            given[valid] = similar[i]
            given = torch.cat([given.flatten(), layout[i]])
        else:
            nearest_first = sorted(range(V), key=lambda j: -similar[i, j].item())
            others = [j for j in nearest_first if j != i][: op.top]
            table = torch.zeros(4, op.top, dtype=x.dtype)
            for m, j in enumerate(others):
                table[0, m] = similar[i, j]
                table[1:, m] = (layout[i] - layout[j])[[4, 5, 8]]
            given = table.flatten()
        rows.append(torch.sigmoid(op.linear(given)) * x[i])
    return torch.stack(rows)


@variants
@relations
@pytest.mark.parametrize("missing", [False, True], ids=["all boxes", "boxes missing"])
def test_an_operation_follows_its_equation(name, variant, missing):
    op, scene, x = operation(name, variant), some_scene(missing), nodes()
    found = op(x, scene)
    for b in range(B):
        torch.testing.assert_close(
            found[b][scene.valid[b]], by_hand(name, op, x, scene, b, variant), rtol=1e-9, atol=1e-9
        )


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_difference_propagation_by_the_identity_is_the_naive_sum_in_value_and_gradient(
    variant, dtype
):
    op, scene = operation("diff_prop", variant).to(dtype), some_scene()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    found = []
    for run in (
        op,
        lambda x, s: torch.stack(
            [by_hand("diff_prop", op, x, s, b, variant) for b in range(B)]
        ).view_as(x),
    ):
        x = nodes().to(dtype).requires_grad_()
        op.zero_grad()
        z = run(x, scene)
        (z * draw(B, T, N, C, seed=8).to(dtype)).sum().backward()
        found.append([z.detach(), x.grad, *(p.grad.clone() for p in op.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())


class LargestTensor(TorchDispatchMode):
    """Remembers the number of values of the largest tensor that any operation made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(
                    self.size, tensor.untyped_storage().nbytes() // tensor.element_size()
                )
        return made


def test_difference_propagation_never_forms_all_differences():
    sizes, n = OperationSizes(32, T, 10), T * 10
    op = operation("diff_prop", sizes=sizes).float()
    x = torch.randn(B, T, 10, 32, requires_grad=True)
    with LargestTensor() as largest:
        op(x, OperationInputs(torch.ones(B, T, 10, dtype=torch.bool))).sum().backward()
    assert largest.size <= B * n * max(n, 32)


@pytest.mark.parametrize(("name", "count"), list(RELEASED.items()))
def test_parameters_of_the_released_operations(name, count):
    op = operation(name, "released", random=False, sizes=OperationSizes(256, 16, 10, 49))
    assert sum(p.numel() for p in op.parameters()) == count


@pytest.mark.parametrize(
    ("name", "count"), list((RELEASED | {"temp_conv": 459_520, "node_att": 41}).items())
)
def test_parameters_of_the_operations_in_the_paper(name, count):
    op = operation(name, random=False, sizes=OperationSizes(256, 16, 10, 49), top=10)
    assert sum(p.numel() for p in op.parameters()) == count


@variants
@pytest.mark.parametrize("name", ["feat_aggr", "diff_prop", "back_incor"])
def test_attention_is_a_distribution_over_what_is_there(name, variant):
    op, scene = operation(name, variant), some_scene(missing=True)
    P = op.attention(nodes(), scene)
    assert (P >= 0).all()
    if name == "back_incor":
        rows, there = P[scene.valid], scene.cells[:, None, None].expand_as(P)
    else:
        rows, there = P[scene.valid.flatten(1)], scene.valid.flatten(1)[:, None].expand_as(P)
    torch.testing.assert_close(rows.sum(-1), torch.ones(len(rows), dtype=torch.float64))
    assert (P[~there] == 0).all()
    if name == "diff_prop":
        assert (P.diagonal(dim1=1, dim2=2) == 0).all()


def test_a_node_alone_hears_nobody():
    op, scene = operation("diff_prop"), some_scene()
    scene.valid[:] = False
    scene.valid[:, 1, 1] = True
    assert (op.attention(nodes(), scene)[:, N + 1] == 0).all()
    zero = act(op, torch.zeros(B, C, dtype=torch.float64))
    torch.testing.assert_close(op(nodes(), scene)[:, 1, 1], zero)


def test_affinity_is_at_first_the_inner_product_in_the_paper_and_the_cosine_in_the_release():
    x = nodes().flatten(1, 2)
    for variant, wanted in (("paper", x), ("released", F.normalize(x, dim=-1))):
        fresh = operation("feat_aggr", variant, random=False).affinity
        A = fresh(fresh.features(x), fresh.features(x))
        torch.testing.assert_close(A, wanted @ wanted.mT)


def test_affinity_is_symmetric_where_only_the_diagonal_counts_and_ignores_lengths_as_a_cosine():
    x = nodes().flatten(1, 2)
    for variant, released in (("released", True), ("paper", False)):
        a = operation("feat_aggr", variant).affinity
        A = a(a.features(x), a.features(x))
        assert torch.allclose(A, A.mT) == released
        rescaled = a.features(x * draw(B, T * N, 1, seed=9).exp())
        assert torch.allclose(a(rescaled, rescaled), A) == released


@pytest.mark.parametrize("name", ["feat_aggr", "diff_prop", "back_incor"])
def test_the_factor_before_the_softmax_is_5_with_cosines_and_1_with_inner_products(name):
    assert operation(name, "paper").scale == 1
    assert operation(name, "released").scale == 5
    assert operation(name, "paper", scale=2.0).scale == 2
    assert operation(name, "paper", similarity="cosine").scale == 5


def test_a_node_is_itself_in_its_own_step_however_long_its_neighbours_are():
    x = nodes()
    x[:, :, 1] *= 100
    itself = torch.arange(N).expand(B, T, N)
    near = operation("temp_conv", "paper").attention(x, some_scene())
    assert near.diagonal(dim1=1, dim2=3).mT.equal(itself)
    # In other steps the long node is the nearest one of whatever points its way.
    assert not near.diagonal(1, dim1=1, dim2=3).mT.equal(itself[:, 1:])


def test_the_cached_table_of_a_batch_is_not_changed():
    scene, table = some_scene(), torch.zeros(B, T, N, T, dtype=torch.long)
    cached = OperationInputs(scene.valid, nearest=table)
    near = operation("temp_conv", neighbours="cached").attention(nodes(), cached)
    assert not table.any()
    assert near.diagonal(dim1=1, dim2=3).mT.equal(torch.arange(N).expand(B, T, N))


def test_places_are_the_nodes_minus_the_neighbours_in_the_paper():
    """Eq. (9): with a weight on the first neighbour's dx alone, w = sigmoid(cx_i - cx_j)."""
    scene, x = some_scene(), nodes()
    for offset, sign in (("from_neighbour", 1), ("to_neighbour", -1)):
        op = operation("node_att", random=False, offset=offset)
        with torch.no_grad():
            op.linear.weight.zero_()
            op.linear.weight[0, op.top] = 1.0  # after the similarities come the dx
        cx = scene.layout[..., 4].flatten(1)
        inner = x.flatten(1, 2) @ x.flatten(1, 2).mT
        inner.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        wanted = torch.sigmoid(sign * (cx - cx.gather(1, inner.argmax(-1))))
        torch.testing.assert_close(op.attention(x, scene).flatten(1), wanted)
    assert VARIANTS["paper"]["offset"] == "from_neighbour"


@variants
@pytest.mark.parametrize("name", ["feat_aggr", "diff_prop", "back_incor"])
def test_the_off_diagonal_of_U_learns_in_the_paper_and_never_in_the_released_code(name, variant):
    op = operation(name, variant)
    op(nodes(), some_scene()).square().sum().backward()
    off = op.affinity.U.grad[~torch.eye(C, dtype=torch.bool)]
    assert (off == 0).all() if variant == "released" else (off != 0).all()
    assert (op.affinity.U.grad.diagonal() != 0).all()


def test_the_choice_of_the_nearest_node_gives_U_no_gradient():
    op = operation("temp_conv", "released")
    op(nodes(), some_scene()).square().sum().backward()
    assert op.affinity.U.grad is None
    assert operation("temp_conv", "paper").affinity is None  # plain inner products


@variants
def test_equal_nodes_have_no_differences_to_propagate(variant):
    op, same = operation("diff_prop", variant), draw(1, 1, 1, C, seed=5).expand(B, T, N, C)
    torch.testing.assert_close(op(same, some_scene()), act(op, op.linear.bias).expand(B, T, N, C))
    with torch.no_grad():
        op.linear.bias.zero_()
        op.norm.bias.zero_()
    torch.testing.assert_close(op(same, some_scene()), torch.zeros(B, T, N, C, dtype=torch.float64))


@variants
@pytest.mark.parametrize("name", ["feat_aggr", "diff_prop"])
def test_without_a_bias_the_scale_of_the_nodes_does_not_matter(name, variant):
    op = operation(name, variant)
    with torch.no_grad():
        op.linear.bias.zero_()
    x = nodes() * 1e3  # so that the LayerNorm's eps is nothing
    torch.testing.assert_close(op(7 * x, some_scene()), op(x, some_scene()), rtol=1e-6, atol=1e-6)


def permuted(
    order: torch.Tensor, x: torch.Tensor, scene: OperationInputs
) -> tuple[torch.Tensor, OperationInputs]:
    """Nodes and scene with the nodes of every view in another order: order [n]."""

    def move(t):
        return t.flatten(1, 2)[:, order].unflatten(1, (T, N))

    return move(x), OperationInputs(
        move(scene.valid), layout=move(scene.layout), y=scene.y, cells=scene.cells
    )


def is_equivariant(name: str, variant: str, within_frames: bool) -> bool:
    """Say whether a permutation of the nodes and their boxes permutes the outputs alike."""
    g = torch.Generator().manual_seed(4)
    if within_frames:
        order = torch.cat([t * N + torch.randperm(N, generator=g) for t in range(T)])
    else:
        order = torch.randperm(T * N, generator=g)
    op, x, scene = operation(name, variant), nodes(), some_scene(missing=True)
    moved = op(*permuted(order, x, scene)).flatten(1, 2)
    valid = scene.valid.flatten(1)[:, order]
    return torch.allclose(
        moved[valid], op(x, scene).flatten(1, 2)[:, order][valid], rtol=1e-9, atol=1e-9
    )


@variants
@relations
def test_permuting_the_nodes_of_a_frame_permutes_the_outputs_but_for_weights_tied_to_slots(
    name, variant
):
    assert is_equivariant(name, variant, within_frames=True) == (
        (name, variant) != ("node_att", "released")
    )


@variants
@relations
def test_permuting_nodes_across_frames_permutes_the_outputs_where_frames_do_not_count(
    name, variant
):
    free = name in ("feat_aggr", "diff_prop") or (name, variant) == ("node_att", "paper")
    assert is_equivariant(name, variant, within_frames=False) == free


@variants
@relations
def test_what_lies_in_padded_nodes_is_never_heard(name, variant):
    op, scene, x = operation(name, variant), some_scene(missing=True), nodes()
    before = op(x, scene)[scene.valid]
    x[~scene.valid] = 1e3
    scene.layout[~scene.valid] = 7.0
    assert op(x, scene)[scene.valid].equal(before)


@variants
@relations
def test_gradients_are_finite_where_nodes_are_zero_and_boxes_missing(name, variant):
    op, scene = operation(name, variant), some_scene(missing=True)
    scene.valid[1] = False
    x = nodes()
    x[0, 0], x[1] = 0.0, 0.0
    x.requires_grad_()
    op(x, scene)[scene.valid].square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in op.parameters() if p.grad is not None)


@variants
def test_a_sequence_constant_in_time_gives_one_convolution(variant):
    op = operation("temp_conv", variant, padding="valid")
    x = draw(B, 1, 1, C, seed=6).expand(B, T, N, C)
    taps = op.conv.weight.sum(-1)  # [C,1 or C]
    z = (x * taps[:, 0] if variant == "released" else x @ taps.T) + op.conv.bias
    torch.testing.assert_close(op(x, some_scene()), act(op, z))


@pytest.mark.parametrize(("padding", "positions"), [("valid", 10), ("same", 16)])
def test_temporal_convolution_has_as_many_positions_as_its_padding_leaves(padding, positions):
    op = operation("temp_conv", "released", padding=padding, sizes=OperationSizes(C, 16, N))
    pick = torch.zeros(1, 16 * N, 16, N, dtype=torch.float64)
    weights = op.conv.weight.permute(2, 1, 0).unbind()
    assert op.convolved(draw(1, 16, N, C, seed=1), pick, weights).shape == (1, positions, 16 * N, C)


def test_seven_taps_without_padding_need_seven_steps():
    with pytest.raises(ValueError, match=r"at least 7 steps, got 6; pass padding='same'"):
        operation("temp_conv", "released", sizes=OperationSizes(C, 6, N))
    short = operation("temp_conv", "released")
    with pytest.raises(ValueError, match="got 5"):
        short(nodes()[:, :5], OperationInputs(torch.ones(B, 5, N, dtype=torch.bool)))
    assert operation("temp_conv", "paper", sizes=OperationSizes(C, 1, N)) is not None
    with pytest.raises(ValueError, match="expected an odd number"):
        choices(taps=4)


@variants
def test_reversing_time_is_flipping_the_kernel(variant):
    op, x, scene = operation("temp_conv", variant), nodes(), some_scene(missing=True)
    forwards = op(x, scene)
    with torch.no_grad():
        op.conv.weight.copy_(op.conv.weight.flip(-1))
    backwards = op(x.flip(1), OperationInputs(scene.valid.flip(1))).flip(1)
    torch.testing.assert_close(backwards[scene.valid], forwards[scene.valid])


@variants
def test_nodes_with_the_same_nearest_nodes_get_the_same_output(variant):
    op, x = operation(name := "temp_conv", variant, random=False), nodes()
    # Same direction: the same neighbours, but for themselves in the paper's own step.
    x[:, 3, 2] = 2 * x[:, 3, 1]
    scene = some_scene()
    near = op.attention(x, scene)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert near[:, 3, 1, others].equal(near[:, 3, 2, others]), name
    assert (near[:, 3, [1, 2], 3] == torch.tensor([1, 2 if variant == "paper" else 1])).all()
    x[:, 3, 2] = x[:, 3, 1]
    out = op(x, scene)
    torch.testing.assert_close(out[:, 3, 1], out[:, 3, 2])


def test_background_comes_from_the_nodes_own_frame():
    op, x, scene = operation("back_incor"), nodes(), some_scene()
    before = op(x, scene)
    other = OperationInputs(scene.valid, y=scene.y.clone(), cells=scene.cells)
    other.y[:, 4] += 1.0
    changed = (op(x, other) != before).any(-1)
    assert changed[:, 4].all()
    assert not changed[:, [0, 1, 2, 3, 5, 6, 7]].any()


@variants
def test_uniform_background_is_attended_uniformly(variant):
    op, scene = operation("back_incor", variant), some_scene()
    flat = OperationInputs(scene.valid, y=scene.y[:, :, :1].expand(B, T, G, C), cells=scene.cells)
    torch.testing.assert_close(
        op.attention(nodes(), flat), torch.full((B, T, N, G), 1 / G, dtype=torch.float64)
    )


def test_the_linear_layer_of_both_parts_is_the_papers_sum_of_two():
    op, x, scene = operation("back_incor"), nodes(), some_scene()
    W_b, V_b = op.linear.weight.split([C, G], 1)
    A = torch.einsum("btnc,cd,btgd->btng", x, op.affinity.U, scene.y)
    z = A @ V_b.T + (op.attention(x, scene) @ scene.y) @ W_b.T + op.linear.bias
    torch.testing.assert_close(op(x, scene), act(op, z))
    softmaxed = operation("back_incor", background="softmax")
    P = softmaxed.attention(x, scene)
    torch.testing.assert_close(
        softmaxed(x, scene), act(op, P @ V_b.T + (P @ scene.y) @ W_b.T + op.linear.bias)
    )


@pytest.mark.parametrize("name", ["temp_conv", "node_att"])
def test_cached_neighbours_are_the_live_ones_of_the_same_features(name):
    """Lengths of 1: what stage two ranks by inner product is what node_att ranks by cosine."""
    scene, x = some_scene(missing=True), unit(nodes())
    products = inner_products(x, scene.valid)
    near = nearest_nodes(products, scene.valid).long()
    similar = similar_nodes(products, scene.valid, 6)[0].long()
    cached = OperationInputs(scene.valid, layout=scene.layout, nearest=near, similar=similar)
    live, stored = operation(name), operation(name, neighbours="cached")
    assert set(stored.reads) - set(live.reads) == {"nearest" if name == "temp_conv" else "similar"}
    torch.testing.assert_close(stored(x, cached)[scene.valid], live(x, scene)[scene.valid])


def test_too_few_cached_neighbours_are_refused_with_the_command():
    op, scene = operation("node_att", neighbours="cached"), some_scene()
    few = OperationInputs(
        scene.valid, layout=scene.layout, similar=torch.zeros(B, T, N, 3, dtype=torch.long)
    )
    message = "4 most similar nodes in the cache, got 3; run `vidgraph graphs` with --neighbours 4"
    with pytest.raises(ValueError, match=message):
        op(nodes(), few)


def test_equal_similarities_are_taken_in_the_order_of_the_nodes():
    op, x, scene = operation("node_att"), draw(1, 1, 1, C, seed=2).expand(B, T, N, C), some_scene()
    index, real = op._similar(unit(x).flatten(1, 2), scene)
    assert real.all()
    assert index[0, 0].tolist() == [1, 2, 3, 4]
    assert index[0, 2].tolist() == [0, 1, 3, 4]


def test_neighbours_among_nodes_that_look_alike_are_chosen_by_their_differences():
    """In float32 the cosines of these nodes are all 1; their order is still that of float64."""
    x, scene = draw(1, 1, 1, C, seed=2) + 1e-4 * nodes(), some_scene()
    for similarity, prepare in (("cosine", unit), ("inner", torch.clone)):
        op = operation("node_att", similarity=similarity)
        exact = op._similar(prepare(x).flatten(1, 2), scene)[0]
        assert op.float()._similar(prepare(x.float()).flatten(1, 2), scene)[0].equal(exact)
    for variant in VARIANTS:
        convolution = operation("temp_conv", variant, random=False)
        near = convolution.attention(x, scene)
        assert convolution.float().attention(x.float(), scene).equal(near)
        assert len(near.unique()) == N


def test_the_nearest_node_is_the_one_furthest_along_however_alike_the_nodes():
    base, apart = draw(1, 1, 1, C, seed=2), nodes()
    near = operation("temp_conv").attention(base + 1e-9 * apart, some_scene())
    wanted = (base * apart).sum(-1).argmax(-1)[:, None, None].expand(B, T, N, T).clone()
    wanted.diagonal(dim1=1, dim2=3).copy_(torch.arange(N)[:, None])  # itself in its own step
    assert near.equal(wanted)


def test_bfloat16_arithmetic_chooses_the_same_neighbours():
    x, scene = nodes().float(), some_scene()
    attend, convolve = operation("node_att").float(), operation("temp_conv", "released").float()
    exact = attend._similar(x.flatten(1, 2), scene)[0], convolve.attention(x, scene)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend._similar(x.flatten(1, 2), scene)[0].equal(exact[0])
        assert convolve.attention(x, scene).equal(exact[1])


def test_slots_of_the_released_node_attention_are_counted():
    with pytest.raises(ValueError, match="a weight for each of 24 nodes, got 15"):
        operation("node_att", "released")(
            nodes()[:, :5], OperationInputs(torch.ones(B, 5, N, dtype=torch.bool))
        )


def test_skip_drops_single_values_in_training_only():
    op, x, scene = operation("skip"), torch.ones(B, T, N, 256), some_scene()
    assert op(x, scene).equal(x)
    dropped = op.train()(x, scene)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 0.45 < (dropped == 0).float().mean() < 0.55
    assert operation("none")(x, scene).equal(torch.zeros_like(x))


def test_combinations_are_chains_of_the_operations():
    x, scene = nodes(), some_scene(missing=True)
    for name, first in (("comb1", "diff_prop"), ("comb2", "temp_conv"), ("comb3", "back_incor")):
        chain = operation(name)
        kinds = [type(op) for op in chain.operations]
        assert kinds == [type(operation(part)) for part in (first, "feat_aggr", "node_att")]
        z = x
        for op in chain.operations:
            z = op(z, scene)
        assert chain(x, scene).equal(z)
    assert SPACES["original"] == ("none", "skip", *RELATIONS)


@variants
@relations
def test_views_of_a_batch_do_not_mix(name, variant):
    op, scene, x = operation(name, variant), some_scene(missing=True), nodes()
    together, row = op(x, scene), torch.tensor([1])
    torch.testing.assert_close(
        op(x[row], scene.take(row))[scene.valid[row]], together[row][scene.valid[row]]
    )
