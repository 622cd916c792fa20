"""The advice to a head whose fields a cache lacks is a command that works."""

import re
import shlex

import pytest

from cli.__main__ import main
from pipeline.cache.reader import Cache
from tests.support.tiny_videos import make_videos, write_csv

SMALL = (
    *("--backbone", "digit_cnn", "--weights", "none", "--set", "backbone_options.width=8"),
    *("--frames", "4", "--size", "32", "--train-views", "1", "--device", "cpu", "--workers", "0"),
)


@pytest.fixture
def place(tmp_path):
    """Six videos whose boxes have classes, and a manifest with splits."""
    folder = make_videos(tmp_path / "videos", 6)
    splits = ("train", "train", "val", "test", "train", "train")
    rows = [(f"clip{k}", f"clip{k}.mp4", split, "ab"[k % 2]) for k, split in enumerate(splits)]
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)
    lines = (folder / "boxes.csv").read_text().splitlines()
    named = [f"{lines[0]},class", *(f"{line},cup" for line in lines[1:])]
    (folder / "named.csv").write_text("\n".join(named))
    return folder


def run(capsys, *words: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return left.value.code, said.out + said.err


@pytest.mark.parametrize("boxes", ["boxes without names", "no boxes"])
@pytest.mark.parametrize("recipe", ["stin", "stlt"])
def test_a_recipe_on_boxes_with_names_says_what_makes_them(place, tmp_path, capsys, recipe, boxes):
    more = ("--proposals", "grid") if boxes == "boxes without names" else ("--keep", "pooled")
    extraction = ("extract", "--manifest", place / "manifest.csv", *SMALL)
    assert run(capsys, *extraction, "--cache", tmp_path / "cache", *more)[0] == 0
    train = ("train", recipe, "--runs", tmp_path / "runs", "--epochs", 1, "--device", "cpu")
    code, said = run(capsys, *train, "--cache", tmp_path / "cache")
    assert code == 2
    assert said.count("\n") == 1

    detector = ["--proposals", "torchvision-detector"]
    from_file = ["--proposals", "annotations", "--annotations", str(place / "named.csv")]
    words = re.findall(r"`vidgraph (.*?)`", said)
    assert len(words) == 2
    cache = tmp_path / ("other" if boxes == "boxes without names" else "cache")
    for command in words:
        typed = shlex.split(command.replace("NEW", str(cache)))
        if typed[0] == "extract":
            assert typed[-2:] == detector
            # The detector's weights are not at hand; the message offers a file of boxes, too.
            typed = [*typed[:-2], *from_file, "--device", "cpu", "--workers", "0"]
        code, output = run(capsys, *typed)
        assert code == 0, output
    assert {"box_class", "track"} <= set(Cache(cache)["train"].fields)
    assert run(capsys, *train, "--cache", cache)[0] == 0
