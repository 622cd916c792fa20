"""Make pictures of a clip: a few frames with the boxes of the cache, as JPEGs.

The decoder is imported when the first picture is asked for.
"""

import io

import numpy as np

from heads.reporting.cache_facts import KnownCache
from pipeline.cache.joined import JoinedCache

# Frames of a clip, and their height and greatest width in pixels. So many fit side by side on a
# page of 1280 pixels.
FRAMES, HEIGHT, WIDEST = 4, 256, 480
QUALITY = 78
BOX = (255, 176, 32)


def frames_of(known: KnownCache, clip: str) -> tuple[tuple[bytes, ...], str]:
    """Make pictures of a clip's first test view.

    Args:
        known: the clip's cache.
        clip: its id.

    Returns:
        (a JPEG for each frame, what they show); ((), why there are none) where they cannot be made.
    """
    if known.cache is None:
        return (), f"No picture: the cache {known.path} is {known.problem}"
    try:
        return _frames(known, clip)
    except (OSError, ValueError) as error:
        return (), f"No picture: {error}"


def _frames(known: KnownCache, clip: str) -> tuple[tuple[bytes, ...], str]:
    from PIL import Image, ImageDraw

    from pipeline.cache.good_rows import wrong_values
    from pipeline.manifests.manifest import inside
    from pipeline.video.frame_reader import DecodeError
    from pipeline.video.view_pixels import ClipOpener

    group = known.cache["test"]
    row = next((row for row in group.rows_of(clip) if group.ok[row]), None)
    if row is None or not {"frames", "crop"} <= set(group.fields):
        return (), "No picture: the cache does not say which frames it saw"
    names = [name for name in ("frames", "crop", "boxes", "valid") if name in group.fields]
    stored = {name: values[0] for name, values in group.batch([row], fields=names).items()}
    for wrong in wrong_values(stored):
        return (), f"No picture: {wrong}; run `vidgraph verify --cache {known.cache.path}`"

    # Of several caches, the one that has the clip.
    cache = known.cache.part_of(clip) if isinstance(known.cache, JoinedCache) else known.cache
    manifest, source = cache.manifest, group.clip(row)
    if not inside(manifest.root, source).exists():
        return (), f"No picture: {source.path} is not there"

    numbers, crop = stored["frames"], stored["crop"].tolist()
    chosen = np.unique(np.linspace(0, len(numbers) - 1, FRAMES).round().astype(int)).tolist()
    # As in the extraction, but with a decoder that is always installed, and lenient.
    options = {}
    for name in ("pixel_aspect", "frame_pattern"):
        if name in known.cache.config:
            options[name] = known.cache.config[name]
    try:
        opener = ClipOpener(manifest.root, "pyav", True, **options)
        with opener.open_as(source, (round(crop[4]), round(crop[5]))) as reader:
            # A cache numbers the frames of the file, a reader those of the clip.
            frames = reader.read([int(numbers[k]) - reader.info.first for k in chosen])
    except DecodeError as error:
        return (), f"No picture: {error.reason}"

    x, y, width, height = crop[:4]
    size = (min(WIDEST, max(1, round(HEIGHT * width / height))), HEIGHT)
    pictures = []
    for k, frame in zip(chosen, frames, strict=True):
        box = (x, y, x + width, y + height)
        image = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, box=box)
        draw = ImageDraw.Draw(image)
        for corners in _boxes(stored, k, len(numbers)):
            # (w, h) twice scales xyxy from [0,1] to pixels.
            draw.rectangle((corners * (size * 2)).tolist(), outline=BOX, width=2)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=QUALITY)
        pictures.append(data.getvalue())
    listed = ", ".join([str(int(numbers[k])) for k in chosen])
    return tuple(pictures), f"{clip}: frames {listed} of {source.path.name}"


def _boxes(stored: dict[str, np.ndarray], k: int, frames: int) -> np.ndarray:
    """The boxes [n,4] xyxy in [0,1] of the step that the k-th of a view's frames belongs to."""
    if not {"boxes", "valid"} <= stored.keys():
        return np.zeros((0, 4))
    boxes, valid = stored["boxes"], stored["valid"]
    step = k * len(boxes) // frames
    return boxes[step][valid[step]]
