"""Reading 32 frames of a video, and what the guards around it cost.

read    open a clip and read 32 frames spread over it: plain decord (get_batch), PyAV decoding all
        up to the last one, torchcodec where it loads, and our reader with each decoder. Ratio is to
        plain decord.
check   our pass over the packets alone (the container's promise, the frames' times); ratio is its
        share of our whole read.
move    arrays from a worker to this process: pickled through a pipe, and by our pool. Ratio is to
        the pipe.
write   videos of 10 frames of 64x64: PyAV with x264's default settings, and write_video. Ratio is
        to the defaults.
start   a pool from nothing to its first answer.

Rates are medians over rounds in which all ways take turns, each with one decoding thread. Real
videos come from the folder VIDGRAPH_VIDEOS.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from _report import arguments, report, require_decord

from pipeline.manifests.manifest import Clip
from pipeline.video.decode import open_clip, write_video
from pipeline.video.video_file import scan
from pipeline.workers.decode_pool import WorkerPool

FRAMES = 32
REAL = ("arm_wrestling.mp4", "flipping_a_pancake.mkv", "people_indoors.mp4")


def generated(folder: Path) -> Path:
    """A noisy texture that moves: 300 frames of 240x320."""
    texture = (
        np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )
    frames = np.stack([np.roll(texture, (2 * t, 3 * t), (0, 1))[:240, :320] for t in range(300)])
    write_video(folder / "generated.mp4", frames, 30)
    return folder / "generated.mp4"


def spread(count: int) -> list[int]:
    """The middles of 32 equal parts of a video; short ones repeat frames."""
    return [(2 * k + 1) * count // (2 * FRAMES) for k in range(FRAMES)]


def with_decord(path: Path) -> np.ndarray:
    import decord

    video = decord.VideoReader(str(path), num_threads=1)
    return video.get_batch(spread(len(video))).asnumpy()


def with_pyav(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        count = stream.frames or round(container.duration / 1e6 * stream.average_rate)
        wanted, read = set(spread(count)), {}
        for k, frame in enumerate(container.decode(stream)):
            if k in wanted:
                read[k] = frame.to_ndarray(format="rgb24")
                if len(read) == len(wanted):
                    break
    return np.stack([read[min(k, max(read))] for k in spread(count)])


def with_torchcodec(path: Path) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    return video.get_frames_at(spread(len(video))).data.numpy()


def with_ours(decoder: str) -> Callable[[Path], np.ndarray]:
    def read(path: Path) -> np.ndarray:
        with open_clip(Clip(path.stem, str(path), "train", ()), decoder) as reader:
            return reader.read(spread(reader.info.frames))

    return read


def in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, after one call that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def row(question: str, way: str, rate: float, unit: str, ratio: float) -> dict[str, object]:
    return {"question": question, "way": way, "rate": rate, "unit": unit, "ratio": ratio}


def reading(path: Path, rounds: int) -> Iterator[dict[str, object]]:
    ways = {"decord": with_decord, "PyAV": with_pyav}
    try:
        import torchcodec.decoders  # noqa: F401

        ways["torchcodec"] = with_torchcodec
    except (ImportError, OSError, RuntimeError):
        print("torchcodec does not load here: left out")
    ways |= {
        f"ours, {name}": with_ours(name)
        for name in ("decord", "pyav", *(("torchcodec",) if "torchcodec" in ways else ()))
    }
    clip = Clip(path.stem, str(path), "train", ())
    calls = {name: (lambda way=way: way(path)) for name, way in ways.items()} | {
        "check": lambda: scan(clip)
    }
    seconds = in_turns(calls, rounds)
    for name in ways:
        yield row(
            f"read {path.name}",
            name,
            1 / seconds[name],
            "clips/s",
            seconds["decord"] / seconds[name],
        )
    yield row(
        f"check {path.name}",
        "ours",
        1 / seconds["check"],
        "clips/s",
        seconds["check"] / seconds["ours, decord"],
    )


def ones(count: int) -> np.ndarray:
    return np.ones(count, np.uint8)


def send_pickled(pipe, count: int, times: int) -> None:
    for _ in range(times):
        pipe.recv()
        pipe.send(ones(count))


def moving(megabytes: int, rounds: int) -> Iterator[dict[str, object]]:
    """Both ask for one array at a time, so that neither gains by working ahead."""
    count = megabytes * 1_000_000
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    sender = spawn.Process(target=send_pickled, args=(theirs, count, rounds + 1), daemon=True)
    sender.start()

    def through_a_pipe() -> None:
        ours.send(None)
        ours.recv()

    with WorkerPool(ones, workers=1) as pool:
        seconds = in_turns(
            {"pickle": through_a_pipe, "ours": lambda: list(pool.imap([count], ahead=1))}, rounds
        )
    sender.join()
    for name, value in seconds.items():
        yield row(
            f"move {megabytes} MB", name, count / value / 1e9, "GB/s", seconds["pickle"] / value
        )


def write_with_defaults(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264" if "libx264" in av.codecs_available else "mpeg4", rate=10
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def writing(folder: Path, rounds: int) -> Iterator[dict[str, object]]:
    noise = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    frames = np.zeros((10, 64, 64, 3), np.uint8)
    for k in range(10):
        frames[k, 10 + k : 38 + k, 5 + 2 * k : 33 + 2 * k] = noise
    ways = {
        "x264's defaults": write_with_defaults,
        "ours": lambda path, frames: write_video(path, frames, 10),
    }
    calls = {
        name: (lambda way=way: way(folder / "small.mp4", frames)) for name, way in ways.items()
    }
    seconds = in_turns(calls, 10 * rounds)
    for name, value in seconds.items():
        yield row(
            "write 10 frames", name, 1 / value, "videos/s", seconds["x264's defaults"] / value
        )


def starting(rounds: int) -> Iterator[dict[str, object]]:
    def start() -> None:
        with WorkerPool(ones, workers=1) as pool:
            list(pool.imap([1], ahead=1))

    seconds = in_turns({"ours": start}, rounds)["ours"]
    yield row("start 1 worker", "ours", seconds, "seconds", 1.0)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    require_decord()
    root = Path(__file__).parent.parent
    videos = Path(os.environ.get("VIDGRAPH_VIDEOS") or root.parent / "shared" / "videos")
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            generated(Path(folder)),
            *(videos / name for name in REAL if (videos / name).is_file()),
        ]
        rows = [found for path in paths for found in reading(path, args.rounds)]
        rows += [found for megabytes in (5, 50) for found in moving(megabytes, args.rounds)]
        rows += [*writing(Path(folder), args.rounds), *starting(args.rounds)]
    report("Decoding", rows, args.json)


if __name__ == "__main__":
    main()
