"""HDF5 writes through a PartFile what it would write itself, and sees no error of the disk."""

import errno
import io
import os

import h5py
import numpy as np
import pytest

from pipeline.cache import part_file as partfile
from pipeline.cache.part_file import PartFile
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.files.atomic_files import sha256_of

PWRITE = os.pwrite
# So many that HDF5 writes some metadata before the end.
ROWS = 40
FIELDS = {
    "pooled": ((2, 1500), "float32"),
    "boxes": ((2, 2, 4), "float32"),
    "valid": ((2, 2), "bool"),
}


class Disk:
    """Replaces `os.pwrite`: writes `piece` bytes at once, and fails from call number `full` on."""

    def __init__(self, full: float = float("inf"), piece: int = 1 << 30):
        self.full, self.piece, self.calls = full, piece, 0

    def __call__(self, number, data, place):
        self.calls += 1
        if self.calls > self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return PWRITE(number, data[: self.piece], place)


def write_shard(path, compression="none") -> dict:
    plan = GroupPlan([f"clip{k}" for k in range(ROWS)], [0] * ROWS, FIELDS)
    rng = np.random.default_rng(0)
    with ShardWriter(
        path, {"train": plan}, attrs={"shard": 0}, compression=compression, claim="test"
    ) as writer:
        for row in range(ROWS):
            tensors = {}
            for name, (shape, kind) in FIELDS.items():
                tensors[name] = rng.integers(0, 2, shape).astype(kind)
            writer.write("train", row, tensors)
        return writer.finish({"failures": []})


@pytest.mark.parametrize("compression", ["none", "lzf"])
def test_wherever_the_disk_fills_up_the_shard_ends_with_that_error_and_leaves_nothing(
    tmp_path, monkeypatch, compression
):
    monkeypatch.setattr(partfile.os, "pwrite", roomy := Disk())
    write_shard(tmp_path / "00000.h5", compression)
    assert roomy.calls > 20
    for full in (*range(0, roomy.calls - 5, 10), *range(roomy.calls - 5, roomy.calls)):
        monkeypatch.setattr(partfile.os, "pwrite", Disk(full))
        path = tmp_path / f"after-{full}" / "00000.h5"
        with pytest.raises(OSError, match=r"No space left on device: '.*00000\.h5\.test\.part'"):
            write_shard(path, compression)
        assert not list(path.parent.iterdir())


def test_a_disk_that_takes_a_little_at_a_time_gets_the_same_file(tmp_path, monkeypatch):
    expected = write_shard(tmp_path / "00000.h5")["sha256"]
    monkeypatch.setattr(partfile.os, "pwrite", slow := Disk(piece=1000))
    written = write_shard(tmp_path / "00001.h5")["sha256"]
    assert written == sha256_of(tmp_path / "00001.h5") == expected
    assert slow.calls > ROWS * 12


def write_much(file) -> dict[str, np.ndarray]:
    """Write with HDF5 through `file`, and read everything back before it is closed."""
    rng = np.random.default_rng(1)
    with h5py.File(file, "w", libver=("v110", "v110")) as made:
        for name in "abc":
            made.create_dataset(
                name, data=rng.random((300, 50)), chunks=(1, 50), fletcher32=True, track_times=False
            )
        made.flush()
        return {name: made[name][...] for name in "abc"}


@pytest.mark.parametrize("full", [0, 1, 5, 400])
def test_hdf5_finds_again_what_did_not_reach_the_disk(tmp_path, monkeypatch, full):
    memory = io.BytesIO()
    expected = write_much(memory)
    whole, broken = PartFile(tmp_path / "whole"), PartFile(tmp_path / "broken")
    write_much(whole)
    whole.check()
    assert (tmp_path / "whole").read_bytes() == memory.getvalue()
    monkeypatch.setattr(partfile.os, "pwrite", Disk(full))
    found = write_much(broken)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    with pytest.raises(OSError, match="No space left"):
        broken.check()


@pytest.mark.parametrize("ended", [PartFile.drop, PartFile.close])
def test_nothing_is_written_to_a_file_that_is_dropped_or_closed(tmp_path, ended):
    """Its descriptor number may belong to another file by then."""
    file = PartFile(tmp_path / "part")
    file.write(b"before")
    ended(file)
    with open(tmp_path / "other", "w+b") as other:
        other.write(b"theirs, which is longer")
        other.flush()
        file.write(b", after")
        file.truncate(0)
    assert (tmp_path / "part").read_bytes() == b"before"
    assert (tmp_path / "other").read_bytes() == b"theirs, which is longer"
    with pytest.raises(FileExistsError):
        PartFile(tmp_path / "part")
