"""Makes this folder's data with the `vidgraph` command beside the Python that runs this script.

    python tests/data/made_before_rooms/make.py /tmp/made_before_rooms

The script calls the command and otherwise uses h5py, numpy, PyAV, Pillow and torch alone, so it
does not follow the code when modules move. The test loads this file for its helpers: `arrays_of`,
`keys_of`, `keys_of_cache`, `keys_of_run` and `surface`.
"""

import csv
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import h5py
import hdf5plugin  # noqa: F401  (h5py needs it to read the cache that is compressed with zstd)
import numpy as np
import torch
from PIL import Image

PROGRAM = (sys.executable, "-m", "cli")
SIDE, LENGTH, FPS = 48, 10, 8  # pixels, frames, frames per second
SPLITS = ("train",) * 6 + ("val",) * 3 + ("test",) * 3
BROKEN = "clip04"  # its file is text until it is replaced by the one in mended/
FRAMES = "clip05"  # a folder of pictures
WIDTH = 6  # channels of the backbone

EXTRACT = (
    *("extract", "--manifest", "manifest.csv", "--root", "videos", "--shard-size", "4"),
    *("--backbone", "digit_cnn", "--weights", "digit_cnn.pt"),
    *("--set", f"backbone_options.width={WIDTH}", "--set", "backbone_options.pixels=unit"),
    *("--frames", "4", "--size", "32", "--train-crop", "multiscale", "--train-views", "2"),
    *("--device", "cpu", "--workers", "0"),
)
WITH_BOXES = (
    *("--keep", "pooled,nodes,conv2", "--test-clips", "2"),
    *("--proposals", "annotations", "--annotations", "boxes.csv", "--boxes", "3"),
)
WITH_GRID = (
    *("--keep", "pooled,nodes", "--dtype", "float32", "--compression", "zstd", "--shard", "0"),
    *("--proposals", "grid", "--set", "proposal_options.scales=[2, 1]", "--roi-pool", "mean"),
)
GRAPHS = ("graphs", "--cache", "cache", "--neighbours", "4", "--device", "cpu")
TRAIN = (*("train", "recipe.toml", "--cache", "cache", "--runs", "trained"), *("--device", "cpu"))
ABLATE = (*("ablate", "study.toml", "--cache", "cache", "--runs", "."), *("--device", "cpu"))
REPORT = ("report", "trained", "study", "--pictures", "0", "--no-macs")

RECIPE = """source = "a test"

[head]
name = "strg"
dropout = 0.2

[[phases]]
name = "first"

[phases.train]
epochs = 2
batch = 4
lr = 0.05

[[phases]]
name = "second"
start = "previous"

[phases.train]
epochs = 24
batch = 4
optimiser = "adam"
lr = 0.03
schedule = "cosine"
"""
STUDY = """seeds = [0]
[head]
name = "pool"
[train]
epochs = 2
batch = 5
[grid]
head = ["pool", "strg"]
"""


def main(out: Path) -> None:
    out.mkdir(parents=True)
    make_videos(out)
    make_weights(out / "digit_cnn.pt")
    (out / "recipe.toml").write_text(RECIPE)
    (out / "study.toml").write_text(STUDY)

    codes = {}
    codes["extract"] = vidgraph(out, *EXTRACT, *WITH_BOXES, "--cache", "cache")
    codes["extract again"] = vidgraph(out, *EXTRACT, *WITH_BOXES, "--cache", "cache")
    codes["extract grid"] = vidgraph(out, *EXTRACT, *WITH_GRID, "--cache", "cache_grid")
    codes["graphs"] = vidgraph(out, *GRAPHS)
    codes["verify"] = vidgraph(out, "verify", "--cache", "cache", "--report", "verify.json")
    codes["train"] = vidgraph(out, *TRAIN, "--name", "finished")
    for split in ("val", "test"):
        run = ("trained/finished", "--split", split, "--device", "cpu")
        codes[f"evaluate {split}"] = vidgraph(out, "evaluate", *run)
    codes["train stopped"] = stop_a_training(out)
    codes["ablate"] = vidgraph(out, *ABLATE)
    report = out.with_name(out.name + ".report")
    codes["report"] = vidgraph(out, *REPORT, "--out", str(report))
    shutil.rmtree(report)
    codes["repair"] = make_repaired(out)
    for curves in out.rglob("tensorboard"):
        shutil.rmtree(curves)

    write_expected(out, codes)
    write_json(out / "cli.json", surface_of_today())
    write_json(out / "keys.json", keys_of_everything(out))


def vidgraph(folder: Path, *args: str) -> int:
    """Run the command in `folder`, where its paths start; returns its exit code."""
    print("vidgraph", *args, flush=True)
    return subprocess.run([*PROGRAM, *args], cwd=folder, check=False).returncode


def make_videos(out: Path) -> None:
    """Videos, the manifest and the file of boxes: a square that moves right (class 0) or down."""
    rows, boxes = [], []
    for number, split in enumerate(SPLITS):
        clip = f"clip{number:02d}"
        frames, found = draw(number)
        path = f"{clip}.mp4"
        if clip == FRAMES:
            path = clip
            (out / "videos" / clip).mkdir(parents=True)
            for k, pixels in enumerate(frames):
                Image.fromarray(pixels).save(out / "videos" / clip / f"{k:03d}.png")
        elif clip == BROKEN:
            write_video(out / "mended" / path, frames)
            (out / "videos" / path).write_text("this is not a video\n")
        else:
            write_video(out / "videos" / path, frames)
        rows.append((clip, path, split, ("right", "down")[number % 2]))
        boxes += [(clip, k, *box) for k, each in enumerate(found) for box in each]
    write_csv(out / "manifest.csv", ("clip", "path", "split", "label"), rows)
    write_csv(out / "boxes.csv", ("clip", "frame", "x1", "y1", "x2", "y2"), boxes)


def draw(number: int) -> tuple[np.ndarray, list[list[tuple[int, int, int, int]]]]:
    """Frames [LENGTH,SIDE,SIDE,3] of a clip, and the boxes of each frame in pixels."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(60, 120, (LENGTH, SIDE // 8, SIDE // 8, 3), np.uint8)
    frames = blocks.repeat(8, 1).repeat(8, 2)
    boxes = []
    for k, frame in enumerate(frames):
        x, y = (4 + 2 * k, 10) if number % 2 == 0 else (10, 4 + 2 * k)
        frame[y : y + 16, x : x + 16] = (250, 240, 200) if number % 2 == 0 else (10, 40, 30)
        frame[30:44, 28:40] = 120 + 8 * (number % 5) + 3 * k
        boxes.append([(x, y, x + 16, y + 16), (28, 30, 40, 44)])
    return frames, boxes


def write_video(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows((header, *rows))


def make_weights(path: Path) -> None:
    """A checkpoint of the backbone digit_cnn, by the names of its parameters."""
    rng = torch.Generator().manual_seed(0)
    state = {"pixel_mean": torch.zeros(3), "pixel_std": torch.ones(3)}
    for number in (1, 2, 3):
        channels = 1 if number == 1 else WIDTH
        shape = (WIDTH, channels, 1, 3, 3)
        scale = (2 / (9 * channels)) ** 0.5
        state[f"conv{number}.conv.weight"] = scale * torch.randn(shape, generator=rng)
        state[f"conv{number}.conv.bias"] = 0.1 * torch.rand(WIDTH, generator=rng)
    torch.save(state, path)


def stop_a_training(out: Path) -> int:
    """Train the recipe and interrupt it in its second phase; returns the command's exit code."""
    with subprocess.Popen([*PROGRAM, *TRAIN, "--name", "stopped"], cwd=out) as process:
        log = out / "trained" / "stopped" / "log.jsonl"
        while process.poll() is None:
            if log.exists() and log.read_text().count("\n") >= 6:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.002)
    epochs = log.read_text().count("\n")
    if epochs >= 26:
        raise SystemExit("the training was over before it could be stopped; run the script again")
    print(f"stopped after {epochs} epochs")
    return process.returncode


def make_repaired(out: Path) -> int:
    """Repair a copy of the cache; keeps what the views of the broken clip hold in repaired.npz."""
    work = out.with_name(out.name + ".repair")
    shutil.copytree(out, work)
    shutil.copy(work / "mended" / f"{BROKEN}.mp4", work / "videos")
    code = vidgraph(
        work,
        *("repair", "--cache", "cache", "--root", "videos", "--device", "cpu", "--workers", "0"),
        *("--weights", "digit_cnn.pt", "--annotations", "boxes.csv"),
    )
    arrays = arrays_of(work / "cache")
    values = {}
    for name, array in arrays.items():
        group = "/".join(name.split("/")[:2])
        rows = arrays[f"features/{group.split('/')[1]}/clip"] == BROKEN.encode()
        values[name] = array[rows]
    np.savez_compressed(out / "repaired.npz", **values)
    shutil.rmtree(work)
    return code


def write_expected(out: Path, codes: dict[str, int]) -> None:
    """expected.json: exit codes, figures, and the sha256 of every stored array."""
    finished = out / "trained" / "finished"
    verify = json.loads((out / "verify.json").read_text())
    (out / "verify.json").unlink()
    with np.load(finished / "predictions_test.npz") as file:
        logits = file["logits"].tolist()
    findings = [{key: found[key] for key in ("stage", "where")} for found in verify["findings"]]
    metrics = json.loads((finished / "metrics.json").read_text())
    expected = {
        "exit codes": codes,
        "findings of verify": findings,
        "metrics of the finished run": metrics["metrics"],
        "logits of the finished run on test": logits,
        "epochs of the stopped run": (out / "trained/stopped/log.jsonl").read_text().count("\n"),
        "rows of the study": json.loads((out / "study" / "results.json").read_text())["rows"],
        "sha256 of arrays": {
            cache: {name: sha256_of(array) for name, array in arrays_of(out / cache).items()}
            for cache in ("cache", "cache_grid")
        },
    }
    write_json(out / "expected.json", expected)


def write_json(path: Path, record: dict) -> None:
    """JSON with a line for each entry of the second level, so that a change shows in a diff."""
    lines = []
    for key, value in sorted(record.items()):
        if isinstance(value, dict) and value:
            inner = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(value.items())]
            text = "{\n" + ",\n".join(inner) + "\n }"
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def arrays_of(cache: Path) -> dict[str, np.ndarray]:
    """Every dataset of a cache by plain h5py: "stage/group/field" -> its rows over all shards."""
    parts: dict[str, list[np.ndarray]] = {}
    for path in sorted(cache.glob("*/*.h5")):
        with h5py.File(path) as file:
            for group, table in file.items():
                for field, dataset in table.items():
                    parts.setdefault(f"{path.parent.name}/{group}/{field}", []).append(dataset[()])
    joined = {name: np.concatenate(some) for name, some in parts.items()}
    return {name: array.astype(array.dtype.str) for name, array in joined.items()}


def sha256_of(array: np.ndarray) -> str:
    """Of dtype, shape and bytes."""
    head = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def keys_of(record: object, at: str = "") -> list[str]:
    """The keys of a JSON record with the types of their values, sorted: "config.seed: int".

    All items of a list count as one, "[]"; so do keys that name data, "*" (see `_DATA`).
    """
    if isinstance(record, dict) and record:
        found = []
        for key, value in record.items():
            name = "*" if any(re.fullmatch(where, at) for where in _DATA) else key
            found += keys_of(value, f"{at}.{name}".lstrip("."))
        return sorted(set(found))
    if isinstance(record, (list, tuple)) and record:
        return sorted({line for value in record for line in keys_of(value, f"{at}[]")})
    return [f"{at}: {type(record).__name__}"]


# Records whose keys are names of labels, splits, packages, parameters or heads.
_DATA = (
    *(r"versions", r".*\.versions", r".*manifest\.splits", r".*manifest\.splits\.\*\.classes"),
    *(r".*excluded", r".*excluded\.\*", r"metrics", r".*head_versions"),
)


def keys_of_cache(cache: Path) -> dict[str, list[str]]:
    """The keys of a cache's JSON files, and what its HDF5 files hold: datasets and attributes."""
    found = {"cache.json": keys_of(json.loads((cache / "cache.json").read_text()))}
    for stage in ("features", "graphs"):
        records, contents = set(), set()
        for path in sorted((cache / stage).glob("*.h5")):
            records.update(keys_of(json.loads(path.with_suffix(".json").read_text())))
            with h5py.File(path) as file:
                contents.update(_contents(file))
        if records:
            found[f"{stage}/*.json"] = sorted(records)
            found[f"{stage}/*.h5"] = sorted(contents)
    return found


def _contents(file: h5py.File) -> list[str]:
    """A line per dataset (dtype, view's shape, chunk, filters, fill value), and per attribute."""
    lines = [f"@{name}: {_plain(value)}" for name, value in file.attrs.items() if name == "format"]
    lines += [f"@{name}" for name in file.attrs]

    def visit(name: str, item: object) -> None:
        lines.extend(f"{name}@{key}={_plain(value)}" for key, value in item.attrs.items())
        if isinstance(item, h5py.Dataset):
            plist = item.id.get_create_plist()
            filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
            chunk = item.chunks and item.chunks[1:]
            how = f"chunk of a row {chunk}, filters {filters}, fill {_plain(item.fillvalue)}"
            lines.append(f"{name}: {item.dtype.str} {item.shape[1:]}, {how}")

    file.visititems(visit)
    return lines


def _plain(value: object) -> str:
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return value.decode() if isinstance(value, bytes) else str(value)


def keys_of_run(run: Path) -> dict[str, list[str]]:
    """The names of a run's files, and the keys of those that hold records."""
    found = {"files": sorted(path.name for path in run.iterdir() if path.name != "tensorboard")}
    for path in sorted(run.iterdir()):
        if path.suffix == ".json":
            found[path.name] = keys_of(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[path.name] = keys_of([json.loads(line) for line in path.open()])
        elif path.suffix == ".npz":
            with np.load(path) as file:
                kinds = [f"{name}: {a.dtype.kind} x{a.ndim}" for name, a in file.items()]
            found[path.name] = sorted(kinds)
        elif path.suffix == ".pt":
            found[path.name] = keys_of(torch.load(path, weights_only=True))
        elif path.suffix == ".csv":
            found[path.name] = [path.open().readline().strip()]
    return found


def keys_of_everything(out: Path) -> dict[str, dict[str, list[str]]]:
    runs = {f"trained/{name}": out / "trained" / name for name in ("finished", "stopped")}
    runs["study/strg-seed0"] = out / "study" / "strg-seed0"
    return {
        **{name: keys_of_cache(out / name) for name in ("cache", "cache_grid")},
        **{name: keys_of_run(path) for name, path in sorted(runs.items())},
        "study": {
            "results.json": keys_of(json.loads((out / "study" / "results.json").read_text())),
            "results.csv": [(out / "study" / "results.csv").open().readline().strip()],
        },
    }


def surface(command: object, name: str = "") -> dict[str, dict[str, dict]]:
    """verb -> option or argument -> what a caller relies on, of a click command and those below.

    Help texts are left out, as are properties that most options lack. `default` is what a command
    gets when the option is not given.
    """
    import click

    context = click.Context(command, info_name="vidgraph")
    found = {name or "vidgraph": {}}
    for param in command.params:
        about = param.to_info_dict()
        kind = about["type"]
        default = param.get_default(context, call=True)
        if str(default) == "Sentinel.UNSET":  # newer versions of Click, where older have None
            default = None
        record = {
            "kind": param.param_type_name,
            "type": kind["param_type"],
            "default": default if _is_json(default) else str(default),
            "nargs": param.nargs,
            "choices": list(kind.get("choices") or []),
            "min": kind.get("min"),
            "max": kind.get("max"),
            "multiple": param.multiple,
            "required": param.required,
            "flag": bool(getattr(param, "is_flag", False)),
        }
        unset = {"choices": [], "min": None, "max": None}
        unset |= {"multiple": False, "required": False, "flag": False}
        option = " ".join((*param.opts, *param.secondary_opts))
        found[name or "vidgraph"][option] = {
            key: value for key, value in record.items() if key not in unset or value != unset[key]
        }
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            found |= surface(command.get_command(context, verb), f"{name} {verb}".strip())
    return found


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def surface_of_today() -> dict[str, dict[str, dict]]:
    from cli.__main__ import vidgraph as command

    return surface(command)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
