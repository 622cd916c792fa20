"""A folder of videos becomes rows: classes and splits, ids, and what is left out."""

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from pipeline.manifests.folder_scan import scan_folder
from pipeline.manifests.manifest import ManifestError, write_manifest
from tests.pipeline.manifests.test_manifest import touch


def test_classes_come_from_folders_and_ids_from_paths(tmp_path):
    touch(tmp_path, "cat/one.mp4", "cat/deep/two.MKV", "dog/x.v1.webm", "loose.avi")
    found = {r["clip"]: (r["path"], r["label"]) for r in scan_folder(tmp_path).rows}
    assert found == {
        "cat/one.mp4": ("cat/one.mp4", "cat"),
        "cat/deep/two.MKV": ("cat/deep/two.MKV", "cat"),
        "dog/x.v1.webm": ("dog/x.v1.webm", "dog"),
        "loose.avi": ("loose.avi", ""),
    }


ADDED = [
    "c/a.avi",
    "c/a/1.jpg",
    "c/A.mp4",
    "c/a.MP4",
    "c/ a.mp4",
    "c/a .mp4",
    "b/a.mp4",
    "c/a.mp4.mp4",
    "a.mp4",
    "c/a/b.mp4",
]


@pytest.mark.parametrize("added", ADDED)
def test_the_row_of_a_clip_hangs_on_no_other_file(tmp_path, added):
    """Its id, split and label are the same whatever lies beside it, and all ids differ."""
    touch(tmp_path, "c/a.mp4", "c/b.webm", "d/walk/1.jpg")
    before = {row["path"]: row for row in scan_folder(tmp_path, "hash", val=0.3, test=0.3).rows}
    touch(tmp_path, added)
    after = {row["path"]: row for row in scan_folder(tmp_path, "hash", val=0.3, test=0.3).rows}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1 == len({row["clip"] for row in after.values()})


def test_blanks_at_the_ends_of_names_cost_no_video(tmp_path):
    touch(
        tmp_path,
        "jump/one.mp4",
        "jump/my clip .mp4",
        " run/three.mp4",
        "walk/four /1.jpg",
        "five. mp4/1.jpg",
    )
    scan = scan_folder(tmp_path)
    manifest = write_manifest(tmp_path / "m.csv", scan.rows)
    assert not scan.ignored
    assert all(clip.path.exists() for clip in manifest.clips)
    assert {clip.clip for clip in manifest.clips} == {
        *("jump/one.mp4", "jump/my clip .mp4", "%20run/three.mp4", "walk/four%20", "five. mp4")
    }


@pytest.mark.parametrize(
    "name",
    [r"C:\a.mp4", r"\\host\a.mp4", "~me/a.mp4", "...mp4", "a\nb.mp4", "a\x1b[31m.mp4", "a;b/c.mp4"],
)
def test_a_name_that_no_manifest_takes_is_told_and_costs_no_other(tmp_path, name):
    touch(tmp_path, "a.mp4", name)
    scan = scan_folder(tmp_path)
    assert [clip.clip for clip in write_manifest(tmp_path / "m.csv", scan.rows).clips] == ["a.mp4"]
    assert len(scan.ignored) == 1
    assert scan.about_ignored().isprintable()


def test_a_path_that_is_too_long_for_an_id_is_cut_and_stays_apart_from_others(tmp_path):
    names = ["c/" + "映" * 75 + f"{k}.mp4" for k in range(2)]  # 230 bytes in UTF-8
    touch(tmp_path, "c/a.mp4", *names)
    clips = write_manifest(tmp_path / "m.csv", scan_folder(tmp_path).rows).clips
    assert {clip.path for clip in clips} == {
        tmp_path.resolve() / name for name in ["c/a.mp4", *names]
    }
    assert [clip.clip[:3] for clip in clips] == ["c/a", "c/映", "c/映"]
    (tmp_path / names[0]).unlink()  # its id hangs on no other file
    assert {row["clip"] for row in scan_folder(tmp_path).rows} == {
        clip.clip for clip in clips if clip.path.exists()
    }


def test_a_folder_that_cannot_be_read_costs_no_other(tmp_path, monkeypatch):
    touch(tmp_path, "c/a.mp4", "secret/b.mp4")
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "secret":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    scan = scan_folder(tmp_path)
    assert [row["path"] for row in scan.rows] == ["c/a.mp4"]
    assert scan.ignored == ["secret/ (cannot be read: Permission denied)"]
    with pytest.raises(PermissionError):
        scan_folder(tmp_path / "secret")


def test_links_that_are_not_followed_are_said_to_be_links(tmp_path):
    touch(tmp_path, "store/0.mp4", "store/walk/1.jpg")
    (tmp_path / "set/a").mkdir(parents=True)
    for name, target in (
        ("clip.mp4", "../../store/0.mp4"),
        ("walk", "../../store/walk"),
        ("gone.mp4", "nothing.mp4"),
    ):
        (tmp_path / "set/a" / name).symlink_to(target)
    expected = r"3 links \(a/clip.mp4 -> \.\./\.\./store/0.mp4, .*copy the files"
    with pytest.raises(ManifestError, match=expected):
        scan_folder(tmp_path / "set")
    touch(tmp_path, "set/a/own.mp4")
    scan = scan_folder(tmp_path / "set")
    assert [row["path"] for row in scan.rows] == ["a/own.mp4"]
    assert scan.about_ignored().startswith("3 links ignored (a/clip.mp4 -> ")
    # From the folder above both, the links to files stay inside.
    inside = {row["path"] for row in scan_folder(tmp_path).rows}
    assert {"set/a/clip.mp4", "store/0.mp4", "store/walk"} <= inside


def test_a_folder_of_images_is_one_clip_and_pictures_beside_videos_are_none(tmp_path):
    touch(
        tmp_path,
        "c/walk/00001.jpg",
        "c/walk/00002.jpg",
        "c/walk/notes.txt",
        "c/thumb.png",
        "c/b.mp4",
    )
    scan = scan_folder(tmp_path)
    assert [(r["clip"], r["path"], r["label"]) for r in scan.rows] == [
        ("c/b.mp4", "c/b.mp4", "c"),
        ("c/walk", "c/walk", "c"),
    ]
    assert sorted(scan.ignored) == ["c/thumb.png", "c/walk/notes.txt"]
    with pytest.raises(ManifestError, match="folder above"):
        scan_folder(tmp_path / "c/walk")


def test_split_folders_are_recognised(tmp_path):
    touch(tmp_path, "train/cat/a.mp4", "Validation/cat/a.mp4", "test/dog/a.mp4")
    found = {r["clip"]: (r["split"], r["label"]) for r in scan_folder(tmp_path).rows}
    assert found == {
        "train/cat/a.mp4": ("train", "cat"),
        "Validation/cat/a.mp4": ("val", "cat"),
        "test/dog/a.mp4": ("test", "dog"),
    }
    by_hash = scan_folder(tmp_path, split_by="hash", val=0, test=0).rows
    assert {(r["split"], r["label"]) for r in by_hash} == {
        ("train", "train"),
        ("train", "Validation"),
        ("train", "test"),
    }


def test_half_of_the_folders_named_after_splits_is_refused(tmp_path):
    touch(tmp_path, "train/a.mp4", "bus/b.mp4")
    with pytest.raises(ManifestError, match=r"'bus' is beside them.*--split-by hash"):
        scan_folder(tmp_path)
    touch(tmp_path / "plain", "bus/b.mp4")
    with pytest.raises(ManifestError, match="'bus'"):
        scan_folder(tmp_path / "plain", split_by="folders")
    assert len(scan_folder(tmp_path, split_by="hash").rows) == 3


def test_hashed_splits_have_their_shares_and_do_not_move_when_clips_are_added(tmp_path):
    touch(tmp_path, *(f"c/{k}.mp4" for k in range(1000)))
    before = {r["clip"]: r["split"] for r in scan_folder(tmp_path, "hash", val=0.2, test=0.1).rows}
    shares = [list(before.values()).count(split) for split in ("train", "val", "test")]
    assert all(abs(share - want) < 50 for share, want in zip(shares, (700, 200, 100), strict=True))
    touch(tmp_path, "c/0000.mp4", "b/new.mp4")
    after = {r["clip"]: r["split"] for r in scan_folder(tmp_path, "hash", val=0.2, test=0.1).rows}
    assert before.items() <= after.items()
    assert before != {
        r["clip"]: r["split"] for r in scan_folder(tmp_path, "hash", val=0.2, test=0.1, seed=1).rows
    }
    # Written down once: caches and results depend on who is in which split.
    splits = " ".join(before[f"c/{k}.mp4"] for k in range(8))
    assert splits == "val train test val train train train train"


def test_every_class_has_its_shares_of_the_splits(tmp_path):
    touch(tmp_path, *(f"big/{k}.mp4" for k in range(50)), *(f"ten/{k}.mp4" for k in range(10)))
    touch(tmp_path, *(f"three/{k}.mp4" for k in range(3)), "two/0.mp4", "two/1.mp4", "one/0.mp4")
    rows = scan_folder(tmp_path, val=0.1, test=0.2).rows
    counts = Counter((row["label"], row["split"]) for row in rows)
    by_class = {}
    for label in ("big", "ten", "three", "two", "one"):
        by_class[label] = tuple(counts[label, split] for split in ("train", "val", "test"))
    assert by_class == {
        "big": (35, 5, 10),
        "ten": (7, 1, 2),
        "three": (1, 1, 1),
        "two": (1, 0, 1),
        "one": (1, 0, 0),
    }
    assert rows == scan_folder(tmp_path, val=0.1, test=0.2).rows
    assert rows != scan_folder(tmp_path, val=0.1, test=0.2, seed=1).rows
    assert {row["split"] for row in scan_folder(tmp_path, val=0, test=0).rows} == {"train"}


@pytest.mark.parametrize("ending", ["gif", "ts", "mts", "m2ts", "vob", "asf", "MTS"])
def test_videos_of_cameras_discs_and_the_web_are_found(tmp_path, ending):
    touch(tmp_path, f"c/a.{ending}")
    assert [row["path"] for row in scan_folder(tmp_path).rows] == [f"c/a.{ending}"]


def test_what_no_manifest_can_hold_is_reported_or_refused(tmp_path):
    touch(
        tmp_path,
        "c/a.mp4",
        "c/.hidden.mp4",
        "c/tab\there.mp4",
        "c/" + "x" * 220 + ".mp4",
        ".git/b.mp4",
    )
    os.makedirs(os.path.join(os.fsencode(tmp_path), b"c"), exist_ok=True)
    open(os.path.join(os.fsencode(tmp_path), b"c", b"caf\xe9.mp4"), "wb").close()
    (tmp_path / "c/round").symlink_to(tmp_path)
    (tmp_path / "c/out.mp4").symlink_to(os.__file__)
    (tmp_path / "c/self.mp4").symlink_to("self.mp4")
    scan = scan_folder(tmp_path)
    assert [r["path"] for r in scan.rows] == ["c/a.mp4", "c/" + "x" * 220 + ".mp4"]
    assert len(scan.ignored) == 4
    assert len(scan.links) == 3
    write_manifest(tmp_path / "m.csv", scan.rows)
    touch(tmp_path, "a;b/c.mp4")
    assert "rename the folder 'a;b'" in " ".join(scan_folder(tmp_path).ignored)
    touch(tmp_path / "other", "a;b/c.mp4")
    with pytest.raises(ManifestError, match="rename the folder 'a;b'"):
        scan_folder(tmp_path / "other")


def test_a_folder_without_clips_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="which is empty"):
        scan_folder(tmp_path)
    touch(tmp_path, *(f"{k}.txt" for k in range(5)))
    with pytest.raises(ManifestError, match=r"0\.txt, 1\.txt, 2\.txt and 2 more"):
        scan_folder(tmp_path)
    with pytest.raises(ManifestError, match="expected a folder"):
        scan_folder(tmp_path / "none")
    for shares in ((-0.1, 0), (0.6, 0.6), (float("nan"), 0)):
        with pytest.raises(ValueError, match="together at most 1"):
            scan_folder(tmp_path, "hash", *shares)
