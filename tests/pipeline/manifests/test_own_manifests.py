"""Manifests that record their root, are written again, and are divided into folds."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.__main__ import vidgraph
from pipeline.manifests.folds import FOLD, fold_rows
from pipeline.manifests.manifest import ManifestError, read_manifest, write_manifest
from pipeline.manifests.rewriting import read_cells, with_root
from pipeline.manifests.splits import absent_classes, draw_parts


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def run(*args: object):
    result = CliRunner().invoke(vidgraph, [str(arg) for arg in args])
    return result


def clips_csv(path: Path, rows: list[dict]) -> Path:
    return write_manifest(path, rows).path


def rows_of(counts: dict[str, int], **more: str) -> list[dict]:
    rows = []
    for label, count in counts.items():
        for k in range(count):
            name = f"{label}{k}"
            rows.append(
                {"clip": name, "path": f"{name}.mp4", "split": "train", "label": label, **more}
            )
    return rows


# The column root.


def test_a_manifest_outside_the_videos_works_where_it_is(tmp_path):
    touch(tmp_path / "videos", "cat/a.mp4", "dog/b.mp4")
    out = tmp_path / "lists" / "m.csv"
    assert run("manifest", "folder", tmp_path / "videos", "--out", out).exit_code == 0
    manifest = read_manifest(out)
    assert manifest.root == (tmp_path / "videos").resolve()
    assert [clip.path for clip in manifest.clips] == [
        (tmp_path / "videos" / name).resolve() for name in ("cat/a.mp4", "dog/b.mp4")
    ]
    # Another reader of CSV finds a plain column, and the folder in it.
    for row in csv.DictReader(out.read_text().splitlines()):
        assert (Path(row["root"]) / row["path"]).is_file()
    # --root replaces it.
    assert read_manifest(out, tmp_path / "moved").root == (tmp_path / "moved").resolve()


def test_a_recorded_root_may_be_relative_to_the_manifest(tmp_path):
    touch(tmp_path / "videos", "a.mp4")
    out = tmp_path / "lists" / "m.csv"
    out.parent.mkdir()
    out.write_text("clip,path,split,label,root\na,a.mp4,train,x,../videos\n")
    clip = read_manifest(out).clips[0]
    assert clip.path == (tmp_path / "videos" / "a.mp4").resolve()
    assert dict(clip.extra) == {}


def test_a_manifest_has_one_root(tmp_path):
    out = tmp_path / "m.csv"
    out.write_text("clip,path,split,label,root\na,a.mp4,train,x,one\nb,b.mp4,train,x,two\n")
    with pytest.raises(ManifestError, match=r"line 3, column root: expected 'one' .* got 'two'"):
        read_manifest(out)
    # Where the root is given, the column does not count.
    assert len(read_manifest(out, tmp_path).clips) == 2
    out.write_text("clip,path,split,label,root\na,a.mp4,train,x,s3://bucket/videos\n")
    with pytest.raises(ManifestError, match=r"column root.*URL"):
        read_manifest(out)
    out.write_text("clip,path,split,label,root\na,../a.mp4,train,x,videos\n")
    with pytest.raises(ManifestError, match="leaves"):
        read_manifest(out)


def test_an_empty_root_is_the_folder_of_the_manifest(tmp_path):
    out = tmp_path / "m.csv"
    out.write_text("clip,path,split,label,root\na,a.mp4,train,x,\nb,b.mp4,train,x,\n")
    assert read_manifest(out).root == tmp_path.resolve()


# Writing again.


def test_what_a_person_edited_is_kept(tmp_path):
    touch(tmp_path, "cat/a.mp4", "cat/b.mp4", "dog/c.mp4")
    out = tmp_path / "m.csv"
    command = ("manifest", "folder", tmp_path, "--out", out)
    assert run(*command).exit_code == 0
    assert run(*command).exit_code == 0  # the same rows may be written again
    edited = out.read_text().replace("cat/a.mp4,cat/a.mp4,", "mine,cat/a.mp4,")
    out.write_text(edited)
    refused = run(*command)
    assert isinstance(refused.exception, ManifestError)
    assert "--add keeps its rows and adds new clips; --force replaces it" in str(refused.exception)
    assert "1 row that this command would not write, and lacks 1" in str(refused.exception)
    assert out.read_text() == edited
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat", "dog", "m.csv"]
    assert run(*command, "--force").exit_code == 0
    assert "mine" not in out.read_text()


def test_new_clips_are_added_after_the_rows_that_are_there(tmp_path):
    touch(tmp_path, "cat/a.mp4", "cat/b.mp4", "dog/c.mp4")
    out = tmp_path / "lists" / "m.csv"
    command = ("manifest", "folder", tmp_path, "--out", out)
    assert run(*command).exit_code == 0
    lines = out.read_text().splitlines()
    lines[1] = lines[1].replace(",train,", ",test,")
    out.write_text("\n".join(lines) + "\n")
    touch(tmp_path, "ant/d.mp4")
    assert run(*command, "--add").exit_code == 0
    after = out.read_text().splitlines()
    assert after[:4] == lines
    assert [line.split(",")[0] for line in after[4:]] == ["ant/d.mp4"]


def test_cells_are_read_as_they_are_written(tmp_path):
    rows = [
        {"clip": "a", "path": "a.mp4", "split": "train", "label": "x, y", "note": "two\x0blines"},
        {"clip": "b", "path": "b.mp4", "split": "val", "label": "", "note": 'a "quote"\n'},
    ]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    assert read_cells(manifest) == rows
    assert list(with_root(rows, tmp_path, tmp_path / "m.csv")) == rows


def test_classes_without_a_clip_in_a_split_are_said(tmp_path):
    touch(tmp_path, *(f"cat/{k}.mp4" for k in range(10)), "dog/a.mp4", "emu/a.mp4")
    result = run("manifest", "folder", tmp_path, "--out", tmp_path / "m.csv")
    assert "2 classes have no clip in val: dog, emu" in result.output
    assert "2 classes have no clip in test: dog, emu" in result.output
    assert "no clip in train" not in result.output
    assert len(absent_classes(read_manifest(tmp_path / "m.csv"))) == 2


# Folds.


def test_every_clip_is_tested_once_and_each_fold_has_its_share_of_every_class(tmp_path):
    counts = {"a": 20, "b": 10, "c": 5, "d": 7}
    manifest = write_manifest(tmp_path / "m.csv", rows_of(counts))
    folds = fold_rows(manifest, k=5, val=0.2)
    tested = Counter()
    for number, rows in enumerate(folds, 1):
        assert [row["clip"] for row in rows] == [clip.clip for clip in manifest.clips]
        test = [row for row in rows if row["split"] == "test"]
        tested.update(row["clip"] for row in test)
        assert {row[FOLD] for row in test} == {str(number)}
        found = Counter(row["label"] for row in test)
        assert (found["a"], found["b"], found["c"]) == (4, 2, 1)
        assert found["d"] in (1, 2)
        val = Counter(row["label"] for row in rows if row["split"] == "val")
        assert (val["a"], val["b"], val["c"]) == (4, 2, 1)
    assert tested == Counter({clip.clip: 1 for clip in manifest.clips})
    assert folds == fold_rows(manifest, k=5, val=0.2)
    assert folds != fold_rows(manifest, k=5, val=0.2, seed=1)


@pytest.mark.parametrize("seed", range(3))
def test_clips_of_one_video_or_one_group_stay_together(tmp_path, seed):
    rows = []
    for k in range(60):
        # Two windows of each video; a person has three videos.
        video, person = k // 2, k // 6
        cells = {"clip": f"c{k}", "path": f"v{video}.mp4", "split": "train", "label": f"l{k % 3}"}
        rows.append({**cells, "start": k, "end": k + 1, "person": f"p{person}"})
    manifest = write_manifest(tmp_path / "m.csv", rows)
    for key, group in (("path", ""), ("person", "person")):
        for fold in fold_rows(manifest, k=5, group=group, seed=seed):
            splits = {}
            for row in fold:
                splits.setdefault(row[key], set()).add(row["split"])
            assert all(len(found) == 1 for found in splits.values()), (key, splits)


def test_a_video_in_two_groups_joins_them(tmp_path):
    rows = []
    for k, (path, person) in enumerate([("v0", "p"), ("v0", "q"), ("v1", "q"), ("v2", "r")]):
        cells = {"clip": f"c{k}", "path": path, "split": "train", "label": "x"}
        rows.append({**cells, "person": person})
    manifest = write_manifest(tmp_path / "m.csv", rows)
    for fold in fold_rows(manifest, k=2, group="person", val=0):
        assert len({row["split"] for row in fold[:3]}) == 1
    with pytest.raises(ManifestError, match="2 groups of clips, expected at least 3"):
        fold_rows(manifest, k=3, group="person")
    with pytest.raises(ManifestError, match=r"no column 'persn'; did you mean person\?"):
        fold_rows(manifest, group="persn")


def test_a_test_split_can_stay_out_of_the_folds(tmp_path):
    rows = rows_of({"a": 12, "b": 12})
    for row in rows[::4]:
        row["split"] = "test"
    manifest = write_manifest(tmp_path / "m.csv", rows)
    validated = Counter()
    for fold in fold_rows(manifest, k=3, keep_test=True):
        assert [row["clip"] for row in fold if row["split"] == "test"] == [
            row["clip"] for row in rows[::4]
        ]
        assert all((row[FOLD] == "") == (row["split"] == "test") for row in fold)
        validated.update(row["clip"] for row in fold if row["split"] == "val")
    assert len(validated) == 18
    assert set(validated.values()) == {1}


def test_folds_are_written_beside_the_manifest_and_find_its_videos(tmp_path):
    touch(tmp_path, *(f"{label}/{k}.mp4" for label in "ab" for k in range(6)))
    run("manifest", "folder", tmp_path, "--out", tmp_path / "clips.csv")
    result = run("manifest", "folds", tmp_path / "clips.csv", "--k", 3)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "clips-folds"
    assert sorted(path.name for path in folder.iterdir()) == [f"fold{k}.csv" for k in (1, 2, 3)]
    for path in folder.iterdir():
        manifest = read_manifest(path)
        assert len(manifest.clips) == 12
        assert all(clip.path.is_file() for clip in manifest.clips)


def test_a_share_that_leaves_nothing_to_train_on_is_refused(tmp_path):
    manifest = write_manifest(tmp_path / "m.csv", rows_of({"a": 6}))
    with pytest.raises(ValueError, match=r"val: expected a share from 0, below 0\.5"):
        fold_rows(manifest, k=2, val=0.5)
    with pytest.raises(ValueError, match="at least 2 folds"):
        fold_rows(manifest, k=1)


def test_clips_of_several_classes_are_stratified_too():
    classes = [("a", "b"), ("b",), ("c",), ("a", "c")] * 10
    parts = draw_parts(classes, [str(k) for k in range(40)], {"x": 0.5, "y": 0.5})
    for name in "abc":
        found = Counter(part for part, of in zip(parts, classes, strict=True) if name in of)
        assert abs(found["x"] - found["y"]) <= 2, (name, found)
