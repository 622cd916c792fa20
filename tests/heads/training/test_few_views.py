"""What `train` says of a cache with few training views."""

import pytest

from heads.config.recipe import recipe_from
from heads.training import few_views
from heads.training.train import train
from tests.support.tiny_cache import Tiny

DRAWN = {"train_crop": "short_side", "sampling": "stride", "flip": 0.5}
MOST_READS = 2
FIXED = {"train_crop": "centre", "sampling": "linspace", "flip": 0.0}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A lower limit, for shorter trainings."""
    monkeypatch.setattr(few_views, "MOST_READS", MOST_READS)


def said(folder, epochs, sampling, views=2, data=None, **training) -> list[str]:
    """Lines on views of a run; its learning rate is too small to matter."""
    config = {"backbone": "digit_cnn"}
    if sampling is not None:
        config["sampling"] = sampling
    cache = Tiny(train_views=views, config=config).write(folder)
    train_table = {"batch": 12, "lr": 1e-6, **training}
    if not training:
        train_table["epochs"] = epochs
    recipe = recipe_from(
        {
            "name": "r",
            "source": "a test",
            "head": {"name": "pool"},
            "data": data or {},
            "train": train_table,
        }
    )
    lines: list[str] = []
    how = {"say": lines.append, "tensorboard": False, "device": "cpu"}
    train(recipe, cache, folder / "run", **how)
    return [line for line in lines if "read each view" in line]


def test_a_training_that_reads_each_view_too_often_is_told_how_many_would_do(tmp_path):
    (line,) = said(tmp_path, 2 * MOST_READS + 1, DRAWN)
    assert f"{2 * MOST_READS + 1} epochs read each view" in line
    assert line.endswith("extract with --train-views 3 or more")


def test_enough_views_are_passed_over_in_silence(tmp_path):
    assert said(tmp_path, 2 * MOST_READS, DRAWN) == []


def test_a_length_in_iterations_counts_as_the_epochs_that_it_makes(tmp_path):
    # 12 training clips are one mini-batch.
    (line,) = said(tmp_path, 0, DRAWN, views=1, iterations=MOST_READS + 1)
    assert f"{MOST_READS + 1} epochs" in line
    assert "1 training view a clip" in line


def test_views_that_the_recipe_leaves_out_are_named(tmp_path):
    (line,) = said(tmp_path, MOST_READS + 1, DRAWN, data={"train_views": 1})
    assert line.endswith("raise data.train_views to 2 or more")


@pytest.mark.parametrize("sampling", [FIXED, None], ids=["fixed", "digits"])
def test_where_more_views_would_show_the_same_nothing_is_said(sampling, tmp_path):
    assert said(tmp_path, MOST_READS + 1, sampling, views=1) == []
