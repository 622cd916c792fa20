"""Fixtures that several tests share. A numbered video says itself which frame is which: frame k has
brightness 4k.
"""

import os
import random
import runpy
import sys
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline.manifests.manifest import Clip
from pipeline.video.decode import write_video
from tests.support.crashes import pytest_xdist_make_scheduler  # noqa: F401  (a hook)

if os.environ.get("VIDGRAPH_TESTS_HIDE"):
    # Packages that behave as not installed, here and in what the tests start:
    # VIDGRAPH_TESTS_HIDE=decord pytest ...
    hidden = Path(__file__).parent / "support" / "hidden_packages"
    runpy.run_path(str(hidden / "sitecustomize.py"))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(hidden), os.environ.get("PYTHONPATH")))
    )

BRIGHTER = 4  # grey levels from one frame to the next, more than any codec here blurs
FPS = 25


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def same_numbers_in_every_file():
    """What is drawn without a seed does not depend on the tests that this process has run
    before.
    """
    _seed()


@pytest.fixture(autouse=True)
def same_numbers_in_every_test(same_numbers_in_every_file):
    """Nor on those of the same file."""
    _seed()


@pytest.fixture(scope="session")
def videos_dir() -> Path:
    """The folder of real videos, from VIDGRAPH_VIDEOS, by default beside the project."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("VIDGRAPH_VIDEOS") or root.parent / "shared" / "videos")
    if not folder.is_dir():
        pytest.skip(f"no real videos at {folder}: set VIDGRAPH_VIDEOS")
    return folder


@pytest.fixture(scope="session")
def numbered_frames():
    """numbered_frames(count, height=48, width=64): frames [count,H,W,3] uint8, frame k grey with
    brightness 4k; at most 60.
    """

    def make(count: int, height: int = 48, width: int = 64) -> np.ndarray:
        levels = BRIGHTER * np.arange(count, dtype=np.uint8)
        return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()

    return make


@pytest.fixture(scope="session")
def numbers_in():
    """numbers_in(frames [K,H,W,3]): which frame of a numbered video each one is."""
    return lambda frames: np.rint(frames.mean((1, 2, 3)) / BRIGHTER).astype(int).tolist()


@pytest.fixture(scope="session")
def numbered_video(tmp_path_factory, numbered_frames) -> Path:
    """An MP4 of 40 numbered frames, 48x64, 25 fps, as write_video makes it."""
    path = tmp_path_factory.mktemp("numbered") / "numbered.mp4"
    write_video(path, numbered_frames(40), FPS)
    return path


@pytest.fixture(scope="session")
def encode(tmp_path_factory, numbered_frames):
    """encode(name, codec, ...): a video of numbered frames (or `frames`) in any container; made
    once for each distinct call.

    `options` go to the encoder, `muxing` to the container, `stamps` (milliseconds for frame k)
    replace the even 25 fps, `sound` adds that many seconds of silence. Skips where this PyAV lacks
    the codec.
    """
    import av

    made: dict[tuple, Path] = {}

    def make(
        name, codec, count=60, options=None, muxing=None, stamps=None, sound=0.0, frames=None
    ) -> Path:
        key = (
            name,
            codec,
            count,
            str(options),
            str(muxing),
            stamps,
            sound,
            None if frames is None else frames.tobytes(),
        )
        if key in made:
            return made[key]
        for needed in (codec, "aac") if sound else (codec,):
            if needed not in av.codecs_available:
                pytest.skip(f"PyAV was built without {needed}")
        frames = numbered_frames(count) if frames is None else frames
        path = tmp_path_factory.mktemp("encoded") / name
        with av.open(str(path), "w", options=muxing or {}) as container:
            video = container.add_stream(codec, rate=FPS)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            video.options = options or {}
            video.codec_context.thread_count = 1
            if stamps:
                video.codec_context.time_base = Fraction(1, 1000)
            audio = container.add_stream("aac", rate=16_000) if sound else None
            for k, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = stamps(k) if stamps else k
                frame.time_base = Fraction(1, 1000 if stamps else FPS)
                container.mux(video.encode(frame))
            container.mux(video.encode())
            if audio:
                for k in range(int(sound * 16_000 / 1024)):
                    silence = av.AudioFrame.from_ndarray(
                        np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                    )
                    silence.sample_rate, silence.pts = 16_000, 1024 * k
                    container.mux(audio.encode(silence))
                container.mux(audio.encode())
        made[key] = path
        return path

    return make


@pytest.fixture(scope="session")
def clip_of():
    """clip_of(path, start=None, end=None, **columns): the clip that a manifest's row for this file
    would give.
    """

    def make(path, start=None, end=None, **columns) -> Clip:
        return Clip(Path(path).stem, str(path), "train", (), start, end, columns)

    return make


@pytest.fixture(scope="session")
def sound_file(tmp_path_factory) -> Path:
    """A file that FFmpeg opens and that has no picture."""
    path = tmp_path_factory.mktemp("sound") / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    return path


@pytest.fixture
def without_decord(monkeypatch):
    """This process meets a machine on which decord is not installed."""
    from pipeline.video.decode import why_no_decord

    monkeypatch.setitem(sys.modules, "decord", None)  # what an import of a missing package meets
    why_no_decord.cache_clear()
    yield
    why_no_decord.cache_clear()


@pytest.fixture(scope="module")
def gpu():
    """A pretended GPU, for a whole file: `pytestmark = pytest.mark.usefixtures("gpu")`."""
    from tests.support.fake_cuda import fake_cuda

    with fake_cuda() as device:
        yield device


@pytest.fixture
def waits(gpu):
    """How often the host waited for the pretended GPU so far, by the line that did."""
    from tests.support.cuda_sites import call_sites

    with call_sites(gpu) as sites:
        yield sites.waits


@pytest.fixture(autouse=True)
def module_path_of_programs(monkeypatch):
    """`main` sets it for the processes that a command starts; here the command is a part of the
    test's own process.
    """
    monkeypatch.setenv("PYTHONSAFEPATH", "")
