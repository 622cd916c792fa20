"""Settings in messages are spelled as the command line takes them."""

import shlex

import pytest

from cli._shared.extraction import config_of
from cli.extract import command
from pipeline.cache.identity import flat
from pipeline.stages.config import with_settings
from pipeline.text.typed_options import FLAGS, as_typed, short


def test_every_option_that_a_message_names_is_one_of_extract():
    options = set()
    for parameter in command.params:
        options.update(parameter.opts)
    assert set(FLAGS.values()) <= options


@pytest.mark.parametrize(
    ("key", "value", "typed"),
    [
        ("sampling.size", 64, "--size 64"),
        ("seed", 0, "--seed 0"),
        ("sampling.flip", 0.0, "--flip 0.0"),
        ("sampling.flip_protect", ["left", "right"], "--flip-protect left,right"),
        ("sampling.flip_protect", [], "without --flip-protect"),
        ("sampling.consecutive", 5, "--set sampling.consecutive=5"),
        ("proposal_options.num_boxes", 10, "--boxes 10"),
        ("proposal_options.num_boxes", None, "without --boxes"),
        ("proposal_options.allow_missing", True, "--set proposal_options.allow_missing=true"),
        ("backbone_options.temporal", "shift", "--set backbone_options.temporal=shift"),
        ("allow_truncated", True, "--allow-truncated"),
        ("allow_truncated", False, "without --allow-truncated"),
        ("resize", None, "--frame-resize pil"),
        ("weights", "0123456789abcdef" * 4, "--weights 0123456789ab (SHA-256)"),
        ("box_tracks", True, "with tracks of boxes"),
        ("box_classes", None, "without classes of boxes"),
        ("box_classes", ["cup", "hand"], "classes of boxes cup,hand"),
        ("backbone_version", None, "version of the backbone 1"),
    ],
)
def test_a_setting_is_spelled_as_it_is_typed(key, value, typed):
    options = {} if value is None else {key: value}
    assert as_typed(options, [key]) == typed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("sampling.size", 64), ("sampling.frames", 8), ("sampling.flip", 0.0), ("seed", 3)),
        *(("sampling.flip_protect", ["left", "right"]), ("sampling.consecutive", 4)),
        *(("sampling.train_crop", "centre"), ("sampling.fps", 5.0), ("keep", ["pooled"])),
        *(("proposal_options.num_boxes", 7), ("proposal_options.size", 80)),
        *(("proposal_options.allow_missing", True), ("backbone_options.temporal", "shift")),
        *(
            ("allow_truncated", True),
            ("resize", "device"),
            ("roi_pool", "mean"),
            ("dtype", "float32"),
        ),
    ],
)
def test_what_a_message_says_gives_the_setting_when_it_is_typed(key, value):
    typed = shlex.split(as_typed({key: value}, [key]))
    words = ["--manifest", "M.csv", "--cache", "C", *typed]
    given = command.make_context("extract", words).params
    config = flat(with_settings(config_of(given), given["settings"]).as_asked())
    found = config[key]
    assert (list(found) if isinstance(found, tuple) else found) == value


def test_checksums_are_cut_where_they_stand():
    checksum = "0123456789abcdef" * 4
    assert short(f"one is '{checksum}' and {checksum}") == "one is '0123456789ab' and 0123456789ab"
    # What is longer is no checksum.
    assert short(f"a{checksum}") == f"a{checksum}"
