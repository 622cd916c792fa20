"""`vidgraph export`: what other programs read is what the cache holds."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cli.__main__ import main, vidgraph
from pipeline.cache.joined import open_caches
from pipeline.cache.reader import Cache, create_cache
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.export.export import export
from pipeline.manifests.manifest import write_manifest
from pipeline.video.decode import write_video
from tests.support.tiny_cache import Tiny

SPLITS = ("train",) * 3 + ("val",) * 2 + ("test",) * 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    """Seven clips, of which one of train failed; two views of each kind."""
    return Tiny(splits=SPLITS, failed=(1,)).write(tmp_path_factory.mktemp("cache"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def quiet(line: str) -> None:
    """Nobody listens."""


def run(*args: object) -> str:
    result = CliRunner().invoke(vidgraph, ["export", *map(str, args)])
    assert result.exit_code == 0, result.output
    return result.output


def test_npy_files_hold_the_rows_that_their_table_names(cache, tmp_path):
    output = run(cache.path, "--to", "npy", "--out", tmp_path / "out", "--fields", "pooled,boxes")
    assert "split train: 1 clip left out (failed at extraction): clip-1" in output
    for split, group, count in (("train", "train", 4), ("val", "test", 4), ("test", "test", 4)):
        table = rows_of(tmp_path / "out" / split / "rows.csv")
        assert len(table) == count
        for name in ("pooled", "boxes"):
            array = np.load(tmp_path / "out" / split / f"{name}.npy", mmap_mode="r")
            assert array.dtype == cache[group].dtype(name)
            for row, values in zip(table, array, strict=True):
                own = cache[group].rows_of(row["clip"])[int(row["view"])]
                np.testing.assert_array_equal(values, cache[group].view(own)[name])
    assert {row["label"] for row in table} <= {"class 0", "class 1", "class 2"}
    assert not (tmp_path / "out" / "train" / "nodes.npy").exists()


def test_several_caches_are_exported_as_one(cache, tmp_path):
    other = Tiny(splits=SPLITS, prefix="other-").write(tmp_path / "other")
    run(cache.path, other.path, "--to", "npy", "--out", tmp_path / "a", "--split", "test")
    run("--cache", cache.path, "--cache", other.path, "--to", "npy", "--out", tmp_path / "b",
        "--split", "test")  # fmt: skip
    clips = [row["clip"] for row in rows_of(tmp_path / "a" / "test" / "rows.csv")]
    assert clips == ["clip-5"] * 2 + ["clip-6"] * 2 + ["other-5"] * 2 + ["other-6"] * 2
    for name in ("pooled", "valid"):
        one = np.load(tmp_path / "a" / "test" / f"{name}.npy")
        np.testing.assert_array_equal(one, np.load(tmp_path / "b" / "test" / f"{name}.npy"))
    record = json.loads((tmp_path / "a" / "export.json").read_text())
    assert record["caches"] == [str(cache.path.resolve()), str(other.path.resolve())]


def test_safetensors_hold_every_row_once_over_several_files(cache, tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")
    # A file and a block for each row.
    monkeypatch.setattr("pipeline.export.arrays.FILE_BYTES", 1)
    monkeypatch.setattr("pipeline.export.export_rows.BLOCK", 1)
    export(cache, "safetensors", tmp_path / "out", splits=["val"], say=quiet)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 4
    for path in files:
        arrays = safetensors.load_file(path)
        (row,) = rows_of(path.with_suffix(".csv"))
        own = cache["test"].rows_of(row["clip"])[int(row["view"])]
        stored = cache["test"].view(own)
        assert set(arrays) == set(stored)
        for name, values in arrays.items():
            np.testing.assert_array_equal(values[0], stored[name])


def test_parquet_has_a_row_for_each_view_with_its_labels(cache, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export(cache, "parquet", tmp_path / "out", fields=["nodes", "valid", "flip"], say=quiet)
    table = parquet.read_table(tmp_path / "out" / "train.parquet")
    assert table.num_rows == 4
    shape = tuple(map(int, table.schema.field("nodes").metadata[b"shape"].split(b",")))
    assert shape == cache["train"].shape("nodes")
    for row in table.to_pylist():
        own = cache["train"].rows_of(row["clip"])[row["view"]]
        stored = cache["train"].view(own)
        np.testing.assert_array_equal(np.reshape(row["nodes"], shape), stored["nodes"])
        np.testing.assert_array_equal(np.reshape(row["valid"], (3, 2)), stored["valid"])
        assert row["flip"] == bool(stored["flip"])
        assert row["labels"] == [f"class {int(row['clip'][-1]) % 3}"]


@pytest.mark.parametrize(
    ("to", "package"), [("parquet", "pyarrow"), ("safetensors", "safetensors")]
)
def test_a_missing_package_is_named_with_what_to_install(cache, tmp_path, monkeypatch, to, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}.*pip install 'vidgraph\[export\]'"):
        export(cache, to, tmp_path / "out", say=quiet)
    assert not (tmp_path / "out").exists()


@dataclass
class Windows:
    """A cache of windows of two videos at 10 frames/s; a step's feature is its time in seconds.

    Attributes:
        spans: start and end of each window of the first video, seconds.
        with_time: whether the cache holds `time`; else the frame numbers say it.
    """

    spans: tuple[tuple[float, float], ...]
    T: int = 4

    def write(self, folder: Path, labels: tuple[str, ...]) -> Cache:
        folder.mkdir(parents=True, exist_ok=True)
        frames = np.zeros((60, 32, 32, 3), np.uint8)
        for name in ("long", "short"):
            write_video(folder / f"{name}.mp4", frames, 10)
        rows = []
        for k, ((start, end), label) in enumerate(zip(self.spans, labels, strict=True)):
            rows.append({"clip": f"w{k}", "path": "long.mp4", "split": "test", "label": label,
                         "start": str(start), "end": str(end)})  # fmt: skip
        whole = {"clip": "whole", "path": "short.mp4", "split": "train", "label": "run"}
        rows.append({**whole, "start": None, "end": None})
        # Windows need not be in the order of time.
        manifest = write_manifest(folder / "m.csv", rows[::-1])
        shards = create_cache(folder / "cache", {"backbone": "digit_cnn"}, manifest, 10)
        fields = {"pooled": ((self.T, 2), "float32"), "frames": ((2 * self.T,), "int32")}
        names = [clip.clip for clip in manifest.clips]
        plans = {"test": GroupPlan(names, [0] * len(names), fields)}
        with ShardWriter(shards.path(0), plans, attrs=shards.attrs(0)) as writer:
            for row, clip in enumerate(manifest.clips):
                start, end = clip.start or 0.0, 6.0 if clip.end is None else clip.end
                # The first of two frames of each step, at even distances.
                first = (start + (end - start) * np.arange(self.T) / self.T) * 10
                numbers = np.stack([first, first + 1], 1).reshape(-1).round().astype(np.int32)
                middle = (numbers.reshape(-1, 2).mean(1) + 0.5) / 10
                pooled = np.stack([middle, -middle], 1).astype(np.float32)
                writer.write("test", row, {"pooled": pooled, "frames": numbers})
            writer.finish({"failures": [], "clips": len(names)})
        return Cache(folder / "cache")


def test_windows_of_a_video_are_joined_in_order_of_time(tmp_path):
    """Every feature of the made cache is its own time, so the array says if it is in place."""
    windows = Windows(((0.0, 2.0), (2.0, 4.0), (4.0, 6.0)))
    cache = windows.write(tmp_path, ("run", "run", "jump"))
    export(cache, "tad", tmp_path / "out", say=quiet)
    record = json.loads((tmp_path / "out" / "annotations.json").read_text())
    array, about = np.load(tmp_path / "out" / "long.npy"), record["database"]["long"]
    assert array.shape == (12, 2)
    assert array.dtype == np.float32
    expected = about["offset_seconds"] + about["stride_seconds"] * np.arange(12)
    np.testing.assert_allclose(array[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(expected, 0.1 + 0.5 * np.arange(12))
    assert about["subset"] == "testing"
    assert (about["fps"], about["frame"], about["duration"]) == (10, 60, pytest.approx(6.0))
    # Windows that touch and have one label are one segment.
    assert about["annotations"] == [
        {"segment": [0.0, 4.0], "label": "run", "label_id": 1},
        {"segment": [4.0, 6.0], "label": "jump", "label_id": 0},
    ]
    assert (tmp_path / "out" / "category_idx.txt").read_text() == "jump\nrun\n"
    assert record["database"]["short"]["annotations"][0]["segment"] == [0.0, 6.0]


def test_the_programs_formulas_give_the_second_of_each_feature(tmp_path):
    """ActionFormer: (s fps - num_frames / 2) / feat_stride; OpenTAD: (frame - offset) / stride."""
    windows = Windows(((0.0, 2.0), (2.0, 4.0), (4.0, 6.0)))
    cache = windows.write(tmp_path, ("a", "b", "c"))
    export(cache, "tad", tmp_path / "out", splits=["test"], say=quiet)
    record = json.loads((tmp_path / "out" / "annotations.json").read_text())
    about, seconds = record["features"], np.load(tmp_path / "out" / "long.npy")[:, 0]
    fps, stride = about["default_fps"], about["feat_stride"]
    place = (seconds * fps - about["num_frames"] / 2) / stride
    np.testing.assert_allclose(place, np.arange(12), atol=1e-5)
    place = (seconds * fps - about["offset_frames"]) / about["feature_stride"]
    np.testing.assert_allclose(place, np.arange(12), atol=1e-5)


def test_overlapping_windows_are_averaged_and_gaps_are_filled(tmp_path):
    windows = Windows(((0.0, 2.0), (1.0, 3.0), (4.0, 6.0)))
    cache = windows.write(tmp_path, ("a", "a", "a"))
    export(cache, "tad", tmp_path / "out", say=quiet)
    array = np.load(tmp_path / "out" / "long.npy")
    np.testing.assert_allclose(array[:, 0], 0.1 + 0.5 * np.arange(12), atol=1e-5)


def test_videos_of_other_distances_are_said(tmp_path):
    windows = Windows(((0.0, 2.0), (2.0, 4.0)))
    lines: list[str] = []
    export(windows.write(tmp_path, ("a", "b")), "tad", tmp_path / "out", say=lines.append)
    # `short` is one window of 6 s, with as many steps.
    assert any("videos differ in the distance of their steps" in line for line in lines)
    about = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert about["features"]["feat_stride"] is None
    assert about["database"]["short"]["stride_seconds"] == pytest.approx(1.5, abs=0.06)


def test_without_its_video_a_rate_must_be_given(tmp_path):
    cache = Windows(((0.0, 2.0),)).write(tmp_path, ("a",))
    (tmp_path / "long.mp4").unlink()
    with pytest.raises(ValueError, match=r"long\.mp4: its frame rate is not known .*give --fps"):
        export(cache, "tad", tmp_path / "out", splits=["test"], say=quiet)
    export(cache, "tad", tmp_path / "out", splits=["test"], fps=10.0, say=quiet)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "long.npy")[:, 0], [0.1, 0.6, 1.1, 1.6])


@pytest.fixture
def boxed(tmp_path) -> Cache:
    """A clip whose view is the right half of the frame, mirrored, with one box of two valid."""
    write_video(tmp_path / "v.mp4", np.zeros((8, 32, 64, 3), np.uint8), 10)
    (tmp_path / "frames").mkdir()
    rows = [
        {"clip": "a/b", "path": "v.mp4", "split": "test", "label": "run;jump"},
        {"clip": "pictures", "path": "frames", "split": "test", "label": "run"},
    ]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    config = {"backbone": "digit_cnn", "box_classes": ["cat", "dog"]}
    shards = create_cache(tmp_path / "cache", config, manifest, 2)
    view = {
        "frames": np.array([0, 2, 4, 6], np.int32),
        "crop": np.array([32, 0, 32, 32, 64, 32], np.float32),
        "flip": np.bool_(True),
        "boxes": np.array([[[0.0, 0.5, 0.25, 1.0], [0, 0, 0, 0]]] * 2, np.float32),
        "valid": np.array([[True, False]] * 2),
        "scores": np.array([[0.75, 0.0]] * 2, np.float32),
    }
    fields = {name: (value.shape, value.dtype.name) for name, value in view.items()}
    plans = {"test": GroupPlan(["a/b", "pictures"], [0, 0], fields)}
    with ShardWriter(shards.path(0), plans, attrs=shards.attrs(0)) as writer:
        for row in range(2):
            writer.write("test", row, view)
        writer.finish({"failures": [], "clips": 2})
    return Cache(tmp_path / "cache")


def test_fiftyone_gets_boxes_of_the_whole_frame(boxed, tmp_path):
    lines: list[str] = []
    written = export(boxed, "fiftyone", tmp_path / "out", say=lines.append)
    assert written.views == 1
    assert "1 clip left out (folders of frames" in lines[0]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["type"] == "eta.core.datasets.LabeledVideoDataset"
    (entry,) = manifest["index"]
    assert (tmp_path / "out" / entry["data"]).resolve() == (tmp_path / "v.mp4").resolve()
    record = json.loads((tmp_path / "out" / entry["labels"]).read_text())
    values = [(one["name"], one["value"]) for one in record["attrs"]["attrs"]]
    assert values == [("split", "test"), ("clip", "a/b"), ("label", "run"), ("label", "jump")]

    # Frames 0 and 4 of the file, counted from 1. Mirrored back, the box is at the right border.
    assert list(record["frames"]) == ["1", "5"]
    (one,) = record["frames"]["5"]["objects"]["objects"]
    assert one["bounding_box"] == {
        "top_left": {"x": 0.875, "y": 0.5},
        "bottom_right": {"x": 1.0, "y": 1.0},
    }
    assert (one["label"], one["confidence"]) == ("box", 0.75)


def test_classes_and_tracks_of_boxes_are_told():
    from pipeline.export.video_labels import _object

    view = {
        "crop": np.array([0, 0, 8, 8, 8, 8], np.float32),
        "flip": np.bool_(False),
        "boxes": np.array([[[0, 0, 0.5, 0.5], [0, 0, 1, 1]]], np.float32),
        "box_class": np.array([[1, -1]], np.int16),
        "track": np.array([[7, -1]], np.int32),
    }
    named = _object(view, 0, 0, 1, ["cat", "dog"])
    assert (named["label"], named["index"]) == ("dog", 7)
    other = _object(view, 0, 1, 1, ["cat", "dog"])
    assert other["label"] == "box"
    assert "index" not in other


def test_what_is_refused(cache, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    cases = [
        (["--out", tmp_path / "full"], "holds something; expected a new folder"),
        (["--out", tmp_path / "o", "--fields", "res4"], "no res4"),
        (["--out", tmp_path / "o", "--split", "fold"], "no clip in split 'fold'"),
    ]
    for options, message in cases:
        with pytest.raises(SystemExit) as error:
            main(["export", str(cache.path), "--to", "npy", *map(str, options)])
        assert error.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "o").exists()
    with pytest.raises(ValueError, match="--fields valid: expected pooled or nodes"):
        export(cache, "tad", tmp_path / "o", fields=["valid"], say=quiet)
    # Nothing half written is left.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_an_empty_list_of_caches_is_refused():
    with pytest.raises(ValueError, match="expected the path of a cache"):
        open_caches([])
