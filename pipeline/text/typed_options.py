"""Settings of an extraction as its command line takes them, for messages.

cache.json calls an option `sampling.frames`, where people type `--frames`.
"""

import re
from collections.abc import Iterable, Mapping

# Digits of a checksum that tell two files apart in a message.
DIGITS = 12
SHA256 = re.compile(r"\b[0-9a-f]{64}\b")

# Options of the views and of the networks that go into a config under their own names.
SAMPLING = "frames sampling fps source_fps size train_views train_crop flip flip_protect test_clips"
SAMPLING = (*SAMPLING.split(), "test_short_side")
CONFIG = "backbone weights cut keep proposals roi_pool precision dtype seed decoder allow_truncated"
CONFIG = (*CONFIG.split(), "pixel_aspect", "frame_pattern")
# Options of the source of boxes, and their keys in `proposal_options`.
BOX_OPTIONS = {
    "proposal_weights": "weights",
    "proposal_size": "size",
    "boxes": "num_boxes",
    "annotations": "file",
    "nearest_boxes": "nearest",
}


def _flags() -> dict[str, str]:
    options = {key: key for key in CONFIG}
    options |= {f"sampling.{key}": key for key in (*SAMPLING, "test_crops")}
    options |= {f"proposal_options.{key}": option for option, key in BOX_OPTIONS.items()}
    options["resize"] = "frame_resize"
    return {key: f"--{option.replace('_', '-')}" for key, option in options.items()}


# Key of a config -> its option. All other keys of these tables are typed as --set KEY=VALUE.
FLAGS = _flags()
_TABLES = ("sampling.", "backbone_options.", "proposal_options.")

# Keys that follow from files and versions: nobody types them.
_FACTS = {
    "backbone_version": "version of the backbone",
    "box_classes": "classes of boxes",
    "box_tracks": "tracks of boxes",
}

# What a config that lacks the key means.
_UNRECORDED = {"resize": "pil", "pixel_aspect": "displayed", "backbone_version": 1}


def as_typed(options: Mapping[str, object], keys: Iterable[str]) -> str:
    """Return some settings as they are typed, such as "--seed 1, --set backbone_options.width=8".

    Args:
        options: the config with dotted keys. What it lacks is "without".
        keys: the keys that are named.
    """
    return ", ".join(_typed(key, options.get(key, _UNRECORDED.get(key))) for key in keys)


def _typed(key: str, value: object) -> str:
    if key in _FACTS:
        return _fact(_FACTS[key], value)
    flag = FLAGS.get(key, "")
    is_table = key in ("backbone_options", "proposal_options") or key.startswith(_TABLES)
    if not flag and is_table:
        flag = f"--set {key}"
    name = flag or key
    if value is None or value is False or value == [] or value == {} or value == "":
        return f"without {name}"
    if flag and value is True and not flag.startswith("--set"):
        return flag
    between = "=" if not flag or flag.startswith("--set") else " "
    return f"{name}{between}{_text(value)}"


def _fact(name: str, value: object) -> str:
    if value is None:
        return f"without {name}"
    return f"with {name}" if value is True else f"{name} {_text(value)}"


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{short(text)} (SHA-256)" if SHA256.fullmatch(text) else text


def short(text: str) -> str:
    """Return a text with the first digits of its checksums in place of the whole ones.

    Args:
        text: any text.
    """
    return SHA256.sub(lambda found: found.group()[:DIGITS], text)
