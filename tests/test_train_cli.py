"""`vidgraph train` and `vidgraph evaluate`: what they print, and their exit codes."""

import pytest
from tiny_cache import Tiny

from cli.__main__ import main
from pipeline.cache import Cache

RECIPE = 'source = "a test"\n[head]\nname = "strg"\n[train]\nepochs = 2\nbatch = 5\nlr = 0.1\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a cache and a recipe."""
    folder = tmp_path_factory.mktemp("cli")
    Tiny(failed=(1,)).write(folder)
    (folder / "tiny.toml").write_text(RECIPE)
    return folder


def vidgraph(capsys, *args) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def train(capsys, place, *more) -> tuple[int, str, str]:
    how = ("--cache", place / "cache", "--runs", place / "runs", "--device", "cpu")
    return vidgraph(capsys, "train", place / "tiny.toml", *how, *more)


def test_training_ends_with_a_table_and_evaluation_repeats_it(place, capsys):
    code, out, _ = train(capsys, place, "--seed", 4)
    assert code == 0
    assert "1 of 12 clips failed at extraction and are left out: clip-1" in out
    assert "epoch 2/2" in out
    assert "top-1 %" in out
    assert "waiting for data" in out
    row = next(line for line in out.splitlines() if line.startswith("│ test"))
    folder = place / "runs" / "tiny-seed4"
    assert (folder / "metrics.json").exists()
    code, again, _ = vidgraph(capsys, "evaluate", folder, "--device", "cpu")
    assert code == 0
    assert row.split() == next(line for line in again.splitlines() if line.startswith("│ test")).split()


def test_a_second_call_reads_the_run_back_and_settings_make_another_run(place, capsys):
    train(capsys, place)
    assert "finished before" in train(capsys, place)[1]
    code, _, err = train(capsys, place, "--set", "train.lr=0.2")
    assert code == 2
    assert "train.lr is 0.1 there, 0.2 here" in err
    assert train(capsys, place, "--set", "train.lr=0.2", "--name", "other")[0] == 0
    assert "lr = 0.2" in (place / "runs" / "other" / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "train.lrr=1"), "no key train.lrr; did you mean lr?"),
        (("--set", "head.form=all"), "option form: expected one of similarity, spatial_temporal, joint"),
        (("--set", "head.reduce=conv"), "--keep pooled,boxes,nodes,res5`"),
        (("--precision", "fp16"), "fp16 needs a GPU"),
        (("--seed", "-1"), "--seed"),
        (("--manifest", "no.csv"), "no.csv"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, capsys, more, message):
    code, _, err = train(capsys, place, "--name", "bad", *more)
    assert code == 2
    assert message in err
    assert not (place / "runs" / "bad").exists()


def test_a_recipe_or_cache_that_is_not_there_is_bad_input(place, capsys):
    code, _, err = vidgraph(capsys, "train", "demo_strgg", "--cache", place / "cache")
    assert (code, "did you mean demo_strg" in err) == (2, True)
    assert vidgraph(capsys, "train", "demo_strg", "--cache", place / "nothing")[0] == 2
    assert vidgraph(capsys, "evaluate", place / "nothing")[0] == 2
    with pytest.raises(ValueError, match="cache"):
        Cache(place / "nothing")


def test_a_loss_that_is_not_finite_is_exit_code_1(place, capsys):
    code, _, err = train(capsys, place, "--name", "diverged", "--set", "train.lr=1e38", "--set", "train.epochs=9")
    assert code == 1
    assert err.count("\n") == 1
    assert "lower train.lr" in err
