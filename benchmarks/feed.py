"""How many views a second one process of `extract` can feed, when the networks cost nothing.

The real extraction runs, with decode workers, batches, shards and files, but its networks return
the same zeros at once. What remains is what would keep a fast device waiting.

free      the workers return the same pixels again and again: this is the limit of everything behind
          the decoders.
decoding  the workers decode generated videos: this is the limit with so many decoders.

Views are `default` ones (32 frames of 224×224, 4.8 MB, with 16 frames for the region proposal
network) and `pooled` ones (the same without boxes). Each is fed in two ways, in turns:

now       pixels lie in memory that the workers share. A GPU's copy engine would read them there, so
          that this process does not copy them. The device resizes the frames of the proposals.
before    as vidgraph did until it shared memory: pixels come through pipes and are copied into
          batches, and the workers resize frames with Pillow.

main ms is the CPU time of the process that would drive the device, in ms per view: of its main
thread, and of all its threads. decode ms and write ms are those of a decode process and of the
thread that writes. MB is what crosses from the decode workers per view.

`--model` goes on from these times to a node of 8 GPUs: the share of the networks' own speed that
each of its processes reaches (`_feed_model.py`). `--pooled-ms` and `--default-ms` are the device's
times per view; their defaults are what a GPU of the H200 class should take for `i3d_r50` in bf16,
without and with the region proposal network.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from _feed_model import Node, Times, simulate
from _report import arguments, report

import pipeline.stages.frozen_networks as networks
from pipeline.manifests.manifest import read_manifest, write_manifest
from pipeline.networks.transfers import Transfers
from pipeline.stages import extract_shards
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions, extract
from pipeline.stages.frozen_networks import StoredShapes
from pipeline.video.decode import write_video
from pipeline.video.view_pixels import ClipPixels, DecodeViews, run_task, short_side, step_frames
from pipeline.views.sampling import Sampling
from pipeline.views.video_info import VideoInfo

SAMPLING = Sampling(frames=32, size=224, train_views=0, test_clips=1, test_crops=1)
HEIGHT, WIDTH, FRAMES = 240, 426, 40  # of the videos, as in Something-Something
KINDS = ("default", "pooled")
WAYS = ("before", "now")
# A data set has thousands of views in each of its shards. 64 shards of a few views would measure
# how long it takes to make files.
SHARDS = 2
SHARED_BYTES = extract_shards.SHARED_BYTES
FREE_TIMES = 10  # as many views where decoding costs nothing: else a run would last 0.3 s


@dataclass(frozen=True)
class FreeDecoder:
    """Answers a decode task with pixels of the right sizes that it made once."""

    def __call__(self, task: DecodeViews) -> ClipPixels:
        info = VideoInfo(FRAMES, WIDTH, HEIGHT, 12.0)
        views = task._views(info)
        pixels = [_canvas((len(view.frames), *view.size, 3)) for view in views]
        frames, looked_at = None, set()
        for view in views:
            looked_at.update(step_frames(view, task.steps))
        numbers = tuple(sorted(looked_at))
        if task.frame_size is not None:
            size = HEIGHT, WIDTH
            if task.resize == "pil":
                size = short_side(HEIGHT, WIDTH, task.frame_size)
            frames = _canvas((len(numbers), *size, 3))
        # The boxes of these networks are zeros, whatever the frames' numbers are.
        times = [np.zeros(task.steps, np.float32)] * len(views)
        return ClipPixels(info, views, pixels, numbers, frames, 0.0, "", times)


_MADE: dict[tuple[int, ...], np.ndarray] = {}


def _canvas(shape: tuple[int, ...]) -> np.ndarray:
    if shape not in _MADE:
        _MADE[shape] = np.full(shape, 127, np.uint8)
    return _MADE[shape]


class CopyEngine(Transfers):
    """Copies to a device that cost this process nothing, as from page-locked memory to a GPU."""

    def rows(self, arrays, shape):
        return torch.empty(0)


class FreeNetworks(networks.FrozenNetworks):
    """The networks of a config, which compute nothing: every field is zeros."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self.copies = config.resize == "pil"  # before: by this process
        if not self.copies:
            self.transfers = CopyEngine(self.device)
        self.zeros = {}

    def regions(self, clip, pixels):
        if self.source is None:
            return None
        regions = networks.ClipRegions(clip, pixels)
        if self.copies:
            regions.frames.copy()
        shape = (len(pixels.numbers), self.num_boxes)
        regions.found = np.zeros((*shape, 4), np.float32), np.full(shape, -1, np.float32), {}
        regions.frames = None
        return regions

    def launch(self, rows, size):
        watch = networks.Stopwatch(self.device)
        self.transfers.rows([row.pixels for row in rows], (self.config.sampling.frames, *size, 3))
        # Boxes are cut to the views by the host.
        boxes, out = self._boxes_of(rows, []), {}
        for name, shape in self.shapes(size).items():
            if name in self.config.keep and name not in boxes:
                dtype = getattr(torch, self.config.dtype)
                whole = (len(rows), *shape)
                if (name, whole) not in self.zeros:
                    self.zeros[name, whole] = torch.zeros(whole, dtype=dtype)
                out[name] = self.zeros[name, whole]
        watch.mark()
        watch.mark()
        return networks.Computed(self.transfers.out(out), boxes, watch, self.seconds)


def make_manifest(folder: Path, clips: int, videos: int) -> Path:
    """A manifest of so many clips, which share a few videos of moving noise."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (60, 107, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    for k in range(videos):
        frames = []
        for t in range(FRAMES):
            moved = np.roll(texture, (2 * t, 3 * t + 5 * k), (0, 1))
            frames.append(moved[:HEIGHT, :WIDTH])
        write_video(folder / f"{k}.mp4", np.stack(frames), fps=12)
    rows = []
    for k in range(clips):
        rows.append({"clip": str(k), "path": f"{k % videos}.mp4", "split": "test", "label": "0"})
    write_manifest(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def frame_size_of(way: str) -> tuple[int, int]:
    """Height and width of the whole frames that cross from the decode workers."""
    if way == "now":
        return HEIGHT, WIDTH
    return short_side(HEIGHT, WIDTH, StoredShapes(config_of("default", way)).frame_size)


@cache
def config_of(kind: str, way: str) -> ExtractConfig:
    """A config of default or pooled views, with networks without weights."""
    config = ExtractConfig(
        backbone="i3d_r50",
        sampling=SAMPLING,
        proposal_options={"weights": "none"},
        resize="pil" if way == "before" else "device",
    )
    if kind == "pooled":
        return replace(config, keep=("pooled",))
    return config


def feed(
    kind: str, way: str, free: bool, manifest_path: Path, options: RunOptions
) -> dict[str, float]:
    """One extraction: views per second, and CPU ms per view."""
    extract_shards.SHARED_BYTES = 0 if way == "before" else SHARED_BYTES
    manifest = read_manifest(manifest_path)
    views = len(manifest.clips)
    networks.FrozenNetworks = FreeNetworks
    extract_shards.run_task = FreeDecoder() if free else run_task
    begun: list[float] = []

    def advance(done: int, failed: int) -> None:
        # The first clip comes when networks and workers have started.
        if not begun:
            begun.extend((time.perf_counter(), time.thread_time(), time.process_time()))
        if failed:
            raise RuntimeError("a clip failed")

    with tempfile.TemporaryDirectory() as folder:
        done = extract(
            config_of(kind, way), manifest, folder, options, announce=lambda to_do, before: advance
        )
    work = done.work
    wall, thread, process = (
        now - then
        for now, then in zip(
            (time.perf_counter(), time.thread_time(), time.process_time()), begun, strict=True
        )
    )
    views -= 1
    return {
        "views/s": views / wall,
        "main ms": 1000 * thread / views,
        "process ms": 1000 * process / views,
        "decode ms": 1000 * work.decode / work.views,
        "write ms": 1000 * work.write / work.views,
        "MB": view_bytes(kind, way) / 1e6,
    }


def view_bytes(kind: str, way: str) -> int:
    """Bytes of decoded pixels of a view, with the whole frames that the source of boxes reads."""
    pixels = SAMPLING.frames * SAMPLING.size**2 * 3
    if kind == "pooled":
        return pixels
    height, width = frame_size_of(way)
    return pixels + SAMPLING.frames // 2 * height * width * 3


def model(rows: list[dict], device_ms: dict[str, float], gpus: int, batch: int) -> list[dict]:
    """The table of a node, from the rows that were measured."""
    table = []
    for kind in KINDS:
        free, decoded = (
            next(row for row in rows if _is(row, views=kind, fed="now", decoders=decoders))
            for decoders in ("free", "decoding")
        )
        times = Times(
            decoded["decode ms"] / 1e3,
            free["main ms"] / 1e3,
            device_ms[kind] / 1e3,
            free["write ms"] / 1e3,
            view_bytes(kind, "now"),
        )
        for cores in (64, 128):
            found = simulate(times, Node(gpus, cores), batch)
            table.append(
                {
                    "views": kind,
                    "GPUs": gpus,
                    "cores": cores,
                    "views/s of each": found.rate,
                    "limit": found.limit,
                    "share %": 100 * found.share,
                    "decoders busy %": 100 * found.decoders,
                    "main thread busy %": 100 * found.main,
                    "writer busy %": 100 * found.writer,
                }
            )
    return table


def _is(row: dict, **values: str) -> bool:
    return all(row[key] == value for key, value in values.items())


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=400, help="views of each run that decodes")
    parser.add_argument("--workers", type=int, default=1, help="decode processes")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each row; medians are shown")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--model", action="store_true", help="also print the table of a GPU node")
    parser.add_argument("--gpus", type=int, default=8, help="of that node")
    parser.add_argument("--pooled-ms", type=float, default=1.0, help="of the device, per view")
    parser.add_argument("--default-ms", type=float, default=10.0, help="of the device, per view")
    asked = parser.parse_args()
    options = RunOptions(workers=asked.workers, batch=asked.batch)

    with tempfile.TemporaryDirectory() as folder:
        manifests = {}
        for free, clips in ((True, FREE_TIMES * asked.clips), (False, asked.clips)):
            place = Path(folder, "free" if free else "decoding")
            place.mkdir()
            sized = replace(options, shard_size=max(1, clips // SHARDS))
            manifests[free] = make_manifest(place, clips, 4), sized
        rows = []
        cases = list(product(KINDS, (True, False), WAYS))
        found = {case: [] for case in cases}
        for _ in range(asked.rounds):
            for kind, free, way in cases:
                found[kind, free, way].append(feed(kind, way, free, *manifests[free]))
        for (kind, free, way), runs in found.items():
            row = {"views": kind, "decoders": "free" if free else "decoding", "fed": way}
            for key in runs[0]:
                row[key] = statistics.median(run[key] for run in runs)
            rows.append(row)
    report(f"feed: {asked.workers} decode processes, batches of {asked.batch}", rows, asked.json)
    if asked.model:
        device_ms = {"default": asked.default_ms, "pooled": asked.pooled_ms}
        beside = asked.json and asked.json.with_name(f"{asked.json.stem}-model.json")
        table = model(rows, device_ms, asked.gpus, asked.batch)
        report("model of a GPU node, from these times", table, beside)


if __name__ == "__main__":
    main()
