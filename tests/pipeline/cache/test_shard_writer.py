"""A shard appears whole or not at all, with checksums, and any HDF5 reader can read it."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.cache import shard_writer as shards
from pipeline.cache.reader import create_cache
from pipeline.cache.shard_reader import ShardFile
from pipeline.cache.shard_writer import COMPRESSIONS, GroupPlan, NotFinite, ShardWriter
from pipeline.files import atomic_files
from pipeline.files.atomic_files import Damaged, done_marker, fletcher32, read_json, write_json
from tests.support.small_cache import FIELDS, VIEWS, manifest_of, tensors_of, write_shard

ATTRS = {"fingerprint": "f", "shard": 0}


def one_field(
    rows: int = 3, shape: tuple[int, ...] = (2, 4), dtype: str = "float16"
) -> dict[str, GroupPlan]:
    clips = [f"clip{k}" for k in range(rows)]
    return {"train": GroupPlan(clips, [0] * rows, {"pooled": (shape, dtype)})}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def plan(tmp_path):
    return create_cache(tmp_path / "cache", {"a": 1}, manifest_of(tmp_path), 3)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_dataset_has_checksums_and_one_view_per_chunk(plan, compression):
    write_shard(plan, 0, compression=compression)
    with h5py.File(plan.path(0)) as file:
        for group in VIEWS:
            assert set(file[group]) == {"clip", "view", "ok", *FIELDS}
            for name, dataset in file[group].items():
                assert dataset.fletcher32, name
                assert name not in FIELDS or dataset.chunks == (1, *FIELDS[name][0])


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_any_reader_of_hdf5_finds_what_was_written(plan, compression):
    """h5py reads through HDF5's own filters, which refuse a chunk whose checksum is not theirs."""
    write_shard(plan, 1, compression=compression)
    with h5py.File(plan.path(1)) as file:
        clips = file["train/clip"].asstr()[:].tolist()
        assert clips == ["clip3", "clip3", "clip4", "clip4", "clip5", "clip5"]
        assert file["train/view"][:].tolist() == [0, 1] * 3
        assert file["train/ok"][:].all()
        for name, values in tensors_of("train", "clip4", 1).items():
            np.testing.assert_array_equal(file["train"][name][3], values)


def test_the_default_file_needs_no_plugin(plan):
    write_shard(plan, 0)
    code = f"""
import h5py, sys
h5py.File({str(plan.path(0))!r})["train/nodes"][:]
print("hdf5plugin" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_large_views_are_compressed_by_choice(tmp_path):
    sizes = {}
    for compression in COMPRESSIONS:
        with ShardWriter(
            tmp_path / f"{compression}.h5",
            one_field(shape=(16, 512)),
            attrs=ATTRS,
            compression=compression,
        ) as writer:
            writer.write("train", 0, {"pooled": np.ones((16, 512), np.float16)})
            sizes[compression] = writer.finish({})["bytes"]
    assert max(sizes["lzf"], sizes["zstd"]) < sizes["none"] / 2


def test_large_views_start_on_a_page(tmp_path):
    with ShardWriter(tmp_path / "00000.h5", one_field(shape=(16, 2049)), attrs=ATTRS) as writer:
        for row in range(3):
            writer.write("train", row, {"pooled": np.ones((16, 2049), np.float16)})
        record = writer.finish({})
    offsets = ShardFile(tmp_path / "00000.h5", record).layout("train", "pooled").offsets
    assert not (offsets % 4096).any()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 720, 2047, 2048, 2049, 4096, 5000, 100_001])
@pytest.mark.parametrize("kind", ["random", "zeros", "ones"])
def test_our_checksum_is_that_of_hdf5(tmp_path, size, kind):
    data = {
        "random": np.random.default_rng(size).integers(0, 256, size),
        "zeros": np.zeros(size),
        "ones": np.full(size, 255),
    }[kind]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=data.astype(np.uint8), chunks=(size,), fletcher32=True)
    with h5py.File(tmp_path / "a.h5") as file:
        stored = file["x"].id.read_direct_chunk((0,))[1]
    assert fletcher32(data.astype(np.uint8)) == int.from_bytes(stored[-4:], "little")


def test_checksum_is_the_same_in_pieces(monkeypatch):
    data = np.random.default_rng(0).integers(0, 256, 50_001, dtype=np.uint8)
    whole = fletcher32(data)
    monkeypatch.setattr(atomic_files, "PIECE", 8192)
    assert fletcher32(data) == whole


def test_writing_twice_gives_the_same_bytes(tmp_path, plan):
    first = write_shard(plan, 0)["sha256"]
    assert write_shard(plan, 0)["sha256"] == first


@pytest.mark.parametrize("kept", range(1, 5))
def test_the_bytes_do_not_depend_on_how_long_handles_live(plan, monkeypatch, kept):
    """A profiler, or the traceback of an error, may hold the frames that have them."""
    first, create, handles = write_shard(plan, 0)["sha256"], h5py.Group.create_dataset, []

    def held(*args, **options):
        handles.append(create(*args, **options))
        del handles[:-kept]
        return handles[-1]

    monkeypatch.setattr(h5py.Group, "create_dataset", held)
    assert write_shard(plan, 0)["sha256"] == first


def test_statistics_hold_the_hash_of_the_whole_file(plan):
    record = write_shard(plan, 0)
    assert record["sha256"] == hashlib.sha256(plan.path(0).read_bytes()).hexdigest()
    assert record["bytes"] == plan.path(0).stat().st_size
    read = read_json(done_marker(plan.path(0)))
    del read["seal"]
    assert read == record


def test_any_flipped_bit_of_the_statistics_is_found(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"clip": "ü", "n": 17, "list": [1.5, None]}, "me")
    assert read_json(path)["n"] == 17
    text = path.read_bytes()
    for bit in range(0, len(text) * 8, 7):
        wrong = bytearray(text)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        with pytest.raises(Damaged):
            read_json(path)


def test_nothing_is_seen_before_it_is_complete(tmp_path):
    path = tmp_path / "shard" / "00000.h5"
    with ShardWriter(path, one_field(), attrs=ATTRS, claim="me") as writer:
        writer.write("train", 0, {"pooled": np.zeros((2, 4))})
        assert names(path.parent) == ["00000.h5.me.part"]
    assert names(path.parent) == []
    with ShardWriter(path, one_field(), attrs=ATTRS) as writer:
        writer.finish({})
    assert names(path.parent) == ["00000.h5", "00000.json"]


def test_the_done_marker_comes_last_and_goes_first(tmp_path, monkeypatch):
    path, seen = tmp_path / "00000.h5", []

    def spy(part, target, replace=True):
        seen.append((target.name, names(tmp_path)))
        os.replace(part, target)

    for module in (shards, atomic_files):
        monkeypatch.setattr(module, "move_into_place", spy)
    for _ in range(2):
        with ShardWriter(path, one_field(), attrs=ATTRS, claim="me") as writer:
            writer.finish({})
    assert seen[0] == ("00000.h5", ["00000.h5.me.part", "00000.json.me.part"])
    assert seen[1] == ("00000.json", ["00000.h5", "00000.json.me.part"])
    # The old shard does not count as done any more.
    assert seen[2] == ("00000.h5", ["00000.h5", "00000.h5.me.part", "00000.json.me.part"])


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from pipeline.cache import shard_writer as shards
from pipeline.cache.reader import create_cache
from tests.support.small_cache import manifest_of, write_shard
plan = create_cache(Path({folder!r}) / "cache", {{"a": 1}}, manifest_of(Path({folder!r})), 3)
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
{wound}
write_shard(plan, 0)
"""
WOUNDS = {
    "while writing": "shards._Column.store = lambda self, row: die() if row == 3 else None",
    "before the hash": "shards.sync_and_hash = die",
    "before the rename": "shards.move_into_place = die",
    "before the statistics": "shards.json_part = die",
    "between the renames": """
move = shards.move_into_place
def move_or_die(part, path, *replace):
    (die if path.suffix == ".json" else move)(part, path, *replace)
shards.move_into_place = move_or_die
""",
}


@pytest.mark.parametrize("moment", WOUNDS)
def test_killed_at_any_moment_leaves_no_shard_that_counts(tmp_path, moment):
    paths = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]
    code = KILLED.format(path=paths, folder=str(tmp_path), wound=WOUNDS[moment])
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    plan = create_cache(tmp_path / "cache", {"a": 1}, manifest_of(tmp_path), 3)
    assert not plan.done(0)
    again = write_shard(plan, 0)
    assert names(plan.path(0).parent) == ["00000.h5", "00000.json"]
    undisturbed = write_shard(
        create_cache(tmp_path / "other", {"a": 1}, manifest_of(tmp_path), 3), 0
    )
    assert again["sha256"] == undisturbed["sha256"]


def test_a_full_disk_raises_and_leaves_nothing(tmp_path):
    code = f"""
import resource, sys
sys.path[:0] = {[str(Path(__file__).parents[3]), str(Path(__file__).parent)]!r}
from tests.pipeline.cache.test_shard_writer import *
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    plan = one_field(shape=(16, 512))
    with ShardWriter({str(tmp_path / "00000.h5")!r}, plan, attrs=ATTRS) as writer:
        for row in range(3):
            writer.write("train", row, {{"pooled": np.zeros((16, 512), np.float16)}})
        writer.finish({{}})
except OSError as error:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert names(tmp_path) == []


def test_writing_streams(tmp_path):
    """Each view is in the file when `write` returns, so memory need not hold it."""
    size = 64 * 512 * 2
    with ShardWriter(
        tmp_path / "00000.h5", one_field(8, (64, 512)), attrs=ATTRS, claim="me"
    ) as writer:
        before = (tmp_path / "00000.h5.me.part").stat().st_size
        for row in range(8):
            writer.write("train", row, {"pooled": np.zeros((64, 512), np.float16)})
            assert (tmp_path / "00000.h5.me.part").stat().st_size >= before + (row + 1) * size


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.nan, "pooled has 2 of 8 values that are NaN or infinite"),
        (-np.inf, "pooled has 2 of 8 values that are NaN or infinite"),
        (
            1e5,
            "pooled has 2 of 8 values that float16 cannot hold (its largest is 65504); extract "
            "with --dtype float32",
        ),
    ],
)
def test_a_value_that_cannot_be_stored_is_named_and_its_row_stays_empty(tmp_path, bad, said):
    values = np.zeros((2, 4), np.float32)
    values[1, 1:3] = bad
    with ShardWriter(tmp_path / "00000.h5", one_field(), attrs=ATTRS) as writer:
        with pytest.raises(NotFinite, match=r"row 1 \(clip clip1, view 0\)") as caught:
            writer.write("train", 1, {"pooled": values})
        assert said in str(caught.value)
        record = writer.finish({})
    assert record["groups"]["train"]["absent"] == [0, 1, 2]
    with h5py.File(tmp_path / "00000.h5") as file:
        assert not file["train/ok"][:].any()
        assert np.isnan(file["train/pooled"][:]).all()


def test_nothing_of_a_refused_row_is_stored(tmp_path):
    fields = {"pooled": ((1, 4), "float16"), "crop": ((6,), "float32")}
    with ShardWriter(
        tmp_path / "00000.h5", {"test": GroupPlan(["a"], [0], fields)}, attrs=ATTRS
    ) as writer:
        with pytest.raises(NotFinite, match="crop has 6 of 6 values"):
            writer.write("test", 0, {"pooled": np.ones((1, 4)), "crop": np.full(6, np.nan)})
        writer.finish({})
    with h5py.File(tmp_path / "00000.h5") as file:
        assert np.isnan(file["test/pooled"][:]).all()


def test_float32_holds_what_float16_cannot(tmp_path):
    with ShardWriter(tmp_path / "00000.h5", one_field(dtype="float32"), attrs=ATTRS) as writer:
        writer.write("train", 0, {"pooled": np.full((2, 4), 1e5, np.float32)})
        assert writer.finish({})["groups"]["train"]["absent"] == [1, 2]


def test_rows_never_written_read_as_nan_and_not_ok(plan):
    write_shard(plan, 0, failed=("clip1",))
    with h5py.File(plan.path(0)) as file:
        assert file["train/ok"][:].tolist() == [True, True, False, False, True, True]
        assert np.isnan(file["train/res5"][2:4]).all()
        assert file["train/clip"].asstr()[2] == "clip1"


def test_clip_ids_of_any_script_come_back(tmp_path):
    ids = ["a", "видео-17", "手を振る", "👋🏽"]
    with ShardWriter(
        tmp_path / "00000.h5", {"test": GroupPlan(ids, [0] * 4, {})}, attrs=ATTRS
    ) as writer:
        writer.finish({})
    with h5py.File(tmp_path / "00000.h5") as file:
        assert file["test/clip"].asstr()[:].tolist() == ids


@pytest.mark.parametrize(
    ("row", "tensors", "said"),
    [
        (3, {"pooled": np.zeros((2, 4))}, "row 3, expected 0 to 2"),
        (-1, {"pooled": np.zeros((2, 4))}, "row -1, expected 0 to 2"),
        (0, {"pooled": np.zeros((2, 4))}, "written twice"),
        (1, {}, "expected the fields pooled"),
        (1, {"pooled": np.zeros((2, 4)), "nodes": np.zeros(1)}, "got pooled, nodes"),
        (1, {"pooled": np.zeros((4, 2))}, r"expected float16 \(2, 4\)"),
        (1, {"pooled": np.zeros((2, 4), complex)}, "pooled is complex128"),
    ],
)
def test_what_is_not_in_the_plan_is_refused(tmp_path, row, tensors, said):
    with ShardWriter(tmp_path / "00000.h5", one_field(), attrs=ATTRS) as writer:
        writer.write("train", 0, {"pooled": np.zeros((2, 4))})
        with pytest.raises(ValueError, match=said):
            writer.write("train", row, tensors)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pooled": ((0, 4), "float16")}, "expected lengths from 1 for T C"),
        ({"pooled": ((4,), "float16")}, "expected lengths from 1 for T C"),
        ({"pooled": ((2, 4), "float64")}, "expected dtype float16 or float32, got float64"),
        ({"boxes": ((2, 3, 4), "float16")}, "expected dtype float32, got float16"),
        ({"colour": ((2, 4), "float16")}, "field 'colour'"),
        ({"res2": ((1024, 256, 112, 112), "float16")}, "keep a smaller cut"),
    ],
)
def test_a_plan_that_cannot_be_stored_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        GroupPlan(["a"], [0], fields)


def test_a_group_without_rows_is_refused():
    with pytest.raises(ValueError, match="0 clip ids"):
        GroupPlan([], [], {})


def test_two_writers_of_one_shard_do_not_meet(tmp_path):
    path = tmp_path / "00000.h5"
    with (
        ShardWriter(path, one_field(), attrs=ATTRS) as slow,
        ShardWriter(path, one_field(), attrs=ATTRS) as fast,
    ):
        for writer in (slow, fast):
            writer.write("train", 0, {"pooled": np.ones((2, 4))})
        first = fast.finish({})
        assert slow.finish({})["sha256"] == first["sha256"]
    assert names(tmp_path) == ["00000.h5", "00000.json"]
