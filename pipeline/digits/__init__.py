"""Generated digit videos: handwritten digits that move over a black canvas, with their boxes and a
label.

A task says what happens (`TASKS`); drawing, boxes, splits and files are the same for all. Which
video comes out depends on (task, images, seed, split, index) alone: never on how many are made, in
which order or batches, by how many processes, or on which device. `DigitVideos` makes batches in
memory, `write_dataset` writes mp4 files; both draw the same frames.
"""

import importlib
from typing import TYPE_CHECKING

from pipeline.digits.images import INK, Images, load_images, single_digits, split_images
from pipeline.digits.meet_task import Meet
from pipeline.digits.scenes import Scene, Scenes, Task, Video, draw, video, videos
from pipeline.digits.sync_tasks import MultiSyncDigits, Sync3, SyncDigits
from pipeline.digits.video_files import write_dataset

if TYPE_CHECKING:
    from pipeline.digits.batches import Batch, DigitVideos, generate

__all__ = [
    "INK",
    "TASKS",
    "Batch",
    "DigitVideos",
    "Images",
    "Meet",
    "MultiSyncDigits",
    "Scene",
    "Scenes",
    "Sync3",
    "SyncDigits",
    "Task",
    "Video",
    "draw",
    "generate",
    "load_images",
    "single_digits",
    "split_images",
    "video",
    "videos",
    "write_dataset",
]

TASKS = {kind.name: kind for kind in (Meet, Sync3, SyncDigits, MultiSyncDigits)}


def __getattr__(name: str):
    # Loaded when first asked for, so that the processes that write files load no torch.
    if name in ("Batch", "DigitVideos", "generate"):
        return getattr(importlib.import_module("pipeline.digits.batches"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
