"""GOS's search as a phase: its end goes on, its discrete form is validated, changes are logged."""

import json

import numpy as np
import pytest
import torch

from heads.config.recipe import recipe_from
from heads.data.splits import require_split_views
from heads.evaluation.head_predictor import compute_figures, open_store, predict
from heads.evaluation.saved_heads import load_trained
from heads.interface.clips import dims_from
from heads.runs.run_files import load_checkpoint
from heads.runs.start_weights import default_checkpoint
from heads.training.train import train
from heads.zoo import build_head
from tests.support.tiny_cache import Tiny

HEAD = {"name": "gos", "width": 4, "supernodes": 2, "top": 3}


def recipe(epochs: int = 3, checkpoint: str = "last", discrete: bool = True):
    search = {
        "name": "search",
        "checkpoint": checkpoint,
        "train": {
            "epochs": epochs,
            "batch": 4,
            "lr": 0.01,
            "alternate": {"parameters": "structure", "lr": 0.5},
        },
    }
    phases = [search]
    if discrete:
        phases.append(
            {
                "name": "discrete",
                "start": "previous",
                "head": {"mode": "discrete"},
                "train": {"epochs": 1, "batch": 4, "lr": 0.01},
            }
        )
    return recipe_from({"name": "two", "source": "a test", "head": HEAD, "phases": phases})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "tiny"
    return Tiny(fields=("boxes", "valid", "res5")).write(folder)


def lines_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Stop(Exception):
    pass


def stop_after(epochs: int):
    def say(line: str) -> None:
        if f"epoch {epochs}/" in line:
            raise Stop

    return say


def run(recipe, cache, folder, say=lambda line: None):
    return train(recipe, cache, folder, device="cpu", tensorboard=False, say=say)


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    said: list[str] = []
    run(recipe(), cache, folder, said.append)
    return folder, said


def test_the_discrete_structure_is_validated_beside_the_mixture(cache, trained):
    folder, said = trained
    first, second, third, discrete = lines_of(folder)
    for line in (first, second, third):
        assert set(line["beside"]) == {"discrete"}
        assert set(line["beside"]["discrete"]) == set(line["val"])
    assert "beside" not in discrete
    assert any("discrete top1" in line for line in said)

    # The figure is what the head in mode discrete gets with the weights of the search's end.
    mixed = load_trained(folder, cache, "search")
    saved = load_checkpoint(folder / "search.pt")
    options = {**HEAD, "mode": "discrete"}
    head = build_head(options.pop("name"), dims_from(saved["about"]["dims"]), 3, **options)
    head.load_state_dict(saved["state"])
    part = require_split_views(
        cache, "test", "val", cache.manifest, mixed.classes, mixed.recipe.data
    )
    store = open_store([head], cache, [part], mixed.recipe, "disk", torch.device("cpu"))
    predictions = predict(head, part, store, mixed.recipe, "fp32")
    figures = compute_figures(predictions, part, mixed.recipe)[0]
    assert figures == pytest.approx(third["beside"]["discrete"], rel=1e-5)


def test_the_share_of_views_whose_structure_changed_is_logged(trained):
    folder, said = trained
    lines = lines_of(folder)
    # Of the first validation of a phase there is none before.
    assert "changed" not in lines[0]
    assert "changed" not in lines[3]
    for line in lines[1:3]:
        assert 0 <= line["changed"]["structure"] <= 1
    # A learning rate of 0.5 moves the structures of some views.
    assert max(line["changed"]["structure"] for line in lines[1:3]) > 0
    assert any("structure changed for" in line for line in said)


def test_the_share_is_the_same_in_a_run_that_was_stopped(cache, trained, tmp_path):
    folder, _ = trained
    for epochs in (1, 2):
        with pytest.raises(Stop):
            run(recipe(), cache, tmp_path / "parts", stop_after(epochs))
    run(recipe(), cache, tmp_path / "parts")
    for one, other in zip(lines_of(tmp_path / "parts"), lines_of(folder), strict=True):
        assert one.get("changed") == other.get("changed")
        assert one.get("beside") == other.get("beside")


def test_a_phase_goes_on_with_the_weights_that_it_names(cache, trained, tmp_path):
    folder, _ = trained
    # Three epochs alone end where the phase of the longer run did.
    run(recipe(discrete=False), cache, tmp_path / "alone")
    ended = load_checkpoint(tmp_path / "alone" / "last.pt")["state"]
    kept = load_checkpoint(folder / "search.pt")["state"]
    assert all(kept[name].equal(ended[name]) for name in ended)
    assert default_checkpoint(tmp_path / "alone") == "last"

    run(recipe(checkpoint="best", discrete=False), cache, tmp_path / "best")
    best = load_checkpoint(tmp_path / "best" / "best.pt")["state"]
    kept = load_checkpoint(tmp_path / "best" / "search.pt")["state"]
    assert all(kept[name].equal(best[name]) for name in best)
    assert default_checkpoint(tmp_path / "best") == "best"


def test_the_searched_cell_is_stacked_with_its_weights(cache, tmp_path):
    """Supplement, Table 8."""
    table = recipe().as_dict()
    table["phases"][1]["head"] |= {"cells": 2, "tied": True}
    folder = tmp_path / "stacked"
    said: list[str] = []
    run(recipe_from(table), cache, folder, said.append)
    search, stacked = (load_checkpoint(folder / f"{p}.pt")["state"] for p in ("search", "discrete"))
    for name in ("structure.alpha.weight", "structure.alpha.bias"):
        assert stacked[name].equal(search[name])
    assert any("fresh: " in line and "cells.1" in line for line in said)
    with np.load(folder / "predictions_test.npz", allow_pickle=False) as file:
        structure = file["structure"]
    assert structure.shape[1:] == (2, 3)
    assert (structure[:, 0] == structure[:, 1]).all()


def test_heads_without_other_forms_are_validated_alone(cache, tmp_path):
    table = {
        "name": "plain",
        "source": "a test",
        "head": {"name": "gos_feat_aggr", "width": 4},
        "train": {"epochs": 2, "batch": 4, "lr": 0.01},
    }
    run(recipe_from(table), cache, tmp_path / "plain")
    for line in lines_of(tmp_path / "plain"):
        assert "beside" not in line
        assert "changed" not in line
