"""`extract --accept-failures`: known bad clips stop no later command; nothing else is hidden."""

import shutil

import pytest

from cli.__main__ import main
from pipeline.cache.accepted import NAME, accepted_clips
from pipeline.cache.reader import Cache
from pipeline.files.atomic_files import Damaged
from pipeline.stages.verify import bad_shards
from tests.support.tiny_videos import make_videos

SMALL = (
    *("--backbone", "digit_cnn", "--weights", "none", "--proposals", "grid"),
    *("--frames", "4", "--size", "32", "--set", "backbone_options.width=8"),
    *("--device", "cpu", "--workers", "0"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four videos of which two are broken, and their cache."""
    folder = make_videos(tmp_path_factory.mktemp("videos"), 4, broken=(1, 3))
    assert extract(folder, *SMALL) == 3
    return folder


@pytest.fixture
def place(made, tmp_path):
    """A copy, where nothing was accepted yet."""
    shutil.copytree(made, tmp_path / "here")
    return tmp_path / "here"


def code_of(*args: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    return left.value.code


def extract(folder, *more: object) -> int:
    return code_of(
        "extract", "--manifest", folder / "manifest.csv", "--cache", folder / "cache", *more
    )


def test_failures_end_with_code_3_until_they_are_accepted_once(place, capsys):
    assert extract(place, *SMALL) == 3
    assert "2 of 4 clips failed" in capsys.readouterr().err
    assert extract(place, *SMALL, "--accept-failures") == 0
    said = capsys.readouterr().err
    assert "2 of 4 clips failed and are accepted (clip1, clip3)" in said
    assert extract(place, *SMALL) == 0
    cache = Cache(place / "cache")
    assert accepted_clips(cache.path).keys() == {"clip1", "clip3"}
    assert [failure["clip"] for failure in cache.failures] == ["clip1", "clip3"]


def test_a_list_accepts_its_own_clips_alone(place, capsys):
    known = place / "known.txt"
    known.write_text("clip3\nsomewhere else\n")
    assert extract(place, *SMALL, "--accept-failures", known) == 3
    said = capsys.readouterr().err
    assert "1 of 4 clips failed and is accepted (clip3): later commands leave it out" in said
    assert "  clip1: " in said
    assert "  clip3: " not in said
    assert accepted_clips(place / "cache").keys() == {"clip3"}


def test_a_list_of_no_clip_of_the_manifest_is_refused(place, capsys):
    known = place / "known.txt"
    known.write_text("clip33\n")
    assert extract(place, *SMALL, "--accept-failures", known) == 2
    assert "no clip of " in capsys.readouterr().err
    assert not (place / "cache" / NAME).exists()


def test_verify_and_repair_leave_accepted_clips_alone_unless_asked(place, capsys):
    cache = place / "cache"
    assert code_of("verify", "--cache", cache, "--workers", "0") == 3
    assert extract(place, *SMALL, "--accept-failures") == 0
    assert code_of("verify", "--cache", cache, "--workers", "0") == 0
    assert code_of("repair", "--cache", cache, "--workers", "0", "--device", "cpu") == 0
    assert "nothing to repair" in capsys.readouterr().out
    assert bad_shards(cache)["features"] == []
    assert bad_shards(cache, with_accepted=True)["features"] == [0]

    shutil.copy(place / "clip0.mp4", place / "clip1.mp4")
    again = ("--accepted", "--root", place, "--workers", "0", "--device", "cpu")
    assert code_of("repair", "--cache", cache, *again) == 0
    assert [failure["clip"] for failure in Cache(cache).failures] == ["clip3"]


def test_repair_is_advised_at_once_only_where_another_attempt_may_end_otherwise(capsys, tmp_path):
    from cli.extract import _report_failures

    broken = {"clip": "a", "error": "DecodeError", "message": "not a video"}
    slow = {"clip": "b", "error": "DecodeTimeout", "message": "took longer than 120 s"}
    assert _report_failures([broken], 9, tmp_path) == 3
    said = capsys.readouterr().err
    assert "1 of 9 clips failed; once its file is mended or replaced: vidgraph repair" in said
    assert "to go on without it: the same command" in said
    assert _report_failures([broken, slow], 9, tmp_path) == 3
    assert "to retry them: vidgraph repair" in capsys.readouterr().err
    assert _report_failures([], 9, tmp_path) == 0


def test_what_is_advised_for_clips_that_a_file_of_boxes_lacks_works(capsys, tmp_path):
    folder = make_videos(tmp_path / "videos", 4)
    boxes = folder / "boxes.csv"
    listed = [row for row in boxes.read_text().splitlines() if not row.startswith("clip2")]
    boxes.write_text("\n".join(listed))
    options = (*SMALL, "--proposals", "annotations", "--annotations", boxes)
    assert extract(folder, *options) == 3
    said = capsys.readouterr().err
    assert "1 of 4 clips failed\n" in said
    assert "mended" not in said
    assert "repair" not in said
    assert "extract to another --cache with a file that does" in said
    advised = "proposal_options.allow_missing=true"
    assert f"--set {advised}" in said
    other = ("extract", "--manifest", folder / "manifest.csv", "--cache", folder / "other")
    assert code_of(*other, *options, "--set", advised) == 0
    assert "boxes: 4 of 16 steps and 1 of 4 views have none" in capsys.readouterr().out
    # In the same folder it would be another cache.
    assert extract(folder, *options, "--set", advised) == 2
    assert f"this command asks for: --set {advised}. Point" in capsys.readouterr().err
    assert extract(folder, *options, "--accept-failures") == 0


def test_a_damaged_list_is_said_and_found(place, capsys):
    assert extract(place, *SMALL, "--accept-failures") == 0
    path = place / "cache" / NAME
    path.write_text(path.read_text().replace("clip1", "clip0"))
    with pytest.raises(Damaged, match="delete it, and pass --accept-failures"):
        accepted_clips(place / "cache")
    capsys.readouterr()
    assert code_of("verify", "--cache", place / "cache", "--workers", "0") == 3
    assert f"{path}: changed since it was written; delete it" in capsys.readouterr().out


def test_a_rerun_says_what_is_left_and_nothing_where_nothing_is(place, capsys):
    """A clip that gets more views has two places in the cache, and is one clip all the same."""
    capsys.readouterr()
    assert extract(place, *SMALL, "--accept-failures") == 0
    said = capsys.readouterr()
    assert "every shard was complete already" in said.out
    assert "resuming" not in said.err
    assert extract(place, "--add", "views", "--train-views", "2", "--device", "cpu") == 0
    said = capsys.readouterr()
    assert "adding what 4 clips lack" in said.err
    assert "resuming" not in said.err
