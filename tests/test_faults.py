"""After any fault and a rerun, the cache is the undisturbed one, byte for byte.

`tests/support/faults.py` injects the faults.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

import pipeline.stages.extract_shards
from pipeline.cache import shard_writer as shards
from tests.pipeline.workers.test_claims import writer_of
from tests.support import tiny_videos
from tests.support.fault_lab import (
    BROKEN,
    CLIPS,
    HOPELESS,
    OPTIONS,
    ROOT,
    Lab,
    differences,
    half_written,
)
from tests.support.faults import FAULTS, CannotBeMade, inject

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the laboratory of faults needs Linux's /proc"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def _inject(lab: Lab, name: str, count: int, seed: int) -> None:
    fault = FAULTS[name][0]
    try:
        assert inject(lab, fault, count, seed).total() == count
    except CannotBeMade as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", [name for name, (_, few, _) in FAULTS.items() if few])
def test_after_a_fault_a_rerun_gives_the_undisturbed_cache(lab, name, monkeypatch):
    # Other tests run beside this one: only the slow tests have to hold the 10 seconds.
    monkeypatch.setattr(lab, "soon", HOPELESS)
    _inject(lab, name, FAULTS[name][1], seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_after_many_faults_too(lab, name):
    _inject(lab, name, FAULTS[name][2], seed=0)


@pytest.mark.slow
def test_a_run_of_the_laboratory_does_what_the_command_does(lab, tmp_path):
    inputs = ["--manifest", lab.world / "manifest.csv", "--annotations", lab.world / "boxes.csv"]
    options = ["--cache", tmp_path / "cache", *OPTIONS.split()]
    command = [sys.executable, "-m", "cli", "extract", *inputs, *options]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 3
    assert not differences(tmp_path / "cache", lab.calm)


def test_the_comparison_sees_what_is_missing_left_or_other(lab, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(lab.calm, cache)
    assert not differences(cache, lab.calm)
    assert len(list((cache / "features").glob("*.h5"))) == CLIPS
    data = bytearray((cache / "features/00001.h5").read_bytes())
    data[-1] ^= 1
    (cache / "features/00001.h5").write_bytes(data)
    marker = cache / f"features/{BROKEN:05d}.json"
    record = json.loads(marker.read_text())
    record["failures"] = []
    marker.write_text(json.dumps(record))
    (cache / "features/00002.json").unlink()
    (cache / "features/00003.claim").touch()
    expected = {
        "features/00001.h5",
        f"features/{BROKEN:05d}.json",
        "features/00002.json",
        "features/00003.claim",
    }
    assert set(differences(cache, lab.calm)) == expected
    assert half_written(cache) == ["00003.claim"]


def test_a_shard_that_waits_for_one_that_fails_leaves_no_part_file(tmp_path, monkeypatch):
    """The second shard is written while the first is hashed, whose error ends the run."""

    def full(_complete, _claim):
        raise OSError(errno.ENOSPC, "No space left on device")

    world = tiny_videos.make_videos(tmp_path / "world", 3)
    monkeypatch.setattr(pipeline.stages.extract_shards, "_finish", full)
    options = replace(tiny_videos.INLINE, shard_size=1)
    with pytest.raises(OSError, match="No space left"):
        tiny_videos.run(world, tmp_path / "cache", options=options)
    assert not list((tmp_path / "cache" / "features").iterdir())


def test_a_shard_that_has_no_room_is_not_begun(tmp_path, monkeypatch):
    size = os.statvfs(tmp_path).f_frsize
    full = SimpleNamespace(f_blocks=9, f_bavail=1, f_frsize=size)
    monkeypatch.setattr(shards.os, "statvfs", lambda path: full)
    expected = r"expected [\d,]+ bytes for the next shard, [\d,]+ are free"
    with pytest.raises(OSError, match=f"No space left on device: {expected}"):
        writer_of(tmp_path / "00000.h5")
    assert not list(tmp_path.iterdir())
