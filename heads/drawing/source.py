"""What a picture of a view is made of: its fields in the cache, and its frames, cut out of the
source video.

Frames are those that the cache says were decoded, its crop of them and its mirroring, in the
video's own resolution.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.cache.fields import is_cut
from pipeline.cache.reader import Cache, CacheError, Group
from pipeline.cache.value_checks import wrong_values
from pipeline.manifests.manifest import Clip, read_manifest
from pipeline.text.suggestions import nearest
from pipeline.video.frame_reader import DecodeError
from pipeline.video.view_pixels import ClipOpener

LONGEST = 1024  # pixels of the longer side of a frame that is kept: no picture shows more
BLANK = (205, 205, 210)


@dataclass
class ViewContent:
    """One view. `row` of `group`; `fields` from the cache, without maps; `images`: F frames,
    cropped and mirrored, those of one step apart equal; `steps` [T]: which of them belongs to a
    feature step; `missing`: why they are blank, or "".

    boxes [T,N,4] and valid [T,N] are empty (N = 0) where the cache has none.
    """

    cache: Cache
    clip: Clip
    group: Group
    row: int
    fields: dict[str, np.ndarray]
    images: list[Image.Image]
    steps: list[int]
    missing: str

    @property
    def view(self) -> int:
        """The view's number in its group."""
        return int(self.group.views[self.row])

    @property
    def numbers(self) -> list[int]:
        """Each image's frame number in the file; empty where the cache does not say."""
        return self.fields["frames"].tolist() if "frames" in self.fields else []

    @property
    def boxes(self) -> np.ndarray:
        return self.fields.get("boxes", np.zeros((len(self.steps), 0, 4), np.float32))

    @property
    def valid(self) -> np.ndarray:
        return self.fields.get("valid", np.zeros(self.boxes.shape[:2], bool))

    @property
    def flip(self) -> bool:
        return bool(self.fields.get("flip", False))


def find_row(cache: Cache, clip: str, group: str, view: int) -> tuple[Group, int]:
    """The row of a clip's view. CacheError naming the nearest for a clip or view that is not
    there.
    """
    rows = cache[group]
    known = [c.clip for c in cache.manifest.clips]
    if clip not in known:
        raise CacheError(
            f"{cache.path}: no clip {clip!r} among its {len(known):,}; {nearest(clip, known)}"
        )
    if not 0 <= view < rows.per_clip:
        there = "view 0 alone" if rows.per_clip == 1 else f"views 0 to {rows.per_clip - 1}"
        raise CacheError(
            f"{cache.path}: no view {view} of clip {clip} in group {group}: it has {there}"
        )
    return rows, rows.rows_of(clip)[view]


def load_view(
    cache: Cache, clip: str, group: str, view: int, root: str | Path | None = None
) -> ViewContent:
    """A view with its frames; `root`: the videos' folder, where it is not that of the extraction.
    Errors as `find_row`.
    """
    rows, row = find_row(cache, clip, group, view)
    wanted = [name for name in rows.fields if not is_cut(name)]
    fields = {name: values[0] for name, values in rows.batch([row], wanted).items()}
    for wrong in wrong_values(fields):
        raise CacheError(
            f"{cache.path}: clip {clip}, {group} view {view}: {wrong}; run `vidgraph verify "
            f"--cache {cache.path}`, then "
            f"`vidgraph repair --cache {cache.path}`"
        )
    manifest = cache.manifest if root is None else read_manifest(cache.path / "manifest.csv", root)
    found = manifest.clips[row // rows.per_clip]
    steps = _step_count(rows)
    count = len(fields["frames"]) if "frames" in fields else steps
    try:
        images = _frames(cache, found, manifest.root, fields)
        missing = ""
    except (DecodeError, ValueError) as error:
        images, missing = [_blank(fields)] * count, str(error)
    return ViewContent(
        cache, found, rows, row, fields, images, [t * count // steps for t in range(steps)], missing
    )


def _step_count(group: Group) -> int:
    """T, by whatever field has it."""
    for name in group.fields:
        if is_cut(name) or name in ("pooled", "boxes", "valid", "nodes"):
            return group.shape(name)[0]
    raise CacheError(
        f"{group.cache.path} {group.name}: nothing to draw; it holds {', '.join(group.fields)} only"
    )


def _frames(
    cache: Cache, clip: Clip, root: Path, fields: dict[str, np.ndarray]
) -> list[Image.Image]:
    """The view's frames. DecodeError, or ValueError where the video is not the one that was
    extracted.
    """
    if not {"frames", "crop"} <= fields.keys():
        raise ValueError("the cache does not say which frames and which crop its views are of")
    known = ("decoder", "allow_truncated", "pixel_aspect", "frame_pattern")
    opening = ClipOpener(
        root, **{name: cache.config[name] for name in known if name in cache.config}
    )
    x, y, width, height, source_width, source_height = fields["crop"].tolist()
    with opening.open_as(clip, (round(source_width), round(source_height))) as reader:
        info = reader.info
        if (info.width, info.height) != (source_width, source_height):
            was, now = f"{source_width:.0f}x{source_height:.0f}", f"{info.width}x{info.height}"
            raise ValueError(
                f"{clip.path} is another video now: frames of {now} pixels, {was} when it was "
                f"extracted"
            )
        numbers = fields["frames"].astype(int) - info.first
        distinct = sorted(set(numbers.tolist()))
        images = dict(zip(distinct, map(Image.fromarray, reader.read(distinct)), strict=True))
    size = _size(width, height)
    cut = {
        k: image.resize(
            size, Image.Resampling.BICUBIC, box=(x, y, x + width, y + height), reducing_gap=3
        )
        for k, image in images.items()
    }
    if bool(fields.get("flip", False)):
        cut = {k: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for k, image in cut.items()}
    return [cut[k] for k in numbers.tolist()]


def _blank(fields: dict[str, np.ndarray]) -> Image.Image:
    """Grey in the shape of the view's crop, square where that is not known."""
    width, height = fields["crop"][2:4].tolist() if "crop" in fields else (64, 64)
    return Image.new("RGB", _size(width, height), BLANK)


def _size(width: float, height: float) -> tuple[int, int]:
    scale = min(1.0, LONGEST / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
