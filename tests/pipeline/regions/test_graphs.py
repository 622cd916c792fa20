import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pipeline.regions.graphs
import pipeline.stages.graphs
from pipeline.cache.reader import Cache, CacheError
from pipeline.regions.graphs import (
    GraphOptions,
    graphs_of,
    inner_products,
    iou_graph,
    nearest_nodes,
    similar_nodes,
)
from pipeline.stages.graphs import build_graphs
from tests.support.small_cache import FIELDS, N, T, make_cache, tensors_of, write_shard


def random_boxes(*shape: int, seed: int = 0) -> np.ndarray:
    """xyxy in [0,1], float32 [*shape,4]."""
    corners = np.sort(np.random.default_rng(seed).random((*shape, 2, 2)), axis=-2)
    return corners.reshape(*shape, 4).astype(np.float32)


def random_nodes(
    B: int = 2, T: int = 4, N: int = 5, C: int = 7, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes [B,T,N,C] and valid [B,T,N], valid ones first; step 1 of view 0 has no box at all."""
    rng = np.random.default_rng(seed)
    valid = np.sort(rng.random((B, T, N)) < 0.7, axis=-1)[..., ::-1].copy()
    valid[0, 1] = False
    nodes = rng.standard_normal((B, T, N, C)).astype(np.float32) * valid[..., None]
    return torch.from_numpy(nodes), torch.from_numpy(valid)


def all_valid(boxes: np.ndarray) -> np.ndarray:
    return np.ones(boxes.shape[:-1], bool)


def test_iou_equals_plain_loops():
    boxes, valid = random_boxes(2, 3, 4), np.random.default_rng(1).random((2, 3, 4)) < 0.8
    graph = iou_graph(boxes, valid)
    assert graph.shape == (2, 2, 4, 4)
    assert graph.dtype == np.float32
    for b, t, i, j in np.ndindex(graph.shape):
        (ax, ay, bx, by), (cx, cy, dx, dy) = boxes[b, t, i].tolist(), boxes[b, t + 1, j].tolist()
        shared = max(0, min(bx, dx) - max(ax, cx)) * max(0, min(by, dy) - max(ay, cy))
        union = (bx - ax) * (by - ay) + (dx - cx) * (dy - cy) - shared
        want = shared / union if valid[b, t, i] and valid[b, t + 1, j] else 0
        assert graph[b, t, i, j] == pytest.approx(want, abs=1e-6)


def test_iou_does_not_change_when_all_boxes_move_or_grow_together():
    boxes = random_boxes(5, 6)
    graph = iou_graph(boxes, all_valid(boxes))
    moved = boxes + np.array([0.25, -0.5, 0.25, -0.5], np.float32)
    wider = boxes * np.array([3, 0.5, 3, 0.5], np.float32)
    for other in (moved, wider):
        np.testing.assert_allclose(iou_graph(other, all_valid(other)), graph, atol=1e-5)


def test_boxes_that_never_meet_have_no_edges():
    boxes = np.array([[0, 0, 0.4, 0.4], [0.5, 0.5, 1, 1]], np.float32)
    # Each step is far away from the last; touching sides do not count.
    boxes = np.stack([boxes, boxes + 2, boxes])
    graph = iou_graph(boxes, all_valid(boxes))
    assert not graph.any()
    assert np.isfinite(graph).all()


def test_identical_consecutive_disjoint_boxes_give_the_identity():
    boxes = np.array([[0, 0, 0.3, 0.3], [0.3, 0.3, 0.6, 0.6], [0.7, 0, 1, 1]], np.float32)
    graph = iou_graph(np.stack([boxes] * 4), np.ones((4, 3), bool))
    np.testing.assert_array_equal(graph, np.stack([np.eye(3)] * 3))


def test_reversing_time_transposes_the_iou_graph():
    boxes = random_boxes(5, 4)
    forth, back = (iou_graph(b, all_valid(b)) for b in (boxes, boxes[::-1]))
    np.testing.assert_allclose(back, forth[::-1].transpose(0, 2, 1), atol=1e-7)


def test_boxes_without_area_never_give_nan():
    boxes = np.zeros((3, 4, 4), np.float32)
    boxes[1:] = 0.5
    assert not iou_graph(boxes, all_valid(boxes)).any()


def test_permuting_boxes_within_a_step_permutes_the_iou_graph():
    boxes, order = random_boxes(3, 5), np.array([3, 0, 4, 1, 2])
    graph = iou_graph(boxes, all_valid(boxes))
    shuffled = boxes.copy()
    shuffled[1] = boxes[1][order]
    other = iou_graph(shuffled, all_valid(boxes))
    np.testing.assert_array_equal(other[0], graph[0][:, order])
    np.testing.assert_array_equal(other[1], graph[1][order])


def test_nearest_equals_plain_loops():
    nodes, valid = random_nodes()
    nearest = nearest_nodes(inner_products(nodes, valid), valid)
    assert nearest.shape == (2, 4, 5, 4)
    assert nearest.dtype == torch.int32
    for b, t, i, s in np.ndindex(*nearest.shape):
        products = [
            float(nodes[b, t, i] @ nodes[b, s, j]) if valid[b, s, j] else -np.inf for j in range(5)
        ]
        want = int(np.argmax(products)) if valid[b, t, i] else 0
        assert nearest[b, t, i, s] == want


def test_similar_equals_plain_loops():
    nodes, valid = random_nodes()
    index, value = similar_nodes(inner_products(nodes, valid), valid, 6)
    assert index.shape == value.shape == (2, 4, 5, 6)
    assert (index.dtype, value.dtype) == (torch.int32, torch.float32)
    flat, there = nodes.flatten(1, 2), valid.flatten(1)
    for b, i in np.ndindex(2, 20):
        others = [j for j in range(20) if j != i and there[b, j] and there[b, i]]
        best = sorted(others, key=lambda j: (-float(flat[b, i] @ flat[b, j]), j))[:6]
        padding = [0] * (6 - len(best))
        assert index[b].flatten(0, 1)[i].tolist() == best + padding
        np.testing.assert_allclose(
            value[b].flatten(0, 1)[i],
            [float(flat[b, i] @ flat[b, j]) for j in best] + padding,
            rtol=1e-5,
        )


def test_equals_are_taken_by_the_lowest_index():
    nodes = torch.ones(1, 3, 4, 8)
    valid = torch.ones(1, 3, 4, dtype=torch.bool)
    products = inner_products(nodes, valid)
    assert not nearest_nodes(products, valid).any()
    index, value = similar_nodes(products, valid, 5)
    assert index.flatten(1, 2)[0, 0].tolist() == [1, 2, 3, 4, 5]
    assert index.flatten(1, 2)[0, 7].tolist() == [0, 1, 2, 3, 4]
    assert (value == 8).all()


def test_zero_of_either_sign_counts_as_equal():
    products = torch.tensor([[1.0, -0.0, 0.0, -0.0]]).expand(4, 4)[None].clone()
    index, _ = similar_nodes(products, torch.ones(1, 1, 4, dtype=torch.bool), 3)
    assert index[0, 0, 0].tolist() == [1, 2, 3]


def test_most_similar_come_first_also_below_zero():
    nodes = torch.tensor([[1.0], [-3.0], [2.0], [-1.0]]).reshape(1, 1, 4, 1)
    valid = torch.ones(1, 1, 4, dtype=torch.bool)
    index, value = similar_nodes(inner_products(nodes, valid), valid, 3)
    assert index[0, 0, 0].tolist() == [2, 3, 1]
    assert value[0, 0, 0].tolist() == [2, -1, -3]


def test_rows_of_invalid_nodes_are_zero_and_never_chosen():
    nodes, valid = random_nodes()
    nodes[~valid] = 100.0  # even if an extractor left something there
    tensors = {"nodes": nodes.numpy(), "valid": valid.numpy(), "boxes": random_boxes(2, 4, 5)}
    graphs = graphs_of(tensors, GraphOptions(neighbours=5))
    for name in ("nearest", "similar", "similarity"):
        assert not graphs[name][~tensors["valid"]].any(), name
        assert np.isfinite(graphs[name]).all()
    assert not graphs["iou"][~tensors["valid"][:, :-1]].any()
    assert not graphs["iou"].swapaxes(-1, -2)[~tensors["valid"][:, 1:]].any()
    chosen = np.take_along_axis(
        tensors["valid"].reshape(2, -1), graphs["similar"].reshape(2, -1), 1
    )
    assert chosen[graphs["similarity"].reshape(2, -1) != 0].all()


def test_permuting_nodes_within_steps_permutes_nearest_and_similar():
    nodes, _ = random_nodes(B=1)
    valid = torch.ones(1, 4, 5, dtype=torch.bool)
    order = torch.tensor([2, 4, 0, 1, 3])
    back = torch.argsort(order)  # old number -> new number
    nodes = torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(3))
    near, far = (
        nearest_nodes(inner_products(x, valid), valid) for x in (nodes, nodes[:, :, order])
    )
    np.testing.assert_array_equal(far, back[near.long()][:, :, order])
    (index, value), (other, worth) = (
        similar_nodes(inner_products(x, valid), valid, 4) for x in (nodes, nodes[:, :, order])
    )
    renamed = index // 5 * 5 + back[index.long() % 5]
    np.testing.assert_array_equal(other, renamed[:, :, order])
    torch.testing.assert_close(worth, value[:, :, order])


@pytest.mark.parametrize("neighbours", [0, 20])
def test_more_neighbours_than_other_nodes_are_refused(neighbours):
    nodes, valid = random_nodes()
    with pytest.raises(ValueError, match=r"expected 1 to 19 \(a view has 20 nodes\)"):
        similar_nodes(inner_products(nodes, valid), valid, neighbours)


def test_stored_graphs_are_those_of_the_stored_features(tmp_path):
    path = make_cache(tmp_path, failed=("clip2",))
    build_graphs(path, neighbours=4)
    for name in ("train", "test"):
        group = Cache(path)[name]
        for row in np.flatnonzero(group.ok):
            view = group.view(int(row))
            features = {
                key: values[None]
                for key, values in tensors_of(name, group.clips[row], int(group.views[row])).items()
            }
            for field, values in graphs_of(features, GraphOptions(neighbours=4)).items():
                np.testing.assert_allclose(view[field], values[0], rtol=1e-6)


def test_graphs_are_the_same_in_small_batches_and_in_another_process(tmp_path, monkeypatch):
    whole = make_cache(tmp_path / "a")
    build_graphs(whole)
    halves = make_cache(tmp_path / "b")
    monkeypatch.setattr(pipeline.stages.graphs, "BATCH_BYTES", 1)
    build_graphs(halves)
    others = make_cache(tmp_path / "c")
    build_graphs(others, workers=1)
    for name in ("train", "test"):
        groups = [Cache(path)[name] for path in (whole, halves, others)]
        rows = range(len(groups[0]))
        want, *came = (group.batch(rows) for group in groups)
        for batch in came:
            for field, values in batch.items():
                np.testing.assert_allclose(values, want[field], rtol=1e-6)


def test_finished_shards_are_left_alone(tmp_path):
    path = make_cache(tmp_path)
    assert [record["shard"] for record in build_graphs(path, neighbours=3)] == [0, 1, 2]
    assert build_graphs(path, neighbours=3) == []
    (path / "graphs/00001.json").unlink()
    assert [record["shard"] for record in build_graphs(path, neighbours=3)] == [1]
    assert [record["shard"] for record in build_graphs(path, neighbours=4)] == [0, 1, 2]


def test_graphs_follow_features_that_were_written_again(tmp_path):
    path = make_cache(tmp_path)
    build_graphs(path)
    before = Cache(path)["train"].view(6)["iou"]
    write_shard(Cache(path).shards, 1, salt="again")
    assert [record["shard"] for record in build_graphs(path)] == [1]
    assert (Cache(path)["train"].view(6)["iou"] != before).any()


def test_a_run_with_other_options_that_was_stopped_half_way_resumes(tmp_path):
    path = make_cache(tmp_path)
    build_graphs(path, neighbours=3)
    maker = pipeline.stages.graphs.ShardGraphs(path, GraphOptions(neighbours=4), "cpu", "none")
    maker(pipeline.stages.graphs.GraphJob(1, path / "graphs/00001.h5"))
    assert "similar" not in Cache(path)["train"].fields
    assert [record["shard"] for record in build_graphs(path, neighbours=4)] == [0, 2]
    assert Cache(path)["train"].shape("similar") == (T, N, 4)


def test_graphs_that_cannot_be_made_say_what_is_missing(tmp_path, monkeypatch):
    for name in ("nodes", "boxes"):
        monkeypatch.delitem(FIELDS, name)
    fewer = _without(tensors_of, "nodes", "boxes")
    monkeypatch.setattr("tests.support.small_cache.tensors_of", fewer)
    path = make_cache(tmp_path)
    with pytest.raises(
        CacheError,
        match="train: iou need boxes, which is not stored; extract with --keep boxes, or leave "
        "iou out",
    ):
        build_graphs(path)
    with pytest.raises(CacheError, match="nearest, similar need nodes"):
        build_graphs(path, which=("nearest", "similar"))
    with pytest.raises(ValueError, match="expected some of iou, nearest, similar, got nearness"):
        build_graphs(path, which=("nearness",))


def _without(function, *names):
    def fewer(*given):
        return {name: values for name, values in function(*given).items() if name not in names}

    return fewer


def test_the_command_computes_graphs_and_resumes(tmp_path):
    from cli.graphs import command

    path = make_cache(tmp_path, failed=("clip2",))
    done = CliRunner().invoke(
        command, ["--cache", str(path), "--neighbours", "3", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    assert "graphs of 18 views in 3 shards written" in done.output
    again = CliRunner().invoke(
        command, ["--cache", str(path), "--neighbours", "3", "--device", "cpu"]
    )
    assert "nothing to do, all graphs are up to date" in again.output
    assert "21 of 21 views are in shards whose graphs are up to date" in again.output
