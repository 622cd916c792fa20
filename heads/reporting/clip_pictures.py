"""Make the picture of a clip: a few small frames with the boxes of the cache, as a JPEG.

The decoder is imported when the first picture is asked for.
"""

import io

import numpy as np

from heads.reporting.cache_facts import KnownCache

# Frames of a strip, and their height and greatest width in pixels.
FRAMES, HEIGHT, WIDEST = 4, 112, 200

# Pixels between frames.
GAP = 2
QUALITY = 78
BOX = (255, 176, 32)


def strip(known: KnownCache, clip: str) -> tuple[bytes | None, str]:
    """Make the picture of a clip's first test view.

    Args:
        known: the clip's cache.
        clip: its id.

    Returns:
        (a JPEG, what it shows); (None, why there is none) where it cannot be made.
    """
    if known.cache is None:
        return None, f"No picture: the cache {known.path} is {known.problem}"
    try:
        return _strip(known, clip)
    except (OSError, ValueError) as error:
        return None, f"No picture: {error}"


def _strip(known: KnownCache, clip: str) -> tuple[bytes | None, str]:
    from PIL import Image, ImageDraw

    from pipeline.cache.value_checks import wrong_values
    from pipeline.manifests.manifest import inside
    from pipeline.video.frame_reader import DecodeError
    from pipeline.video.view_pixels import ClipOpener

    group = known.cache["test"]
    row = next((row for row in group.rows_of(clip) if group.ok[row]), None)
    if row is None or not {"frames", "crop"} <= set(group.fields):
        return None, "No picture: the cache does not say which frames it saw"
    names = [name for name in ("frames", "crop", "boxes", "valid") if name in group.fields]
    stored = {name: values[0] for name, values in group.batch([row], fields=names).items()}
    for wrong in wrong_values(stored):
        return None, f"No picture: {wrong}; run `vidgraph verify --cache {known.cache.path}`"

    manifest, source = known.cache.manifest, group.clip(row)
    if not inside(manifest.root, source).exists():
        return None, f"No picture: {source.path} is not there"

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
        return None, f"No picture: {error.reason}"

    x, y, width, height = crop[:4]
    size = (min(WIDEST, max(1, round(HEIGHT * width / height))), HEIGHT)
    whole = Image.new("RGB", (len(chosen) * (size[0] + GAP) - GAP, HEIGHT), (128, 128, 128))
    for position, (k, frame) in enumerate(zip(chosen, frames, strict=True)):
        image = Image.fromarray(frame)
        box = (x, y, x + width, y + height)
        image = image.resize(size, Image.Resampling.BILINEAR, box=box)
        draw = ImageDraw.Draw(image)
        for corners in _boxes(stored, k, len(numbers)):
            # (w, h) twice scales xyxy from [0,1] to pixels.
            draw.rectangle((corners * (size * 2)).tolist(), outline=BOX)
        whole.paste(image, (position * (size[0] + GAP), 0))

    data = io.BytesIO()
    whole.save(data, "JPEG", quality=QUALITY)
    listed = ", ".join([str(int(numbers[k])) for k in chosen])
    return data.getvalue(), f"{clip}: frames {listed} of {source.path.name}"


def _boxes(stored: dict[str, np.ndarray], k: int, frames: int) -> np.ndarray:
    """The boxes [n,4] xyxy in [0,1] of the step that the k-th of a view's frames belongs to."""
    if not {"boxes", "valid"} <= stored.keys():
        return np.zeros((0, 4))
    boxes, valid = stored["boxes"], stored["valid"]
    step = k * len(boxes) // frames
    return boxes[step][valid[step]]
