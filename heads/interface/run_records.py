"""The JSON files of a run: which keys they have, and of which types.

Only keys that some command reads are listed. `pipeline.cache.records.require` checks a file against
such a table; a key that ends in "?" may be missing.
"""

from pipeline.cache.asked import EXTRACTION
from pipeline.cache.records import CONFIG, Each, Either, OneOf

NOTHING = type(None)
DIMS = {"T": int, "N": int, "C": int, "maps": Each([int])}
RECIPE = {
    "name?": str,
    "head": {"name": str, "options": dict},
    "data": {
        "target": OneOf("single", "multi"),
        "train_views?": int,
        "labels?": [str],
        "first_labels?": int,
        "num_classes?": int,
    },
    "evaluate": {
        "checkpoint": OneOf("best", "last"),
        "aggregate": OneOf("mean", "max"),
        "scores": OneOf("", "softmax", "sigmoid", "logits"),
    },
}
MANIFEST = {
    "path": str,
    "root": str,
    "sha256": str,
    "splits": Each({"clips": int, "sha256": str, "classes": Each(int)}),
    "times?": str,
}
RUN = {
    "recipe": RECIPE,
    "seed?": int,
    "order_seed?": int,
    "precision?": str,
    "classes": [str],
    # A run on generated frames has no cached sizes.
    "dims?": DIMS,
    "config?": CONFIG,
    "fingerprint?": str,
    "cache?": Either(str, NOTHING),
    # All of them, where a run read several caches as one.
    "caches?": [str],
    "device?": str,
    "versions?": Each(str),
    # Earlier versions recorded none.
    "manifest?": MANIFEST,
    "start?": str,
    "frames?": dict,
    # How the features were made, with paths of files. Earlier versions recorded none.
    "extraction?": EXTRACTION,
    "plugins?": Each(str),  # files of plug-ins: SHA-256 -> path
    # Of what each head computes, see heads/interface/changes.py. Earlier versions recorded none.
    "head_versions?": Each(int),
}
# A report needs more of a run than other commands do.
REPORTED = {**RUN, "seed": int, "dims": DIMS, "config": CONFIG, "fingerprint": str}
CHECKPOINT = {
    "about?": RUN,
    "phase?": str,
    "state": dict,
    "backbone?": dict,
    "epochs_before?": int,
    "steps_before?": int,
    "seconds?": float,
    "waiting?": float,
    "progress?": {"epoch": int, "step": int},
}
METRICS = {
    "metrics": Each(Each(float)),
    "epochs": int,
    "best_epoch?": int,
    "parameters": int,
    "seconds": float,
    "waiting?": float,
    "phase?": str,
    "excluded?": Each(Each(int)),
}
EVALUATION = Each(Either(str, float))
LOG_LINE = {"epoch": int, "loss": float, "val": Each(float)}
FAILED = {"rows": [{"failed": [{"folder": str, "epochs": int, "error": str}]}]}
