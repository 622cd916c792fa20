"""Run folders: their files, the lock on them, and how to find and compare runs.

This room may import from `heads.interface`, `heads.zoo` and `heads.config`.

    run_files        lists the files of a run folder; reads and writes them
    run_writer       the folder of a run at work: log, checkpoints, phases
    folder_lock      only one process may write in a folder
    grown_cache      a run's description and fields that its cache has got since
    head_versions    runs whose head computes something else since
    manifest_record  which labels and splits a run was trained with
    start_weights    weights from one run, or one phase, to the next
    tensorboard      the log as curves
    find_runs        the caches and runs below a folder
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "FolderBusy": "folder_lock",
    "FolderEntry": "find_runs",
    "FolderLock": "folder_lock",
    "RunWriter": "run_writer",
    "checkpoint_of": "start_weights",
    "default_checkpoint": "start_weights",
    "differences": "manifest_record",
    "entries_below": "find_runs",
    "hold_folder": "folder_lock",
    "lock_folders": "folder_lock",
    "read_json": "run_files",
    "save_checkpoint": "run_files",
    "other_classifier": "start_weights",
    "take_weights": "start_weights",
    "write_json": "run_files",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
