"""Clips that cannot be decoded are reported once, also over a resume."""

from heads.finetuning.missing_clips import MissingClips


def test_each_clip_is_reported_once_by_split():
    said = []
    missing = MissingClips(said.append)
    missing.report("train", ["b", "a", "b"])
    missing.report("train", ["a"])
    missing.report("val", ["a"])
    assert [line.split(" cannot")[0] for line in said] == [
        "split train: clip a",
        "split train: clip b",
        "split val: clip a",
    ]


def test_a_continued_run_does_not_report_them_again():
    said = []
    before, continued = MissingClips(len), MissingClips(said.append)
    before.report("test", ["c", "a"])
    continued.load(before.state())
    continued.report("test", ["a", "c"])
    assert said == []
    assert continued.of == {"train": set(), "val": set(), "test": {"a", "c"}}
