"""A cache, runs and a study that older code made: today's code reads, continues and mends them.

tests/data/made_before_rooms/README.md says how they were made. Values that networks compute may
differ by TOLERANCE between processors; whole numbers, frames, crops and boxes may not.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cli.__main__ import main
from cli.__main__ import vidgraph as command
from pipeline.cache.reader import Cache

ROOT = next(above for above in Path(__file__).resolve().parents if (above / "setup.cfg").exists())
DATA = ROOT / "tests" / "data" / "made_before_rooms"
TOLERANCE = 1e-2  # of the largest value: float16, and processors that round differently
COMPUTED = ("pooled", "nodes", "conv2", "similarity")  # by a network or from its features
EVALUATED = ("--cache", "cache", "--device", "cpu")


def _load_make():
    """make.py, which lies in no package."""
    spec = importlib.util.spec_from_file_location("made_before_rooms", DATA / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _load_make()
EXPECTED = json.loads((DATA / "expected.json").read_text())
CODES = EXPECTED["exit codes"]
KEYS = json.loads((DATA / "keys.json").read_text())
# Keys that records have had since then, in any file of a run or a cache.
ADDED = {
    "asked.sampling.stretch: NoneType",
    "head_versions.*: int",
    "about.head_versions.*: int",
    "asked.resize: str",
    "attrs.clips_sha256: str",
    "@clips_sha256",
    "@format: 2",
    "views_for_all: bool",
    "parts[].by_split: bool",
    "parts[].clips[][]: int",
    "parts[].fingerprint: str",
    "parts[].format: int",
    "parts[].keep[]: str",
    "parts[].lengths[][]: int",
    "parts[].test_clips: int",
    "parts[].views.test[]: int",
    "parts[].views.train[]: int",
    "asked.box_labels: bool",
    "boxes.views: int",
    "boxes.steps: int",
    "boxes.empty_views: int",
    "boxes.empty_steps: int",
    "workers: int",
    "recipe.phases[].checkpoint: str",
    "recipe.train.warm_up: int",
    "recipe.phases[].train.warm_up: int",
    "about.recipe.train.warm_up: int",
    "about.recipe.phases[].train.warm_up: int",
    "about.recipe.phases[].checkpoint: str",
    *(f"groups.{group}.fields.time.dtype: str" for group in ("train", "test")),
    *(f"groups.{group}.fields.time.shape[]: int" for group in ("train", "test")),
    # Files, too.
    "per_class_val.csv",
    "per_class_test.csv",
}
# Keys of caches of format 1 that later ones have not.
GONE = {"per_shard: int", "@format: 1"}
# Tables that records have had since then, with all their keys.
ADDED_TABLES = ("extraction.",)
# Fields that new caches have had since then; old caches get none.
NEW_FIELDS = ("features/train/time", "features/test/time")
NEW_DATASETS = tuple(f"{group}/time{mark}" for group in ("train", "test") for mark in ":@")
COMMANDS = json.loads((DATA / "cli.json").read_text())
CHOOSE_THEMSELVES = ("--precision", "--batch")


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the data; the working folder is there."""
    folder = tmp_path / "old"
    shutil.copytree(DATA, folder)
    monkeypatch.chdir(folder)
    return folder


def vidgraph(*args: object) -> int:
    """The command's exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    return left.value.code


def files_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: its bytes, and when it was written."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_values(new: dict[str, np.ndarray], old: dict[str, np.ndarray]) -> None:
    """Of arrays by "stage/group/field": computed ones within TOLERANCE, others to the bit."""
    assert sorted(name for name in new if name not in NEW_FIELDS) == sorted(old)
    for name, was in old.items():
        now = new[name]
        assert (now.dtype, now.shape) == (was.dtype, was.shape), name
        if name.split("/")[-1] in COMPUTED:
            largest = np.nanmax(np.abs(was.astype(np.float64)))
            np.testing.assert_allclose(
                now.astype(np.float64),
                was.astype(np.float64),
                rtol=0,
                atol=TOLERANCE * largest,
                err_msg=name,
            )
        else:
            np.testing.assert_array_equal(now, was, err_msg=name)


def assert_same_keys(new: dict[str, list[str]], old: dict[str, list[str]]) -> None:
    """Of records by file, as `keys_of_cache` and `keys_of_run` list them."""
    for name, keys in new.items():
        if name in ADDED:
            continue
        assert name in old, f"{name} was not written by the older code"
        gone = sorted(set(old[name]) - set(keys))
        more = set(keys) - set(old[name]) - ADDED
        more = sorted(key for key in more if not key.startswith(ADDED_TABLES))
        more = [key for key in more if not key.startswith(NEW_DATASETS)]
        assert not gone, f"{name} had these: {gone}"
        assert not more, f"{name} has these since: {more}"


# The cache.


@pytest.mark.parametrize("name", ["cache", "cache_grid"])
def test_the_old_cache_opens_and_every_array_is_what_was_stored(old, name):
    stored = make.arrays_of(old / name)
    hashes = EXPECTED["sha256 of arrays"][name]
    assert {key: make.sha256_of(array) for key, array in stored.items()} == hashes

    cache = Cache(old / name)
    assert sorted(cache.groups) == ["test", "train"]
    seen = set()
    for group in cache.groups:
        rows = cache[group]
        present, good = np.flatnonzero(rows.present), np.flatnonzero(rows.ok)
        clips = [rows.clips[row].encode() for row in present]
        assert clips == stored[f"features/{group}/clip"].tolist()
        assert rows.views[present].tolist() == stored[f"features/{group}/view"].tolist()
        assert rows.ok[present].tolist() == stored[f"features/{group}/ok"].tolist()
        for field, values in rows.batch(good).items():
            stage = next(s for s in ("features", "graphs") if f"{s}/{group}/{field}" in stored)
            was = stored[f"{stage}/{group}/{field}"][np.isin(present, good)]
            assert (values.dtype, values.shape) == (was.dtype, was.shape), field
            assert values.tobytes() == was.tobytes(), field
            seen.add(f"{stage}/{group}/{field}")
    unread = {key for key in stored if key.split("/")[-1] not in ("clip", "view", "ok")} - seen
    assert not unread


def test_the_old_cache_has_its_manifest_failures_and_missing_shards(old):
    cache, grid = Cache(old / "cache"), Cache(old / "cache_grid")
    assert [(clip.clip, clip.split) for clip in cache.manifest.clips] == [
        (f"clip{k:02d}", split) for k, split in enumerate(make.SPLITS)
    ]
    assert [failure["clip"] for failure in cache.failures] == [make.BROKEN]
    assert (cache.missing, grid.missing) == ([], [1, 2])
    assert not cache["train"].ok[cache["train"].rows_of(make.BROKEN)].any()


def test_verify_finds_the_failed_clip_alone(old):
    code = vidgraph("verify", "--cache", "cache", "--workers", 0, "--report", "verify.json")
    assert code == CODES["verify"]
    (found,) = json.loads((old / "verify.json").read_text())["findings"]
    assert found["stage"] == "features"
    assert "00001.h5" in found["where"]
    assert make.BROKEN in found["where"]


def test_extracting_and_graphs_again_compute_nothing(old):
    before = files_in(old / "cache")
    code = vidgraph(*make.EXTRACT, *make.WITH_BOXES, "--cache", "cache")
    assert code == CODES["extract again"]
    assert vidgraph(*make.GRAPHS) == CODES["graphs"]
    assert files_in(old / "cache") == before


def test_a_new_extraction_gives_the_same_values_and_records(old):
    code = vidgraph(*make.EXTRACT, *make.WITH_BOXES, "--cache", "new", "--views-for-all")
    assert code == CODES["extract"]
    before = make.arrays_of(old / "cache")
    features = {name: before[name] for name in before if name.startswith("features/")}
    assert_same_values(make.arrays_of(old / "new"), features)
    new, was = Cache(old / "new"), Cache(old / "cache")
    assert (new.record["format"], was.record["format"]) == (2, 1)
    assert new.config == was.config
    keys = {name: set(of) - GONE for name, of in KEYS["cache"].items()}
    assert_same_keys(make.keys_of_cache(old / "new"), keys)


def test_new_graphs_of_old_features_are_the_same(old):
    before = make.arrays_of(old / "cache")
    shutil.rmtree(old / "cache" / "graphs")
    assert vidgraph(*make.GRAPHS) == CODES["graphs"]
    assert_same_values(make.arrays_of(old / "cache"), before)
    assert_same_keys(make.keys_of_cache(old / "cache"), KEYS["cache"])


def test_an_extraction_that_was_left_half_done_goes_on(old):
    before = files_in(old / "cache_grid")
    keys = make.keys_of_cache(old / "cache_grid")
    shutil.copy(old / "mended" / f"{make.BROKEN}.mp4", old / "videos")
    rest = [word if word != "0" else "1-2" for word in make.WITH_GRID]
    assert rest.index("1-2") == rest.index("--shard") + 1
    assert vidgraph(*make.EXTRACT, *rest, "--cache", "cache_grid") == 0
    after = files_in(old / "cache_grid")
    assert {name: after[name] for name in before} == before
    assert vidgraph("verify", "--cache", "cache_grid", "--workers", 0) == 0
    assert_same_keys(make.keys_of_cache(old / "cache_grid"), keys)


def test_repair_fills_the_failed_clip_and_leaves_the_rest(old):
    cache = old / "cache"
    before, whole = make.arrays_of(cache), (cache / "features" / "00000.h5").read_bytes()
    shutil.copy(old / "mended" / f"{make.BROKEN}.mp4", old / "videos")
    code = vidgraph(
        *("repair", "--cache", "cache", "--root", "videos", "--device", "cpu", "--workers", 0),
        *("--weights", "digit_cnn.pt", "--annotations", "boxes.csv"),
    )
    assert code == CODES["repair"]
    assert vidgraph("verify", "--cache", "cache", "--workers", 0) == 0
    assert (cache / "features" / "00000.h5").read_bytes() == whole

    mended, after = {}, make.arrays_of(cache)
    for name, array in after.items():
        group = name.split("/")[1]
        rows = before[f"features/{group}/clip"] == make.BROKEN.encode()
        mended[name] = array[rows]
        assert array[~rows].tobytes() == before[name][~rows].tobytes(), name
    with np.load(old / "repaired.npz") as file:
        assert_same_values(mended, dict(file))


# Runs and studies.


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_old_run_evaluates_to_the_recorded_figures(old, split):
    run = old / "trained" / "finished"
    with np.load(run / f"predictions_{split}.npz") as file:
        was = dict(file)
    for path in (run / f"metrics_{split}.json", run / f"predictions_{split}.npz"):
        path.unlink()
    code = vidgraph("evaluate", run, "--split", split, *EVALUATED)
    assert code == CODES[f"evaluate {split}"]
    found = json.loads((run / f"metrics_{split}.json").read_text())
    figures = EXPECTED["metrics of the finished run"][split]
    assert {key: found[key] for key in figures} == pytest.approx(figures, rel=1e-3)
    with np.load(run / f"predictions_{split}.npz") as file:
        now = dict(file)
    assert sorted(now) == sorted(was)
    np.testing.assert_allclose(now.pop("logits"), was.pop("logits"), rtol=0, atol=1e-3)
    for name, array in was.items():
        np.testing.assert_array_equal(now[name], array, err_msg=name)
    if split == "test":
        with np.load(run / "predictions_test.npz") as file:
            logits = EXPECTED["logits of the finished run on test"]
            np.testing.assert_allclose(file["logits"], logits, rtol=0, atol=1e-3)
    assert_same_keys(make.keys_of_run(run), KEYS["trained/finished"])


def test_a_finished_run_is_read_back_and_not_trained_again(old):
    before = files_in(old / "trained" / "finished")
    assert vidgraph(*make.TRAIN, "--name", "finished") == CODES["train"]
    assert files_in(old / "trained" / "finished") == before


def test_the_stopped_run_goes_on_to_where_the_other_run_ended(old):
    run, whole = old / "trained" / "stopped", old / "trained" / "finished"
    before = (run / "log.jsonl").read_text().splitlines()
    assert len(before) == EXPECTED["epochs of the stopped run"]
    saved = torch.load(run / "last.pt", weights_only=True)
    done = saved["epochs_before"] + saved["progress"]["epoch"]
    assert done == len(before) - 1  # it was stopped between the log and the checkpoint
    assert vidgraph(*make.TRAIN, "--name", "stopped") == CODES["train"]

    after = (run / "log.jsonl").read_text().splitlines()
    assert after[:done] == before[:done]
    lines = [json.loads(line) for line in after]
    wanted = [json.loads(line) for line in (whole / "log.jsonl").open()]
    for key in ("phase", "epoch", "step"):
        assert [line[key] for line in lines] == [line[key] for line in wanted], key
    for key in ("lr", "loss"):
        now, was = [line[key] for line in lines], [line[key] for line in wanted]
        assert now == pytest.approx(was, rel=TOLERANCE), key
    figures = json.loads((run / "metrics.json").read_text())["metrics"]
    for split, was in EXPECTED["metrics of the finished run"].items():
        assert figures[split]["loss"] == pytest.approx(was["loss"], rel=2 * TOLERANCE)
    new = make.keys_of_run(run)
    evaluated = {"metrics_val.json", "metrics_test.json"}
    assert new.pop("files") == [f for f in KEYS["trained/finished"]["files"] if f not in evaluated]
    assert_same_keys(new, KEYS["trained/finished"])


def test_a_finished_study_is_read_back(old):
    members = [old / "study" / name for name in ("pool-seed0", "strg-seed0")]
    before = [files_in(member) for member in members]
    assert vidgraph(*make.ABLATE) == CODES["ablate"]
    assert [files_in(member) for member in members] == before
    results = json.loads((old / "study" / "results.json").read_text())
    assert results["rows"] == EXPECTED["rows of the study"]
    assert_same_keys({"results.json": make.keys_of(results)}, KEYS["study"])


def test_a_new_study_leaves_the_same_records(old):
    assert vidgraph(*make.ABLATE, "--name", "again") == CODES["ablate"]
    again = old / "again"
    keys = {
        "results.json": make.keys_of(json.loads((again / "results.json").read_text())),
        "results.csv": [(again / "results.csv").open().readline().strip()],
    }
    assert_same_keys(keys, KEYS["study"])
    assert_same_keys(make.keys_of_run(again / "strg-seed0"), KEYS["study/strg-seed0"])


def test_ls_lists_the_old_caches_and_runs(old, capsys):
    capsys.readouterr()
    assert vidgraph("ls", old, "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    found = {(entry["kind"], str(Path(entry["path"]).relative_to(old))) for entry in entries}
    assert found == {
        *(("cache", name) for name in ("cache", "cache_grid")),
        *(("run", f"trained/{name}") for name in ("finished", "stopped")),
        *(("run", f"study/{name}-seed0") for name in ("pool", "strg")),
    }
    of_cache = Cache(old / "cache").fingerprint
    runs = [entry for entry in entries if entry["kind"] == "run"]
    assert {entry["fingerprint"] for entry in runs} == {of_cache}


def test_a_report_of_the_old_runs_is_written(old):
    code = vidgraph(*make.REPORT, "--cache", "cache", "--out", "report")
    assert code == CODES["report"]  # 3: one run is not finished
    page = (old / "report" / "report.md").read_text()
    assert "strg" in page
    assert "trained/stopped" in page
    assert (old / "report" / "report.html").stat().st_size > 10_000
    assert list((old / "report" / "tables").glob("*.csv"))


# The command.


OWN_TYPES = {"RealNumber": "FloatRange", "AnyNumber": "Float"}


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_option_of_a_verb_is_there_with_its_default_and_type(verb):
    now = make.surface(command)
    assert verb in now, f"`vidgraph {verb}` is gone"
    for option, was in COMMANDS[verb].items():
        assert option in now[verb], f"`vidgraph {verb}`: {option} is gone"
        found = dict(now[verb][option])
        # A choice may have got further values; those of before must be there.
        if set(was.get("choices", ())) <= set(found.get("choices", ())):
            found |= {"choices": was["choices"]} if "choices" in was else {}
        # These choose themselves now: as before on a CPU, and as the cache was begun.
        if verb in ("extract", "plan") and option in CHOOSE_THEMSELVES and not found["default"]:
            found["default"] = was["default"]
        # Types of our own take what click's take, without "nan".
        found["type"] = OWN_TYPES.get(found["type"], found["type"])
        # What had to be given may be left out now.
        found |= {"required": True} if was.get("required") else {}
        # What was given once may be given more often now.
        if found.get("multiple") and not was.get("multiple"):
            del found["multiple"]
        assert found == was, f"`vidgraph {verb}`: {option} has changed"
    required = [o for o, about in now[verb].items() if about.get("required")]
    more = set(required) - set(COMMANDS[verb])
    assert not more, f"`vidgraph {verb}` needs {more}, which older scripts do not give"


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--help",), 0),
        (("verify",), 2),
        (("no-such-verb",), 2),
        (("verify", "--cache", "nothing", "--workers", 0), 2),
        (("train", "no-such-recipe", "--cache", "cache"), 2),
    ],
)
def test_the_exit_code_for_help_is_0_and_for_bad_input_2(tmp_path, monkeypatch, args, code):
    monkeypatch.chdir(tmp_path)
    assert vidgraph(*args) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError, 2), (FileNotFoundError, 2), (RuntimeError, 1), (OSError, 1), (MemoryError, 1)],
)
def test_the_exit_codes_for_errors_of_input_and_of_the_machine(monkeypatch, error, code):
    monkeypatch.setattr(command, "main", _raises(error("as a test")))
    assert vidgraph("ls") == code


def test_the_exit_code_for_an_interrupt_is_130(monkeypatch):
    monkeypatch.setattr(command, "main", _raises(KeyboardInterrupt()))
    assert vidgraph("ls") == CODES["train stopped"] == 130


def _raises(error: BaseException):
    def call(**_):
        raise error

    return call


def test_the_data_names_no_place_of_the_machine_that_made_it():
    """Beside /tmp/made_before_rooms: what is stored in HDF5, JSON, CSV and checkpoints."""
    for path in DATA.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".toml", ".csv", ".pt", ".h5"):
            found = path.read_bytes()
            for word in (b"/work/", b"/home/", b"/root/"):
                assert word not in found, path
    for path in DATA.glob("cache*/*/*.h5"):
        with h5py.File(path) as file:
            assert all(len(dataset) for dataset in file["train"].values()), path
