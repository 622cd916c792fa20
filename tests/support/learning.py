"""A real cache of digit videos, with the digits' true boxes and classes, for tests that train.

The network is `digit_cnn`, pre-trained on single digits. Frames go from the generator to the
network in memory. Its map, the mean of the map and RoIAlign's nodes go through ShardWriter to the
disk. Unlike `vidgraph demo`, no video is encoded and no RPN is fitted.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from heads.reproduction.pretraining import Pretraining, pretrain
from pipeline.backbones import Backbone, build_backbone, freeze
from pipeline.cache.reader import Cache, create_cache
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.digits import DigitVideos, Task, load_images
from pipeline.digits.digit_cache import DIGITS
from pipeline.manifests.manifest import write_manifest
from pipeline.regions.roi_align import roi_align
from pipeline.stages.graphs import build_graphs

CUT = "conv3"
# Videos in a forward pass.
AT_ONCE = 20

View = dict[str, np.ndarray]


def write_digit_cache(
    folder: Path, task: Task, videos: Mapping[str, int], width: int, seed: int = 0
) -> Cache:
    """Write a cache of digit videos: the network's map, in float16, and IoU graphs.

    Every video has one training view and one test view, both of the whole video.

    Args:
        folder: where the cache and the network's weights go.
        task: what the videos show.
        videos: split -> number of videos.
        width: channels of the network.
        seed: fixes the network and the videos.
    """
    images, weights = load_images(), folder / "digit_cnn.pt"
    options = Pretraining(width=width, tile=task.shown, canvas=task.size)
    pretrain(weights, images, options, seed, say=lambda line: None)
    backbone = freeze(build_backbone("digit_cnn", weights=str(weights), width=width, pixels="unit"))

    rows, views = [], []
    for split, count in videos.items():
        made = views_of(backbone, task, DigitVideos(task, images[split], seed, split), count)
        for k, (label, view) in enumerate(made):
            rows.append(
                {
                    "clip": f"{split}-{k}",
                    "path": f"{split}-{k}.mp4",
                    "split": split,
                    "label": task.labels[label],
                }
            )
            views.append(view)

    manifest = write_manifest(folder / "clips.csv", rows)
    config = {"backbone": "digit_cnn", "box_classes": list(DIGITS), "box_tracks": True}
    plan = create_cache(folder / "cache", config, manifest, len(rows))
    fields = {name: (value.shape, value.dtype.name) for name, value in views[0].items()}
    table = GroupPlan([row["clip"] for row in rows], [0] * len(rows), fields)
    with ShardWriter(plan.path(0), {"train": table, "test": table}, attrs=plan.attrs(0)) as writer:
        for row, view in enumerate(views):
            for group in ("train", "test"):
                writer.write(group, row, view)
        writer.finish({"failures": [], "clips": len(rows)})
    build_graphs(folder / "cache", ("iou",), device="cpu")
    return Cache(folder / "cache")


def views_of(
    backbone: Backbone, task: Task, videos: DigitVideos, count: int
) -> Iterator[tuple[int, View]]:
    """Yield the label's number and the stored fields of the first `count` videos of a split."""
    for first in range(0, count, AT_ONCE):
        batch = videos[np.arange(first, min(first + AT_ONCE, count))]
        size = len(batch.labels)
        with torch.inference_mode():
            fmap = backbone.maps(backbone.prepare(batch.rgb), cuts=(CUT,))[CUT]  # [B,C,T,h,w]
            boxes = batch.boxes / task.size
            valid = torch.ones(boxes.shape[:3], dtype=torch.bool)
            found = {
                "pooled": fmap.mean((-2, -1)).transpose(1, 2).half(),
                "nodes": roi_align(fmap, boxes, valid).half(),
                CUT: fmap.transpose(1, 2).half(),
                "boxes": boxes,
                "scores": valid.float(),
                "valid": valid,
                "box_class": batch.classes[:, None].expand(valid.shape).short(),
                "track": torch.arange(valid.shape[2], dtype=torch.int32).expand(valid.shape),
                "flip": torch.zeros(size, dtype=torch.bool),
                "grid": torch.tensor(fmap.shape[-2:], dtype=torch.int16).expand(size, 2),
            }
        arrays = {name: tensor.numpy() for name, tensor in found.items()}
        for k, label in enumerate(batch.labels.tolist()):
            yield label, {name: array[k] for name, array in arrays.items()}
