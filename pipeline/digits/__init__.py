"""Generated digit videos: handwritten digits that move over black, with their boxes and a label.

A task says what happens (`tasks.TASKS`). Drawing, boxes, splits and files are the same for all.
A video depends on (task, images, seed, split, index) alone. The number of videos, their order,
batches, processes and the device do not matter. `DigitVideos` makes batches in memory,
`write_dataset` writes mp4 files; both show the same frames.

Imports the rooms `backbones`, `cache`, `files`, `manifests`, `video` and `workers`. Processes that
write files load no torch.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "INK": "images",
    "TASKS": "tasks",
    "Batch": "batches",
    "DigitVideos": "batches",
    "Images": "images",
    "Meet": "meet_task",
    "MultiSyncDigits": "sync_tasks",
    "Scene": "scenes",
    "Scenes": "scenes",
    "Sync3": "sync_tasks",
    "SyncDigits": "sync_tasks",
    "Task": "scenes",
    "Video": "scenes",
    "cache_digits": "digit_cache",
    "draw": "scenes",
    "generate": "batches",
    "load_images": "images",
    "single_digits": "images",
    "split_images": "images",
    "video": "scenes",
    "videos": "scenes",
    "write_dataset": "video_files",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
