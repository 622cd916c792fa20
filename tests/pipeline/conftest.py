"""Fixtures that tests of several rooms of `pipeline` share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A manifest of seven videos, one of them a text file, with a box around each rectangle."""
    from pipeline.video.decode import write_video
    from tests.pipeline.stages.test_extract import BROKEN, CLIPS, LENGTH, painted, place
    from tests.support.tiny_videos import write_csv

    folder = tmp_path_factory.mktemp("world")
    rows, boxes = [], []
    for clip in range(CLIPS):
        name = f"clip{clip}"
        rows.append((name, f"{name}.mp4", "train", clip % 2))
        if clip == BROKEN:
            (folder / f"{name}.mp4").write_text("not a video")
        else:
            write_video(folder / f"{name}.mp4", painted(clip), fps=8)
        for k in range(LENGTH):
            x, y, w, h = place(clip, k)
            boxes.append((name, k, x, y, x + w, y + h))
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)
    write_csv(folder / "boxes.csv", ("clip", "frame", "x1", "y1", "x2", "y2"), boxes)
    return folder


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> Path:
    """The cache of `world`, extracted in one go."""
    from tests.pipeline.stages.test_extract import BROKEN, run

    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    summary = run(world, cache)
    assert [failure["clip"] for failure in summary.failures] == [f"clip{BROKEN}"]
    return cache
