"""`vidgraph ablate`: what it prints and its exit codes."""

import json
import statistics

import pytest

from heads.runs.manifest_record import manifest_record
from heads.runs.run_files import read_json
from heads.training.folds import read_folds
from pipeline.cache.reader import Cache
from pipeline.manifests.folds import fold_rows
from pipeline.manifests.manifest import read_manifest, write_manifest
from pipeline.manifests.rewriting import read_cells
from tests.heads.training.test_train_cli import vidgraph
from tests.support.tiny_cache import Tiny

STUDY = """seeds = [0, 1]
[head]
name = "pool"
[train]
epochs = 2
batch = 5
[grid]
train.lr = [0.1{more}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a cache, a study, and one with a member that diverges."""
    folder = tmp_path_factory.mktemp("cli")
    Tiny(failed=(1,)).write(folder)
    (folder / "rates.toml").write_text(STUDY.format(more=""))
    (folder / "diverges.toml").write_text(STUDY.format(more=", 1e37"))
    return folder


def ablate(capsys, place, study, *more):
    how = ("--cache", place / "cache", "--runs", place / "runs", "--device", "cpu")
    return vidgraph(capsys, "ablate", place / study, *how, *more)


def test_a_study_ends_with_a_table_and_a_second_call_reads_it_back(place, capsys):
    code, out, err = ablate(capsys, place, "rates.toml")
    assert code == 0
    assert "1 of 12 clips failed at extraction and is left out: clip-1" in out
    assert "rates: 2 members; an epoch of all is 1 pass over the cache" in out
    assert "train: 4/4 epochs" in err
    table = (place / "runs" / "rates" / "results.txt").read_text()
    assert table in out
    assert "| pool | 0.1      |     2 |" in table
    assert sorted(path.name for path in (place / "runs" / "rates").iterdir()) == [
        *(f"pool,train.lr=0.1-seed{seed}" for seed in (0, 1)),
        *(f"results.{kind}" for kind in ("csv", "json", "txt")),
    ]
    code, again, err = ablate(capsys, place, "rates.toml")
    assert (code, err) == (0, "")
    assert "2 members, 2 of them finished before" in again
    assert table in again


def test_failed_members_are_one_line_each_and_exit_code_3(place, capsys):
    code, out, _ = ablate(capsys, place, "diverges.toml")
    assert code == 3
    lines = [line for line in out.splitlines() if " failed after epoch " in line]
    assert [line.split(" failed after epoch 0: ")[0] for line in lines] == [
        f"pool,train.lr=1e+37-seed{k}" for k in (0, 1)
    ]
    assert all("LossNotFinite: the loss is nan at mini-batch" in line for line in lines)
    assert (
        len(
            json.loads((place / "runs" / "diverges" / "results.json").read_text())["rows"][0][
                "members"
            ]
        )
        == 2
    )


def test_settings_are_those_of_every_member_and_recorded(place, capsys):
    assert ablate(capsys, place, "rates.toml", "--name", "set", "--set", "train.batch=3")[0] == 0
    assert (
        "batch = 3"
        in (place / "runs" / "set" / "pool,train.lr=0.1-seed1" / "recipe.toml").read_text()
    )
    assert json.loads((place / "runs" / "set" / "results.json").read_text())["settings"] == {
        "train.batch": 3
    }


def test_listing_trains_nothing(place, capsys):
    code, out, _ = ablate(
        capsys, place, "diverges.toml", "--name", "listed", "--list", "--set", "data.train_views=1"
    )
    assert code == 0
    assert out.count("2 epochs, reads pooled") == 4
    assert not (place / "runs" / "listed").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--set", "train.lr=1"),
            "rates.toml: train.lr: expected it in [grid], or in [set] or --set",
        ),
        (("--set", "train.lrr=1"), "member pool,train.lr=0.1: no key train.lrr; did you mean lr?"),
        (
            ("--set", "data.first_labels=9"),
            "member pool,train.lr=0.1-seed0: --set data.first_labels: expected at most the 3 "
            "classes, got 9",
        ),
        (("--precision", "fp16"), "fp16 needs a GPU"),
        (("--resident", "gpu"), "resident gpu: the run computes on the CPU"),
        (("--jobs", 2, "--dask", 2), "--jobs and --dask: expected one"),
        (("--dask", 2, "--scheduler", "tcp://x:1"), "expected one of them, got both"),
        (("--manifest", "no.csv"), "no.csv"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(place, capsys, more, message):
    code, _, err = ablate(capsys, place, "rates.toml", "--name", "bad", *more)
    assert code == 2
    assert message in err
    assert not list((place / "runs").glob("bad/*/run.json"))


def test_help_says_what_a_group_is(capsys):
    code, out, _ = vidgraph(capsys, "ablate", "--help")
    assert code == 0
    assert "Members in so many groups" in " ".join(out.split())


# Folds.


@pytest.fixture(scope="module")
def divided(place):
    """The folder of two folds of the cache's clips."""
    manifest = write_manifest(place / "all.csv", read_cells(Cache(place / "cache").manifest))
    for number, rows in enumerate(fold_rows(manifest, k=2, val=0.2), 1):
        write_manifest(place / "folds" / f"fold{number}.csv", rows)
    return place / "folds"


def test_a_study_is_trained_on_every_fold_and_its_table_is_over_the_folds(place, divided, capsys):
    how = ("--folds", divided, "--name", "over")
    code, out, _ = ablate(capsys, place, "rates.toml", *how)
    assert code == 0, out
    folder = place / "runs" / "over"
    table = json.loads((folder / "results.json").read_text())
    (row,) = table["rows"]
    means = []
    for number in (1, 2):
        alone = []
        for seed in (0, 1):
            run = folder / f"fold{number}" / f"pool,train.lr=0.1-seed{seed}"
            alone.append(read_json(run / "metrics.json")["metrics"]["test"]["loss"])
            record = read_json(run / "run.json")["manifest"]["fold"]
            assert (record["number"], record["of"]) == (str(number), 2)
        means.append(statistics.fmean(alone))
    assert row["metrics"]["test"]["loss"] == {
        "mean": pytest.approx(statistics.fmean(means)),
        "std": pytest.approx(statistics.stdev(means)),
    }
    assert [(one["fold"], one["seed"]) for one in row["members"]] == [
        *(("fold1", 0), ("fold1", 1), ("fold2", 0), ("fold2", 1)),
    ]
    tested = [table["folds"][name]["splits"]["test"]["clips"] for name in ("fold1", "fold2")]
    assert sum(tested) == len(Cache(place / "cache").manifest.clips)
    assert "over folds" in out
    assert "| pool | 0.1      |    4 |" in out
    # Read back, and each fold has a table of its own.
    code, again, _ = ablate(capsys, place, "rates.toml", *how)
    assert code == 0
    assert "2 members, 2 of them finished before" in again
    assert (folder / "fold2" / "results.txt").is_file()


def test_folds_of_one_division_have_one_checksum(place, divided):
    records = [manifest_record(read_manifest(divided / f"fold{number}.csv")) for number in (1, 2)]
    assert records[0]["fold"]["sha256"] == records[1]["fold"]["sha256"]
    assert "fold" not in manifest_record(read_manifest(place / "all.csv"))


def test_folders_that_hold_no_folds_are_refused(place, divided, capsys, tmp_path):
    code, _, err = ablate(capsys, place, "rates.toml", "--folds", tmp_path)
    assert code == 2
    assert "expected the manifests of at least two folds, found 0" in err
    clips = read_cells(read_manifest(divided / "fold1.csv"))
    write_manifest(tmp_path / "fold1.csv", clips)
    write_manifest(tmp_path / "fold2.csv", clips[1:])
    code, _, err = ablate(capsys, place, "rates.toml", "--folds", tmp_path)
    assert code == 2
    assert "fold2.csv: expected the clips of" in err


def test_folds_are_in_the_order_of_their_numbers(divided, tmp_path):
    clips = read_cells(read_manifest(divided / "fold1.csv"))
    for number in (10, 2, 1):
        write_manifest(tmp_path / f"fold{number}.csv", clips)
    assert list(read_folds(tmp_path)) == ["fold1", "fold2", "fold10"]
