"""Extraction against what it cannot beat and against how it is commonly done.

bare    the same frozen networks on pixels that lie in memory: no video, no disk, no processes.
        Ours/bare is what decoding, moving and writing cost.
eager   one video at a time: decord in the same process, resize with torch, the plain network in
        fp32, one .npy per clip. The network is pytorchvideo's I3D-R50 where that package is
        installed, else our own before it is frozen. It runs in a process of its own, since ours
        changes how this one keeps memory, from which eager would gain too.

Both are run in turn with ours, on the same generated videos; ratios are of the medians of the
rounds. What is timed of ours is the steady state, the second of two shards: loading the networks
and starting the workers, once per run, is shown apart. No further round begins where the last one
shows that it would not end within `--minutes`.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _report import arguments, report, require_decord

from pipeline.backbones import build_backbone
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import Clip, read_manifest, write_manifest
from pipeline.networks.precision import bf16_on_cpu, cost
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions, extract
from pipeline.stages.frozen_networks import BatchRow, FrozenNetworks
from pipeline.video.decode import write_video
from pipeline.video.view_pixels import ClipOpener, DecodeViews
from pipeline.views.sampling import Sampling
from pipeline.workers.memory import keep_freed_memory

SAMPLING = Sampling(frames=32, size=224, train_views=0, test_clips=1, test_crops=1)


def make_videos(folder: Path, count: int) -> Path:
    """Videos of 240×320 and 64 frames in which a noisy texture moves, so that neither codec nor
    network sees nothing.
    """
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (60, 80, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    for k in range(count):
        frames = np.stack(
            [np.roll(texture, (2 * t, 3 * t + 5 * k), (0, 1))[:240, :320] for t in range(64)]
        )
        write_video(folder / f"{k}.mp4", frames, fps=12)
    rows = [
        {"clip": str(k), "path": f"{k}.mp4", "split": "train", "label": "0"} for k in range(count)
    ]
    write_manifest(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def precisions() -> tuple[str, ...]:
    """Those that are measured; the rows in bf16 are left out, which is said, where the CPU has no
    bf16.
    """
    if bf16_on_cpu() == "native":
        return ("fp32", "bf16")
    return ("fp32",)


def half(manifest_path: Path) -> tuple[Clip, ...]:
    """As many clips as the shard of ours that is timed."""
    clips = read_manifest(manifest_path).clips
    return clips[: len(clips) // 2]


def bare(config: ExtractConfig, manifest_path: Path, batch: int) -> float:
    """Seconds per clip of the networks alone."""
    models, clips = FrozenNetworks(config), half(manifest_path)
    opening = ClipOpener(manifest_path.parent)
    pixels = [
        DecodeViews(clip, opening, SAMPLING, 0, models.steps, models.frame_size).run()
        for clip in clips
    ]

    def compute(some: range) -> None:
        rows = []
        for k in some:
            regions = models.regions(clips[k], pixels[k])
            rows.append(BatchRow(pixels[k].pixels[0], pixels[k].views[0], regions))
        models.launch(rows, rows[0].view.size).wait()

    compute(range(1))
    begun = time.perf_counter()
    for start in range(0, len(pixels), batch):
        compute(range(start, min(start + batch, len(pixels))))
    return (time.perf_counter() - begun) / len(pixels)


def ours(config: ExtractConfig, manifest_path: Path, batch: int) -> tuple[float, float]:
    """Seconds per clip of an extraction's second shard, and what the run took beyond that for each
    of its clips.
    """
    manifest = read_manifest(manifest_path)
    clips = len(manifest.clips) // 2
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        extract(config, manifest, folder, RunOptions(workers=1, batch=batch, shard_size=clips))
        total = time.perf_counter() - begun
        steady = Cache(folder).records["features"][1]["seconds"]["wall"] / clips
        return steady, total - steady * 2 * clips


def eager_network() -> tuple[torch.nn.Module, str]:
    """The network as feature extractors run it: not frozen, not folded, plain memory order."""
    try:
        from pytorchvideo.models.hub.resnet import i3d_r50
    except ImportError:
        return build_backbone(
            "i3d_r50"
        ).eval(), "our i3d_r50 before freezing (pytorchvideo is not installed)"
    network = i3d_r50(pretrained=False).eval()
    network.blocks = network.blocks[:-1]  # without its head
    return network, "pytorchvideo i3d_r50"


def eager(manifest_path: Path) -> tuple[float, str]:
    """Seconds per clip, one video at a time, in a new process; and which network."""
    done = subprocess.run(
        [sys.executable, __file__, "--eager", str(manifest_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, name = done.stdout.splitlines()[-1].split(maxsplit=1)
    return float(seconds), name


@torch.inference_mode()
def run_eager(network: torch.nn.Module, manifest_path: Path) -> float:
    """What that process does."""
    import decord

    clips = half(manifest_path)
    network(torch.zeros(1, 3, 32, 224, 224))
    mean, std = (
        torch.tensor(v)[:, None, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        for clip in clips:
            reader = decord.VideoReader(str(clip.path))
            frames = torch.from_numpy(
                reader.get_batch(np.linspace(0, len(reader) - 1, 32).astype(int)).asnumpy()
            )
            x = frames.permute(0, 3, 1, 2).float() / 255
            x = torch.nn.functional.interpolate(x, size=(224, 299), mode="bilinear")[..., 37:261]
            y = network(((x.transpose(0, 1) - mean) / std)[None])
            np.save(f"{folder}/{clip.clip}.npy", y.mean((-2, -1))[0].numpy())
        return (time.perf_counter() - begun) / len(clips)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--clips", type=int, default=4, help="generated videos per row and round (default 4)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds of every row, in turn (default 2)"
    )
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="begin no round that takes longer (default 9)"
    )
    parser.add_argument("--batch", type=int, default=2, help="views per forward pass (default 2)")
    parser.add_argument(
        "--proposal-size",
        type=int,
        default=240,
        help="short side for the RPN, pixels (default 240)",
    )
    parser.add_argument(
        "--no-boxes",
        action="store_true",
        help="leave out the rows with boxes, which take most of the time",
    )
    parser.add_argument(
        "--eager", type=Path, metavar="MANIFEST", help="only time the eager network on these videos"
    )
    given = parser.parse_args()
    require_decord()
    if given.eager:
        network, name = eager_network()
        print(run_eager(network, given.eager), name)
        return
    keep_freed_memory()
    if line := cost("bf16", "cpu"):
        print(f"the rows in bf16 are left out: {line}")
    pooled = ExtractConfig(
        sampling=SAMPLING, keep=("pooled",), backbone_options={"temporal": "alternating"}
    )
    options = {"weights": "none", "size": given.proposal_size}
    nodes = replace(pooled, keep=("pooled", "nodes", "boxes"), proposal_options=options)
    kinds = (
        (("pooled", pooled),)
        if given.no_boxes
        else (("pooled", pooled), ("pooled, nodes, boxes", nodes))
    )
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_videos(Path(folder), 2 * given.clips)
        begun = time.monotonic()
        for number in range(given.rounds):
            spent = time.monotonic() - begun
            if number and spent * (number + 1) / number > 60 * given.minutes:
                print(f"{number} of {given.rounds} rounds: a further one would take too long")
                break
            for precision in precisions():
                for what, config in kinds:
                    config = replace(config, precision=precision)
                    per_clip, start = ours(config, manifest, given.batch)
                    seconds.setdefault(f"ours {precision}: {what}", []).append(per_clip)
                    seconds.setdefault("start-up of a run (once)", []).append(start)
                    seconds.setdefault(f"bare {precision}: {what}", []).append(
                        bare(config, manifest, given.batch)
                    )
            per_clip, name = eager(manifest)
            seconds.setdefault("eager", []).append(per_clip)
    middle = {key: statistics.median(values) for key, values in seconds.items()}
    rows = []
    for key, value in middle.items():
        if key.startswith("ours"):
            rows.append(
                {
                    "run": key.removeprefix("ours "),
                    "ours s/clip": value,
                    "bare s/clip": middle[key.replace("ours", "bare")],
                    "ours/bare": value / middle[key.replace("ours", "bare")],
                    "eager s/clip": middle["eager"] if "nodes" not in key else "-",
                    "eager/ours": middle["eager"] / value if "nodes" not in key else "-",
                }
            )
    once = middle["start-up of a run (once)"]
    report(
        f"Extraction, 32 x 224 x 224; eager is {name}; start-up {once:.1f} s once per run",
        rows,
        given.json,
    )


if __name__ == "__main__":
    main()
