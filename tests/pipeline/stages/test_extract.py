"""Stage one as a whole: small videos through a small network, onto the disk and back."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.extract import _report_warnings
from pipeline.backbones import build_backbone
from pipeline.cache.reader import Cache
from pipeline.files.atomic_files import read_json, write_json
from pipeline.manifests.manifest import Clip, read_manifest
from pipeline.regions import boxes as geometry
from pipeline.stages.config import ExtractConfig, with_settings
from pipeline.stages.extract import RunOptions, count_shards, describe, extract
from pipeline.stages.frozen_networks import FrozenNetworks, StoredShapes, at_size
from pipeline.stages.repair import MovedFiles, as_extracted
from pipeline.stages.shard_composer import _as_decode_error
from pipeline.stages.verify import shards_to_repair
from pipeline.video.decode import open_clip, why_no_decord, write_video
from pipeline.video.view_pixels import ClipOpener, DecodeViews, short_side, step_frames
from pipeline.views.sampling import Sampling
from pipeline.workers.claims import take_claim
from tests.support import tiny_videos
from tests.support.tiny_videos import make_videos, write_csv

ROOT = Path(__file__).parents[3]
# Pixels, frames, clips, and the clip that cannot be decoded.
SIDE, LENGTH, CLIPS, BROKEN = 96, 12, 7, 3
SAMPLING = Sampling(
    frames=4, size=64, train_views=2, train_crop="multiscale", flip=0.5, test_clips=1, test_crops=1
)
INLINE = RunOptions(workers=0, batch=3, shard_size=3, views_for_all=True)


def place(clip: int, frame: int) -> tuple[int, int, int, int]:
    """(x, y, width, height) in pixels of the bright rectangle that moves over black frames."""
    return 16 + 2 * frame + clip, 20 + 3 * clip, 28, 24


def painted(clip: int) -> np.ndarray:
    frames = np.zeros((LENGTH, SIDE, SIDE, 3), np.uint8)
    for k in range(LENGTH):
        x, y, w, h = place(clip, k)
        frames[k, y : y + h, x : x + w] = 200
    return frames


def config_of(world: Path, **changes) -> ExtractConfig:
    return tiny_videos.config_of(world, **{"sampling": SAMPLING, **changes})


def run(
    world: Path,
    cache: Path,
    config: ExtractConfig | None = None,
    options: RunOptions = INLINE,
    **more,
):
    return extract(
        config or config_of(world), read_manifest(world / "manifest.csv"), cache, options, **more
    )


def everything(cache: Path) -> dict[str, bytes]:
    """Every stored byte of a cache's tensors, by group and field."""
    opened = Cache(cache)
    found = {}
    for group in ("train", "test"):
        rows = opened[group]
        for name, array in rows.batch(np.flatnonzero(rows.ok)).items():
            found[f"{group}/{name}"] = array.tobytes()
        found[f"{group}/ok"] = np.asarray(rows.ok).tobytes()
    return found


def test_a_failed_clip_keeps_its_rows_and_its_reason(undisturbed):
    cache = Cache(undisturbed)
    train = cache["train"]
    assert len(train) == 2 * CLIPS
    bad = [r for r in range(len(train)) if not train.ok[r]]
    assert bad == [2 * BROKEN, 2 * BROKEN + 1]
    with pytest.raises(ValueError, match=f"clip{BROKEN}.*failed"):
        train.view(bad[0])
    (failure,) = cache.failures
    assert failure["clip"] == f"clip{BROKEN}"
    assert failure["error"] == "DecodeError"
    assert failure["message"]


def test_nothing_depends_on_the_number_of_workers(world, undisturbed, tmp_path):
    run(world, tmp_path / "cache", options=replace(INLINE, workers=2))
    assert everything(tmp_path / "cache") == everything(undisturbed)


def test_shards_done_alone_and_out_of_order_equal_one_run(world, undisturbed, tmp_path):
    for shard in (2, 0, 1):
        run(world, tmp_path / "cache", shards=[shard])
    assert everything(tmp_path / "cache") == everything(undisturbed)


def test_finished_shards_are_not_done_again(world, undisturbed):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.h5")}
    summary = run(world, undisturbed)
    assert (summary.shards, summary.already) == (0, 3)
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*.h5")} == before


def test_a_machine_without_decord_goes_on_with_the_cache_of_one_that_has_it(
    world, undisturbed, tmp_path, without_decord
):
    there = tmp_path / "cache"
    shutil.copytree(undisturbed, there)
    for name in ("00001.h5", "00001.json"):
        (there / "features" / name).unlink()
    run(world, there)
    assert why_no_decord()
    assert everything(there) == everything(undisturbed)


def test_batch_size_changes_only_rounding(world, undisturbed, tmp_path):
    run(world, tmp_path / "cache", options=replace(INLINE, batch=5))
    ours, theirs = Cache(tmp_path / "cache")["train"], Cache(undisturbed)["train"]
    good = np.flatnonzero(ours.ok)
    for name in ("pooled", "nodes", "conv2"):
        a, b = ours.batch(good, (name,))[name], theirs.batch(good, (name,))[name]
        assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()


def test_cached_tensors_equal_a_live_forward(world, undisturbed):
    """Decode, crop, normalise and run the network by hand: the cache holds the same numbers."""
    models = FrozenNetworks(config_of(world))
    manifest = read_manifest(world / "manifest.csv")
    clip = manifest.clips[1]
    pixels = DecodeViews(clip, ClipOpener(manifest.root), SAMPLING, 0, models.steps).run()
    cached = Cache(undisturbed)["train"]
    for row in (2, 3):
        view = cached.view(row)
        frames = torch.from_numpy(pixels.pixels[row - 2][None])
        with torch.inference_mode():
            live = models.backbone(models.backbone.prepare(frames))[0]
        np.testing.assert_allclose(view["pooled"], live.mean((-2, -1)).T, rtol=1e-5, atol=1e-5)


def test_a_cached_map_finishes_the_network(world, undisturbed):
    train, backbone = Cache(undisturbed)["train"], FrozenNetworks(config_of(world)).backbone
    rows = np.flatnonzero(train.ok)
    cached = train.batch(rows, ("conv2", "pooled"))
    with torch.inference_mode():
        maps = torch.from_numpy(cached["conv2"]).movedim(2, 1)  # [R,C,T,h,w]
        finished = backbone(maps, start="conv2")
    pooled = finished.mean((-2, -1)).movedim(1, 2)
    np.testing.assert_allclose(pooled, cached["pooled"], rtol=1e-5, atol=1e-5)


def test_a_box_is_followed_by_its_node_through_crop_and_flip(world, tmp_path):
    """The weights average brightness: a node in the rectangle is bright, the view is dark."""
    config = config_of(world)
    backbone = build_backbone("digit_cnn", width=8)
    for name, parameter in backbone.named_parameters():
        value = 0.0 if name.endswith("bias") else 1 / parameter[0].numel()
        torch.nn.init.constant_(parameter, value)
    torch.save(backbone.state_dict(), tmp_path / "brightness.pth")
    flipping = replace(SAMPLING, flip=1.0, train_crop="gos")
    config = replace(
        config,
        weights=str(tmp_path / "brightness.pth"),
        sampling=flipping,
        keep=("nodes", "pooled"),
    )
    run(world, tmp_path / "cache", config)
    train = Cache(tmp_path / "cache")["train"]
    for row in np.flatnonzero(train.ok):
        view = train.view(row)
        assert view["flip"]
        assert view["valid"][:, 0].all()
        assert (view["nodes"][:, 0] > 1.5 * view["pooled"]).all()
        x, y, w, h = view["crop"][:4]
        clip = int(train.clips[row].removeprefix("clip"))
        left, top, width, _ = place(clip, int(view["frames"][0]))
        inside = np.clip([(left - x) / w, (left + width - x) / w], 0, 1)
        # Mirrored in x, and only in x.
        upper = np.clip((top - y) / h, 0, 1)
        assert np.allclose(view["boxes"][0, 0, [2, 0]], 1 - inside, atol=1e-3)
        assert np.allclose(view["boxes"][0, 0, 1], upper, atol=1e-3)


def test_rows_hold_the_frames_that_were_decoded(world, undisturbed):
    manifest = read_manifest(world / "manifest.csv")
    train = Cache(undisturbed)["train"]
    with open_clip(manifest.clips[0]) as reader:
        frames = reader.read(range(LENGTH))
    view = train.view(0)
    assert ((view["frames"] >= 0) & (view["frames"] < LENGTH)).all()
    assert len(frames) == LENGTH


def test_maps_of_whole_frames_are_padded_to_the_widest_and_say_their_true_size(world, tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    shapes = [(64, 64), (64, 96), (96, 64)]
    for k, (h, w) in enumerate(shapes):
        write_video(folder / f"{k}.mp4", np.full((LENGTH, h, w, 3), 90, np.uint8), fps=8)
    write_csv(
        folder / "manifest.csv",
        ("clip", "path", "split", "label"),
        [(k, f"{k}.mp4", "test", 0) for k in range(3)],
    )
    sampling = Sampling(
        frames=4, size=64, train_views=0, test_clips=1, test_crops="full", test_short_side=64
    )
    config = replace(config_of(world), sampling=sampling, keep=("conv3", "pooled"))
    extract(config, read_manifest(folder / "manifest.csv"), tmp_path / "cache", INLINE)
    test = Cache(tmp_path / "cache")["test"]
    grids = [tuple(test.view(r)["grid"]) for r in range(3)]
    assert grids[0][0] == grids[0][1] < grids[1][1]
    assert grids[1] == grids[2][::-1]
    for row, (h, w) in enumerate(grids):
        fmap = test.view(row)["conv3"]
        assert fmap.shape[-2:] == (grids[2][0], grids[1][1])
        assert not fmap[..., h:, :].any()
        assert not fmap[..., w:].any()
        assert fmap[..., :h, :w].any()


def test_a_value_that_overflows_float16_fails_its_clip_by_name(world, tmp_path):
    backbone = build_backbone("digit_cnn", width=8)
    for parameter in backbone.parameters():
        torch.nn.init.constant_(parameter, 50.0)
    torch.save(backbone.state_dict(), tmp_path / "huge.pth")
    config = replace(
        config_of(world), weights=str(tmp_path / "huge.pth"), dtype="float16", keep=("pooled",)
    )
    summary = run(world, tmp_path / "cache", config)
    errors = {f["clip"]: f["error"] for f in summary.failures}
    assert errors[f"clip{BROKEN}"] == "DecodeError"
    assert errors["clip0"] == "NotFinite"
    assert "float32" in next(f["message"] for f in summary.failures if f["clip"] == "clip0")


def test_another_configuration_is_refused_with_the_differing_keys(world, undisturbed):
    with pytest.raises(ValueError, match=r"--roi-pool max; .*--roi-pool mean"):
        run(world, undisturbed, replace(config_of(world), roi_pool="mean"))


def test_frozen_networks_run_in_evaluation_without_gradients(world):
    models = FrozenNetworks(config_of(world))
    assert not models.backbone.training
    assert not any(p.requires_grad for p in models.backbone.parameters())


def test_dotted_settings_reach_their_place_and_unknown_ones_are_named(world):
    config = with_settings(
        ExtractConfig(),
        {"sampling.fps": 3.0, "backbone_options.temporal": "alternating", "roi_pool": "mean"},
    )
    assert (config.sampling.fps, config.backbone_options, config.roi_pool) == (
        3.0,
        {"temporal": "alternating"},
        "mean",
    )
    with pytest.raises(ValueError, match=r"sampling\.fsp"):
        with_settings(config, {"sampling.fsp": 3.0})


def command_line(world: Path, cache: Path, weights: Path) -> list[str]:
    text = (
        f"extract --manifest {world}/manifest.csv --cache {cache} --device cpu --workers 1 "
        f"--backbone digit_cnn --set backbone_options.width=8 --weights {weights} "
        f"--proposals annotations --annotations {world}/boxes.csv --boxes 2 "
        "--keep pooled,nodes,conv2 --dtype float32 --views-for-all --shard-size 1 "
        "--frames 4 --size 64 --train-views 2"
    )
    return [sys.executable, "-m", "cli", *text.split()]


def test_killed_at_any_moment_and_resumed_a_run_gives_the_same_bytes(world, tmp_path):
    torch.save(build_backbone("digit_cnn", width=8).state_dict(), tmp_path / "weights.pth")
    calm = command_line(world, tmp_path / "calm", tmp_path / "weights.pth")
    assert subprocess.run(calm, cwd=ROOT, capture_output=True).returncode == 3
    rng = np.random.default_rng(0)
    command = command_line(world, tmp_path / "killed", tmp_path / "weights.pth")
    features = tmp_path / "killed" / "features"
    features.mkdir(parents=True)
    # The run waits for this claim: however fast it is, it is not done before the kill.
    with take_claim(features / f"{CLIPS - 1:05d}.h5"):
        for _ in range(3):
            process = subprocess.Popen(
                command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            target = min(len(list(features.glob("*.json"))) + 1, CLIPS - 1)
            while process.poll() is None and len(list(features.glob("*.json"))) < target:
                # Until after the start-up, which writes nothing worth killing.
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 3
    assert everything(tmp_path / "killed") == everything(tmp_path / "calm")
    assert not list((tmp_path / "killed").rglob("*.part"))


def test_step_frames_are_every_second_frame_of_a_clip_with_half_as_many_steps():
    class View:
        frames = tuple(range(100, 132))

    assert step_frames(View, 16) == tuple(range(100, 132, 2))
    assert step_frames(View, 32) == View.frames


def test_boxes_outside_the_crop_are_dropped_and_valid_rows_come_first(undisturbed):
    train = Cache(undisturbed)["train"]
    for row in np.flatnonzero(train.ok):
        view = train.view(row)
        valid = view["valid"]
        assert (np.sort(~valid, axis=-1) == ~valid).all()
        assert not view["boxes"][~valid].any()
        assert not view["nodes"][~valid].any()
        assert (geometry.iou(view["boxes"], view["boxes"])[valid][:, 0] >= 0).all()


@pytest.fixture
def breakable(world, tmp_path) -> tuple[Path, Path]:
    """A copy of the videos, where the broken one can be mended, and a cache of it."""
    videos = tmp_path / "videos"
    shutil.copytree(world, videos)
    extract(config_of(videos), read_manifest(videos / "manifest.csv"), tmp_path / "cache", INLINE)
    return videos, tmp_path / "cache"


def test_a_repaired_clip_gives_the_cache_that_a_healthy_one_would_have_given(breakable, tmp_path):
    videos, cache = breakable
    write_video(videos / f"clip{BROKEN}.mp4", painted(BROKEN), fps=8)
    for path in cache.rglob("*.h5"):
        os.utime(path, (1, 1))  # whatever is written from now on is younger
    config, manifest, options = as_extracted(cache, RunOptions(workers=0))
    assert (config, options.batch) == (config_of(videos), INLINE.batch)
    summary = extract(config, manifest, cache, options, shards_to_repair(cache), redo=True)
    assert not summary.failures
    written = {path.name for path in cache.rglob("*.h5") if path.stat().st_mtime > 1}
    assert written == {f"{BROKEN // INLINE.shard_size:05d}.h5"}
    extract(config, manifest, tmp_path / "healthy", INLINE)
    assert everything(cache) == everything(tmp_path / "healthy")


def test_nobody_repairs_a_cache_whose_videos_are_gone(breakable):
    videos, cache = breakable
    shutil.rmtree(videos)
    with pytest.raises(ValueError, match="pass --annotations"):
        as_extracted(cache, RunOptions())
    with pytest.raises(ValueError, match="pass --root"):
        as_extracted(cache, RunOptions(), MovedFiles(annotations=__file__))


def test_nobody_repairs_a_cache_whose_description_is_damaged(breakable):
    _, cache = breakable
    (cache / "cache.json").write_text((cache / "cache.json").read_text() + "x")
    with pytest.raises(ValueError, match=r"cache\.json"):
        shards_to_repair(cache)


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": 3},
        {"cut": 3},
        {"weights": 3},
        {"backbone": 3},
        {"seed": "abc"},
        {"seed": 1.5},
        {"allow_truncated": "maybe"},
    ],
)
def test_an_option_of_the_wrong_type_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        with_settings(ExtractConfig(), wrong)


def test_a_text_for_a_number_in_a_networks_options_is_the_users_slip(world):
    with pytest.raises(ValueError, match="backbone_options"):
        FrozenNetworks(replace(config_of(world), backbone_options={"width": "abc"}))


def test_a_machine_without_a_gpu_describes_what_one_with_a_gpu_will_store(world, tmp_path):
    """Shapes and checksums follow from the config. Only computing in fp16 needs a GPU."""
    wide, half = config_of(world), config_of(world, precision="fp16")
    record, sizes = describe(half)
    assert (record | {"precision": "fp32"}, sizes) == describe(wide)
    assert (
        count_shards(half, read_manifest(world / "manifest.csv"), tmp_path / "cache", INLINE) == 3
    )
    outline, models = StoredShapes(wide), FrozenNetworks(wide)
    assert outline.record() == models.record()
    assert outline.shapes((64, 48)) == models.shapes((64, 48))
    with pytest.raises(
        ValueError, match=r"fp16 on a CPU .*: pass --precision fp32 or bf16, or .*GPU"
    ):
        extract(half, read_manifest(world / "manifest.csv"), tmp_path / "cache", INLINE)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"workers": -1}, {"shard_bytes": 0}, {"shard_size": -1}]
)
def test_a_run_refuses_numbers_it_cannot_work_with(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RunOptions(**wrong)


def test_what_looks_wrong_with_a_clip_is_said_and_kept_and_fails_nothing(tmp_path, capsys):
    """An end in milliseconds, and boxes at frames that no view has.

    The next run finds the shard complete and repeats the warning.
    """
    folder = make_videos(tmp_path / "videos", 3)
    rows = [
        ("clip0", "clip0.mp4", "test", 0, "", 1000),
        ("clip1", "clip1.mp4", "test", 1, "", ""),
        ("clip2", "clip2.mp4", "test", 0, 0, 1),
    ]
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label", "start", "end"), rows)
    frames = [("clip0", k) for k in range(8)] + [("clip1", 1), ("clip2", 6), ("clip2", 1)]
    boxes = [(clip, frame, 0, 0, 9, 9) for clip, frame in frames]
    write_csv(folder / "boxes.csv", ("clip", "frame", "x1", "y1", "x2", "y2"), boxes)
    # Not at 1 and 6.
    config = config_of(folder, sampling=replace(SAMPLING, train_views=0, sampling="linspace"))
    for _ in range(2):
        summary = run(folder, tmp_path / "cache", config)
        assert not summary.failures
        assert [warning["clip"] for warning in summary.warnings] == ["clip0", "clip1", "clip2"]
        assert "milliseconds" in summary.warnings[0]["message"]
        assert all("no box: none of its" in warning["message"] for warning in summary.warnings[1:])
    _report_warnings(summary.warnings, tmp_path)
    assert "warning: clip0: ends at 1000 s" in capsys.readouterr().err


def test_a_shard_without_warnings_is_recorded_as_before(undisturbed):
    assert all(
        "warnings" not in read_json(path) for path in (undisturbed / "features").glob("*.json")
    )


def test_a_failed_clip_has_the_seconds_it_took(undisturbed):
    (failure,) = Cache(undisturbed).failures
    assert failure["seconds"] > 0


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("", "decode it; try fewer"),
        ("Unable to allocate 3 GiB", "it (Unable to allocate 3 GiB); try"),
    ],
)
def test_a_clip_that_memory_is_too_small_for_is_a_failure_that_says_what_to_do(said, shown):
    clip = Clip("a", "/videos/a.mp4", "train", (), None, None, {}, 0)
    assert shown in _as_decode_error(clip, MemoryError(said), 1.0).reason


def test_a_cache_that_an_earlier_version_began_says_which_videos_are_read_otherwise_now(
    world, tmp_path
):
    said = []
    run(world, tmp_path / "cache", shards=[0], say=said.append)
    assert not said
    record = read_json(tmp_path / "cache" / "cache.json")
    assert record.pop("reading") == 3
    del record["seal"]
    write_json(tmp_path / "cache" / "cache.json", record, "claim")
    run(world, tmp_path / "cache", shards=[0], say=said.append)
    assert not said  # nothing is added to it
    run(world, tmp_path / "cache", shards=[1], say=said.append)
    assert len(said) == 1
    assert "pixels that are not square" in said[0]


@pytest.mark.parametrize(("height", "width", "size"), [(240, 426, 480), (720, 1280, 480)])
def test_frames_resized_by_the_device_are_pillows_up_to_rounding(height, width, size):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (30, 54, 3), np.uint8))
    frame = small.resize((width, height), Image.Resampling.BICUBIC)
    out_height, out_width = short_side(height, width, size)
    pillows = np.asarray(frame.resize((out_width, out_height), Image.Resampling.BILINEAR))
    ours = at_size(torch.from_numpy(np.array(frame))[None], size, "device")[0].numpy()
    assert np.abs(ours.astype(int) - pillows.astype(int)).max() <= 1


def test_a_cache_of_frames_that_the_device_resizes_is_another_one(world, tmp_path):
    boxes = {"proposals": "torchvision", "proposal_options": {"weights": "none", "size": 80}}
    config = replace(config_of(world), **boxes, keep=("boxes",), resize="device")
    run(world, tmp_path / "cache", config)
    with pytest.raises(ValueError, match=r"--frame-resize device; .* asks for: --frame-resize pil"):
        run(world, tmp_path / "cache", replace(config, resize="pil"))
    pil = replace(config, resize="pil")
    run(world, tmp_path / "pil", pil)
    device, pil = (Cache(tmp_path / name)["test"] for name in ("cache", "pil"))
    good = np.flatnonzero(pil.ok)
    a, b = (one.batch(good, ("scores",))["scores"] for one in (device, pil))
    np.testing.assert_allclose(a, b, atol=0.02)
