"""Read what a picture shows of a view: its cached fields, and its frames from the source video.

The frames are the decoded ones that the cache names, with its crop and its mirroring, in the
video's own resolution.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.cache.fields import is_cut
from pipeline.cache.good_rows import wrong_values
from pipeline.cache.reader import Cache, CacheError, Group
from pipeline.manifests.manifest import Clip, read_manifest
from pipeline.text.suggestions import nearest_names
from pipeline.video.frame_reader import DecodeError
from pipeline.video.view_pixels import ClipOpener

# Pixels of a kept frame's longer side: no picture shows more.
MAX_SIDE = 1024
BLANK = (205, 205, 210)


@dataclass
class ViewContent:
    """One view of a clip. Letters: F frames, T steps, N boxes per step.

    Attributes:
        cache: where the view is from.
        clip: its clip, with the video's path.
        group: its group of the cache.
        row: its row in the group.
        fields: its cached fields, without maps.
        images: its F frames, cropped and mirrored, all of one size.
        steps: [T], the image that belongs to each feature step.
        missing: why the images are blank, or "".
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
    def number(self) -> int:
        """The view's number in its group."""
        return int(self.group.views[self.row])

    @property
    def frame_numbers(self) -> list[int]:
        """Each image's frame number in the file; empty where the cache does not say."""
        return self.fields["frames"].tolist() if "frames" in self.fields else []

    @property
    def boxes(self) -> np.ndarray:
        """[T,N,4], x1 y1 x2 y2 in [0,1]; N = 0 where the cache has no boxes."""
        return self.fields.get("boxes", np.zeros((len(self.steps), 0, 4), np.float32))

    @property
    def valid(self) -> np.ndarray:
        """[T,N], which boxes are real; N = 0 where the cache has no boxes."""
        return self.fields.get("valid", np.zeros(self.boxes.shape[:2], bool))

    @property
    def flip(self) -> bool:
        """Whether the view is mirrored."""
        return bool(self.fields.get("flip", False))


def find_row(cache: Cache, clip: str, group: str, view: int) -> tuple[Group, int]:
    """Find the row of a clip's view.

    Args:
        cache: the cache.
        clip: the clip's id.
        group: "train" or "test".
        view: the view's number in the group.

    Returns:
        (group, row).

    Raises:
        CacheError: no such clip (the message names the nearest) or view.
    """
    rows = cache[group]
    known = [c.clip for c in cache.manifest.clips]
    if clip not in known:
        raise CacheError(
            f"{cache.path}: no clip {clip!r} among its {len(known):,}; {nearest_names(clip, known)}"
        )
    of_clip = rows.rows_of(clip)
    if not 0 <= view < len(of_clip):
        views = f"views 0 to {len(of_clip) - 1}"
        if len(of_clip) < 2:
            views = "view 0 alone" if of_clip else "none"
        raise CacheError(
            f"{cache.path}: no view {view} of clip {clip} in group {group}: it has {views}"
        )
    return rows, of_clip[view]


def group_of(cache: Cache, clip: str) -> str:
    """Return the group to show a clip from: its test views, if it has any.

    Args:
        cache: the cache.
        clip: the clip's id; one that the cache does not know gets any group.
    """
    for group in reversed(cache.groups):
        if clip in cache[group].clips:
            return group
    return cache.groups[-1] if cache.groups else "test"


def load_view(
    cache: Cache, clip: str, group: str, view: int, root: str | Path | None = None
) -> ViewContent:
    """Read a view and its frames.

    Args:
        cache, clip, group, view: as in `find_row`.
        root: the folder of the videos; None for that of the extraction.

    Returns:
        The view. Where its frames cannot be had they are blank, and `missing` says why.

    Raises:
        CacheError: as `find_row`; or the cache holds values that no view can have.
    """
    rows, row = find_row(cache, clip, group, view)
    maps = set(filter(is_cut, rows.fields))
    batch = rows.batch([row], [name for name in rows.fields if name not in maps])
    fields = {name: values[0] for name, values in batch.items()}
    # A damaged cache could hold boxes that no picture can show, such as infinite ones.
    for wrong in wrong_values(fields):
        raise CacheError(
            f"{cache.path}: clip {clip}, {group} view {view}: {wrong}; "
            f"run `vidgraph verify --cache {cache.path}`, then "
            f"`vidgraph repair --cache {cache.path}`"
        )

    manifest = cache.stored
    if root is not None:
        manifest = read_manifest(manifest.path, root)
    found = manifest.clips[rows.positions[row]]

    step_count = _step_count(rows)
    count = len(fields["frames"]) if "frames" in fields else step_count
    steps = [t * count // step_count for t in range(step_count)]
    # A view without its video is still drawn: boxes on grey.
    try:
        images = _frames(cache, found, manifest.root, fields)
        missing = ""
    except (DecodeError, ValueError) as error:
        images, missing = [_blank(fields)] * count, str(error)
    return ViewContent(cache, found, rows, row, fields, images, steps, missing)


def _step_count(group: Group) -> int:
    """T, from any field that has it."""
    for name in group.fields:
        if is_cut(name) or name in ("pooled", "boxes", "valid", "nodes"):
            return group.shape(name)[0]
    raise CacheError(
        f"{group.cache.path} {group.name}: nothing to draw; it holds {', '.join(group.fields)} only"
    )


def _frames(
    cache: Cache, clip: Clip, root: Path, fields: dict[str, np.ndarray]
) -> list[Image.Image]:
    """Decode the view's frames; ValueError where the video is not the extracted one."""
    if not {"frames", "crop"} <= fields.keys():
        raise ValueError("the cache does not say which frames and which crop its views are of")

    options = {}
    for name in ("decoder", "allow_truncated", "pixel_aspect", "frame_pattern"):
        if name in cache.config:
            options[name] = cache.config[name]

    x, y, width, height, source_width, source_height = fields["crop"].tolist()
    source_size = (round(source_width), round(source_height))
    with ClipOpener(root, **options).open_as(clip, source_size) as reader:
        info = reader.info
        if (info.width, info.height) != (source_width, source_height):
            before, now = f"{source_width:.0f}x{source_height:.0f}", f"{info.width}x{info.height}"
            raise ValueError(
                f"{clip.path} is another video now: frames of {now} pixels, {before} when it was "
                f"extracted"
            )
        # The cache numbers frames as the file does; the reader counts from 0.
        numbers = (fields["frames"].astype(int) - info.first).tolist()
        distinct = sorted(set(numbers))
        decoded = reader.read(distinct)

    # A view may repeat a frame, so each distinct frame is cropped once.
    size, box = _kept_size(width, height), (x, y, x + width, y + height)
    cropped = {}
    for number, pixels in zip(distinct, decoded, strict=True):
        image = Image.fromarray(pixels)
        image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3)
        if bool(fields.get("flip", False)):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        cropped[number] = image
    return [cropped[number] for number in numbers]


def _blank(fields: dict[str, np.ndarray]) -> Image.Image:
    """A grey frame of the crop's shape; square where the crop is not known."""
    width, height = fields["crop"][2:4].tolist() if "crop" in fields else (64, 64)
    return Image.new("RGB", _kept_size(width, height), BLANK)


def _kept_size(width: float, height: float) -> tuple[int, int]:
    scale = min(1.0, MAX_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
