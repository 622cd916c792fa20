"""The papers' data sets: small files in the official formats become the expected manifests.

Class names here are made up: the datasets' own may not be committed.
"""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.manifests.datasets import (
    Dataset,
    DatasetClip,
    charades,
    diving48,
    kinetics,
    mirrored_pairs,
    protected,
    something_v1,
    something_v2,
)
from pipeline.manifests.datasets.video_folders import find_media
from pipeline.manifests.manifest import ManifestError, inside, read_manifest

SIDES = ("Rolling something from left to right", "Rolling something from right to left")
CLASSES = (
    "Waving something",
    *SIDES,
    "Pouring something, then drinking",
    "Pulling something right out of the wall",
)


def put(folder: Path, **files: object) -> Path:
    """Write files: text as it is, everything else as JSON.

    In a name, `__` stands for the dot before its ending, and DASH for a dash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".").replace("DASH", "-")).write_text(text)
    return folder


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def run(kind: str, *args: object):
    from cli.manifest import command

    return CliRunner().invoke(command, [kind, *map(str, args)], standalone_mode=False)


def make(kind: str, annotations: Path, videos: Path, *more: object) -> dict[str, tuple]:
    """Run the verb and return the rows of its manifest.

    clip -> (path below the videos, split, labels, start, end, extra).
    """
    out = videos.parent / "out.csv"
    result = run(kind, annotations, "--videos", videos, "--out", out, "--subset", *more)
    assert result.exception is None, result.exception
    rows = {}
    for clip in read_manifest(out).clips:
        path = clip.path.relative_to(videos.resolve()).as_posix()
        times = (clip.start, clip.end)
        rows[clip.clip] = (path, clip.split, clip.labels, *times, dict(clip.extra))
    return rows


def v1(tmp_path: Path) -> tuple[Path, Path]:
    """V1 as downloaded: 3 clips of train, 1 of val, 1 of test, in folders of two frames."""
    pre = "somethingDASHsomethingDASHv1DASH"
    lists = {
        f"{pre}labels__csv": "\n".join(CLASSES) + "\n",
        f"{pre}train__csv": f"10;{CLASSES[3]}\n7;{CLASSES[1]}\n8;{CLASSES[2]}\n",
        f"{pre}validation__csv": f"4;{CLASSES[0]}\n",
        f"{pre}test__csv": "99\n",
    }
    videos = tmp_path / "20bn-something-something-v1"
    for clip in (10, 7, 8, 4, 99):
        (videos / str(clip)).mkdir(parents=True)
        for k in (1, 2):
            Image.new("RGB", (8, 6), (40 * k, 0, 0)).save(videos / f"{clip}/{k:05d}.jpg")
    return put(tmp_path / "labels", **lists), videos


def item(clip: int, name: str) -> dict:
    return {
        "id": str(clip),
        "label": "x",
        "template": name.replace("something", "[something]"),
        "placeholders": ["x"],
    }


def v2(tmp_path: Path) -> tuple[Path, Path]:
    lists = {
        "labels__json": {name: str(k) for k, name in enumerate(CLASSES)},
        "train__json": [item(1, CLASSES[0]), item(2, CLASSES[3])],
        "validation__json": [item(3, CLASSES[1])],
        "test__json": [{"id": "5"}],
        "testDASHanswers__csv": f"5;{CLASSES[2]}\n",
    }
    videos = touch(tmp_path / "videos", *(f"{k}.webm" for k in (1, 2, 3, 5)))
    return put(tmp_path / "labels", **lists), videos


def test_something_v1_is_read_as_downloaded(tmp_path):
    rows = make("something-something-v1", *v1(tmp_path))
    assert list(rows) == ["10", "7", "8", "4", "99"]
    assert rows["10"] == ("10", "train", (CLASSES[3],), None, None, {"fps": "12"})
    assert rows["4"][1:3] == ("val", (CLASSES[0],))
    assert rows["99"][1:3] == ("test", ())


def test_frame_folders_of_a_manifest_can_be_decoded(tmp_path):
    from pipeline.video.decode import open_clip

    annotations, videos = v1(tmp_path)
    make("something-something-v1", annotations, videos)
    clip = read_manifest(tmp_path / "out.csv").clips[0]
    with open_clip(clip) as reader:
        assert (reader.info.frames, reader.info.fps, reader.info.width) == (2, 12.0, 8)
        assert reader.read([1])[0, 0, 0, 0] > reader.read([0])[0, 0, 0, 0]


def test_the_class_list_has_the_official_order_and_the_alphabetical_one_on_request(tmp_path):
    from heads.config.recipe import DataOptions
    from heads.data.classes import find_classes

    annotations, videos = v1(tmp_path)
    for order, expected in ((), CLASSES), (("--order", "alphabetical"), tuple(sorted(CLASSES))):
        make("something-something-v1", annotations, videos, *order)
        listed = DataOptions(class_list=str(tmp_path / "out.classes.txt"))
        assert find_classes(read_manifest(tmp_path / "out.csv"), listed) == expected


def test_labels_json_orders_the_classes_by_their_ids_not_by_their_place(tmp_path):
    shuffled = {CLASSES[2]: 0, CLASSES[0]: "2", CLASSES[1]: 1}
    folder = put(tmp_path, labels__json=shuffled, train__json=[item(1, CLASSES[0])])
    assert something_v2.read(folder).classes == (CLASSES[2], CLASSES[1], CLASSES[0])


@pytest.mark.parametrize(
    "wrong", [{"a": 0, "b": 2}, {"a": 0, "b": 0}, {"a": "x"}, {"a": True}, {"a": -1}, {}, ["a"]]
)
def test_ids_that_are_no_numbering_are_refused(tmp_path, wrong):
    with pytest.raises(ManifestError, match=r"labels\.json"):
        something_v2.read(put(tmp_path, labels__json=wrong, train__json=[item(1, "a")]))


def test_something_v2_takes_the_template_without_brackets_and_withholds_test_labels(tmp_path):
    annotations, videos = v2(tmp_path)
    rows = make("something-something-v2", annotations, videos)
    assert rows["2"] == ("2.webm", "train", (CLASSES[3],), None, None, {})
    assert rows["3"][1:3] == ("val", (CLASSES[1],))
    assert rows["5"][1:3] == ("test", ())
    rows = make("something-something-v2", annotations, videos, "--test-answers")
    assert rows["5"][2] == (CLASSES[2],)


def test_classes_that_name_a_side_are_protected_and_adverbs_are_not():
    assert protected(CLASSES) == SIDES
    turning = "Turning the camera left while filming"
    assert protected((turning, "Left-handed", "uplifting", "brightness")) == (turning,)
    assert mirrored_pairs(CLASSES) == (SIDES,)
    # A few-shot split may hold one of a pair: protected, but nothing to exchange.
    assert mirrored_pairs(SIDES[:1]) == ()


def test_the_files_for_mirrored_views_are_what_the_verbs_take(tmp_path):
    from cli._shared.options import commas, toml_value
    from heads.config.recipe import read_recipe

    make("something-something-v1", *v1(tmp_path))
    given = commas(None, None, (tmp_path / "out.flip-protect.txt").read_text())
    assert given == SIDES
    pairs = toml_value((tmp_path / "out.swap-on-flip.txt").read_text().strip())
    assert read_recipe("demo_pool", {"data.swap_on_flip": pairs}).data.swap_on_flip == (SIDES,)


@pytest.mark.parametrize("protocol", [p for p in something_v2.PROTOCOLS if p != "official"])
def test_something_else_protocols_are_found_by_their_official_names(tmp_path, protocol):
    folder = {
        "compositional": "compositional",
        "compositional-shuffled": "compositional_shuffled",
        "one-object": "compositional_oneobject",
    }.get(protocol, "fewshot")
    names = {
        "few-shot-base": ("base_labels", "base_training_set", "base_validation_set"),
        "few-shot-5": ("finetune_labels", "finetune_5shot_training", "finetune_5shot_validation"),
        "few-shot-10": ("finetune_labels", "finetune_10shot_train", "finetune_10shot_validation"),
    }.get(protocol, ("labels", "train", "validation"))
    contents = (
        {name: k for k, name in enumerate(CLASSES)},
        [item(1, CLASSES[0])],
        [item(2, CLASSES[1])],
    )
    files = {f"{name}__json": content for name, content in zip(names, contents, strict=True)}
    put(tmp_path / "dataset_splits" / folder, **files)
    videos = touch(tmp_path / "videos", "1.webm", "2.webm", "3.webm")
    splits = tmp_path / "dataset_splits"
    rows = make("something-something-v2", splits, videos, "--protocol", protocol)
    assert {clip: row[1:3] for clip, row in rows.items()} == {
        "1": ("train", (CLASSES[0],)),
        "2": ("val", (CLASSES[1],)),
    }


def test_clips_without_boxes_are_missing(tmp_path):
    annotations, videos = v2(tmp_path)
    box = {"box2d": {"x1": 1, "y1": 2, "x2": 30, "y2": 40}, "standard_category": "0000"}
    boxes = {clip: [{"name": f"{clip}/0001.jpg", "labels": [box]}] for clip in ("1", "2", "5")}
    put(tmp_path, boxes__json=boxes)
    out = tmp_path / "m.csv"
    asked = ("something-something-v2", annotations, "--videos", videos, "--out", out, "--subset")
    refused = run(*asked, "--boxes", tmp_path / "boxes.json").exception
    assert isinstance(refused, ValueError)
    assert "1 of 4 clips has no boxes there: 3" in str(refused)
    done = run(*asked, "--boxes", tmp_path / "boxes.json", "--allow-missing")
    assert done.return_value == 3
    assert [clip.clip for clip in read_manifest(tmp_path / "m.csv").clips] == ["1", "2", "5"]


HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"


def charades_lists(tmp_path: Path) -> Path:
    return put(
        tmp_path / "Charades",
        Charades_v1_train__csv=HEADER
        + 'ABCDE,S1,Kitchen,6,7,Yes,"He cooks, then eats.",food,"x;y",c092 11.90 21.20;c147 0.00 '
        "12.60;c092 1.00 2.00,30.00\n" + "EMPTY,S1,Kitchen,6,7,Yes,x,x,x,,4.00\n",
        Charades_v1_test__csv=HEADER + "VALID,S2,Bath,6,7,Yes,x,x,x,c000 0.00 3.00,31.5\n",
        Charades_v1_classes__txt="".join(f"c{k:03d} Doing number {k}\n" for k in range(157)),
    )


def test_charades_clips_have_the_set_of_their_classes(tmp_path):
    videos = touch(tmp_path / "videos", "ABCDE.mp4", "EMPTY.mp4", "VALID.mp4")
    rows = make("charades", charades_lists(tmp_path), videos)
    assert {clip: row[:5] for clip, row in rows.items()} == {
        "ABCDE": ("ABCDE.mp4", "train", ("c092", "c147"), None, None),
        "EMPTY": ("EMPTY.mp4", "train", (), None, None),
        "VALID": ("VALID.mp4", "val", ("c000",), None, None),
    }
    assert (tmp_path / "out.classes.txt").read_text().split() == [f"c{k:03d}" for k in range(157)]


def test_charades_windows_have_the_labels_of_the_actions_that_overlap_them(tmp_path):
    """30 s in windows of 8: the last one ends with the video.

    c147 lasts to 12.6, c092 is at 1-2 and at 11.9-21.2.
    """
    videos = touch(tmp_path / "videos", "ABCDE.mp4", "EMPTY.mp4", "VALID.mp4")
    rows = make("charades", charades_lists(tmp_path), videos, "--window", 8)
    assert {clip: row[2:5] for clip, row in rows.items()} == {
        "ABCDE_0000": (("c092", "c147"), None, 8.0),
        "ABCDE_0001": (("c092", "c147"), 8.0, 16.0),
        "ABCDE_0002": (("c092",), 16.0, 24.0),
        "ABCDE_0003": ((), 22.0, None),
        "EMPTY_0000": ((), None, None),
        "VALID": (("c000",), None, None),
    }
    data = charades.read(tmp_path / "Charades", window=8)
    # Windows do not count: the official lists have so many clips.
    assert data.counted == {"train": 2, "val": 1}


def test_windows_of_a_length_that_divides_the_video_do_not_overlap(tmp_path):
    videos = touch(tmp_path / "videos", "ABCDE.mp4", "EMPTY.mp4", "VALID.mp4")
    rows = make("charades", charades_lists(tmp_path), videos, "--window", 10)
    assert [row[3:5] for clip, row in rows.items() if clip.startswith("ABCDE")] == [
        (None, 10.0),
        (10.0, 20.0),
        (20.0, None),
    ]


@pytest.mark.parametrize(
    "actions", ["c157 0 1", "c1 0 1", "c001 0", "c001 a 1", "c001 -1 1", "c001 nan 1", "c001 0 1;;"]
)
def test_charades_actions_of_another_form_are_refused(tmp_path, actions):
    row = f"ABCDE,S1,x,6,7,Yes,x,x,x,{actions},30\n"
    with pytest.raises(ManifestError, match=r"train\.csv, line 2"):
        charades.read(put(tmp_path, Charades_v1_train__csv=HEADER + row))


KINETICS = "label,youtube_id,time_start,time_end,split\n"


def test_kinetics_files_are_found_in_every_common_layout(tmp_path):
    rows = (
        '"air drumming",-abc_DEFGH1,10,20,train',
        "yoga,flatFILE123,0,10,train",
        "yoga,wholeVIDEO1,5,15,train",
        "yoga,slashLABEL1,7,17,validate",
    )
    text = KINETICS + "".join(f"{row}\n" for row in rows)
    lists = put(tmp_path / "lists", all__csv=text)
    videos = touch(
        tmp_path / "videos",
        "train/air_drumming/-abc_DEFGH1_000010_000020.mp4",
        "flatFILE123_000000_000010.mkv",
        "wholeVIDEO1.webm",
        "yoga/slashLABEL1_000007_000017.mp4",
        "yoga/unlisted_000007_000017.mp4",
    )
    rows = make("kinetics", lists / "all.csv", videos)
    in_class, flat = "-abc_DEFGH1_000010_000020", "flatFILE123_000000_000010"
    whole, slash = "wholeVIDEO1_000005_000015", "slashLABEL1_000007_000017"
    no_times = (None, None)
    assert {clip: row[:5] for clip, row in rows.items()} == {
        in_class: (f"train/air_drumming/{in_class}.mp4", "train", ("air drumming",), *no_times),
        flat: (f"{flat}.mkv", "train", ("yoga",), *no_times),
        whole: ("wholeVIDEO1.webm", "train", ("yoga",), 5.0, 15.0),
        slash: (f"yoga/{slash}.mp4", "val", ("yoga",), *no_times),
    }
    trimmed = make("kinetics", lists / "all.csv", videos, "--trimmed")
    assert trimmed["wholeVIDEO1_000005_000015"][3:5] == (None, None)


def test_kinetics_lists_of_a_folder_give_the_splits(tmp_path):
    lists = put(
        tmp_path / "lists",
        kinetics400_train__csv=KINETICS.replace("split", "split,is_cc") + "yoga,a,0,10,train,0\n",
        validate__csv=KINETICS + "yoga,b,0,10.0,validate\n",
        kineticsDASH400_test__csv="youtube_id,time_start,time_end,split\nc,0,10,test\n",
    )
    data = kinetics.read(lists)
    assert [(e.clip, e.split, e.labels) for e in data.entries] == [
        ("a_000000_000010", "train", ("yoga",)),
        ("b_000000_000010", "val", ("yoga",)),
        ("c_000000_000010", "test", ()),
    ]


def test_of_two_videos_the_one_in_the_labels_folder_is_taken_and_more_are_refused(tmp_path):
    lists = put(tmp_path / "lists", train__csv=KINETICS + "hot yoga,a,0,10,train\n")
    videos = touch(
        tmp_path / "videos", "hot_yoga/a_000000_000010.mp4", "not_hot_yoga/a_000000_000010.mp4"
    )
    assert make("kinetics", lists, videos)["a_000000_000010"][0] == "hot_yoga/a_000000_000010.mp4"
    touch(videos, "hot_yoga/a_000000_000010.webm")
    refused = run("kinetics", lists, "--videos", videos, "--out", tmp_path / "m.csv").exception
    assert isinstance(refused, ManifestError)
    assert "has 2 videos" in str(refused)


@pytest.mark.parametrize(
    "row",
    [
        "yoga,../../x,0,10,train",
        "yoga,a b,0,10,train",
        "yoga,a,x,10,train",
        "yoga,a,10,10,train",
        "yoga,a,0,10",
        ",a,0,1,train",
    ],
)
def test_kinetics_rows_of_another_form_are_refused(tmp_path, row):
    with pytest.raises(ManifestError, match=r"train\.csv, line 2"):
        kinetics.read(put(tmp_path, train__csv=KINETICS + row + "\n"))


def dive(name: str, label: int, first: int = 0, last: int = 90) -> dict:
    return {"vid_name": name, "label": label, "start_frame": first, "end_frame": last}


def test_diving48_labels_are_named_by_the_vocabulary(tmp_path):
    vocabulary = [["Back", f"{k:02d}som", "NoTwis", "FREE"] for k in range(48)]
    lists = {
        "Diving48_V2_train__json": [dive("a_1_00001", 47)],
        "Diving48_V2_test__json": [dive("b_00002", 0)],
    }
    other = {"Diving48_train__json": [dive("a_1_00001", 3)]}
    folder = put(tmp_path / "lists", Diving48_vocab__json=vocabulary, **lists, **other)
    videos = touch(tmp_path / "rgb", "a_1_00001.mp4", "b_00002.mp4")
    rows = make("diving48", folder, videos)
    extra = {"start_frame": "0", "end_frame": "90"}
    labels = ("Back 47som NoTwis FREE",)
    assert rows["a_1_00001"] == ("a_1_00001.mp4", "train", labels, None, None, extra)
    assert rows["b_00002"][1:3] == ("val", ("Back 00som NoTwis FREE",))
    older = make("diving48", folder, videos, "--version", 1)
    assert older["a_1_00001"][2] == ("Back 03som NoTwis FREE",)


def test_diving48_frames_become_seconds_where_a_dive_starts_later(tmp_path):
    folder = put(tmp_path, Diving48_V2_train__json=[dive("a", 0), dive("b", 1, 30, 90)])
    assert [(e.start, e.end) for e in diving48.read(folder, fps=30).entries] == [
        (None, None),
        (1.0, 3.0),
    ]
    assert "1 clip starts after frame 0" in diving48.read(folder).notes[0]
    assert diving48.read(folder).entries[1].labels == ("1",)


@pytest.mark.parametrize(
    "wrong", [dive("a", 48), dive("a", -1), dive("", 0), {"vid_name": "a"}, "a", dive("a", True)]
)
def test_diving48_entries_of_another_form_are_refused(tmp_path, wrong):
    with pytest.raises(ManifestError, match="entry 2"):
        diving48.read(put(tmp_path, Diving48_V2_train__json=[dive("x", 0), wrong]))


def test_missing_videos_end_it_or_are_left_out_with_code_3(tmp_path):
    annotations, videos = v2(tmp_path)
    (videos / "1.webm").unlink()
    (videos / "3.webm").unlink()
    out = tmp_path / "m.csv"
    asked = ("something-something-v2", annotations, "--videos", videos, "--out", out, "--subset")
    refused = run(*asked).exception
    assert isinstance(refused, ManifestError)
    assert "2 of 4 clips have no video there: 1, 3; pass --allow-missing" in str(refused)
    assert not (tmp_path / "m.csv").exists()
    done = run(*asked, "--allow-missing")
    assert done.return_value == 3
    assert "2 of 4 clips have no video there: 1, 3; left out" in done.output
    assert [clip.clip for clip in read_manifest(tmp_path / "m.csv").clips] == ["2", "5"]


def test_videos_elsewhere_are_an_error_even_where_missing_ones_are_allowed(tmp_path):
    annotations, _ = v2(tmp_path)
    (tmp_path / "empty").mkdir()
    empty, out = tmp_path / "empty", tmp_path / "m.csv"
    asked = ("something-something-v2", annotations, "--videos", empty, "--out", out)
    refused = run(*asked, "--allow-missing").exception
    assert isinstance(refused, ManifestError)
    assert "none of the 4 clips is there; expected each called ID.webm" in str(refused)


def test_counts_are_compared_with_the_official_ones_unless_the_lists_are_a_part(tmp_path):
    annotations, videos = v2(tmp_path)
    asked = ("something-something-v2", annotations, "--videos", videos, "--out", tmp_path / "m.csv")
    done = run(*asked)
    assert done.return_value == 3
    assert "the train list has 2 clips, officially 168,913: 168,911 are missing" in done.output
    assert "5 classes, officially 174: 169 are missing" in done.output
    part = run(*asked, "--subset")
    assert part.return_value == 0
    assert "officially" not in part.output


def test_official_counts_leave_nothing_to_say():
    splits = ("train", "train", "train", "val")
    entries = [DatasetClip(str(k), split, (), (str(k),)) for k, split in enumerate(splits)]
    data = Dataset("x", ("a", "b"), entries, {"train": 3, "val": 1, "test": 9}, 2, "called ID.mp4")
    assert data.differences() == []
    assert data.absent() == ("test",)
    assert something_v1.OFFICIAL == {"train": 86_017, "val": 11_522, "test": 10_960}
    assert charades.OFFICIAL == {"train": 7_985, "val": 1_863}
    assert something_v2.PROTOCOLS["few-shot-5"].official["train"] == 430
    assert something_v2.PROTOCOLS["few-shot-10"].official["train"] == 860


def test_a_name_that_climbs_out_of_the_videos_is_not_followed(tmp_path):
    annotations, videos = v2(tmp_path)
    touch(tmp_path, "6.webm")
    put(annotations, train__json=[item(1, CLASSES[0]), {**item(6, CLASSES[0]), "id": "../6"}])
    asked = ("something-something-v2", annotations, "--videos", videos, "--out", tmp_path / "m.csv")
    refused = run(*asked).exception
    assert isinstance(refused, ManifestError)
    assert "1 of 4 clips has no video there: ../6" in str(refused)


def test_a_link_out_of_the_videos_is_seen_when_the_clip_is_opened(tmp_path):
    annotations, videos = v2(tmp_path)
    (videos / "1.webm").unlink()
    (videos / "1.webm").symlink_to(touch(tmp_path.parent, "secret.webm") / "secret.webm")
    make("something-something-v2", annotations, videos)
    manifest = read_manifest(tmp_path / "out.csv")
    with pytest.raises(ManifestError, match="link"):
        inside(manifest.root, next(clip for clip in manifest.clips if clip.clip == "1"))


def test_looking_for_videos_is_one_listing_per_folder(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{k}.mp4" for k in range(300)), "deep/x.mp4")
    calls = []
    for name in ("stat", "lstat", "scandir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, **k: calls.append(a) or real(*a, **k))
    found = find_media(tmp_path, {str(k) for k in range(300)} | {"x"}, 1)
    assert len(found) == 301
    assert found["x"] == [("deep/x.mp4", False)]
    assert len(calls) < 10


def test_a_manifest_elsewhere_records_the_root(tmp_path):
    annotations, videos = v2(tmp_path)
    out = tmp_path / "lists/m.csv"
    asked = ("something-something-v2", annotations, "--videos", videos, "--out", out, "--subset")
    assert run(*asked).exit_code == 0
    assert read_manifest(out).clips[0].path == videos.resolve() / "1.webm"


BROKEN = {
    "not JSON": "[{",
    "an object": {"a": 1},
    "no id": [{"template": CLASSES[0]}],
    "another class": [item(1, "Flying")],
    "an id with a line break": [{**item(1, CLASSES[0]), "id": "1\n2"}],
    "nested too deeply": "[" * 100_000,
    "text": "hello",
    "an entry that is a number": [3],
}


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_lists_are_one_line_errors(tmp_path, case):
    annotations, videos = v2(tmp_path)
    put(annotations, train__json=BROKEN[case])
    asked = ("something-something-v2", annotations, "--videos", videos, "--out", tmp_path / "m.csv")
    refused = run(*asked).exception
    assert isinstance(refused, ManifestError), refused
    assert "\n" not in str(refused)
    assert not (tmp_path / "m.csv").exists()


def test_a_class_that_no_manifest_can_hold_is_refused(tmp_path):
    for name in ("a;b", " a", "a\x1bb"):
        with pytest.raises(ManifestError, match="expected one line of text"):
            something_v2.read(put(tmp_path, labels__json={name: 0}, train__json=[item(1, name)]))


def test_a_folder_without_the_official_files_names_what_is_expected(tmp_path):
    for read, name in (
        (something_v1.read, "something-something-v1-labels.csv"),
        (something_v2.read, "labels.json"),
        (charades.read, "Charades_v1_train.csv"),
        (kinetics.read, "train.csv"),
        (diving48.read, "Diving48_V2_"),
    ):
        with pytest.raises(ManifestError, match=name):
            read(tmp_path)
