"""Writing and reading a cache, against raw system calls and the usual ways to keep one array per
clip.

write   all ways end with the bytes on the disk (fsync). `ours` checks every value, stores checksums
        and hashes the whole file; `ours, overlapped` finishes a shard in a thread while the next is
        written, as `extract` does: what the hash costs is hidden where a core is free. `raw, then
        sha256` is the least that a file with its hash can cost.
read    batches of 64 shuffled views, each into one array, every view once. `pread` reads the bytes
        of our own file in the order in which they lie there; `pread, dropped` reuses the memory of
        one view. h5py's fancy indexing is so slow that it reads one small batch. A tar file can
        only be streamed: `webdataset` has it in the order of the file. Cold: the files' pages are
        dropped from memory before every round.

Figures are medians over rounds in which all ways take turns; ratio is to `raw` or `pread`.
"""

import importlib.util
import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from _report import arguments, report

from pipeline.cache.reader import Cache, create_cache
from pipeline.cache.shard_reader import ShardFile
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.files.atomic_files import sync_and_hash
from pipeline.manifests.manifest import write_manifest
from pipeline.workers.memory import keep_freed_memory

BATCH = 64
SHARDS = 4


class Views:
    """The views to be stored: view k is one array of random float16 with its number in front."""

    def __init__(self, count: int, shape: tuple[int, ...]):
        self.count, self.shape = count, shape
        self._values = np.random.default_rng(0).standard_normal(shape).astype(np.float16)

    def __getitem__(self, k: int) -> np.ndarray:
        self._values.reshape(-1)[0] = k
        return self._values

    @property
    def megabytes(self) -> float:
        return self.count * self._values.nbytes / 1e6


def sync(paths: list[Path]) -> list[Path]:
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return paths


def write_raw(folder: Path, views: Views) -> list[Path]:
    return sync([_raw(folder, views)])


def write_raw_and_hash(folder: Path, views: Views) -> list[Path]:
    path = _raw(folder, views)
    sync_and_hash(path)
    return [path]


def _raw(folder: Path, views: Views) -> Path:
    with open(folder / "raw", "wb", buffering=0) as file:
        for k in range(views.count):
            file.write(views[k])
    return folder / "raw"


def write_ours(folder: Path, views: Views, shards: int = 1) -> list[Path]:
    """Through ShardWriter; with more than one shard, one is finished while the next is written."""
    rows = (
        {"clip": f"{k}", "path": f"{k}.mp4", "split": "train", "label": "a"}
        for k in range(views.count)
    )
    plan = create_cache(
        folder / "cache", {}, write_manifest(folder / "clips.csv", rows), -(-views.count // shards)
    )
    with ThreadPoolExecutor(1) as finisher:
        finished = None
        for shard in range(len(plan)):
            clips = [clip.clip for clip in plan.clips(shard)]
            plans = {
                "train": GroupPlan(clips, [0] * len(clips), {"res5": (views.shape, "float16")})
            }
            writer = ShardWriter(plan.path(shard), plans, attrs=plan.attrs(shard))
            for row, clip in enumerate(clips):
                writer.write("train", row, {"res5": views[int(clip)]})
            if finished:
                finished.result()
            finished = finisher.submit(writer.finish, {})
        finished.result()
    return [plan.path(shard) for shard in range(len(plan))]


def write_h5py(folder: Path, views: Views) -> list[Path]:
    with h5py.File(folder / "h5py.h5", "w") as file:
        chunks = (1, *views.shape)
        data = file.create_dataset(
            "res5", (views.count, *views.shape), np.float16, chunks=chunks, fletcher32=True
        )
        for k in range(views.count):
            data[k] = views[k]
    return sync([folder / "h5py.h5"])


def write_npy(folder: Path, views: Views) -> list[Path]:
    paths = [folder / f"{k}.npy" for k in range(views.count)]
    for k, path in enumerate(paths):
        np.save(path, views[k])
    return sync(paths)


def write_npz(folder: Path, views: Views) -> list[Path]:
    paths = [folder / f"{k}.npz" for k in range(views.count)]
    for k, path in enumerate(paths):
        np.savez(path, res5=views[k])
    return sync(paths)


def write_tar(folder: Path, views: Views) -> list[Path]:
    import webdataset

    with webdataset.TarWriter(str(folder / "views.tar")) as sink:
        for k in range(views.count):
            sink.write({"__key__": f"{k:06d}", "res5.npy": views[k]})
    return sync([folder / "views.tar"])


WRITERS: dict[str, Callable[[Path, Views], list[Path]]] = {
    "raw": write_raw,
    "raw, then sha256": write_raw_and_hash,
    "ours": write_ours,
    "ours, overlapped": lambda folder, views: write_ours(folder, views, SHARDS),
    "h5py, its own checksum": write_h5py,
    "npy per clip": write_npy,
    "npz per clip": write_npz,
    "webdataset": write_tar,
}


# Reads the views `order`, batch by batch, and returns how many it read.
Reader = Callable[[np.ndarray], int]


def readers(folder: Path, views: Views) -> dict[str, Reader]:
    """The ways to read what the writers left in folder/<name of the writer>."""
    cache = Cache(folder / "ours" / "cache")
    path = cache.shards.path(0)
    offsets, size, _ = ShardFile(path, cache.records["features"][0]).layout("train", "res5")
    fd = os.open(path, os.O_RDONLY)
    dataset = h5py.File(path, "r", locking=False)["train/res5"]
    empty = (0,) * len(views.shape)

    def one_by_one(read: Callable[[int, np.ndarray], object], ordered: bool = True) -> Reader:
        def run(order: np.ndarray) -> int:
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                out = np.empty((len(rows), *views.shape), np.float16)
                for k, row in enumerate(np.sort(rows) if ordered else rows):
                    read(int(row), out[k])
            return len(order)

        return run

    def into(row: int, out: np.ndarray) -> None:
        os.preadv(fd, [out.reshape(-1).view(np.uint8)], int(offsets[row]))

    def direct(row: int, out: np.ndarray) -> None:
        chunk = dataset.id.read_direct_chunk((row, *empty))[1]
        out[...] = np.frombuffer(chunk, np.float16, out.size).reshape(out.shape)

    def fancy(order: np.ndarray) -> int:
        return len(dataset[np.sort(order[:16])])

    def ours(order: np.ndarray) -> int:
        for start in range(0, len(order), BATCH):
            cache["train"].batch(order[start : start + BATCH])
        return len(order)

    def npy(row: int, out: np.ndarray) -> None:
        out[...] = np.load(folder / "npy per clip" / f"{row}.npy")

    def npz(row: int, out: np.ndarray) -> None:
        with np.load(folder / "npz per clip" / f"{row}.npz") as file:
            out[...] = file["res5"]

    found = {
        "pread": one_by_one(into),
        "pread, dropped": one_by_one(lambda row, out: os.pread(fd, size, int(offsets[row]))),
        "ours": ours,
        "h5py, chunk by chunk": one_by_one(direct),
        "h5py, row by row": one_by_one(lambda row, out: dataset.read_direct(out, np.s_[row])),
        "h5py, fancy index": fancy,
        "npy per clip": one_by_one(npy, ordered=False),
        "npz per clip": one_by_one(npz, ordered=False),
    }
    if (folder / "webdataset").exists():
        found["webdataset"] = lambda order: stream(folder / "webdataset" / "views.tar", views)
    return found


def stream(path: Path, views: Views) -> int:
    import webdataset

    out = np.empty((BATCH, *views.shape), np.float16)
    for k, sample in enumerate(webdataset.WebDataset(str(path), shardshuffle=False)):
        out[k % BATCH] = np.load(io.BytesIO(sample["res5.npy"]))
    return k + 1


def drop_from_memory(folder: Path) -> None:
    """Only clean pages can be dropped: everything was synced when written."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_writes(folder: Path, views: Views, rounds: int) -> dict[str, list[float]]:
    """MB/s of each round by way; what the last round wrote stays in folder/<way>."""
    names = [
        name for name in WRITERS if name != "webdataset" or importlib.util.find_spec("webdataset")
    ]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
            # Free memory that was in use a moment ago: a virtual machine first has to fetch the
            # rest from its host.
            write_raw(folder / name, views)[0].unlink()
            begun = time.perf_counter()
            WRITERS[name](folder / name, views)
            rates[name].append(views.megabytes / (time.perf_counter() - begun))
    return rates


def measure_reads(folder: Path, views: Views, rounds: int, cold: bool) -> dict[str, list[float]]:
    """MB/s of each round by way."""
    ways, rng = readers(folder, views), np.random.default_rng(0)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, read in ways.items():
            order = rng.permutation(views.count)
            if cold:
                drop_from_memory(folder)
            else:
                read(order)
            begun = time.perf_counter()
            count = read(order)
            if turn:  # the first round finds code and tables cold
                rates[name].append(
                    views.megabytes * count / views.count / (time.perf_counter() - begun)
                )
    return rates


def rows_of(what: str, rates: dict[str, list[float]]) -> list[dict[str, object]]:
    """Rows of the table; the first way is what the others are compared with."""
    middle = {name: statistics.median(rate) for name, rate in rates.items()}
    base = next(iter(middle.values()))
    return [
        {
            "what": what,
            "way": name,
            "MB/s": rate,
            "lowest": min(rates[name]),
            "highest": max(rates[name]),
            "ratio": rate / base,
        }
        for name, rate in middle.items()
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--views", type=int, default=128)
    parser.add_argument("--shape", default="16,2048,7,7", help="of a view, float16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        help="on the disk to be measured (default: the system's temporary folder)",
    )
    given = parser.parse_args()
    keep_freed_memory()  # as `extract` and `train` do
    views = Views(given.views, tuple(map(int, given.shape.split(","))))
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        rows = rows_of("write", measure_writes(folder, views, given.rounds))
        for what in ("read cold", "read warm"):
            rows += rows_of(what, measure_reads(folder, views, given.rounds, what == "read cold"))
    if not any(row["way"] == "webdataset" for row in rows):
        print("webdataset is not installed: left out (pip install webdataset)")
    report(
        f"{views.count} views of {given.shape} float16, {views.megabytes:,.0f} MB", rows, given.json
    )


if __name__ == "__main__":
    main()
