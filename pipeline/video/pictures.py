"""Reads pictures and finds the frames in a folder. Pillow opens files here and nowhere else.

Pillow recognises some fifty formats by a file's content, and opens one of them (PostScript) by
starting another program. Here it may open JPEG, PNG, WebP and BMP only; for other formats, the
error names what the file holds.

Pixels are those of FFmpeg and OpenCV: transparency is dropped (the colours below it stay), 16-bit
values keep their high byte, CMYK becomes RGB, and the EXIF orientation is applied. Of a JPEG with
several pictures (MPO) the first counts. An animation is refused.
"""

import glob
import io
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from pipeline.manifests.folder_scan import PICTURES
from pipeline.text.printable import first_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow's names for them
MAX_PIXELS = (
    64_000_000  # of one picture; a header may claim any size, and decoders allocate what it claims
)
PATTERNS_SHOWN = 4

# First bytes of other formats, for the error message.
_OTHERS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\x01\0", "an icon file"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip file"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML, such as SVG"),
    (b"<", "a web page or XML"),
)


def read_picture(path: str | Path) -> np.ndarray:
    """The picture in a file, upright.

    Args:
        path: a regular file that holds a JPEG, PNG, WebP or BMP picture, whatever its name ends in.

    Returns:
        pixels [H,W,3] uint8 RGB.

    Raises:
        ValueError: not a file, another format, an animation, more than MAX_PIXELS, or damaged; one
        line without the name. OSError: the file cannot be read.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # such as DecompressionBombWarning: our own limit is below Pillow's
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(
                        f"claims {image.width}x{image.height} pixels; expected {MAX_PIXELS:,} "
                        f"pixels at most"
                    )
                if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                    raise ValueError(
                        f"an animation of {image.n_frames} pictures; expected one picture per file"
                    )
                image.load()
                return _upright(_eight_bits(image), image)
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"cannot identify a JPEG, PNG, WebP or BMP picture in it: {_looks_like(path)}"
        ) from None
    except (ValueError, OSError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # a damaged file fails in whichever line of its decoder it happens to reach
        raise ValueError(f"damaged ({type(error).__name__}: {first_line(error)})") from None


def _eight_bits(image) -> np.ndarray:
    """A loaded Pillow image as [H,W,3] uint8, not yet turned upright."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def orientation_of(jpeg: bytes) -> int:
    """The EXIF orientation of a JPEG picture, from 1 to 8; 1 where it has none, or none that can be
    read.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            return _orientation(image)
    except Exception:  # decoding the picture reports what is wrong with it
        return 1


def _orientation(image) -> int:
    """The EXIF orientation of a Pillow image, from 1 to 8; 1 where it has none, or none that can be
    read.
    """
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF data do not make the picture unreadable
        return 1
    return found if found in range(1, 9) else 1


def _upright(pixels: np.ndarray, image) -> np.ndarray:
    """Applies the EXIF orientation of an image to its pixels."""
    orientation = _orientation(image)
    if orientation in (5, 6, 7, 8):  # rows and columns are swapped
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _looks_like(path: Path) -> str:
    """What an unknown file seems to hold, in words."""
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        return "it is empty"
    if start[4:8] == b"ftyp":
        return "it looks like HEIC, AVIF or a video"
    kind = next((kind for mark, kind in _OTHERS if start.lstrip().startswith(mark)), "")
    return f"it looks like {kind}" if kind else "it is damaged or of another kind"


def frame_files(folder: str | Path, pattern: str = "") -> list[Path]:
    """The frames in a folder in natural order (2.jpg before 10.jpg), if they are one series.

    Args:
        folder: a folder of frames; hidden files and files with other endings are not looked at.
        pattern: a glob that the names must match, such as "img_*.jpg"; "" takes all, if their names
        count one series.

    Returns:
        Paths; empty where the folder has no picture.

    Raises:
        ValueError: the names count several series (and no pattern chooses), show a frame twice, or
        none matches.
    """
    paths = [
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in PICTURES and not path.name.startswith(".")
    ]
    names = [path.name for path in paths]
    found = series(names)
    if pattern and names:
        names = found.get(pattern) or [name for name in names if fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(
                f"no picture is named like {pattern!r} (--frame-pattern); there are "
                f"{_listed(found)}"
            )
        if twice := _shown_twice(sorted(names, key=natural)):
            raise ValueError(
                f"{pattern!r} (--frame-pattern) takes {twice[0]} and {twice[1]}, one frame twice; "
                f"narrow it"
            )
    elif len(found) > 1:
        raise ValueError(
            f"the names in the folder count {len(found)} series ({_listed(found)}), expected one; "
            f"choose one of these with "
            "--frame-pattern, or take all of them in the order of their names with "
            "--frame-pattern '*'"
        )
    return [Path(folder, name) for name in sorted(names, key=natural)]


def series(names: Iterable[str]) -> dict[str, list[str]]:
    """Divides the names of pictures into series: glob -> names, sorted by the glob.

    The names of one series differ in their numbers only, and one of the numbers never repeats
    (`0001.jpg`; `7_0.28.png`). Gaps are fine, and so is any first number.
    """
    by_text = _grouped(names, _text_of)
    found: dict[str, list[str]] = {}
    for pattern, of_it in sorted(part for group in by_text for part in _series_of_one_text(group)):
        found.setdefault(pattern, []).extend(of_it)
    return found


def natural(name: str) -> tuple:
    """A sorting key by which 2.jpg comes before 10.jpg; the name itself decides between 2.jpg and
    02.jpg.
    """
    return [
        int(part) if k % 2 else part for k, part in enumerate(re.split(r"(\d+)", name.lower()))
    ], name


def _split(name: str) -> tuple[list[str], str]:
    """(texts and digits of a stem by turns, texts first; the ending in lower case)."""
    stem, dot, ending = name.rpartition(".")
    return re.split(r"(\d+)", stem), dot + ending.lower()


def _text_of(name: str) -> tuple[str, ...]:
    return tuple(_split(name)[0][::2])


def _series_of_one_text(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(glob, names) of the series among names that differ in numbers and endings only."""
    rows = [_numbers_of(name) for name in names]
    distinct = [len(set(column)) for column in zip(*rows, strict=True)]
    counting = max(range(len(distinct)), key=lambda k: (distinct[k], k), default=None)
    if len(names) == 1 or (distinct and distinct[counting] == len(names)):
        return [(_glob(names, counting), list(names))]
    # Divide by the ending, else by the padding, else by every number but the one with the most
    # values.
    if len(set(rows)) < len(names):
        padded = {
            len(digits)
            for name in names
            for digits in _split(name)[0][1::2]
            if re.match("0.", digits)
        }
        keys = [
            lambda name: _split(name)[1],
            lambda name: [
                len(digits) if len(digits) in padded else 0 for digits in _split(name)[0][1::2]
            ],
            lambda name: name,
        ]
    else:
        keys = [lambda name: [n for k, n in enumerate(_numbers_of(name)) if k != counting]]
    groups = next(groups for groups in (_grouped(names, key) for key in keys) if len(groups) > 1)
    return [part for group in groups for part in _series_of_one_text(group)]


def _numbers_of(name: str) -> tuple[int, ...]:
    return tuple(map(int, _split(name)[0][1::2]))


def _grouped(names: Iterable[str], key: Callable) -> list[list[str]]:
    """The names in groups of one key."""
    groups = defaultdict(list)
    for name in names:
        groups[str(key(name))].append(name)
    return list(groups.values())


def _glob(names: Sequence[str], counting: int | None) -> str:
    """A glob that the names of one series match: digits that are the same in all stay, others
    become `*`, or one `?` a digit where zeros pad them. `counting`: the number that counts, which
    is `*` even in a series of one.
    """
    parts, texts = [_split(name) for name in names], []
    for k, text in enumerate(parts[0][0]):
        column = [pieces[k] for pieces, _ in parts]
        if k % 2 == 0:
            texts.append(glob.escape(text))
        elif len(set(column)) == 1 and k // 2 != counting:
            texts.append(text)
        else:
            padded = len({len(digits) for digits in column}) == 1 and any(
                d.startswith("0") for d in column
            )
            texts.append("?" * len(column[0]) if padded and len(column[0]) > 1 else "*")
    endings = {Path(name).suffix for name in names}
    if len(endings) > 1:
        endings = {ending.lower() for ending in endings}
    return "".join(texts) + (endings.pop() if len(endings) == 1 else ".*")


def _shown_twice(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names of the same frame: they differ in their ending or in the padding of their numbers
    only.
    """
    seen: dict[tuple, str] = {}
    for name in names:
        pieces, _ = _split(name)
        key = tuple(int(piece) if k % 2 else piece for k, piece in enumerate(pieces))
        if key in seen:
            return seen[key], name
        seen[key] = name
    return None


def _listed(patterns: Iterable[str]) -> str:
    patterns = list(patterns)
    more = f" and {len(patterns) - PATTERNS_SHOWN} more" if len(patterns) > PATTERNS_SHOWN else ""
    return ", ".join(patterns[:PATTERNS_SHOWN]) + more
