"""A video that changes after its shard was finished is noticed by the next run; its shard is redone
only if somebody asks.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cli.__main__ import main
from pipeline.files.atomic_files import read_json
from pipeline.manifests.manifest import Clip
from pipeline.stages.repair import changed_shards
from pipeline.stages.verify import verify
from pipeline.video.decode import write_video
from pipeline.video.video_identity import ENDS, changed_videos, mark_video
from tests.pipeline.stages.test_verify import reseal
from tests.support.tiny_videos import INLINE, everything, make_videos, picture, run

CLIPS, CHANGED = 5, 3  # in shard 1 of two, which holds clips 3 and 4
OPTIONS = (
    "--backbone digit_cnn --weights none --set backbone_options.width=8 --keep pooled,nodes "
    "--proposals annotations --boxes 2 "
    "--frames 4 --size 32 --train-views 1 --dtype float32 --shard-size 3 --device cpu --workers 0"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder of `videos` and a complete `cache` of them."""
    folder = tmp_path_factory.mktemp("finished")
    run(make_videos(folder / "videos", CLIPS), folder / "cache")
    return folder


@pytest.fixture
def place(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "place")


def replace_video(folder: Path) -> None:
    write_video(folder / f"videos/clip{CHANGED}.mp4", picture(77), fps=8)


def h5(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((cache / "features").glob("*.h5"))}


def changed_after(path: Path, change) -> bool:
    clip = Clip("a", path, "train", ())
    record = {"videos": [mark_video(path)]}
    change()
    return changed_videos(record, [clip]) == [0]


@pytest.mark.parametrize("size", [0, 10, ENDS + 10, 3 * ENDS])
def test_other_content_is_a_change_and_another_date_is_none(tmp_path, size):
    path, data = tmp_path / "video", os.urandom(size)
    path.write_bytes(data)
    assert not changed_after(path, lambda: None)
    assert not changed_after(path, lambda: os.utime(path, (1, 1)))
    # As after a clean-up: only the cache is left.
    assert not changed_after(path, path.unlink)
    path.write_bytes(data)
    assert changed_after(path, lambda: path.write_bytes(data + b"."))
    for place in (0, size - 1) if size else ():
        path.write_bytes(data)
        other = bytearray(data)
        other[place] ^= 1
        assert changed_after(
            path, lambda other=other: (path.write_bytes(other), os.utime(path, (2, 2)))
        )


def test_a_folder_of_frames_is_known_by_the_names_in_it(tmp_path):
    path = tmp_path / "frames"
    path.mkdir()
    (path / "1.jpg").touch()
    assert not changed_after(path, lambda: os.utime(path, (1, 1)))
    assert changed_after(path, (path / "2.jpg").touch)


def test_what_has_no_mark_has_not_changed(tmp_path):
    (tmp_path / "video").touch()
    clip = Clip("a", tmp_path / "video", "train", ())
    assert changed_videos({}, [clip]) == []  # by an older version
    assert changed_videos({"videos": [""]}, [clip]) == []  # a clip that failed
    assert mark_video(tmp_path / "none") == ""


def test_a_rerun_names_the_clips_whose_videos_have_changed_and_leaves_their_shards_alone(place):
    before = h5(place / "cache")
    assert run(place / "videos", place / "cache").changed == []
    replace_video(place)
    assert run(place / "videos", place / "cache").changed == [f"clip{CHANGED}"]
    assert h5(place / "cache") == before
    assert changed_shards(place / "cache", place / "videos") == [1]
    assert not verify(place / "cache")


@pytest.mark.parametrize("options", [INLINE, replace(INLINE, workers=1)])
def test_a_shard_written_again_has_the_new_video_and_takes_the_others_over(place, options):
    replace_video(place)
    summary = run(place / "videos", place / "cache", options=options, shards=[1], redo=True)
    assert summary.clips == 2
    record = read_json(place / "cache/features/00001.json")
    assert record["taken_over"] == 3  # the three views of the other clip
    run(place / "videos", place / "fresh")
    assert everything(place / "cache") == everything(place / "fresh")
    for name in ("00000", "00001"):
        assert (
            record_of(place / "cache", name)["videos"] == record_of(place / "fresh", name)["videos"]
        )
    assert run(place / "videos", place / "cache").changed == []


def record_of(cache: Path, name: str) -> dict:
    return read_json(cache / f"features/{name}.json")


def test_a_clip_that_is_taken_over_keeps_its_mark(place):
    marks = record_of(place / "cache", "00000")["videos"]
    # The copies have other dates.
    shutil.copytree(place / "videos", place / "copy", copy_function=shutil.copyfile)
    assert run(place / "copy", place / "cache", shards=[0], redo=True).shards == 1
    assert record_of(place / "cache", "00000")["videos"] == marks


def test_the_dates_of_the_videos_leave_no_trace_in_the_shards(place):
    shutil.copytree(place / "videos", place / "copy", copy_function=shutil.copyfile)
    run(place / "copy", place / "other")
    assert h5(place / "cache") == h5(place / "other")
    assert (
        record_of(place / "cache", "00000")["videos"]
        != record_of(place / "other", "00000")["videos"]
    )


def test_a_changed_video_that_cannot_be_read_leaves_the_shard_as_it_was(place):
    before = h5(place / "cache")
    (place / f"videos/clip{CHANGED}.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=f"left as it was.*clip{CHANGED}"):
        run(place / "videos", place / "cache", shards=[1], redo=True)
    assert h5(place / "cache") == before


def test_the_commands_say_it_and_repair_redoes_it(tmp_path, capsys):
    place, cache = tmp_path, tmp_path / "cache"
    folder = make_videos(place / "videos", CLIPS)
    files = [
        "--manifest",
        folder / "manifest.csv",
        "--annotations",
        folder / "boxes.csv",
        "--cache",
        cache,
    ]

    def vidgraph(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, words)))
        return ended.value.code, "".join(capsys.readouterr())

    extract, repair = (
        ("extract", *files, *OPTIONS.split()),
        ("repair", "--cache", cache, "--device", "cpu", "--workers", 0),
    )
    assert vidgraph(*extract)[0] == 0
    assert vidgraph(*extract)[0] == 0
    replace_video(place)
    code, said = vidgraph(*extract)
    assert code == 3
    assert f"1 clip in finished shards (clip{CHANGED}) has another video now; " in said
    assert f"to redo it: vidgraph repair --cache {cache} --changed\n" in said
    assert "nothing to repair" in vidgraph(*repair)[1]  # who wants the old one keeps it
    code, said = vidgraph(*repair, "--changed")
    assert (code, "redoing 1 shard: 1" in said) == (0, True), said
    assert vidgraph(*extract)[0] == 0


def test_a_cache_of_an_older_version_says_nothing(place):
    reseal(place / "cache/features/00001.h5", lambda record: record.pop("videos"))
    replace_video(place)
    assert run(place / "videos", place / "cache").changed == []
