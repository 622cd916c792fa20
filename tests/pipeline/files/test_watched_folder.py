"""A run whose folder is moved, deleted or replaced ends, and writes into no other folder."""

import os
import shutil

import pytest

from heads.config.study_file import read_study
from heads.runs import run_files as runs
from heads.runs.folder_lock import lock_folders, refuse_if_lost
from heads.training.ablate import ablate
from heads.training.estimates import AblateOptions
from heads.training.learner import Learner
from heads.training.train import train
from pipeline.cache.folder import read_cache_json, watch_cache_folder
from pipeline.cache.shard_writer import ShardWriter
from pipeline.files.watched_folder import FolderGone, WatchedFolder
from pipeline.stages import graphs
from pipeline.stages.graphs import build_graphs
from tests.heads.training.test_train import recipe
from tests.support.small_cache import make_cache
from tests.support.tiny_cache import Tiny


def quiet(line):
    pass


def moved(folder):
    os.rename(folder, folder.with_name("elsewhere"))


def deleted(folder):
    shutil.rmtree(folder)


def replaced(folder):
    """Replace it by a copy: the same content, but another folder."""
    moved(folder)
    shutil.copytree(folder.with_name("elsewhere"), folder)


def linked(folder):
    """Move it and leave a link: this is still the same folder, and nothing has to end."""
    moved(folder)
    folder.symlink_to("elsewhere")


@pytest.mark.parametrize("happens", [moved, deleted, replaced])
def test_a_folder_that_is_not_where_it_was_is_noticed(tmp_path, happens):
    (tmp_path / "cache" / "features").mkdir(parents=True)
    home = WatchedFolder(tmp_path / "cache", tmp_path / "cache" / "features")
    home.check()
    happens(tmp_path / "cache")
    with pytest.raises(FolderGone, match="moved or deleted, or another folder has its name"):
        home.check()
    with pytest.raises(FolderGone), home.guarded():
        raise FileNotFoundError
    home.close()


def test_a_link_to_the_same_folder_is_the_same_folder(tmp_path):
    (tmp_path / "cache").mkdir()
    home = WatchedFolder(tmp_path / "cache")
    linked(tmp_path / "cache")
    home.check()


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(KeyError), WatchedFolder(tmp_path).guarded():
        raise KeyError("mine")


def test_a_cache_that_is_made_anew_in_the_same_folder_is_another(tmp_path):
    path = make_cache(tmp_path)
    record = read_cache_json(path)
    home = watch_cache_folder(path, record["fingerprint"], "features")
    home.check()
    # Written again, as with other labels: still the same cache.
    text = (path / "cache.json").read_bytes()
    (path / "cache.json").write_bytes(text)
    home.check()
    (path / "cache.json").unlink()
    with pytest.raises(FolderGone):
        home.check()
    del record["seal"]
    clips = record["manifest"]["sha256"]
    other = {**record, "manifest": {**record["manifest"], "sha256": "f" * 64}}
    runs.write_json(path / "cache.json", other)
    with pytest.raises(FolderGone, match="deleted and made anew"):
        home.check()
    # Where it has grown, the manifest that it had is there.
    (path / f"manifest.{clips[:8]}.csv").touch()
    home.check()


@pytest.mark.parametrize("happens", [moved, deleted, replaced])
@pytest.mark.parametrize(
    "moment", ["a shard is begun", "a view is written", "a shard is completed"]
)
def test_graphs_end_where_their_cache_goes_away_and_leave_what_is_there_alone(
    tmp_path, monkeypatch, happens, moment
):
    path = make_cache(tmp_path)
    step = {
        "a shard is begun": (graphs, "take_claim"),
        "a view is written": (ShardWriter, "write"),
    }.get(moment, (graphs, "finish_shard"))
    done, struck = getattr(*step), []

    def strike(*args, **named):
        if not struck:
            happens(path)
            struck.append(files(path))
        return done(*args, **named)

    monkeypatch.setattr(*step, strike)
    with pytest.raises(FolderGone):
        build_graphs(path)
    assert struck == [files(path)]


def files(path) -> set[str]:
    """The files below a folder without claims and part files, whose owner may remove a copy."""
    found = path.rglob("*") if path.exists() else ()
    return {str(file.relative_to(path)) for file in found if file.suffix not in (".claim", ".part")}


def test_a_worker_whose_path_leads_to_another_cache_says_so(tmp_path):
    path = make_cache(tmp_path)
    with pytest.raises(ValueError, match="this is not the cache that the run started with"):
        watch_cache_folder(path, "0" * 64, "features")
    with pytest.raises(ValueError, match="no cache here"):
        watch_cache_folder(tmp_path / "nothing", "0" * 64, "features")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("happens", [moved, deleted, replaced])
def test_a_training_whose_folder_goes_away_ends_and_makes_none_anew(tmp_path, monkeypatch, happens):
    cache, step, struck = Tiny().write(tmp_path / "cache"), Learner.step, []

    def strike(*args):
        if not struck:
            happens(tmp_path / "runs")
            struck.append(files(tmp_path / "runs"))
        return step(*args)

    monkeypatch.setattr(Learner, "step", strike)
    with pytest.raises(FolderGone, match="moved or deleted"):
        train(recipe(epochs=2), cache, tmp_path / "runs" / "mine", device="cpu", say=quiet)
    assert struck == [files(tmp_path / "runs")]


@pytest.mark.parametrize("happens", [moved, deleted])
@pytest.mark.parametrize(
    "moment", ["save_checkpoint", "append_log", "save_predictions", "load_checkpoint"]
)
def test_a_training_s_folder_may_go_away_at_any_file(tmp_path, monkeypatch, moment, happens):
    """Whatever the file raises, the reason is that the folder is gone."""
    cache, step = Tiny().write(tmp_path / "cache"), getattr(runs, moment)

    def strike(*args):
        if (tmp_path / "runs").exists():
            happens(tmp_path / "runs")
        # As if it went away after the last check.
        with monkeypatch.context() as once:
            once.setattr(runs, "refuse_if_lost", lambda path: None)
            return step(*args)

    monkeypatch.setattr(runs, moment, strike)
    with pytest.raises(FolderGone, match="moved or deleted"):
        train(recipe(epochs=1), cache, tmp_path / "runs" / "mine", device="cpu", say=quiet)


def test_a_link_that_leads_elsewhere_now_is_noticed(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "runs").symlink_to("one")
    (held,) = lock_folders([tmp_path / "runs" / "mine"], quiet)
    refuse_if_lost(tmp_path / "runs" / "mine" / "last.pt")
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").symlink_to("two")
    with pytest.raises(FolderGone):
        refuse_if_lost(tmp_path / "runs" / "mine" / "last.pt")
    held.leave()


@pytest.mark.parametrize("happens", [moved, deleted, replaced])
def test_a_study_whose_folder_goes_away_ends_and_makes_none_anew(tmp_path, monkeypatch, happens):
    cache, step, struck = Tiny().write(tmp_path / "cache"), Learner.step, []
    (tmp_path / "two.toml").write_text(
        'seeds = [0, 1]\n[head]\nname = "pool"\n[train]\nepochs = 1\nbatch = 4\nlr = 0.1\n'
    )

    def strike(*args):
        if not struck:
            happens(tmp_path / "runs")
            struck.append(files(tmp_path / "runs"))
        return step(*args)

    monkeypatch.setattr(Learner, "step", strike)
    # In groups of one: the second begins when the folder is gone.
    with pytest.raises(FolderGone, match="moved or deleted"):
        ablate(
            read_study(tmp_path / "two.toml"),
            cache,
            tmp_path / "runs",
            AblateOptions(device="cpu"),
            at_once=1,
            say=quiet,
        )
    assert struck == [files(tmp_path / "runs")]
