"""Errors about what --set gave say --set."""

import pytest

from cli.__main__ import main, vidgraph
from cli._shared.set_keys import keep_set_keys, with_set_named
from tests.support.tiny_cache import Tiny


def named(text: str, *keys: str) -> str:
    with vidgraph.make_context("vidgraph", ["env"]) as context:
        keep_set_keys(context, keys)
        return with_set_named(text, context)


@pytest.mark.parametrize(
    ("text", "keys", "said"),
    [
        ("data.labels: 'x' is no class", ["data.labels"], "--set data.labels: 'x' is no class"),
        ("--set data.labels: expected", ["data.labels"], "--set data.labels: expected"),
        ("raise data.train_views to 8", ["data.train_views"], "raise --set data.train_views to 8"),
        # Keys of a file stay as they are, and so do longer keys and paths.
        ("data.labels: 'x' is no class", ["train.lr"], "data.labels: 'x' is no class"),
        ("phases.a.train.lr: too high", ["train.lr"], "phases.a.train.lr: too high"),
        ("data.labels.csv: no such file", ["data.labels"], "data.labels.csv: no such file"),
        ("my/train.lr: gone", ["train.lr"], "my/train.lr: gone"),
        ("no key train.lrr; did you mean lr?", ["train.lrr"], "no key train.lrr; did you mean lr?"),
        ("train.lr: in [set] or --set", ["train.lr"], "train.lr: in [set] or --set"),
        # A key that is a word.
        ("m.csv: the seed differs", ["seed"], "m.csv: the seed differs"),
        ("seed: expected a number", ["seed"], "--set seed: expected a number"),
    ],
)
def test_a_key_that_set_gave_is_named_as_it_was_typed(text, keys, said):
    assert named(text, *keys) == said


def test_a_label_that_is_no_class_names_set(tmp_path, capsys):
    cache = Tiny().write(tmp_path).path
    words = ["train", "pool", "--cache", str(cache), "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as left:
        main([*words, "--set", "data.labels=nothing,a"])
    assert left.value.code == 2
    assert "vidgraph: --set data.labels: 'nothing' is no class" in capsys.readouterr().err
