"""Read pictures, and find the frames in a folder. Only this module opens files with Pillow.

Pillow recognises some fifty formats by a file's content, and opens one of them (PostScript) by
starting another program. Here it may open JPEG, PNG, WebP and BMP only. For other formats, the
error names what the file holds.

Pixels are those of FFmpeg and OpenCV. Transparency is dropped, and the colours below it stay.
16-bit values keep their high byte. CMYK becomes RGB. The EXIF orientation is applied. Of a JPEG
with several pictures (MPO) the first counts. Animations are refused.
"""

import glob
import io
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.manifests.folder_scan import PICTURES
from pipeline.text.printable import first_line

# Pillow's names of the formats that may be read.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# Of one picture. A header may claim any size, and decoders allocate what it claims.
MAX_PIXELS = 64_000_000
# How many patterns an error message lists.
PATTERNS_SHOWN = 4
EXIF_ORIENTATION_TAG = 0x0112

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


# ---- One picture


def read_picture(path: str | Path) -> np.ndarray:
    """Read the picture in a file, upright.

    Args:
        path: a regular file that holds a JPEG, PNG, WebP or BMP picture, whatever its suffix.

    Returns:
        [H,W,3] uint8 RGB.

    Raises:
        ValueError: not a file, another format, an animation, more than MAX_PIXELS, or damaged.
            The message is one line and does not name the file.
        OSError: the file cannot be read.
    """
    from PIL import Image

    path = Path(path)
    # Opening a pipe would wait for its other end.
    if not path.is_file():
        raise ValueError("not a file")
    try:
        with warnings.catch_warnings():
            # Such as DecompressionBombWarning: our own limit is below Pillow's.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                _check_header(image)
                image.load()
                return _apply_orientation(_eight_bits(image), _orientation(image))
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"cannot identify a JPEG, PNG, WebP or BMP picture in it: {_describe_content(path)}"
        ) from None
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:
        # A damaged file fails in whichever line of its decoder it happens to reach.
        raise ValueError(f"damaged ({type(error).__name__}: {first_line(error)})") from None


def _check_header(image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"claims {image.width}x{image.height} pixels; expected {MAX_PIXELS:,} pixels at most"
        )
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ValueError(
            f"an animation of {image.n_frames} pictures; expected one picture per file"
        )


def _eight_bits(image) -> np.ndarray:
    """Return the pixels [H,W,3] uint8 of a loaded Pillow image, as they are stored."""
    # Pillow would clip 16-bit grey at 255.
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def exif_orientation(jpeg: bytes) -> int:
    """Return the EXIF orientation of a JPEG picture.

    Args:
        jpeg: the bytes of the file.

    Returns:
        1 to 8; 1 where there is none, or none that can be read.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            return _orientation(image)
    except Exception:
        # Decoding the picture reports what is wrong with it.
        return 1


def _orientation(image) -> int:
    """Return the EXIF orientation of a Pillow image, 1 without a valid one."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION_TAG, 1)
    except Exception:
        # Damaged EXIF data do not make the picture unreadable.
        return 1
    return orientation if orientation in range(1, 9) else 1


def _apply_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror stored pixels by their EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _describe_content(path: Path) -> str:
    """Say what an unknown file seems to hold."""
    with open(path, "rb") as file:
        start = file.read(16)
    if not start:
        return "it is empty"
    if start[4:8] == b"ftyp":
        return "it looks like HEIC, AVIF or a video"
    text = start.lstrip()
    for mark, kind in _OTHERS:
        if text.startswith(mark):
            return f"it looks like {kind}"
    return "it is damaged or of another kind"


# ---- The frames in a folder


def frame_files(folder: str | Path, pattern: str = "") -> list[Path]:
    """Return the frames in a folder, if they are one series.

    Args:
        folder: a folder of frames; hidden files and files with other suffixes do not count.
        pattern: a glob that the names must match, such as "img_*.jpg"; "" takes all pictures
            if their names count one series.

    Returns:
        Paths in natural order (2.jpg before 10.jpg); empty where the folder has no picture.

    Raises:
        ValueError: the names count several series and there is no pattern; or no name matches
            the pattern; or two matching names are the same frame.
    """
    names = []
    for path in Path(folder).iterdir():
        if path.suffix.lower() in PICTURES and not path.name.startswith("."):
            names.append(path.name)

    found = series(names)
    if pattern and names:
        names = found.get(pattern) or _matching(names, pattern)
        if not names:
            raise ValueError(
                f"no picture is named like {pattern!r} (--frame-pattern); there are "
                f"{_list_patterns(found)}"
            )
        duplicate = _duplicate_frame(sorted(names, key=natural))
        if duplicate:
            raise ValueError(
                f"{pattern!r} (--frame-pattern) matches {duplicate[0]} and {duplicate[1]}, which "
                "are the same frame; choose a narrower pattern"
            )
    elif len(found) > 1:
        raise ValueError(
            f"the names in the folder count {len(found)} series ({_list_patterns(found)}), "
            "expected one; choose one of these with --frame-pattern, or take all of them in the "
            "order of their names with --frame-pattern '*'"
        )
    return [Path(folder, name) for name in sorted(names, key=natural)]


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    matching = []
    for name in names:
        if fnmatchcase(name, pattern):
            matching.append(name)
    return matching


def series(names: Iterable[str]) -> dict[str, list[str]]:
    """Divide the names of pictures into series.

    The names of one series differ in their numbers only, and one of the numbers never repeats
    (`0001.jpg`; `7_0.28.png`). Gaps are fine, and so is any first number.

    Args:
        names: file names.

    Returns:
        A glob -> the names of its series, sorted by the glob.
    """
    parts = []
    for group in _group_by(names, lambda name: _split(name).texts):
        parts += _series_of_one_text(group)

    found: dict[str, list[str]] = {}
    for pattern, members in sorted(parts):
        found.setdefault(pattern, []).extend(members)
    return found


def natural(name: str) -> tuple:
    """Return a sorting key by which 2.jpg comes before 10.jpg.

    The name itself decides between 2.jpg and 02.jpg.
    """
    pieces: list[Any] = re.split(r"(\d+)", name.lower())
    pieces[1::2] = map(int, pieces[1::2])
    return pieces, name


class _NameParts(NamedTuple):
    """A file name in pieces: text, digits, text, ..., text, suffix."""

    texts: tuple[str, ...]
    digits: tuple[str, ...]
    suffix: str

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(map(int, self.digits))


def _split(name: str) -> _NameParts:
    stem, dot, suffix = name.rpartition(".")
    pieces = re.split(r"(\d+)", stem)
    return _NameParts(tuple(pieces[::2]), tuple(pieces[1::2]), dot + suffix.lower())


def _series_of_one_text(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return (glob, names) of each series among names that differ in numbers and suffix only."""
    rows = [_split(name).numbers for name in names]
    distinct = [len(set(column)) for column in zip(*rows, strict=True)]
    # The number with the most values counts the frames; of several such, the last one.
    counting = max(range(len(distinct)), key=lambda k: (distinct[k], k), default=None)
    if len(names) == 1 or (distinct and distinct[counting] == len(names)):
        return [(_glob(names, counting), list(names))]

    if len(set(rows)) == len(names):

        def other_numbers(name: str) -> list[int]:
            numbers = enumerate(_split(name).numbers)
            return [number for k, number in numbers if k != counting]

        groups = _group_by(names, other_numbers)
    else:
        groups = _divide_equal_numbers(names)

    found = []
    for group in groups:
        found += _series_of_one_text(group)
    return found


def _divide_equal_numbers(names: Sequence[str]) -> list[list[str]]:
    """Divide names of equal numbers: by suffix, else by zero padding, else one by one."""
    padded = set()
    for name in names:
        for digits in _split(name).digits:
            # A lone 0 is not padded.
            if digits[0] == "0" and len(digits) > 1:
                padded.add(len(digits))

    def padding(name: str) -> list[int]:
        widths = map(len, _split(name).digits)
        return [width * (width in padded) for width in widths]

    for key in (lambda name: _split(name).suffix, padding):
        groups = _group_by(names, key)
        if len(groups) > 1:
            return groups
    return [[name] for name in names]


def _group_by(names: Iterable[str], key: Callable) -> list[list[str]]:
    groups = defaultdict(list)
    for name in names:
        groups[str(key(name))].append(name)
    return list(groups.values())


def _glob(names: Sequence[str], counting: int | None) -> str:
    """Return a glob that matches the names of one series.

    Digits that are the same in all names stay. Others become `*`, or one `?` per digit where
    zeros pad them. The number at position `counting` is a wildcard even in a series of one.
    """
    parts = [_split(name) for name in names]
    pattern = glob.escape(parts[0].texts[0])
    for k, text in enumerate(parts[0].texts[1:]):
        column = [part.digits[k] for part in parts]
        same_width = len(set(map(len, column))) == 1
        zeros = any(digits.startswith("0") for digits in column)
        if len(set(column)) == 1 and k != counting:
            pattern += column[0]
        elif same_width and zeros and len(column[0]) > 1:
            pattern += "?" * len(column[0])
        else:
            pattern += "*"
        pattern += glob.escape(text)

    suffixes = {Path(name).suffix for name in names}
    if len(suffixes) > 1:
        suffixes = {suffix.lower() for suffix in suffixes}
    return pattern + (suffixes.pop() if len(suffixes) == 1 else ".*")


def _duplicate_frame(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two names of the same frame: only their suffix or zero padding differs."""
    first: dict[tuple, str] = {}
    for name in names:
        parts = _split(name)
        key = (parts.texts, parts.numbers)
        if key in first:
            return first[key], name
        first[key] = name
    return None


def _list_patterns(patterns: Iterable[str]) -> str:
    patterns = list(patterns)
    listed = ", ".join(patterns[:PATTERNS_SHOWN])
    more = len(patterns) - PATTERNS_SHOWN
    return f"{listed} and {more} more" if more > 0 else listed
