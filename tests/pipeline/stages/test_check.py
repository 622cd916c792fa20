"""Each kind of bad clip is found before a run, good ones are not, and the list says where."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.manifests.manifest import Clip, Manifest, read_manifest, write_manifest
from pipeline.proposals import build_proposals
from pipeline.stages import check
from pipeline.stages.check import (
    ClipFinding,
    check_clips,
    frame_numbers,
    look_at_clip,
    write_findings,
)
from pipeline.video.decode import write_video
from pipeline.video.view_pixels import ClipOpener
from pipeline.workers.pool_process import PoolProcess


def moving(seed: int, frames: int = 12) -> np.ndarray:
    """Noise that differs from frame to frame."""
    return np.random.default_rng(seed).integers(0, 256, (frames, 32, 48, 3), np.uint8)


def manifest_of(folder: Path, *rows: tuple[str, str, str, str]) -> Manifest:
    table = [dict(zip(("clip", "path", "split", "label"), row, strict=True)) for row in rows]
    return write_manifest(folder / "m.csv", table)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", moving(1), 12)
    write_video(folder / "b.mp4", moving(2), 12)
    write_video(folder / "still.mp4", moving(3)[:1].repeat(12, 0), 12)
    write_video(folder / "black.mp4", np.zeros((12, 32, 48, 3), np.uint8), 12)
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    # Bytes after the container change the file, not what it shows.
    with open(folder / "copy.mp4", "ab") as file:
        file.write(b"\0\0\0\x08free")
    data = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "text.mp4").write_text("not a video")
    (folder / "nothing").mkdir()
    (folder / "frames").mkdir()
    for k in range(4):
        Image.fromarray(moving(4)[k]).save(folder / "frames" / f"{k}.png")
    return folder


def found(folder: Path, *names: str, workers: int = 0, **more) -> dict[str, set[str]]:
    """clip -> kinds, for clips called like their files."""
    manifest = manifest_of(folder, *((name, name, "train", "x") for name in names))
    kinds: dict[str, set[str]] = {}
    for finding in check_clips(manifest, ClipOpener(manifest.root), workers, **more).findings:
        kinds.setdefault(finding.clip, set()).add(finding.kind)
    return kinds


def test_good_clips_have_no_findings(videos):
    assert found(videos, "a.mp4", "b.mp4", "frames") == {}


def test_each_kind_of_bad_clip_is_found(videos):
    unreadable = ("cut.mp4", "text.mp4", "none.mp4", "nothing")
    names = ("a.mp4", *unreadable, "b.mp4", "black.mp4", "still.mp4", "copy.mp4")
    assert found(videos, *names) == {
        **{name: {"unreadable"} for name in unreadable},
        "black.mp4": {"blank"},
        "still.mp4": {"still"},
        "copy.mp4": {"duplicate"},
    }


def test_a_small_thing_that_moves_is_not_still(tmp_path):
    """A square of 10 pixels moves over 96 by 128: on average, frames differ by half a level."""
    noise = np.random.default_rng(0).integers(0, 60, (1, 96, 128, 3), np.uint8)
    frames = np.full((12, 96, 128, 3), 90, np.uint8) + noise
    for k in range(12):
        frames[k, 40:50, 9 * k : 9 * k + 10] = 200
    write_video(tmp_path / "small.mp4", frames, 12)
    assert found(tmp_path, "small.mp4") == {}


def test_workers_find_what_one_process_finds_in_the_order_of_the_manifest(videos):
    names = ("copy.mp4", "text.mp4", "a.mp4", "b.mp4", "still.mp4")
    manifest = manifest_of(videos, *((name, name, "train", "x") for name in names))
    opener = ClipOpener(manifest.root)
    alone, together = (check_clips(manifest, opener, workers).findings for workers in (0, 2))
    assert alone == together
    assert [finding.clip for finding in alone] == ["text.mp4", "a.mp4", "still.mp4"]


def test_a_damaged_frame_in_the_middle_of_a_folder_is_found_where_it_is_looked_at(videos, tmp_path):
    shutil.copytree(videos / "frames", tmp_path / "frames")
    middle = frame_numbers(4)[1]
    (tmp_path / f"frames/{middle}.png").write_bytes(b"x")
    assert found(tmp_path, "frames") == {"frames": {"unreadable"}}


def test_parts_of_one_file_are_no_duplicates_and_the_same_part_twice_is(videos):
    row = {"path": "a.mp4", "split": "train", "label": "x"}
    rows = []
    for k, (start, end) in enumerate(((0, 0.5), (0.5, 1), (0, 0.5))):
        rows.append({"clip": str(k), **row, "start": start, "end": end})
    manifest = write_manifest(videos / "parts.csv", rows)
    findings = check_clips(manifest, ClipOpener(manifest.root), 0).findings
    assert [(f.clip, f.kind) for f in findings] == [("2", "duplicate")]
    assert "clip 0" in findings[0].message


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (1.0, ""),
        (1.45, ""),
        (1.55, "0.55 s beyond"),
        (1000, "milliseconds"),
        (12, "frame numbers"),
        (100_000, "seconds in the file"),
    ],
)
def test_an_end_beyond_the_video_is_a_finding_and_rounding_is_none(videos, end, words):
    """a.mp4 has 12 frames, 12 a second."""
    row = {"clip": "a", "path": "a.mp4", "split": "train", "label": "x", "start": 0, "end": end}
    manifest = write_manifest(videos / "end.csv", [row])
    findings = check_clips(manifest, ClipOpener(manifest.root), 0).findings
    assert [(f.clip, f.kind) for f in findings] == ([("a", "end")] if words else [])
    assert all(words in f.message for f in findings)


def test_an_end_beyond_a_folder_of_frames_is_a_finding_too(videos):
    row = {"clip": "a", "path": "frames", "split": "train", "label": "x"}
    row |= {"start": "", "end": 4000, "fps": 4}
    manifest = write_manifest(videos / "end.csv", [row])
    (finding,) = check_clips(manifest, ClipOpener(manifest.root), 0).findings
    expected = "ends at 4000 s, 3999.00 s beyond the end of the video (1.00 s)"
    assert finding.message.startswith(expected)


def test_labels_that_look_the_same_and_are_two_classes_are_a_finding(videos):
    manifest = manifest_of(
        videos, ("a", "a.mp4", "train", "caf\u00e9"), ("b", "b.mp4", "train", "cafe\u0301")
    )
    (finding,) = check_clips(manifest, ClipOpener(manifest.root), 0).findings
    assert finding.kind == "label"
    assert "two classes" in finding.message


def test_boxes_are_compared_with_the_clips(videos, tmp_path):
    """Good boxes, boxes of a larger picture, a clip without boxes, and boxes of no clip here."""
    boxes = [("a.mp4", k, 4, 4, 48, 32) for k in range(12)]
    boxes += [("b.mp4", k, 4, 4, 72, 48) for k in range(12)]
    # Of 4 frames, 0 0 1 1 2 2 ... are looked at with the default options.
    boxes += [("frames", 1, 4, 4, 40, 30)]
    text = "clip,frame,x1,y1,x2,y2\n" + "".join(",".join(map(str, row)) + "\n" for row in boxes)
    (tmp_path / "boxes.csv").write_text(text)
    source = build_proposals("annotations", file=str(tmp_path / "boxes.csv"))
    assert found(videos, "a.mp4", "b.mp4", "still.mp4", boxes=source) == {
        "b.mp4": {"boxes"},
        "still.mp4": {"still", "boxes"},
    }


def test_sparse_boxes_that_leave_a_clip_without_any_are_a_finding(tmp_path):
    write_video(tmp_path / "long.mp4", moving(5, 64), 12)
    clip = Clip("l", str(tmp_path / "long.mp4"), "test", ())
    look = look_at_clip(ClipOpener(tmp_path), clip)
    # Frames 1, 5, 9, ... are looked at: every second middle of 32 segments.
    looked = set(check._frames_looked_at(look.info))
    assert len(looked) == 16
    for frame in (min(looked), min(set(range(64)) - looked)):
        (tmp_path / "boxes.csv").write_text(f"clip,frame,x1,y1,x2,y2\nlong.mp4,{frame},4,4,40,30\n")
        source = build_proposals("annotations", file=str(tmp_path / "boxes.csv"))
        expected = {} if frame in looked else {"long.mp4": {"boxes"}}
        assert found(tmp_path, "long.mp4", boxes=source) == expected


def test_a_duplicate_says_which_splits_and_labels_disagree(videos):
    manifest = manifest_of(
        videos,
        ("a", "a.mp4", "train", "x"),
        ("c", "copy.mp4", "val", "y"),
        ("d", "b.mp4", "train", "y"),
    )
    (finding,) = check_clips(manifest, ClipOpener(manifest.root), 0).findings
    assert finding.message == (
        "shows the same frames as clip a, which is in train while this one is in val, and is "
        "labelled y where that is x"
    )


def test_the_frames_are_the_first_the_last_and_three_between():
    assert [frame_numbers(k) for k in (1, 2)] == [[0], [0, 1]]
    for length in (3, 5, 30, 1000, 10**6):
        numbers = frame_numbers(length)
        assert numbers[0] == 0
        assert numbers[-1] == length - 1
        assert 3 <= len(numbers) <= 5
    assert len(frame_numbers(1000)) == 5
    assert frame_numbers(1000) != [*frame_numbers(1001)[:-1], 999]


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        (
            ["0", "1"],
            [("train", "0"), ("train", "1"), ("val", "2")],
            ["label '2' is none of the 2 classes"],
        ),
        (
            None,
            [("train", "0"), ("train", "1"), ("val", "2"), ("test", "2")],
            ["class '2' is in val, but no clip of train has it"],
        ),
        (
            None,
            [("train", "1"), ("train", "2")],
            ["labels are numbers from 1; class ids count from 0"],
        ),
        (None, [("train", "a"), ("train", "")], ["no label, while other clips of train have one"]),
        (None, [("train", "a;b"), ("train", ""), ("test", "")], []),
        (None, [("train", "a"), ("val", "a"), ("test", ""), ("test", "")], []),
    ],
)
def test_labels_out_of_range_are_found(videos, classes, labels, expected):
    rows = [(str(k), f"none{k}.mp4", split, label) for k, (split, label) in enumerate(labels)]
    manifest = manifest_of(videos, *rows)
    found = check_clips(manifest, ClipOpener(manifest.root), 0, classes=classes).findings
    assert [finding.message for finding in found if finding.kind == "label"] == expected


def test_a_link_out_of_the_root_is_not_followed(videos, tmp_path):
    (tmp_path / "out.mp4").symlink_to(videos / "a.mp4")
    assert found(tmp_path, "out.mp4") == {"out.mp4": {"unreadable"}}


def sleep_or_die(opening: ClipOpener, clip) -> object:
    import os
    import time

    if clip.clip == "sleeps":
        time.sleep(600)
    if clip.clip == "dies":
        os._exit(3)
    return look_at_clip(opening, clip)


def test_a_decoder_that_hangs_or_dies_is_a_finding(videos, monkeypatch):
    from pipeline.stages import check

    # Only the clip that hangs has a limit: this machine may be slow.
    def give_time(worker, ticket, limit, *more):
        give(worker, ticket, limit if ticket.task.clip == "sleeps" else None, *more)

    give = PoolProcess.give
    monkeypatch.setattr(PoolProcess, "give", give_time)
    monkeypatch.setattr(check, "look_at_clip", sleep_or_die)
    manifest = manifest_of(
        videos,
        ("sleeps", "a.mp4", "train", "x"),
        ("dies", "b.mp4", "train", "x"),
        ("b", "b.mp4", "train", "x"),
    )
    findings = check_clips(manifest, ClipOpener(manifest.root), 2, time_limit=1).findings
    assert [(f.clip, f.kind, f.message.split(":")[0]) for f in findings] == [
        ("sleeps", "unreadable", "DecodeTimeout"),
        ("dies", "unreadable", "DecoderDied"),
    ]


def test_our_own_errors_are_no_findings(videos, monkeypatch):
    from pipeline.stages import check

    def broken(opening, clip):
        raise KeyError("ours")

    monkeypatch.setattr(check, "look_at_clip", broken)
    manifest = manifest_of(videos, ("a", "a.mp4", "train", "x"))
    with pytest.raises(KeyError, match="ours"):
        check_clips(manifest, ClipOpener(manifest.root), 0)


def run(*args: object):
    from cli.check import command

    return CliRunner().invoke(command, list(map(str, args)), standalone_mode=False)


def test_the_verb_writes_the_list_and_ends_with_3(videos, tmp_path):
    manifest_of(videos, ("a", "a.mp4", "train", "0"), ('t"x', "text.mp4", "train", "7"))
    given = ("--manifest", videos / "m.csv", "--workers", 0)
    done = run(*given, "--out", tmp_path / "list.csv", "--num-classes", 5)
    assert done.return_value == 3, done.exception
    assert "1 unreadable, 1 label" in done.output
    rows = list(csv.DictReader((tmp_path / "list.csv").open()))
    assert [(row["clip"], row["kind"]) for row in rows] == [('t"x', "unreadable"), ('t"x', "label")]
    assert rows[0]["path"].endswith("text.mp4")
    run(*given, "--out", tmp_path / "list.json")
    assert json.loads((tmp_path / "list.json").read_text())["findings"][0]["kind"] == "unreadable"


def test_the_verb_ends_with_0_where_all_is_well(videos):
    manifest_of(videos, ("a", "a.mp4", "train", "x"), ("b", "b.mp4", "val", "x"))
    (videos / "classes.txt").write_text("x\ny\n")
    given = ("--manifest", videos / "m.csv", "--workers", 0)
    done = run(*given, "--class-list", videos / "classes.txt")
    assert done.return_value == 0, done.output
    assert "nothing wrong" in done.output
    assert (videos / "m.check.csv").read_text() == "clip,path,kind,message\n"


def test_a_list_of_another_kind_is_refused_before_any_video_is_opened(videos, monkeypatch):
    manifest_of(videos, ("a", "a.mp4", "train", "x"))
    monkeypatch.setattr(
        "pipeline.stages.check.look_at_clip", lambda *a: pytest.fail("a video was opened")
    )
    done = run("--manifest", videos / "m.csv", "--workers", 0, "--out", "list.txt")
    assert "ends in .csv or .json" in str(done.exception)


def test_a_list_that_cannot_be_written_leaves_nothing(tmp_path):
    from pipeline.stages.check import CheckResult

    result = CheckResult(findings=[ClipFinding("a", "p", "label", "m")])
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        write_findings(tmp_path / "x.txt", result)
    assert not list(tmp_path.iterdir())


def test_of_the_real_videos_the_corrupted_one_is_found(videos_dir, tmp_path):
    suffixes = (".mp4", ".mkv", ".mov")
    names = sorted(path.name for path in videos_dir.iterdir() if path.suffix in suffixes)
    rows = [{"clip": name, "path": name, "split": "test", "label": ""} for name in names]
    write_manifest(tmp_path / "real.csv", rows)
    manifest = read_manifest(tmp_path / "real.csv", videos_dir)
    findings = check_clips(manifest, ClipOpener(manifest.root), 0).findings
    assert [(f.clip, f.kind) for f in findings] == [
        ("corrupted.mp4", "unreadable"),
        ("unordered.mov", "blank"),
    ]
