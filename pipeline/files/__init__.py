"""Files on disk: complete or absent, checked for damage, and known by who is writing them.

    atomic_files     files that appear whole or not at all; checksums; sealed JSON
    scratch          folders that go with the work
    owners           names of claims and part files, and whether their process still lives
    regular_files    opening regular files only, and reading small ones within a limit
    watched_folder   noticing that a run's folder was moved, deleted or replaced

The room uses numpy, and no other room.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "Changed": "atomic_files",
    "Damaged": "atomic_files",
    "FolderGone": "watched_folder",
    "NotAFile": "regular_files",
    "WatchedFolder": "watched_folder",
    "done_marker": "atomic_files",
    "move_into_place": "atomic_files",
    "new_claim_name": "owners",
    "open_regular": "regular_files",
    "opened": "regular_files",
    "part_path": "owners",
    "read_json": "atomic_files",
    "read_small": "regular_files",
    "read_small_text": "regular_files",
    "remove_abandoned": "owners",
    "sha256_of": "atomic_files",
    "write_json": "atomic_files",
    "write_text": "atomic_files",
    "writer_lives": "owners",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
