"""A shard is read only where it belongs; no number in a file is trusted before it is checked."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.cache.reader import Cache, Damaged, create_cache
from pipeline.cache.shard_layout import Unreadable, zstd_content_size
from pipeline.cache.shards import complete_shard
from pipeline.files.atomic_files import fletcher32, fletcher32_of_rows
from pipeline.stages.graphs import build_graphs
from pipeline.stages.verify import verify
from tests.pipeline.stages.test_verify import reseal
from tests.support.small_cache import FIELDS, make_cache, manifest_of, tensors_of, write_shard


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache with graphs, which no test changes."""
    path = make_cache(tmp_path_factory.mktemp("made"))
    build_graphs(path, neighbours=3)
    return path


@pytest.fixture
def cache(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "cache")


def read_all(path) -> None:
    for name in ("train", "test"):
        group = Cache(path)[name]
        group.batch(np.flatnonzero(group.ok))


READERS = {
    "rows": lambda path: Cache(path)["train"].batch([0, 6]),
    "graphs": lambda path: build_graphs(path, which=("iou",)),
    "another extraction": lambda path: [
        complete_shard(Cache(path).shards, shard) for shard in range(3)
    ],
}


@pytest.mark.parametrize("endings", [("h5", "json"), ("h5",)])
@pytest.mark.parametrize("reader", READERS)
def test_a_shard_of_another_cache_is_refused_by_every_reader(cache, tmp_path, reader, endings):
    """The same clips under another configuration: the same shapes, and as many bytes."""
    (tmp_path / "other").mkdir()
    other = create_cache(
        tmp_path / "other", {"backbone": {"name": "tiny", "depth": 4}}, manifest_of(tmp_path), 3
    )
    write_shard(other, 1, salt="other")
    for ending in endings:
        shutil.copy(tmp_path / f"other/features/00001.{ending}", cache / f"features/00001.{ending}")
    with pytest.raises(Damaged, match=r"00001\.h5: fingerprint is .*vidgraph repair"):
        READERS[reader](cache)


@pytest.mark.parametrize("endings", [("h5", "json"), ("h5",)])
def test_a_shard_under_the_number_of_another_is_refused(cache, endings):
    for ending in endings:
        shutil.copy(cache / f"features/00000.{ending}", cache / f"features/00001.{ending}")
    with pytest.raises(Damaged, match=r"00001\.h5: shard is 0.*, this cache's is 1"):
        read_all(cache)


def test_graphs_of_other_features_are_refused(cache, made, tmp_path):
    """The statistics are those of these features, the file is not."""
    write_shard(Cache(cache).shards, 0, salt="other")
    build_graphs(cache, neighbours=3)
    shutil.copy(made / "graphs/00000.h5", cache / "graphs/00000.h5")
    with pytest.raises(Damaged, match=r"graphs/00000\.h5: source_sha256 is"):
        Cache(cache)["train"].batch([0], ("iou",))


def test_a_view_that_does_not_fit_its_checksum_is_never_served(cache):
    """A flipped bit in a value, which HDF5 is not asked about."""
    file = cache / "features/00000.h5"
    data = bytearray(file.read_bytes())
    place = data.index(tensors_of("train", "clip1", 0)["nodes"].tobytes())
    data[place + 5] ^= 1
    file.write_bytes(data)
    group = Cache(cache)["train"]
    group.batch([0, 1, 3], ("nodes",))
    with pytest.raises(
        Unreadable, match=r"00000\.h5: nodes of train row 2 is damaged .*vidgraph repair"
    ):
        group.batch([2], ("nodes",))
    with pytest.raises(Unreadable, match="row 2 is damaged"):  # and not the second time either
        group.batch([1, 2], ("nodes",))


def test_a_checksum_is_tested_once(cache, monkeypatch):
    group = Cache(cache)["train"]
    group.batch([0, 1])
    monkeypatch.setattr("pipeline.cache.shard_reader.fletcher32", None)
    monkeypatch.setattr("pipeline.cache.shard_reader.fletcher32_of_rows", None)
    group.batch([0, 1])


def test_any_flipped_bit_is_either_found_or_changes_nothing(cache, made):
    rng = np.random.default_rng(0)
    expected = {}
    for name in ("train", "test"):
        group = Cache(made)[name]
        expected[name] = group.batch(range(len(group)))
    said = []
    for k in range(24):
        file = cache / ("features", "graphs")[k % 2] / "00000.h5"
        good = file.read_bytes()
        # Half of the flips hit HDF5's metadata, for which it raises many kinds of errors.
        marks = re.finditer(b"OHDR|OCHK|FAHD|FADB|FHDB|FRHP|BTHD|BTLF|TREE", good)
        starts = [mark.start() for mark in marks]
        if k % 4 < 2:
            place = int(rng.integers(len(good)))
        else:
            place = starts[k % len(starts)] + int(rng.integers(40))
        flipped = bytes([good[place] ^ 1 << int(rng.integers(8))])
        file.write_bytes(good[:place] + flipped + good[place + 1 :])
        for name, fields in expected.items():
            for field in ("pooled", "nodes", "iou"):
                try:
                    values = Cache(cache)[name].batch([0, 1, 2], (field,))[field]
                except Damaged as error:
                    said.append(str(error))
                else:
                    np.testing.assert_array_equal(values, fields[field][:3])
        file.write_bytes(good)
    assert len(said) > 10
    assert all("00000.h5: " in line and len(line.splitlines()) == 1 for line in said)


def soft(group, name, folder):
    group[name] = h5py.SoftLink("/test/pooled")


def external(group, name, folder):
    with h5py.File(folder / "elsewhere.h5", "w") as file:
        file.create_dataset(
            "x", data=np.zeros((6, 4, 6), np.float16), chunks=(1, 4, 6), fletcher32=True
        )
    group[name] = h5py.ExternalLink(str(folder / "elsewhere.h5"), "x")


def virtual(group, name, folder):
    layout = h5py.VirtualLayout((6, 4, 6), np.float16)
    layout[:] = h5py.VirtualSource(str(folder / "elsewhere.h5"), "x", (6, 4, 6))
    group.create_virtual_dataset(name, layout)


def outside(group, name, folder):
    group.create_dataset(name, (6, 4, 6), np.float16, external=[("/etc/passwd", 0, 288)])


def strings(group, name, folder):
    group.create_dataset(name, (6, 4, 6), h5py.string_dtype(), chunks=(1, 4, 6), fletcher32=False)


def references(group, name, folder):
    group.create_dataset(name, (6, 4, 6), h5py.ref_dtype, chunks=(1, 4, 6))


def compound(group, name, folder):
    group.create_dataset(
        name, (6, 4, 6), np.dtype([("a", "f2")]), chunks=(1, 4, 6), fletcher32=True
    )


def wide(group, name, folder):
    group.create_dataset(name, (6, 4, 6), np.float64, chunks=(1, 4, 6), fletcher32=True)


def backwards(group, name, folder):
    group.create_dataset(name, (6, 4, 6), ">f2", chunks=(1, 4, 6), fletcher32=True)


def without_checksums(group, name, folder):
    group.create_dataset(name, data=np.zeros((6, 4, 6), np.float16), chunks=(1, 4, 6))


def in_one_piece(group, name, folder):
    group.create_dataset(name, data=np.zeros((6, 4, 6), np.float16))


def longer(group, name, folder):
    group.create_dataset(name, (2**40, 4, 6), np.float16, chunks=(1, 4, 6), fletcher32=True)


def a_group(group, name, folder):
    group.create_group(name)


def unchecked_chunk(group, name, folder):
    """A view whose chunk says that it left the checksum out."""
    made = group.create_dataset(name, (6, 4, 6), np.float16, chunks=(1, 4, 6), fletcher32=True)
    for row in range(6):
        made.id.write_direct_chunk((row, 0, 0), np.zeros(52, np.uint8), filter_mask=1)


def second_name(group, name, folder):
    group[name] = group.file["test/pooled"]


ELSEWHERE = (soft, external, virtual, outside)
ODD = (
    *(*ELSEWHERE, second_name, strings, references, compound, wide, backwards),
    *(without_checksums, in_one_piece, longer, a_group, unchecked_chunk),
)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.__name__)
def test_what_no_writer_of_ours_makes_is_refused(cache, tmp_path, odd):
    file = cache / "features/00000.h5"
    with h5py.File(file, "r+", libver=("v110", "v110")) as h5:
        del h5["train"]["pooled"]
        odd(h5["train"], "pooled", tmp_path)
    reseal(file)
    with pytest.raises(Damaged, match=r"00000\.h5: "):
        Cache(cache)["train"].batch([0], ("pooled",))
    findings = verify(cache)
    assert any(finding.where.startswith(str(file)) for finding in findings)
    assert {
        shard for finding in findings for shard in finding.shards if finding.stage == "features"
    } == {0}


@pytest.mark.parametrize(
    ("name", "kind", "rows"), [("clip", "S5", 10**9), ("ok", "bool", 2**40), ("view", "i4", 2**50)]
)
def test_rows_that_a_file_only_claims_are_a_finding(cache, name, kind, rows):
    file = cache / "features/00000.h5"
    with h5py.File(file, "r+") as h5:
        del h5["train"][name]
        h5["train"].create_dataset(name, (rows,), kind, chunks=(6,), fletcher32=True)
    reseal(file)
    found = [finding for finding in verify(cache) if finding.stage == "features"]
    assert len(found) == 1
    assert re.search(f"{name} of train has {rows:,} rows, expected 6", found[0].what)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.update(rows=10**12), "claims 1,000,000,000,000 rows in train"),
        (lambda t: t.update(rows=10**300), "groups.train.rows is 1000"),
        (lambda t: t["fields"]["pooled"].update(shape=[10**9, 10**9]), "its shape is"),
        (lambda t: t["fields"]["pooled"].update(shape=[4, 10**6]), "its file has"),
        (lambda t: t["fields"]["pooled"].update(dtype="O"), "its dtype is 'O'"),
        (lambda t: t.update(absent=[-1]), "are absent"),
    ],
)
def test_sizes_that_statistics_only_claim_are_refused(cache, edit, said):
    reseal(cache / "features/00000.h5", lambda record: edit(record["groups"]["train"]))
    with pytest.raises(Damaged, match=said):
        Cache(cache)["train"]
    assert {
        shard
        for finding in verify(cache)
        for shard in finding.shards
        if finding.stage == "features"
    } == {0}


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        ("28b52ffd 00 58", None),  # no content size: flag 0, no single segment
        ("28b52ffd 20 0a", 10),  # single segment, flag 0: one byte
        ("28b52ffd 60 0001", 512),  # flag 1: two bytes, and 256
        ("28b52ffd a0 00001000", 1 << 20),  # flag 2: four bytes
        ("28b52ffd e0 0000000001000000", 1 << 32),  # flag 3: eight bytes
        ("28b52ffd 41 58 07 0000", 256),  # a window, a dictionary of one byte, flag 1
        ("00000000 20 0a", None),
    ],
)
def test_the_size_of_a_zstd_frame_is_read_as_rfc_8878_says(frame, size):
    assert zstd_content_size(bytes.fromhex(frame.replace(" ", "")).ljust(18, b"\0")) == size


def test_a_zstd_view_that_claims_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.cache.shard_writer.SMALL", 16)
    path = make_cache(tmp_path, compression="zstd")
    file = path / "features/00000.h5"
    with h5py.File(file, "r+") as h5:
        pooled = h5["train/pooled"]
        mask, chunk = pooled.id.read_direct_chunk((1, 0, 0))
        place = chunk.index(b"\x28\xb5\x2f\xfd")
        header = bytes.fromhex("28b52ffde00000000001000000")
        bomb = chunk[:place] + header + chunk[place + 6 :]
        pooled.id.write_direct_chunk((1, 0, 0), bomb, mask)
    reseal(file)
    group = Cache(path)["train"]
    np.testing.assert_array_equal(
        group.view(0)["pooled"], tensors_of("train", "clip0", 0)["pooled"]
    )
    with pytest.raises(Unreadable, match=r"row 1 claims 4294967296 bytes"):
        group.batch([1], ("pooled",))


@pytest.mark.parametrize("size", [1, 2, 3, 17, 128, 4096])
def test_checksums_of_many_rows_are_those_of_each(size):
    table = np.random.default_rng(0).integers(0, 256, (30, size), dtype=np.uint8)
    table[:10], table[10:20] = 0, 255
    assert fletcher32_of_rows(table).tolist() == [fletcher32(row) for row in table]


def test_one_bad_shard_does_not_end_the_check_of_the_others(cache, monkeypatch):
    for name in ("features/00000.h5", "features/00001.json", "graphs/00002.h5"):
        (cache / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    found = {(finding.stage, shard) for finding in verify(cache) for shard in finding.shards}
    assert found >= {("features", 0), ("features", 1), ("graphs", 2)}
    assert ("features", 2) not in found
    # A library may raise anything.
    monkeypatch.setattr("pipeline.cache.shard_check._Check.run", lambda self: 1 / 0)
    assert len([finding for finding in verify(cache) if "ZeroDivisionError" in finding.what]) == 6


def test_the_fields_are_those_that_are_known():
    assert set(FIELDS) >= {"pooled", "nodes"}  # of small_cache, on which this file counts


# --- odd JSON under a right seal

VALUES = [
    *(None, "x", -1, 0, 10**12, 10**400, 1.5, float("nan"), True),
    *([], {}, [[[]]], [1], ["x"], {"a": 1}),
]


def places(value, before=()):
    pairs = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value[:2])
    for key, inner in pairs:
        yield (*before, key)
        yield from places(inner, (*before, key))


def odd_copies(record: dict, count: int, seed: int):
    """Copies of a record with one value that it should not have, or a key that is gone."""
    every = [(place, value) for place in places(record) for value in (*VALUES, KeyError)]
    for k in np.random.default_rng(seed).permutation(len(every))[:count]:
        place, value = every[k]
        copy = json.loads(json.dumps(record))
        inner = copy
        for key in place[:-1]:
            inner = inner[key]
        if value is KeyError:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        yield f"{place} = {value!r:.30}", copy


def lines_of(step) -> int:
    """How many lines the error of a step has; 0 without one.

    Errors that are neither ours nor the system's are raised.
    """
    try:
        step()
    except (ValueError, OSError) as error:
        return len(str(error).splitlines())
    return 0


def seal(path, record: dict) -> None:
    """Write a record with the seal that fits it."""
    text = json.dumps({**record, "seal": "0" * 64}, indent=1, ensure_ascii=False).encode() + b"\n"
    ending = b'"seal": "%s"\n}\n'
    seal_of_text = hashlib.sha256(text).hexdigest().encode()
    path.write_bytes(text.replace(ending % (b"0" * 64), ending % seal_of_text))


@pytest.mark.parametrize("name", ["cache.json", "features/00000.json", "graphs/00000.json"])
def test_odd_json_under_a_right_seal_is_an_error_in_one_line(cache, name):
    record = json.loads((cache / name).read_text())
    del record["seal"]
    for what, odd in odd_copies(record, 16, seed=len(name)):
        seal(cache / name, odd)
        for read in (read_all, verify, lambda path: build_graphs(path, neighbours=3)):
            assert lines_of(lambda read=read: read(cache)) <= 1, what


def test_a_disk_that_cannot_read_is_an_error_of_the_machine_that_names_the_shard(
    cache, monkeypatch
):
    reads, real = count(1), os.preadv
    failing = 0

    def read(*args):
        if next(reads) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args)

    monkeypatch.setattr(os, "preadv", read)
    for failing in range(1, 100):
        reads = count(1)
        try:
            Cache(cache)["train"].batch([0, 1, 2], ("pooled",))
            break
        except OSError as error:
            named = error.errno, Path(error.filename).name
        assert named == (errno.EIO, "00000.h5"), failing
    assert 3 < failing < 99


UNREADABLE = """
import errno, os, sys
from pipeline.cache import shard_layout

def fails(*given):
    raise OSError(errno.EIO, "Input/output error")

number = os.open(sys.argv[1], os.O_RDONLY)
os.preadv = fails
try:
    shard_layout.ShardTables(sys.argv[1], number)
except OSError as error:
    print(error.strerror)
"""


def test_a_process_that_met_an_unreadable_file_ends_with_its_own_exit_code(tmp_path):
    path = tmp_path / "00000.h5"
    with h5py.File(path, "w") as file:
        file["some"] = np.arange(3)
    command = [sys.executable, "-c", UNREADABLE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("Input/output error\n", 0), done.stderr
