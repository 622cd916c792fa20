"""A few frames of a clip side by side, small, as a JPEG; from the source video, with the boxes of
the cache.

The decoder is imported when the first picture is asked for; a clip that cannot be read has no
picture, and says why.
"""

import io

import numpy as np

from heads.reporting.cache_facts import KnownCache

FRAMES, HEIGHT, WIDEST = 4, 112, 200  # of a strip: frames, and pixels of each
QUALITY = 78
BOX = (255, 176, 32)


def strip(known: KnownCache, clip: str) -> tuple[bytes | None, str]:
    """The picture of a clip's first test view and what it shows; None and the reason where there is
    none.
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
    stored = group.batch(
        [row],
        fields=[name for name in ("frames", "crop", "boxes", "valid") if name in group.fields],
    )
    for wrong in wrong_values({name: values[0] for name, values in stored.items()}):
        return None, f"No picture: {wrong}; run `vidgraph verify --cache {known.cache.path}`"
    numbers, crop = stored["frames"][0], stored["crop"][0]
    chosen = np.unique(np.linspace(0, len(numbers) - 1, FRAMES).round().astype(int))
    manifest = known.cache.manifest
    source = manifest.clips[row // group.per_clip]
    if not inside(manifest.root, source).exists():
        return None, f"No picture: {source.path} is not there"
    try:
        config = known.cache.config
        asked = {name: config[name] for name in ("pixel_aspect", "frame_pattern") if name in config}
        opening = ClipOpener(manifest.root, "pyav", True, **asked)
        with opening.open_as(source, (round(float(crop[4])), round(float(crop[5])))) as reader:
            frames = reader.read([int(numbers[k]) - reader.info.first for k in chosen])
    except DecodeError as error:
        return None, f"No picture: {error.reason}"
    x, y, width, height = (float(v) for v in crop[:4])
    size = (min(WIDEST, max(1, round(HEIGHT * width / height))), HEIGHT)
    whole = Image.new("RGB", (len(chosen) * (size[0] + 2) - 2, HEIGHT), (128, 128, 128))
    for place, (k, frame) in enumerate(zip(chosen, frames, strict=True)):
        image = Image.fromarray(frame).resize(
            size, Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)
        )
        draw = ImageDraw.Draw(image)
        for box in _boxes(stored, int(k), len(numbers)):
            draw.rectangle(
                [value * side for value, side in zip(box, size * 2, strict=True)], outline=BOX
            )
        whole.paste(image, (place * (size[0] + 2), 0))
    data = io.BytesIO()
    whole.save(data, "JPEG", quality=QUALITY)
    shown = ", ".join(str(int(numbers[k])) for k in chosen)
    return data.getvalue(), f"{clip}: frames {shown} of {source.path.name}"


def _boxes(stored: dict[str, np.ndarray], k: int, frames: int) -> np.ndarray:
    """The boxes [n,4] xyxy in [0,1] of the step that the k-th of a view's frames belongs to."""
    if not {"boxes", "valid"} <= stored.keys():
        return np.zeros((0, 4))
    boxes, valid = stored["boxes"][0], stored["valid"][0]
    step = k * len(boxes) // frames
    return boxes[step][valid[step]]
