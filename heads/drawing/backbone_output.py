"""Run a cache's backbone on the frames of one view: its stages' maps, and what EAN's blocks make.

The backbone is the one that the cache was extracted with, with its weights. Of a run that trained
its backbone too, that is the run's own: its cache is extracted with --weights RUN/last.pt, or with
the checkpoint that the run's figures use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.backbones import EventAdaptiveBlock, fusion_matrix, kernel_sizes
from pipeline.cache.reader import Cache
from pipeline.stages.config import clip_opener
from pipeline.stages.frozen_networks import backbone_of_cache
from pipeline.stages.jobs import RunOptions
from pipeline.stages.repair import MovedFiles, as_extracted
from pipeline.video.view_pixels import DecodeViews, run_task


@dataclass
class BlockOutput:
    """What an Event Adaptive Block makes of one view (EAN Figures 9 to 11).

    Attributes:
        stage: the stage that it ends.
        matrix: M [u,u].
        kernels: how large its kernels are [5,5,5], by offsets in time, y and x.
    """

    stage: str
    matrix: np.ndarray
    kernels: np.ndarray


@dataclass
class BackboneOutput:
    """What a backbone makes of one view.

    Attributes:
        name: of the backbone.
        maps: stage -> its map [T,h,w], the mean of the channels' absolute values.
        blocks: of EAN's trunk, in order; none of other backbones.
    """

    name: str
    maps: dict[str, np.ndarray]
    blocks: list[BlockOutput]


def has_blocks(cache: Cache) -> bool:
    """Return whether the backbone of a cache has Event Adaptive Blocks."""
    options = cache.config.get("backbone_options", {})
    return cache.config.get("backbone") == "ean_r50" and options.get("eab") != "none"


def run_backbone(
    cache: Cache,
    clip: str,
    group: str,
    view: int,
    root: str | Path | None = None,
    weights: str | Path | None = None,
) -> BackboneOutput:
    """Decode a view and run the cache's backbone on it, on the CPU.

    Args:
        cache: the cache.
        clip: the clip's id.
        group: "train" or "test".
        view: the view's number in its group.
        root: the folder of the videos; None for that of the extraction.
        weights: the file of the backbone's weights; None for where the extraction found it.

    Returns:
        What it makes of the view.

    Raises:
        CacheError: `vidgraph extract` did not make the cache.
        ValueError: the weights are gone or others, or this version computes something else.
        DecodeError: the video cannot be read.
    """
    moved = MovedFiles(root=root, weights=weights)
    config, manifest, _ = as_extracted(cache.path, RunOptions(), moved)
    backbone = backbone_of_cache(config, cache)
    clips = {row.clip: row for row in manifest.clips}
    steps = backbone.steps(config.sampling.frames, config.cut or backbone.last)
    opener = clip_opener(manifest.root, config)
    only = ((group, view),)
    task = DecodeViews(clips[clip], opener, config.sampling, config.seed, steps, only=only)
    frames = torch.from_numpy(run_task(task).pixels[0])[None]  # [1,F,h,w,3]

    blocks: list[BlockOutput] = []
    with torch.inference_mode(), recorded_blocks(backbone.eval(), blocks):
        found = backbone.maps(backbone.prepare(frames), backbone.stages)
    maps = {stage: found[stage][0].abs().mean(0).float().numpy() for stage in backbone.stages}
    return BackboneOutput(backbone.name, maps, blocks)


@contextmanager
def recorded_blocks(network: nn.Module, blocks: list[BlockOutput]) -> Iterator[None]:
    """Append what every Event Adaptive Block makes of the first view of a batch.

    Args:
        network: holds the blocks, under the names of their stages; in evaluation mode.
        blocks: the list to fill.
    """

    def recorder(stage: str):
        def record(block: EventAdaptiveBlock, inputs: tuple) -> None:
            matrix = fusion_matrix(block, inputs[0][:1])[0]
            sizes = kernel_sizes(block, matrix)
            blocks.append(BlockOutput(stage, matrix.float().numpy(), sizes.float().numpy()))

        return record

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, EventAdaptiveBlock):
            stage = name.rpartition(".")[2]
            handles.append(module.register_forward_pre_hook(recorder(stage)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
