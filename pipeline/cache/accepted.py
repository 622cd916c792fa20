"""The failed clips of a cache that a person has accepted: no command fails because of them again.

CACHE/accepted.json holds their ids, each with the reason why it failed then.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.cache.records import Each, require
from pipeline.files.atomic_files import Damaged, read_json, write_json
from pipeline.files.owners import new_claim_name, remove_abandoned_of

NAME = "accepted.json"
SHAPE = {"clips": Each(str)}


def accepted_clips(folder: Path) -> dict[str, str]:
    """Read which failed clips were accepted.

    Args:
        folder: the cache.

    Returns:
        Clip id -> why it failed when it was accepted.

    Raises:
        Damaged: the file has changed since it was written.
    """
    path = folder / NAME
    try:
        return require(read_json(path), SHAPE, path)["clips"]
    except FileNotFoundError:
        return {}
    except Damaged:
        raise Damaged(
            f"{path}: changed since it was written; delete it, and pass --accept-failures to "
            f"`vidgraph extract` again"
        ) from None


def accept_clips(folder: Path, failures: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Accept failed clips, beside those that were accepted before.

    Args:
        folder: the cache.
        failures: their records (clip, error, message).

    Returns:
        All accepted clips, as `accepted_clips` returns them.

    Raises:
        Damaged: as for `accepted_clips`.
        OSError: the folder cannot be written.
    """
    clips = accepted_clips(folder)
    new = {}
    for failure in failures:
        if failure["clip"] not in clips:
            new[failure["clip"]] = f"{failure['error']}: {failure['message']}"
    if new:
        clips = {**clips, **new}
        remove_abandoned_of(folder / NAME)
        write_json(folder / NAME, {"clips": clips}, new_claim_name())
    return clips
