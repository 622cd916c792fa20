"""`vidgraph train` and `vidgraph evaluate`: what they print, and their exit codes."""

import numpy as np
import pytest

from cli.__main__ import main
from heads.config.recipe import read_recipe
from heads.runs.run_files import read_json
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import write_manifest
from tests.heads.training.test_train import poison
from tests.support.tiny_cache import Tiny

PHASES = '[[phases]]\nname = "{name}"\n{more}[phases.train]\nepochs = 1\nbatch = 5\n'
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
    assert "1 of 12 clips failed at extraction and is left out: clip-1" in out
    assert "epoch 2/2" in out
    assert "top-1 %" in out
    assert "waiting for data" in out
    row = next(line for line in out.splitlines() if line.startswith("│ test"))
    folder = place / "runs" / "tiny-seed4"
    assert (folder / "metrics.json").exists()
    code, again, _ = vidgraph(capsys, "evaluate", folder, "--device", "cpu")
    assert code == 0
    assert (
        row.split()
        == next(line for line in again.splitlines() if line.startswith("│ test")).split()
    )


def test_a_second_call_reads_the_run_back_and_settings_make_another_run(place, capsys):
    train(capsys, place)
    assert "finished before" in train(capsys, place)[1]
    code, _, err = train(capsys, place, "--set", "train.lr=0.2")
    assert code == 2
    assert "train.lr is 0.1 there, 0.2 here" in err
    assert train(capsys, place, "--set", "train.lr=0.2", "--name", "other")[0] == 0
    assert "lr = 0.2" in (place / "runs" / "other" / "recipe.toml").read_text()


def test_short_options_are_recorded_as_settings_are(place, capsys):
    short = ("--epochs", 1, "--lr", 0.3, "--batch", 4)
    assert train(capsys, place, *short, "--name", "short")[0] == 0
    long = ("--set", "train.epochs=1", "--set", "train.lr=0.3", "--set", "train.batch=4")
    assert "finished before" in train(capsys, place, *long, "--name", "short")[1]
    code, _, err = train(capsys, place, "--lr", 0.3, "--set", "train.lr=0.1", "--name", "both")
    assert code == 2
    assert "--lr and --set train.lr: expected one of them, got both" in err


def test_short_options_hold_for_the_phases_that_are_trained(place, capsys):
    frames = '[[phases]]\nname = "three"\nreads = "frames"\n[phases.train]\nepochs = 1\n'
    phases = PHASES.format(name="one", more="") + PHASES.format(name="two", more="") + frames
    (place / "short.toml").write_text('source = "a test"\n[head]\nname = "strg"\n' + phases)
    how = ("--cache", place / "cache", "--runs", place / "runs", "--device", "cpu", "--lr", 0.25)
    assert vidgraph(capsys, "train", place / "short.toml", *how)[0] == 0
    recipe = read_recipe(place / "runs" / "short-seed0" / "recipe.toml")
    assert [phase.train.lr for phase in recipe.phases] == [0.25, 0.25, 0.01]
    only = (*how, "--phase", "two", "--name", "only")
    assert vidgraph(capsys, "train", place / "short.toml", *only)[0] == 0
    recipe = read_recipe(place / "runs" / "only" / "recipe.toml")
    assert [phase.train.lr for phase in recipe.phases] == [0.01, 0.25, 0.01]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "train.lrr=1"), "no key train.lrr; did you mean lr?"),
        (
            ("--set", "head.form=all"),
            "option form: expected one of similarity, spatial_temporal, joint",
        ),
        (("--set", "head.reduce=conv"), "--keep pooled,boxes,nodes,res5`"),
        (("--precision", "fp16"), "fp16 needs a GPU"),
        (("--set", "head.name=strgg"), "no head 'strgg': did you mean strg"),
        (("--set", "head.dropuot=0.1"), "head strg has no option 'dropuot': did you mean dropout?"),
        (("--set", "data.num_classes=2"), "label 'class 2' is class 2, expected classes 0 to 1"),
        (("--resident", "gpu"), "resident gpu: the run computes on the CPU"),
        (("--phase", "serach"), "no phase 'serach'"),
        (("--seed", "-1"), "--seed"),
        (("--manifest", "no.csv"), "no.csv"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, capsys, more, message):
    code, _, err = train(capsys, place, "--name", "bad", *more)
    assert code == 2
    assert message in err
    assert not (place / "runs" / "bad").exists()


def test_a_split_without_clips_is_bad_input(place, capsys):
    for splits, message in (
        (("val", "test"), "no clip in split train"),
        (("train", "train"), "no clip in split val or test"),
    ):
        rows = [
            {"clip": f"clip-{k}", "path": "x", "split": splits[k % 2], "label": "ab"[k % 2]}
            for k in range(20)
        ]
        write_manifest(place / "other.csv", rows)
        code, _, err = train(capsys, place, "--name", "bad", "--manifest", place / "other.csv")
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    assert not (place / "runs" / "bad").exists()


@pytest.mark.parametrize("resident", ["ram", "disk", "auto"])
@pytest.mark.parametrize("group", ["train", "test"])
def test_features_that_are_not_finite_are_bad_input_before_training_starts(
    tmp_path, capsys, resident, group
):
    poison(Tiny().write(tmp_path), group, 2 * (5 if group == "train" else 20), "nodes")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    code, out, err = train(capsys, tmp_path, "--resident", resident)
    assert (code, err.count("\n")) == (2, 1)
    assert "nodes holds NaN or infinity; run `vidgraph verify" in err
    assert "epoch 1" not in out
    assert not (tmp_path / "runs").exists()


def test_a_cache_of_another_backbone_is_bad_input(place, tmp_path, capsys):
    Tiny(config={"backbone": "i3d_r50"}).write(tmp_path)
    train(capsys, place, "--name", "first")
    folder = place / "runs" / "first"
    code, _, err = vidgraph(
        capsys, "evaluate", folder, "--cache", tmp_path / "cache", "--device", "cpu"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "--backbone digit_cnn there, --backbone i3d_r50 here" in err
    how = ("--runs", tmp_path / "runs", "--device", "cpu", "--start", folder)
    code, _, err = vidgraph(
        capsys, "train", place / "tiny.toml", "--cache", tmp_path / "cache", *how
    )
    assert code == 2
    assert "--backbone digit_cnn there, --backbone i3d_r50 here" in err


def test_phases_are_trained_in_one_call_or_one_by_one(place, capsys):
    phases = PHASES.format(name="one", more="") + PHASES.format(
        name="two", more='start = "previous"\n'
    )
    (place / "phased.toml").write_text('source = "a test"\n[head]\nname = "strg"\n' + phases)

    def trained(*more):
        how = ("--cache", place / "cache", "--runs", place / "runs", "--device", "cpu")
        return vidgraph(capsys, "train", place / "phased.toml", *how, *more)

    code, out, _ = trained()
    assert code == 0
    assert "two epoch 1/1" in out
    code, out, _ = trained("--name", "apart", "--phase", "one")
    assert "next phase: two; run `vidgraph train RECIPE --phase two`" in out
    assert trained("--name", "apart", "--phase", "two")[0] == 0
    assert trained("--name", "set", "--set", "phases.two.train.lr=0.5")[0] == 0
    assert "lr = 0.5" in (place / "runs" / "set" / "recipe.toml").read_text()
    code, _, err = trained("--name", "set", "--set", "train.lr=0.5")
    assert (code, "phases.NAME.train.lr" in err) == (2, True)
    assert (
        trained(
            "--name", "started", "--phase", "two", "--start", place / "runs" / "apart" / "one.pt"
        )[0]
        == 0
    )


def test_starting_a_phase_over_never_removes_what_it_starts_from(place, capsys):
    phases = PHASES.format(name="one", more="") + PHASES.format(
        name="two", more='start = "previous"\n'
    )
    (place / "over.toml").write_text('source = "a test"\n[head]\nname = "strg"\n' + phases)
    folder = place / "runs" / "over"
    how = ("--cache", place / "cache", "--runs", place / "runs", "--device", "cpu")
    assert vidgraph(capsys, "train", place / "over.toml", *how, "--name", "over")[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    two = ("train", place / "over.toml", *how, "--phase", "two", "--no-resume")
    code, _, err = vidgraph(capsys, *two, "--name", "over")
    assert (code, err.count("\n")) == (2, 1)
    assert f"another folder (--name) with --start {folder / 'one.pt'}" in err
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert vidgraph(capsys, *two, "--name", "over-again", "--start", folder / "one.pt")[0] == 0
    assert (
        vidgraph(capsys, "train", place / "over.toml", *how, "--name", "over", "--no-resume")[0]
        == 0
    )


def test_each_phase_can_be_evaluated_beside_the_run_s_own_figures(place, capsys):
    phases = PHASES.format(name="one", more="") + PHASES.format(
        name="two", more='start = "previous"\n'
    )
    phases += PHASES.format(name="three", more='reads = "frames"\nstart = "previous"\n')
    (place / "graded.toml").write_text('source = "a test"\n[head]\nname = "strg"\n' + phases)
    folder = place / "runs" / "graded"
    how = (
        "--cache",
        place / "cache",
        "--runs",
        place / "runs",
        "--name",
        "graded",
        "--device",
        "cpu",
    )
    assert vidgraph(capsys, "train", place / "graded.toml", *how)[0] == 0
    logits = {}
    for phase in ("one", "two"):
        assert vidgraph(capsys, "evaluate", folder, "--phase", phase, "--device", "cpu")[0] == 0
        assert read_json(folder / f"metrics_test_{phase}.json")["checkpoint"] == phase
        logits[phase] = np.load(folder / f"predictions_test_{phase}.npz")["logits"]
    np.testing.assert_array_equal(logits["two"], np.load(folder / "predictions_test.npz")["logits"])
    assert not np.array_equal(logits["one"], logits["two"])
    for name, message in (
        ("tow", "no phase 'tow': did you mean two"),
        ("three", "phases that were: one, two"),
    ):
        code, _, err = vidgraph(capsys, "evaluate", folder, "--phase", name, "--device", "cpu")
        assert (code, err.count("\n"), message in err) == (2, 1, True)
    assert vidgraph(capsys, "evaluate", folder, "--phase", "one", "--checkpoint", "last")[0] == 2
    train(capsys, place, "--name", "plain")
    assert (
        "has no phases"
        in vidgraph(
            capsys, "evaluate", place / "runs" / "plain", "--phase", "one", "--device", "cpu"
        )[2]
    )


def test_a_list_of_classes_is_looked_up_where_it_was_named(place, tmp_path, capsys, monkeypatch):
    """Beside the recipe that names it; with --set, in the working directory."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.toml").write_text(RECIPE + '[data]\nclass_list = "list.txt"\n')
    (tmp_path / "recipes" / "list.txt").write_text("class 2\nclass 1\nclass 0\n")
    (tmp_path / "here.txt").write_text("class 1\nclass 0\nclass 2\n")
    monkeypatch.chdir(tmp_path)
    how = (
        "recipes/tiny.toml",
        "--cache",
        place / "cache",
        "--runs",
        "runs",
        "--device",
        "cpu",
        "--set",
        "train.epochs=1",
    )
    for name, more in (("own", ()), ("set", ("--set", "data.class_list=here.txt"))):
        assert vidgraph(capsys, "train", *how, "--name", name, *more)[0] == 0
    found = {
        name: read_json(tmp_path / "runs" / name / "run.json")["classes"] for name in ("own", "set")
    }
    assert found == {
        "own": ["class 2", "class 1", "class 0"],
        "set": ["class 1", "class 0", "class 2"],
    }


def test_a_recipe_or_cache_that_is_not_there_is_bad_input(place, capsys):
    code, _, err = vidgraph(capsys, "train", "demo_strgg", "--cache", place / "cache")
    assert (code, "did you mean demo_strg" in err) == (2, True)
    assert vidgraph(capsys, "train", "demo_strg", "--cache", place / "nothing")[0] == 2
    assert vidgraph(capsys, "evaluate", place / "nothing")[0] == 2
    with pytest.raises(ValueError, match="cache"):
        Cache(place / "nothing")


def test_a_loss_that_is_not_finite_is_exit_code_1(place, capsys):
    code, _, err = train(
        capsys, place, "--name", "diverged", "--set", "train.lr=1e38", "--set", "train.epochs=9"
    )
    assert code == 1
    assert err.count("\n") == 1
    assert "lower train.lr" in err


def test_ctrl_c_ends_with_130_and_says_how_to_resume(place, capsys, monkeypatch):
    import heads.training.train

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(heads.training.train, "train", interrupted)
    code, _, said = train(capsys, place)
    assert code == 130
    assert "the same command resumes" in said
