"""Training from frames: a backbone, a head with its backbone, or a whole system, end to end.

It decodes videos, and imports every room of `heads` up to `training`. `finetune.finetune` trains on
a cache's views, `end_to_end.train_frames` on any source of frames.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "FrameRunOptions": "frame_training",
    "FrameSource": "frame_training",
    "JointNetwork": "joint_network",
    "SourceOptions": "finetune",
    "VideoViews": "video_views",
    "finetune_folds": "study_folds",
    "finetune_study": "finetune_study",
    "frames_phase": "finetune",
    "joint_dims": "joint_network",
    "new_network": "frame_training",
    "part_of_clips": "frame_training",
    "train_frames": "end_to_end",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
