"""`--like CACHE`: the options of an extraction come from a cache; only what is given differs."""

import shutil

import click
import pytest
import torch

from cli.__main__ import main
from cli._shared.extraction import config_of, like_options
from cli.extract import command
from pipeline.backbones import build_backbone
from pipeline.cache.reader import Cache
from pipeline.stages.recorded import config_like
from tests.support.tiny_videos import everything, make_videos


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three videos, and a cache with hardly a default among its options."""
    folder = make_videos(tmp_path_factory.mktemp("videos"), 3)
    torch.manual_seed(0)
    torch.save(build_backbone("digit_cnn", width=8).state_dict(), folder / "weights.pt")
    options = [
        *("--backbone", "digit_cnn", "--weights", folder / "weights.pt", "--keep", "nodes,conv2"),
        *("--proposals", "annotations", "--annotations", folder / "boxes.csv", "--boxes", "2"),
        *("--frames", "4", "--size", "32", "--sampling", "linspace", "--train-views", "2"),
        *("--train-crop", "centre", "--test-clips", "2", "--dtype", "float32", "--seed", "3"),
        *("--roi-pool", "mean", "--set", "backbone_options.width=8", "--batch", "3"),
        *("--compression", "lzf", "--device", "cpu", "--workers", "0"),
    ]
    assert extract(folder, "cache", *options) == 0
    return folder


def code_of(*args: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    return left.value.code


def extract(folder, cache: str, *options: object) -> int:
    return code_of(
        "extract", "--manifest", folder / "manifest.csv", "--cache", folder / cache, *options
    )


def given(*args: object):
    """The config, and all options, that a command line stands for."""
    words = [str(arg) for arg in args]
    with command.make_context("extract", words) as context, context.scope():
        options = like_options(context.params)
        return config_of(options), options


def of(place, *more: object):
    return given("--manifest", "m.csv", "--cache", "new", "--like", place / "cache", *more)


def test_a_cache_made_like_another_is_that_cache(place, capsys):
    assert extract(place, "same", "--like", place / "cache", "--device", "cpu") == 0
    first, same = Cache(place / "cache"), Cache(place / "same")
    assert same.fingerprint == first.fingerprint
    assert everything(same.path) == everything(first.path)
    assert same.records["features"][0]["compression"] == "lzf"
    # The same folder, in place of all its options.
    assert extract(place, "cache", "--like", place / "cache", "--device", "cpu") == 0
    assert "every shard was complete already" in capsys.readouterr().out


def test_only_what_is_given_differs(place):
    was, _ = config_like(Cache(place / "cache"))
    config, options = of(place)
    assert config == was
    assert (options["batch"], options["compression"]) == (3, "lzf")

    config, options = of(place, "--test-clips", "5", "--boxes", "1", "--batch", "7")
    assert options["batch"] == 7
    assert config.sampling.test_clips == 5
    assert config.proposal_options == {**was.proposal_options, "num_boxes": 1}
    assert (config.sampling.train_views, config.seed, config.keep) == (2, 3, was.keep)
    # A default that is given counts, too.
    assert of(place, "--sampling", "segments")[0].sampling.sampling == "segments"
    assert of(place, "--set", "sampling.size=64")[0].sampling.size == 64
    assert of(place, "--keep", "pooled")[0].keep == ("pooled",)


def test_options_of_one_backbone_or_source_are_not_given_to_another(place):
    config, _ = of(place, "--backbone", "resnet18", "--proposals", "grid")
    assert (config.backbone_options, config.proposal_options) == ({}, {})
    assert config.weights == "imagenet"
    assert of(place, "--backbone", "digit_cnn")[0].backbone_options == {"width": 8}


@pytest.mark.parametrize("name", ["weights.pt", "boxes.csv"])
def test_a_file_that_is_gone_or_another_is_refused_unless_it_is_replaced(name, place, tmp_path):
    option = {"weights.pt": "--weights", "boxes.csv": "--annotations"}[name]
    kept = tmp_path / name
    shutil.copy(place / name, kept)
    try:
        (place / name).unlink()
        with pytest.raises(ValueError, match=rf"{name}: no such file.* pass {option} with where"):
            of(place)
        assert of(place, option, kept)[0]
        (place / name).write_bytes(kept.read_bytes() + b"\n")
        with pytest.raises(ValueError, match=rf"{name}: .*(changed since|do not fit|damaged)"):
            of(place)
    finally:
        shutil.copy(kept, place / name)


def test_a_cache_without_a_complete_shard_says_so(place, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(place / "cache", cache)
    shutil.rmtree(cache / "features")
    with pytest.raises(ValueError, match=r"expected a cache of .* with at least one"):
        given("--manifest", "m.csv", "--cache", "new", "--like", cache)


def test_plan_and_finetune_take_it_too(place, capsys):
    small = ("--device", "cpu", "--workers", "0")
    manifest = ("--manifest", place / "manifest.csv")
    assert code_of("plan", *manifest, "--cache", "new", "--like", place / "cache", *small) == 0
    assert "conv2" in capsys.readouterr().out
    assert code_of("plan", *manifest, "--like", place / "cache", *small) == 0
    assert f"free for {place / 'NEW'}: it fits" in capsys.readouterr().out
    assert not (place / "NEW").exists()
    assert code_of("plan", *manifest, *small) == 2
    assert "Missing option '--cache'" in capsys.readouterr().err
    of_cache = ("finetune", "pool", "--cache", place / "cache", "--like", place / "cache")
    assert code_of(*of_cache) == 2
    assert "--like: the cache fixes this" in capsys.readouterr().err


def test_every_option_of_views_and_networks_is_taken_over():
    """An option that is added later must be thought of here."""
    from cli._shared.extraction import network_options, views_options
    from pipeline.text.typed_options import BOX_OPTIONS, CONFIG, SAMPLING

    known = {*SAMPLING, *CONFIG, *BOX_OPTIONS, "test_crops", "frame_resize", "like"}

    @click.command()
    @views_options
    @network_options
    def options(**given):
        pass

    assert {option.name for option in options.params} == known
