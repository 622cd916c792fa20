"""Stage two's graphs against plain Python loops over nodes, on one view of 16 steps.

The loops are the textbook ones: for every pair of boxes their IoU; for every node and every step an
inner product with each of the step's nodes, and the largest kept; for every node all inner
products, sorted. They run on one view, ours on a batch, of which a view's share is shown.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from _report import arguments, report

from pipeline.regions.graphs import inner_products, iou_graph, nearest_nodes, similar_nodes

STEPS = 16


def make_views(
    count: int, boxes: int, channels: int
) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """boxes [B,T,N,4], nodes [B,T,N,C] float16, valid [B,T,N]; all valid, which is the most
    work.
    """
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((count, STEPS, boxes, 2, 2)), axis=-2)
    nodes = torch.from_numpy(
        rng.standard_normal((count, STEPS, boxes, channels)).astype(np.float16)
    )
    return (
        corners.reshape(count, STEPS, boxes, 4).astype(np.float32),
        nodes,
        torch.ones(count, STEPS, boxes, dtype=torch.bool),
    )


def iou_in_loops(boxes: np.ndarray) -> np.ndarray:
    steps, count = boxes.shape[:2]
    graph = np.zeros((steps - 1, count, count), np.float32)
    rows = boxes.tolist()
    for t in range(steps - 1):
        for i in range(count):
            ax, ay, bx, by = rows[t][i]
            for j in range(count):
                cx, cy, dx, dy = rows[t + 1][j]
                shared = max(0.0, min(bx, dx) - max(ax, cx)) * max(0.0, min(by, dy) - max(ay, cy))
                if shared > 0:
                    graph[t, i, j] = shared / (
                        (bx - ax) * (by - ay) + (dx - cx) * (dy - cy) - shared
                    )
    return graph


def nearest_in_loops(nodes: np.ndarray) -> np.ndarray:
    steps, count = nodes.shape[:2]
    nearest = np.zeros((steps, count, steps), np.int32)
    for t in range(steps):
        for i in range(count):
            for s in range(steps):
                best = -np.inf
                for j in range(count):
                    product = nodes[t, i] @ nodes[s, j]
                    if product > best:
                        best, nearest[t, i, s] = product, j
    return nearest


def similar_in_loops(nodes: np.ndarray, neighbours: int) -> np.ndarray:
    flat = nodes.reshape(-1, nodes.shape[-1])
    similar = np.zeros((len(flat), neighbours), np.int32)
    for i in range(len(flat)):
        products = [(-(flat[i] @ flat[j]), j) for j in range(len(flat)) if j != i]
        similar[i] = [j for _, j in sorted(products)[:neighbours]]
    return similar


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--neighbours", type=int, default=10)
    given = parser.parse_args()
    rows = []
    for count, channels in ((10, 2048), (50, 512)):
        boxes, nodes, valid = make_views(given.batch, count, channels)
        one = nodes[0].float().numpy()

        def nearest(nodes=nodes, valid=valid) -> torch.Tensor:
            return nearest_nodes(inner_products(nodes, valid), valid)

        def similar(nodes=nodes, valid=valid) -> torch.Tensor:
            return similar_nodes(inner_products(nodes, valid), valid, given.neighbours)[0]

        pairs = {
            "iou": (
                lambda boxes=boxes, valid=valid: iou_graph(boxes, valid.numpy()),
                lambda boxes=boxes: iou_in_loops(boxes[0]),
            ),
            "nearest": (nearest, lambda one=one: nearest_in_loops(one)),
            "similar": (similar, lambda one=one: similar_in_loops(one, given.neighbours)),
        }
        for name, (ours, loops) in pairs.items():
            ours()
            fast, slow = milliseconds(ours, given.rounds) / given.batch, milliseconds(loops, 1)
            rows.append(
                {
                    "graph": name,
                    "nodes": STEPS * count,
                    "channels": channels,
                    "ours, ms": fast,
                    "loops, ms": slow,
                    "times": slow / fast,
                }
            )
    report("graphs of one view", rows, given.json)


if __name__ == "__main__":
    main()
