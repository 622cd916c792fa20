"""Every head gives the same logits from a cache as its network gives from the frames.

Cached: real videos through `extract` (frozen network, folded batch norms), the HDF5 file, `Cache`,
and what training reads. Live: the frames that the row names, cropped and mirrored here by hand,
through the unfrozen network in evaluation mode, with torchvision's RoIAlign. Heads that continue a
backbone are run as one whole network with their modules in it.
"""

import copy
import csv
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.ops import roi_align

from heads.data.splits import cache_dims, fields_for
from heads.interface.clips import clips_of
from heads.interface.network_above_cut import HeadAboveCut
from heads.zoo import build_head
from pipeline.backbones import Backbone
from pipeline.backbones._ean import ESPNet
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import Manifest, read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions, extract
from pipeline.stages.graphs import build_graphs
from pipeline.video.decode import open_clip, write_video
from pipeline.views.sampling import Sampling
from tests.support.tiny_backbone import lively, relative, tiny

CLASSES = 5
# Frames, and height and width, of each video.
LENGTH, SIZES = 48, {"wide": (150, 200), "high": (180, 140)}
# Boxes stored per step: one more than are annotated. The last of those lies outside many crops.
BOXES = 4


@dataclass(frozen=True)
class BackboneCase:
    """A backbone, how its frames are sampled, and the cuts that are stored beside pooled features,
    nodes and boxes.
    """

    backbone: str
    options: dict
    size: int
    keep: tuple[str, ...]
    frames: int = 4
    cells: bool = False  # nodes are RSTG's, of `--proposals grid --roi-pool area`
    sampling: dict = field(default_factory=dict)


WORLDS = {
    # The test views are whole frames of two shapes: their maps are padded, each cut's by its own
    # measure.
    "i3d": BackboneCase(
        "i3d_r50",
        {"width": 4, "reduce": 8},
        96,
        ("res5", "res4.4", "res3.2"),
        8,
        sampling={"test_crops": "full", "test_short_side": 96},
    ),
    "cells": BackboneCase(
        "i3d_r50",
        {"width": 4},
        96,
        ("res5",),
        8,
        cells=True,
        sampling={"test_crops": "full", "test_short_side": 96},
    ),
    "tsm": BackboneCase("tsm_r50", {"width": 4}, 96, ("res5.0", "res4.3")),
    "ean": BackboneCase(
        "ean_r50",
        {"width": 4, "lmc": True},
        64,
        ("res5", "res4.5", "res4"),
        40,
        sampling={"consecutive": 5},
    ),
    "digits": BackboneCase("digit_cnn", {"width": 16}, 64, ("conv3",)),
}


@dataclass(frozen=True)
class Row:
    """A line of the matrix of cached features: a head with options, and the world whose cache it
    reads.
    """

    world: str
    head: str
    options: dict = field(default_factory=dict)
    inside: bool = False  # whether it continues the world's backbone
    # Of the head's random weights, where 1 would saturate a softmax or leave ReLUs dead.
    gain: float = 1.0
    # Whether it refuses test views of another size than the training views'.
    one_size: bool = False


SYNC_MNIST = {
    "cut": "conv3",
    "residual": False,
    "norm": "batch",
    "width": 16,
    "dropout": 0.0,
    "attention": "simple",
}
ROWS = {
    "GOS, res5 map and boxes": Row("i3d", "gos", {"width": 8}, one_size=True),
    "GOS, discrete stage": Row("i3d", "gos", {"width": 8, "mode": "discrete"}, one_size=True),
    "GOS, nodes of the reduction": Row("i3d", "gos_feat_aggr", {"width": 8, "regions": "nodes"}),
    **{
        f"GOS, {name} alone": Row("i3d", f"gos_{name}", {"width": 8}, one_size=name == "back_incor")
        for name in ("feat_aggr", "diff_prop", "temp_conv", "back_incor")
    },
    "GOS, node_att alone": Row("i3d", "gos_node_att", {"width": 8, "similarity": "cosine"}),
    "STRG, frozen reduction": Row("i3d", "strg"),
    "STRG, new reduction": Row("i3d", "strg", {"reduce": "conv", "width": 8}),
    "RSTG to vec, from the map": Row("i3d", "rstg", {"width": 8}),
    "RSTG to vec, from area-pooled nodes": Row("cells", "rstg", {"width": 8, "regions": "nodes"}),
    "RSTG, SyncMNIST": Row("digits", "rstg", SYNC_MNIST, gain=2.0),
    "RSTG, res4": Row("i3d", "rstg_map", {"at": "res4.4", "width": 8}, inside=True),
    "RSTG, res3 and res4": Row("i3d", "rstg_map", {"at": "res3.2,res4.4", "width": 8}, inside=True),
    "DyReg, layer4[1]": Row(
        "tsm", "dyreg", {"at": "res5.1.conv2", "width": 6, "offset_width": 5}, inside=True
    ),
    "DyReg, layer3[4]": Row(
        "tsm", "dyreg", {"at": "res4.4.conv2", "width": 6, "offset_width": 5}, inside=True
    ),
    "DyReg, detector's boxes": Row(
        "tsm",
        "dyreg",
        {"at": "res4.4.conv2", "width": 6, "offset_width": 5, "regions": "detector"},
        inside=True,
    ),
    "EAN, transformer": Row("ean", "ean", {"width": 16}, gain=0.3),
    "EAN, transformer, released": Row("ean", "ean", {"width": 16, "variant": "released"}, gain=0.3),
    "EAN, transformer on boxes": Row("ean", "ean", {"width": 16, "regions": "boxes"}, gain=0.3),
    "EAN, last block and transformer": Row(
        "ean", "ean", {"width": 16, "cut": "res4.5"}, inside=True, gain=0.3
    ),
    "EAN, res5 and transformer": Row(
        "ean", "ean", {"width": 16, "cut": "res4"}, inside=True, gain=0.3
    ),
    "Conv + LSTM": Row("digits", "conv_lstm", {"cut": "conv3", "width": 8, "hidden": 8}),
    **{name: Row("i3d", name) for name in ("pool", "roi_pool", "global_roi_pool", "mean_lstm")},
}


def painted(height: int, width: int, seed: int) -> np.ndarray:
    """Frames [LENGTH,height,width,3]: a smooth coloured pattern, not the same left and right, that
    drifts and changes.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (LENGTH // 8 + 2, 8, 10, 3)).astype(np.uint8)
    big = [
        np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BILINEAR), float)
        for c in coarse
    ]
    part = np.arange(LENGTH) % 8 / 8
    return np.stack(
        [(1 - p) * big[k // 8] + p * big[k // 8 + 1] for k, p in enumerate(part)]
    ).astype(np.uint8)


def boxes_of(clip: str, frame: int) -> np.ndarray:
    """[3,4] xyxy in pixels of the video: two that move, and one in a corner."""
    width = SIZES[clip][1]
    x, y = 20 + frame, 25 + frame / 2
    return np.array(
        [
            [x, y, x + 70, y + 60],
            [width - 90 - x / 2, y + 20, width - 20 - x / 2, y + 90],
            [2, 2, 14, 12],
        ]
    )


@dataclass
class Made:
    """A world's manifest, weights and cache."""

    world: BackboneCase
    manifest: Manifest
    weights: str
    network: Backbone  # not frozen, in evaluation mode
    cache: Cache
    maps: dict = field(default_factory=dict)  # of views as the network gave them, at every cut
    views: dict = field(default_factory=dict)  # as `seen` saw them
    heads: dict = field(default_factory=dict)  # by the name of their row


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = ((name, f"{name}.mp4", "train", 0) for name in SIZES)
        csv.writer(file).writerows([("clip", "path", "split", "label"), *rows])
    with (folder / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("clip", "frame", "x1", "y1", "x2", "y2"))
        writer.writerows(
            (name, k, *box) for name in SIZES for k in range(LENGTH) for box in boxes_of(name, k)
        )
    for seed, (name, size) in enumerate(SIZES.items()):
        write_video(folder / f"{name}.mp4", painted(*size, seed), fps=8)
    return folder


@pytest.fixture(scope="module")
def make(videos, tmp_path_factory):
    """make(world, dtype) -> Made; every cache is extracted once."""
    made = {}

    def get(name: str, dtype: str = "float32") -> Made:
        if (name, dtype) not in made:
            world, folder = WORLDS[name], tmp_path_factory.mktemp(name)
            network = tiny(world.backbone, **world.options)
            for module in network.modules():
                # Its product with the map would make the features of random weights explode.
                if isinstance(module, ESPNet):
                    module.fc.weight.data.mul_(0.05)
            torch.save(network.state_dict(), folder / "weights.pth")
            boxes = {"file": str(videos / "boxes.csv"), "num_boxes": BOXES}
            config = ExtractConfig(
                backbone=world.backbone,
                backbone_options=world.options,
                weights=str(folder / "weights.pth"),
                keep=("pooled", "nodes", *world.keep),
                sampling=Sampling(
                    frames=world.frames,
                    size=world.size,
                    train_views=2,
                    train_crop="multiscale",
                    flip=0.5,
                    **world.sampling,
                ),
                proposals="grid" if world.cells else "annotations",
                proposal_options={} if world.cells else boxes,
                roi_pool="area" if world.cells else "max",
                dtype=dtype,
            )
            manifest = read_manifest(videos / "manifest.csv")
            extract(
                config,
                manifest,
                folder / "cache",
                RunOptions(workers=0, batch=3, views_for_all=True),
            )
            build_graphs(folder / "cache", ("iou",))
            made[name, dtype] = Made(
                world, manifest, config.weights, network, Cache(folder / "cache")
            )
        return made[name, dtype]

    return get


def head_of(name: str, made: Made):
    if name not in made.heads:
        made.heads[name] = new_head(ROWS[name], made)
    return made.heads[name]


def new_head(row: Row, made: Made):
    """The head in evaluation mode, its own weights drawn anew: a scale that starts at 0 would hide
    what it multiplies.
    """
    torch.manual_seed(3)
    world = made.world
    inside = {}
    if row.inside:
        inside = {"backbone": world.backbone, "backbone_options": world.options}
        inside["weights"] = made.weights
    head = build_head(row.head, cache_dims(made.cache), CLASSES, **row.options, **inside).eval()
    own = [
        (name, m)
        for name, m in head.named_modules()
        if not name.startswith("network.") or ".inserted" in name
    ]
    for _, module in own:
        for parameter in module.parameters(recurse=False):
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            nn.init.normal_(parameter, std=row.gain * fan_in**-0.5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            lively(module)
    return head


def frame_size(made: Made, group: str, clip: str) -> tuple[int, int]:
    """(width, height) of a view in pixels."""
    side = made.world.size
    if group == "train" or made.world.sampling.get("test_crops") != "full":
        return side, side
    height, width = SIZES[clip]
    return tuple(round(n * side / min(height, width) / 32) * 32 for n in (width, height))


def seen(
    made: Made, group: str, row: int, mirror_frames: bool = True, mirror_boxes: bool = True
) -> tuple[torch.Tensor, ...]:
    """frames uint8 [1,F,h,w,3], boxes [1,T,4,4] and valid [1,T,4] of a view, by hand from what its
    row says of it.
    """
    view, name = made.cache[group].view(row), made.cache[group].clips[row]
    clip = next(c for c in made.manifest.clips if c.clip == name)
    x, y, width, height = map(float, view["crop"][:4])
    with open_clip(replace(clip, place=str(made.manifest.root / clip.path))) as reader:
        images = [Image.fromarray(frame) for frame in reader.read(view["frames"].tolist())]
    size, crop = frame_size(made, group, name), (x, y, x + width, y + height)
    frames = np.stack(
        [np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=crop)) for image in images]
    )
    steps = len(view["valid"])
    boxes, valid = np.zeros((steps, BOXES, 4), np.float32), np.zeros((steps, BOXES), bool)
    for t in range(steps):
        number = int(view["frames"][t * len(images) // steps])
        whole = (boxes_of(name, number) - [x, y, x, y]) / [width, height, width, height]
        inside = whole.clip(0, 1)
        parts = [np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (inside, whole)]
        inside = inside[parts[0] >= 0.01 * parts[1]]
        if view["flip"] and mirror_boxes:
            inside = np.stack([1 - inside[:, 2], inside[:, 1], 1 - inside[:, 0], inside[:, 3]], 1)
        boxes[t, : len(inside)], valid[t, : len(inside)] = inside, True
    if view["flip"] and mirror_frames:
        frames = np.ascontiguousarray(frames[:, :, ::-1])
    return tuple(torch.from_numpy(array)[None] for array in (frames, boxes, valid))


@torch.no_grad()
def live_logits(head, row: Row, made: Made, group: str, number: int, **wrong) -> torch.Tensor:
    """Logits from the frames of a view, seen as `seen` says, through the network that is not
    frozen.
    """
    view = (group, number, *wrong)
    if view not in made.views:
        made.views[view] = seen(made, group, number, **wrong)
    frames, boxes, valid = made.views[view]
    if not row.inside:
        key = (group, number, wrong.get("mirror_frames", True))
        if key not in made.maps:
            made.maps[key] = made.network.maps(made.network.prepare(frames), made.network.cuts())
        fields = {cut: fmap.transpose(1, 2) for cut, fmap in made.maps[key].items()}
        fields |= {"boxes": boxes, "valid": valid}
        last = made.maps[key][made.network.last]
        nodes = cells_of(last) if made.world.cells else nodes_of(last, boxes, valid)
        fields |= {"pooled": last.mean((3, 4)).transpose(1, 2), "nodes": nodes}
        return head(clips_of({name: fields[name] for name in head.needs})).logits
    network = copy.deepcopy(made.network)
    for point in head.network.inserted:
        network.insert(point, copy.deepcopy(head.network.inserted[point]))
        if row.options.get("regions") == "detector":
            network.inserted[point].boxes, network.inserted[point].valid = boxes, valid
    x = network(network.prepare(frames))  # [1,C,T,h,w]
    if isinstance(head, HeadAboveCut):
        return head.head(clips_of({network.last: x.transpose(1, 2)})).logits
    return head.fc(x.mean((2, 3, 4)))


def cells_of(fmap: torch.Tensor) -> torch.Tensor:
    """Means of fmap [1,C,T,h,w] over the cells of a 3x3, a 2x2 and a 1x1 grid -> [1,T,14,C]: each
    cell cut into s x s.
    """
    frames, means = fmap[0].transpose(0, 1), []
    for s in (3, 2, 1):
        fine = frames.repeat_interleave(s, -1).repeat_interleave(s, -2)
        means.append(nn.functional.avg_pool2d(fine, tuple(fmap.shape[-2:])).flatten(2))
    return torch.cat(means, -1).mT[None]


def nodes_of(fmap: torch.Tensor, boxes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """torchvision's RoIAlign of fmap [1,C,T,h,w], the largest of 7 x 7 bins -> [1,T,N,C]."""
    h, w = fmap.shape[-2:]
    places = list(boxes[0] * torch.tensor([w, h, w, h]))
    bins = roi_align(fmap[0].transpose(0, 1), places, (7, 7), sampling_ratio=2, aligned=True)
    return (bins.amax((-1, -2)).unflatten(0, valid.shape[1:]) * valid[0][..., None])[None]


def views_of(row: Row, made: Made) -> list[tuple[str, int]]:
    """(group, number) of the cached views that the row's head takes."""
    return [
        (group, number)
        for group in ("train", "test")[: 2 - row.one_size]
        for number in range(len(made.cache[group]))
    ]


@torch.no_grad()
def cached_logits(head, made: Made, group: str, number: int) -> torch.Tensor:
    rows = made.cache[group]
    batch = rows.batch([number], fields=fields_for(head, rows))
    return head(clips_of(batch, dtype=torch.float32)).logits


@pytest.mark.parametrize("name", ROWS)
def test_logits_from_the_cache_equal_logits_from_the_frames(name, make):
    """To 1e-5 where float32 is stored, to four roundings where float16 is."""
    row = ROWS[name]
    made, rounded = make(row.world), make(row.world, "float16")
    head, differs = head_of(name, made), 0.0
    for group, number in views_of(row, made):
        live = live_logits(head, row, made, group, number)
        exact = cached_logits(head, made, group, number)
        rough = cached_logits(head, rounded, group, number)
        assert relative(exact, live) < 1e-5
        assert relative(rough, live) < 2e-3
        differs = max(differs, relative(rough, exact))
    assert differs > 0


@pytest.mark.parametrize("name", ROWS)
def test_a_mirrored_view_needs_its_frames_mirrored_and_its_boxes_with_them(name, make):
    """What the test above would find: the live side done wrong differs by ten times the tolerance,
    and more.
    """
    row = ROWS[name]
    made = make(row.world)
    head, rows = head_of(name, made), made.cache["train"]
    mirrored = [number for number in range(len(rows)) if rows.view(number)["flip"]]
    assert 0 < len(mirrored) < len(rows)
    faults = ["mirror_frames"]
    if {"boxes", "nodes"} & set(head.needs) and not made.world.cells:
        faults.append("mirror_boxes")
    for fault in faults:
        wrong = ((live_logits(head, row, made, "train", n, **{fault: False}), n) for n in mirrored)
        assert any(
            relative(live, cached_logits(head, made, "train", n)) > 1e-4 for live, n in wrong
        )
