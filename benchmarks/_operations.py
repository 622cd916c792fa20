"""GOS's graph operations, forward and backward, against their naive forms, and the memory that each
takes.

The naive forms are the equations as they are written: diff_prop fills the tensor of all n x n
differences, temp_conv gathers every node's sequence and hands it to Conv1d, node_att fills the
matrix of cosines (and sorts it). Both forms of an operation share their weights, are compared
before they are timed, and take turns; figures are medians. A naive form that would not fit is run
on fewer views (`naive views`); `times` compares shares of a view. Memory is the peak of a fresh
process beyond what it held before, gradients included. The last row has no naive form: its
differences alone would take 5.2 GB, one tensor of several.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.papers.gos.affinity import VARIANTS, OperationChoices, OperationSizes
from heads.papers.gos.operation_inputs import OperationInputs, layout_of
from heads.papers.gos.operations import new_operation

STEPS, CHANNELS, CELLS, TOP = 16, 256, 49, 10
NAMES = ("feat_aggr", "diff_prop", "temp_conv", "back_incor", "node_att")
FEWER = {"diff_prop": 8}  # views of a naive form: 64 would take some 8 GB


def make(
    name: str, variant: str, boxes: int, views: int
) -> tuple[torch.nn.Module, Tensor, OperationInputs]:
    """An operation with its inputs: all boxes valid, which is the most work."""
    torch.manual_seed(0)
    taken = {
        key: VARIANTS[variant][key]
        for key in ("affinity", "kernel", "padding", "nearest", "attention", "background")
    }
    operation = new_operation(
        name,
        OperationSizes(CHANNELS, STEPS, boxes, CELLS),
        OperationChoices("benchmark", top=TOP, **taken),
    )
    corner = torch.rand(views, STEPS, boxes, 2) * 0.5
    scene = OperationInputs(
        torch.ones(views, STEPS, boxes, dtype=torch.bool),
        layout=layout_of(torch.cat([corner, corner + 0.4], -1)),
        y=torch.randn(views, STEPS, CELLS, CHANNELS),
        cells=torch.ones(views, CELLS, dtype=torch.bool),
    )
    return operation, torch.randn(views, STEPS, boxes, CHANNELS), scene


def act(operation: torch.nn.Module, z: Tensor) -> Tensor:
    return F.leaky_relu(operation.norm(z), 0.01)


def affinity(operation: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    U = operation.affinity.U
    U = torch.diag(U.diagonal()) if operation.affinity.diagonal else U
    return torch.einsum("...ic,cd,...jd->...ij", F.normalize(x, dim=-1), U, F.normalize(y, dim=-1))


def naive_feat_aggr(operation: torch.nn.Module, x: Tensor, scene: OperationInputs) -> Tensor:
    P = (5 * affinity(operation, x, x)).softmax(-1)
    return act(operation, torch.einsum("bij,bjc->bic", P, operation.linear(x)))


def naive_diff_prop(operation: torch.nn.Module, x: Tensor, scene: OperationInputs) -> Tensor:
    A = 5 * affinity(operation, x, x)
    E = (A - A.amax(-1, keepdim=True)).exp() * (1 - torch.eye(x.shape[1]))
    P = E / E.sum(-1, keepdim=True)
    differences = x[:, :, None] - x[:, None]  # [B,n,n,C]
    return act(operation, torch.einsum("bij,bijc->bic", P, operation.linear(differences)))


def naive_temp_conv(operation: torch.nn.Module, x: Tensor, scene: OperationInputs) -> Tensor:
    B, n, C = x.shape
    A = x @ x.mT if operation.affinity is None else affinity(operation, x, x)
    nearest = A.detach().view(B, n, STEPS, -1).argmax(-1) + torch.arange(STEPS) * (n // STEPS)
    sequences = x.gather(1, nearest.flatten(1)[..., None].expand(-1, -1, C)).view(B * n, STEPS, C)
    conv = operation.conv
    z = F.conv1d(sequences.mT, conv.weight, conv.bias, padding=operation.pad, groups=conv.groups)
    return act(operation, z.mT).mean(1).view(B, n, C)


def naive_back_incor(operation: torch.nn.Module, x: Tensor, scene: OperationInputs) -> Tensor:
    A = affinity(operation, x.unflatten(1, (STEPS, -1)), scene.y)
    told = torch.cat([torch.einsum("btng,btgc->btnc", (5 * A).softmax(-1), scene.y), A], -1)
    return act(operation, operation.linear(told)).flatten(1, 2)


def naive_node_att(operation: torch.nn.Module, x: Tensor, scene: OperationInputs) -> Tensor:
    cosines = F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).mT
    if operation.all:
        told = torch.cat([cosines, scene.layout.flatten(1, 2)], -1)
    else:
        others = cosines - 3 * torch.eye(x.shape[1])  # a node is not its own neighbour
        index = others.sort(dim=-1, descending=True, stable=True).indices[..., :TOP]
        position = scene.position.flatten(1, 2)
        apart = torch.stack([position[b][index[b]] for b in range(len(x))]) - position[:, :, None]
        told = torch.cat([cosines.gather(2, index), apart.mT.flatten(2)], -1)
    return operation.linear(told).sigmoid() * x


NAIVE = {
    "feat_aggr": naive_feat_aggr,
    "diff_prop": naive_diff_prop,
    "temp_conv": naive_temp_conv,
    "back_incor": naive_back_incor,
    "node_att": naive_node_att,
}


def step(
    name: str, variant: str, boxes: int, views: int, naive: bool
) -> tuple[Callable[[], Tensor], torch.nn.Module]:
    """A function that runs one forward and backward and returns the output [B,n,C]."""
    operation, x, scene = make(name, variant, boxes, views)
    weights = torch.randn(views, STEPS * boxes, CHANNELS)
    x.requires_grad_()

    def run() -> Tensor:
        x.grad = None
        operation.zero_grad()
        z = (
            NAIVE[name](operation, x.flatten(1, 2), scene)
            if naive
            else operation(x, scene).flatten(1, 2)
        )
        z.backward(weights)
        return z.detach()

    return run, operation


def held(key: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise ValueError(
        f"/proc/self/status has no {key}: memory is measured on Linux only, pass --no-memory"
    )


def peak_of(name: str, variant: str, boxes: int, views: int, naive: bool) -> float:
    """MB that one forward and backward takes at most, beyond inputs and weights; in a process of
    its own.
    """
    step(name, variant, 2, 1, naive)[0]()  # libraries load and threads start
    run, _ = step(name, variant, boxes, views, naive)
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run()
    return held("VmHWM") - before


def share(*case: object) -> float:
    """`peak_of` a case (name, variant, boxes, views, naive), a view's share of it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of, case) / case[3]


def milliseconds(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of each, in turns."""
    taken = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            taken[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(times) for name, times in taken.items()}


def check(name: str, variant: str) -> None:
    """Both forms give the same values and gradients; on few views, since the naive sums of many
    lose digits in float32.
    """
    (ours, operation), (naive, same) = (
        step(name, variant, 10, 4, False),
        step(name, variant, 10, 4, True),
    )
    torch.testing.assert_close(ours(), naive(), rtol=1e-3, atol=1e-4)
    for (key, a), (_, b) in zip(operation.named_parameters(), same.named_parameters(), strict=True):
        if a.grad is not None or b.grad is not None:
            torch.testing.assert_close(
                a.grad, b.grad, rtol=1e-2, atol=1e-3 * b.grad.abs().max().item(), msg=key
            )


def compare(name: str, variant: str, views: int, rounds: int, memory: bool) -> dict[str, object]:
    """One row: an operation at 160 nodes, ours on `views` views and the naive form on as many or
    fewer.
    """
    fewer = min(views, FEWER.get(name, views))
    check(name, variant)
    naive = step(name, variant, 10, fewer, True)[0]
    times = milliseconds({"ours": step(name, variant, 10, views, False)[0], "naive": naive}, rounds)
    mine, theirs = (
        share(name, variant, 10, fewer, form) if memory else None for form in (False, True)
    )
    return {
        "operation": name,
        "variant": variant,
        "nodes": 160,
        "views": views,
        "ours, ms": times["ours"],
        "naive views": fewer,
        "naive, ms": times["naive"],
        "times": times["naive"] / fewer / (times["ours"] / views),
        "ours, MB a view": mine,
        "naive, MB a view": theirs,
    }


def rows_of(views: int, rounds: int, memory: bool) -> list[dict[str, object]]:
    """The table: every operation in every variant that differs, then a large one."""
    rows = []
    for name in NAMES:
        for variant in VARIANTS:
            # The released diff_prop differs from the paper's in U alone, as feat_aggr does.
            if (name, variant) != ("diff_prop", "released"):
                rows.append(compare(name, variant, views, rounds, memory))
    large, few = step("diff_prop", "paper", 50, 8, False)[0], 8
    used = share("diff_prop", "paper", 50, few, False) if memory else None
    time_of_large = milliseconds({"ours": large}, rounds)["ours"]
    nothing = {"naive views": 0, "naive, ms": None, "times": None}
    last = {
        "operation": "diff_prop",
        "variant": "paper",
        "nodes": 800,
        "views": few,
        "ours, ms": time_of_large,
        **nothing,
    }
    return [*rows, {**last, "ours, MB a view": used, "naive, MB a view": None}]
