"""What `vidgraph export` writes: a cache's fields in formats of other programs.

The function is `pipeline.export.export.export`.

    export        chooses rows, makes the folder
    export_rows   which rows of a split, their labels, and blocks of their fields
    arrays        npy, safetensors, parquet
    localisation  one array per video, for temporal localisation
    video_labels  videos with boxes and labels, for FiftyOne
"""

from pipeline.lazy_names import load_lazily

_HOMES = {"FORMATS": "export", "Written": "export", "export": "export"}

__all__ = list(_HOMES)

__getattr__ = load_lazily(__name__, _HOMES)
