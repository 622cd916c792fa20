"""Pictures mean what FFmpeg shows of them, other kinds of files stay shut, and a folder is one
series of frames or refused.
"""

import contextlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.manifests.manifest import Clip
from pipeline.stages.config import ExtractConfig
from pipeline.video.decode import open_clip
from pipeline.video.frame_reader import DecodeError
from pipeline.video.pictures import FORMATS, frame_files, read_picture, series

SMOOTH = np.add.outer(np.arange(32) * 3, np.arange(48) * 2).astype(np.uint8)


def shown_by_ffmpeg(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def coloured() -> Image.Image:
    return Image.fromarray(np.stack([SMOOTH, SMOOTH.max() - SMOOTH, SMOOTH // 2], -1))


def with_alpha(mode: str) -> Image.Image:
    image = coloured().convert(mode)
    image.putalpha(Image.fromarray(SMOOTH))
    return image


PICTURES = {
    "16-bit grey": (
        "a.png",
        lambda: Image.fromarray(np.multiply(SMOOTH, 257, dtype=np.uint16)),
        {},
        1,
    ),
    "16-bit grey of any value": (
        "a.png",
        lambda: Image.fromarray(
            np.random.default_rng(0).integers(0, 65536, (32, 48), dtype=np.uint16)
        ),
        {},
        1,
    ),
    "8-bit grey": ("a.png", lambda: Image.fromarray(SMOOTH), {}, 0),
    "1 bit": ("a.png", lambda: Image.fromarray(SMOOTH > 70), {}, 0),
    "palette": ("a.png", lambda: coloured().quantize(64), {}, 0),
    "palette with a transparent colour": (
        "a.png",
        lambda: coloured().quantize(64),
        {"transparency": 3},
        0,
    ),
    "RGBA": ("a.png", lambda: with_alpha("RGB"), {}, 0),
    "grey with alpha": ("a.png", lambda: with_alpha("L"), {}, 0),
    "bmp": ("a.bmp", coloured, {}, 0),
    "webp": ("a.webp", coloured, {"lossless": True}, 0),
    "a jpeg called png": ("a.png", coloured, {"format": "JPEG", "quality": 95}, 8),
    "CMYK jpeg": ("a.jpg", lambda: coloured().convert("CMYK"), {"quality": 95}, 8),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_what_ffmpeg_shows(tmp_path, kind):
    # The tolerance is for other rounding, and for another JPEG decoder.
    name, make, options, tolerance = PICTURES[kind]
    make().save(tmp_path / name, **options)
    ours, theirs = read_picture(tmp_path / name), shown_by_ffmpeg(tmp_path / name)
    assert ours.shape == theirs.shape == (32, 48, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_the_orientation_that_a_camera_noted_is_applied(tmp_path, name, orientation):
    """By the definition of EXIF tag 0x0112: where row 0 and column 0 of the file belong in the
    upright picture.
    """
    file = np.zeros((32, 48), np.uint8)
    file[:16, :24], file[:16, 24:], file[16:, :24] = 250, 170, 90  # quarters: 250 170 / 90 0
    upright = {
        1: [[250, 170], [90, 0]],
        2: [[170, 250], [0, 90]],
        3: [[0, 90], [170, 250]],
        4: [[90, 0], [250, 170]],
        5: [[250, 90], [170, 0]],
        6: [[90, 250], [0, 170]],
        7: [[0, 170], [90, 250]],
        8: [[170, 0], [250, 90]],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(file).convert("RGB").save(tmp_path / name, exif=exif)
    pixels = read_picture(tmp_path / name)
    assert pixels.shape[:2] == ((48, 32) if orientation > 4 else (32, 48))
    height, width = pixels.shape[:2]
    quarters = pixels[[[height // 4], [3 * height // 4]], [width // 4, 3 * width // 4], 0]
    assert np.abs(quarters.astype(int) - upright).max() <= 3


def test_damaged_exif_costs_no_picture(tmp_path):
    coloured().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    assert read_picture(tmp_path / "a.jpg").shape == (32, 48, 3)


def test_a_cameras_jpeg_with_further_pictures_is_its_first(tmp_path):
    coloured().save(
        tmp_path / "a.jpg",
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (48, 32))],
        quality=95,
    )
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    assert np.abs(read_picture(tmp_path / "a.jpg").astype(int) - np.asarray(coloured())).mean() < 4


def svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


def saved(kind: str, **options):
    def make(path: Path) -> None:
        coloured().save(path, kind, **options)

    return make


OTHERS = {
    "PostScript": saved("EPS"),
    "PDF": saved("PDF"),
    "TIFF": saved("TIFF"),
    "GIF": saved("GIF"),
    "icon": saved("ICO"),
    "JPEG 2000": saved("JPEG2000"),
    "SVG": lambda path: path.write_bytes(svg()),
    "Photoshop": lambda path: path.write_bytes(b"8BPS\0\1" + bytes(40)),
    "empty": lambda path: path.write_bytes(b""),
    "damaged": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)),
    "animation of 2": saved("PNG", save_all=True, append_images=[Image.new("RGB", (48, 32))]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_whatever_else_is_called_png_is_refused_by_its_name(tmp_path, kind):
    OTHERS[kind](tmp_path / "1.png")
    with pytest.raises(DecodeError, match=rf"1\.png: .*(?i:{kind})"):
        open_clip(Clip("a", str(tmp_path), "train", ()))


def test_a_picture_cut_anywhere_or_with_any_byte_changed_is_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    for name, options in (("a.png", {}), ("a.jpg", {}), ("a.webp", {}), ("a.bmp", {})):
        coloured().save(tmp_path / name, **options)
        whole = (tmp_path / name).read_bytes()
        for cut in rng.integers(0, len(whole), 20):
            for data in (whole[:cut], whole[:cut] + bytes([rng.integers(256)]) + whole[cut + 1 :]):
                (tmp_path / name).write_bytes(data)
                with contextlib.suppress(ValueError, OSError):
                    assert read_picture(tmp_path / name).ndim == 3


def test_no_picture_starts_a_program(tmp_path):
    """PostScript, which Pillow gives to `gs`, under every ending, with a `gs` first in the path
    that leaves a trace.
    """
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    for ending in (".png", ".jpg", ".jpeg", ".webp", ".bmp"):
        saved("EPS")(tmp_path / f"1{ending}")
    code = "import sys\nfrom pipeline.video.pictures import read_picture\n"
    code += "for path in sys.argv[1:]:\n try: read_picture(path)\n except ValueError: pass\n"
    found = [str(path) for path in tmp_path.glob("1.*")]
    env = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        [sys.executable, "-c", code, *found], check=True, env=env, cwd=Path(__file__).parents[3]
    )
    assert not (tmp_path / "started").exists()


def test_pillow_opens_a_file_in_one_place_and_with_its_formats():
    root = Path(__file__).parents[3]
    for room in ("pipeline", "heads", "cli"):
        for path in (root / room).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            named = (
                "Image.open(path, formats=FORMATS)",
                'Image.open(io.BytesIO(jpeg), formats=["JPEG"])',
            )
            assert text.count("Image.open(") == sum(map(text.count, named)), path
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "BMP"}


def test_a_header_that_claims_a_huge_picture_is_refused_before_anything_is_allocated(tmp_path):
    data = (
        b"BM"
        + struct.pack("<IHHI", 58, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    (tmp_path / "a.bmp").write_bytes(data + bytes(4))
    with pytest.raises(ValueError, match=r"60000x60000|pixels"):
        read_picture(tmp_path / "a.bmp")


ONE = {
    "gaps": ["img_1.jpg", "img_7.jpg", "img_30.jpg"],
    "from 0": ["0000.png", "0001.png", "0002.png"],
    "padding that ends": ["9.jpg", "10.jpg", "11.jpg"],
    "number and time": ["7_0.28.jpg", "8_0.32.jpg", "9_0.32.jpg"],
    "a constant number": ["v2_take3_0001.jpg", "v2_take3_0002.jpg"],
    "endings in any case": ["1.JPG", "2.jpg", "3.jpeg"],
    "alone": ["any name.webp"],
}
SEVERAL = {
    "flow": (
        ["img_01.jpg", "img_02.jpg", "flow_x_01.jpg", "flow_y_01.jpg"],
        {"img_??.jpg", "flow_x_??.jpg", "flow_y_??.jpg"},
    ),
    "two formats": (["1.jpg", "2.jpg", "1.png", "2.png"], {"*.jpg", "*.png"}),
    "two prefixes": (["left1.png", "left2.png", "right1.png"], {"left*.png", "right*.png"}),
    "two numbered prefixes": (
        [f"cam{c}_{k}.png" for c in (1, 2) for k in (7, 8, 9)],
        {"cam1_*.png", "cam2_*.png"},
    ),
    "two sizes": (
        [f"{k}_{s}x{s}.png" for s in (64, 128) for k in (1, 2, 3)],
        {"*_64x64.png", "*_128x128.png"},
    ),
    "two paddings": (["1.jpg", "2.jpg", "0001.jpg", "0002.jpg"], {"*.jpg", "????.jpg"}),
    "a thumbnail": (["1.jpg", "2.jpg", "cover.jpg"], {"*.jpg", "cover.jpg"}),
    "endings in two cases": (["1.jpg", "1.JPG"], {"*.jpg", "*.JPG"}),
}


@pytest.mark.parametrize("kind", ONE)
def test_names_that_count_are_one_series(kind):
    assert list(series(ONE[kind]).values()) == [ONE[kind]]


@pytest.mark.parametrize("kind", SEVERAL)
def test_names_of_several_series_are_refused_with_their_patterns_each_of_which_chooses_its_own(
    tmp_path, kind
):
    names, patterns = SEVERAL[kind]
    for name in names:
        (tmp_path / name).touch()
    assert set(series(names)) == patterns
    with pytest.raises(ValueError, match="--frame-pattern") as error:
        frame_files(tmp_path)
    assert all(pattern in str(error.value) for pattern in patterns)
    chosen = [
        [path.name for path in frame_files(tmp_path, pattern)] for pattern in sorted(patterns)
    ]
    assert sorted(name for names in chosen for name in names) == sorted(names)


def test_a_pattern_takes_what_it_says_and_never_a_frame_twice(tmp_path):
    for name in ("a_2.jpg", "a_10.jpg", "b_1.jpg", "b_1.png", ".a_3.jpg", "a_4.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in frame_files(tmp_path, "a_*")] == ["a_2.jpg", "a_10.jpg"]
    with pytest.raises(ValueError, match=r"b_1\.jpg and b_1\.png, which are the same frame"):
        frame_files(tmp_path, "*")
    with pytest.raises(ValueError, match=r"no picture is named like 'c_\*'.*a_\*\.jpg"):
        frame_files(tmp_path, "c_*")


def test_the_pattern_is_part_of_what_a_cache_holds_only_where_it_is_given():
    assert "frame_pattern" not in ExtractConfig().computed("", "")
    assert ExtractConfig(frame_pattern="img_*").computed("", "")["frame_pattern"] == "img_*"
