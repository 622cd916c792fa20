"""Extraction on a real Slurm: a job array for plain sbatch, and Dask workers as jobs.

Jobs are cancelled half way. Needs Debian's slurm-wlm and munge, and root. `.ci/run` installs them
where it may.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backbones import build_backbone
from pipeline.video.decode import write_video
from pipeline.workers.claims import take_claim
from tests.cluster import slurm
from tests.pipeline.stages.test_extract import LENGTH, everything, painted, place
from tests.support.tiny_videos import write_csv

ROOT = Path(__file__).parents[2]
CLIPS = 6
ON_SLURM = (
    *("--slurm", "time=00:10:00", "--jobs", "2"),
    *("--interface", "lo", "--dashboard", "127.0.0.1:0"),
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.why_not()), reason=f"no Slurm here: {slurm.why_not()}"),
]


@pytest.fixture(scope="module")
def env():
    """The environment of a Slurm that runs as long as the tests of this file."""
    with slurm.running() as env:
        yield env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Six videos, one per shard, with boxes and weights."""
    folder = tmp_path_factory.mktemp("world")
    rows, boxes = [], []
    for clip in range(CLIPS):
        write_video(folder / f"clip{clip}.mp4", painted(clip), fps=8)
        rows.append((f"clip{clip}", f"clip{clip}.mp4", "train", clip % 2))
        for frame in range(LENGTH):
            x, y, w, h = place(clip, frame)
            boxes.append((f"clip{clip}", frame, x, y, x + w, y + h))
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)
    write_csv(folder / "boxes.csv", ("clip", "frame", "x1", "y1", "x2", "y2"), boxes)
    torch.save(build_backbone("digit_cnn", width=8).state_dict(), folder / "weights.pth")
    return folder


def command(world: Path, cache: Path, *more: str) -> list[str]:
    text = (
        f"extract --manifest {world}/manifest.csv --cache {cache} --backbone digit_cnn "
        f"--weights {world}/weights.pth --set backbone_options.width=8 "
        f"--keep pooled,nodes,conv2 --proposals annotations --annotations {world}/boxes.csv "
        f"--boxes 2 --frames 4 --size 64 --train-views 60 --dtype float32 --shard-size 1 "
        f"--workers 1 --views-for-all"
    )
    return [sys.executable, "-m", "cli", *text.split(), *more]


@pytest.fixture(scope="module")
def undisturbed(world, env, tmp_path_factory) -> dict[str, bytes]:
    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    subprocess.run(command(world, cache), cwd=ROOT, env=env, check=True, capture_output=True)
    return everything(cache)


def done(cache: Path) -> set[str]:
    return {path.stem for path in (cache / "features").glob("*.json")}


def jobs(env) -> list[str]:
    command = ["squeue", "--noheader", "--array", "--format=%A"]
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return found.stdout.split()


def last(cache: Path):
    """The claim on the last shard: while it is held, no run is over, however fast the machine."""
    cache.mkdir(exist_ok=True)
    return take_claim(cache / "features" / f"{CLIPS - 1:05d}.h5")


def until(true, what: str, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def said(cache: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((cache / "logs").glob("*")))


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.suffix in (".part", ".claim")]


def test_a_job_array_that_was_cancelled_and_submitted_again_gives_the_undisturbed_cache(
    world, env, undisturbed, tmp_path
):
    cache = tmp_path / "cache"
    asked = command(world, cache, "--print-sbatch", "--slurm", "time=00:10:00", "--jobs", "2")
    options = {"cwd": ROOT, "env": env, "check": True, "capture_output": True, "text": True}
    script = subprocess.run(asked, **options).stdout
    assert "#SBATCH --array=0-1%2\n" in script
    assert "#SBATCH --time=00:10:00\n" in script

    def submit() -> str:
        printed = subprocess.run(["sbatch", "--parsable"], input=script, **options)
        return printed.stdout.strip()

    with last(cache):
        job = submit()
        until(lambda: done(cache), "the first shard")
        subprocess.run(["scancel", job], env=env, check=True)
        until(lambda: not jobs(env), "the end of what was cancelled")
    finished = [cache / "features" / f"{shard}.h5" for shard in done(cache)]
    before = {path: path.stat().st_mtime_ns for path in finished}
    assert 0 < len(before) < CLIPS, said(cache)
    submit()
    until(lambda: not jobs(env), "the end of the array")
    assert len(done(cache)) == CLIPS, said(cache)
    assert everything(cache) == undisturbed
    assert not leftovers(cache)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert before == after, "finished shards were done again"


def test_dask_workers_in_slurm_jobs_lose_nothing_when_a_job_is_cancelled(
    world, env, undisturbed, tmp_path
):
    cache = tmp_path / "cache"
    asked = command(world, cache, *ON_SLURM)
    with open(tmp_path / "log", "w+") as log:
        claim = last(cache)
        run = subprocess.Popen(asked, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            until(lambda: done(cache) or run.poll() is not None, "the first shard")
            subprocess.run(["scancel", *jobs(env)[:1]], env=env, check=True)
            claim.release()
            code = run.wait(600)
        finally:
            claim.release()
            run.kill()
            run.wait()
        log.seek(0)
        words = log.read()
    assert code == 0, words + said(cache)
    assert everything(cache) == undisturbed
    assert not leftovers(cache)
    assert "dashboard: http://127.0.0.1:" in words
    until(lambda: not jobs(env), "the end of all jobs")


def test_a_run_that_is_interrupted_takes_its_slurm_jobs_with_it(world, env, undisturbed, tmp_path):
    cache = tmp_path / "cache"
    asked = command(world, cache, *ON_SLURM)
    with last(cache):
        run = subprocess.Popen(asked, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        until(lambda: done(cache) or run.poll() is not None, "the first shard")
        asked_at = time.monotonic()
        os.kill(run.pid, signal.SIGTERM)
        _, words = run.communicate(timeout=600)
    # 10 on a quiet machine, which this one may not be.
    print(f"ended after {time.monotonic() - asked_at:.1f} s")
    assert run.returncode == 130
    assert "the same command resumes" in words
    until(lambda: not jobs(env), "the end of all jobs")
    subprocess.run(command(world, cache), cwd=ROOT, env=env, check=True, capture_output=True)
    assert everything(cache) == undisturbed
    assert not leftovers(cache)


def test_the_whole_cache_was_read(undisturbed):
    assert np.frombuffer(undisturbed["train/ok"], bool).sum() == 60 * CLIPS
