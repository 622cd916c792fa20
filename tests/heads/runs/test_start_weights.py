"""A run that starts from a run with other classes: the classifier stays fresh, the rest comes
along.
"""

import pytest
import torch

from heads.config.recipe import recipe_from
from heads.interface.clips import Dims
from heads.runs import run_files
from heads.runs.start_weights import other_classifier, take_weights
from heads.training.train import train
from heads.zoo import build_head
from tests.support.tiny_cache import Tiny

DIMS = Dims(T=3, N=2, C=4, maps={"res5": (4, 4, 4)})
THREE, FIVE = ("a", "b", "c"), ("a", "b", "c", "d", "e")


def recipe(head: str, **options):
    return recipe_from(
        {
            "name": "tiny",
            "source": "a test",
            "head": {"name": head, **options},
            "train": {"epochs": 1, "batch": 5, "lr": 0.1},
        }
    )


def checkpoint(path, head, chosen, classes=THREE):
    about = {"classes": list(classes), "recipe": chosen.as_dict()}
    torch.save({"state": head.state_dict(), "about": about}, path)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("strg", {"width": 4}),
        ("rstg", {"width": 6}),
        ("rstg_map", {"width": 6}),
        ("gos", {"width": 8, "roi_size": 2, "taps": 3}),
        ("dyreg", {"width": 4, "offset_width": 4}),
        ("mean_lstm", {"hidden": 4}),
    ],
)
def test_the_classifier_is_what_depends_on_the_number_of_classes(
    name, options, tmp_path, monkeypatch
):
    chosen = recipe(name, **options)
    monkeypatch.setattr(run_files, "load_checkpoint", torch.load)
    old = build_head(name, DIMS, len(THREE), **options)
    path = checkpoint(tmp_path / "last.pt", old, chosen)
    for classes in (FIVE, ("x", "y", "z")):
        new = build_head(name, DIMS, len(classes), **options)
        first = {key: value.clone() for key, value in new.state_dict().items()}
        fresh = other_classifier(path, new, chosen.head, DIMS, classes)
        assert fresh == ("fc.weight", "fc.bias")
        line = take_weights(new, path, chosen.all_phases[0], fresh)
        assert "fresh, because the classes differ: fc.weight, fc.bias" in line
        for key, value in new.state_dict().items():
            assert value.equal(first[key] if key in fresh else old.state_dict()[key]), key
    same = build_head(name, DIMS, len(THREE), **options)
    assert other_classifier(path, same, chosen.head, DIMS, THREE) == ()


def test_a_head_that_is_a_classifier_alone_starts_if_a_backbone_comes_along(tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "load_checkpoint", torch.load)
    chosen = recipe("pool")
    path = checkpoint(tmp_path / "last.pt", build_head("pool", DIMS, 3), chosen)
    new = build_head("pool", DIMS, 5)
    fresh = other_classifier(path, new, chosen.head, DIMS, FIVE)
    with pytest.raises(ValueError, match="has no weight that the head PoolHead could take"):
        take_weights(new, path, chosen.all_phases[0], fresh)
    torch.save({**torch.load(path), "backbone": {}}, path)
    line = take_weights(new, path, chosen.all_phases[0], fresh)
    assert line.endswith("fresh, because the classes differ: fc.weight, fc.bias")


def test_another_difference_of_shapes_stays_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "load_checkpoint", torch.load)
    chosen = recipe("rstg", width=6)
    path = checkpoint(tmp_path / "last.pt", build_head("rstg", DIMS, 3, width=5), chosen)
    new = build_head("rstg", DIMS, 5, width=6)
    fresh = other_classifier(path, new, chosen.head, DIMS, FIVE)
    with pytest.raises(ValueError, match=r"nodes.enter.weight has the shape \[6, 4\], in .*\[5, 4"):
        take_weights(new, path, chosen.all_phases[0], fresh)


def test_a_training_starts_from_a_run_with_fewer_classes(tmp_path):
    """Its first phase starts from that run although the recipe says nothing of a start."""
    (tmp_path / "few").mkdir()
    (tmp_path / "more").mkdir()
    few = Tiny().write(tmp_path / "few")
    more = Tiny(labels=[f"class {k % 4}" for k in range(24)]).write(tmp_path / "more")
    chosen, lines = recipe("strg"), []
    how = {"device": "cpu", "tensorboard": False}
    train(chosen, few, tmp_path / "first", say=lambda line: None, **how)
    for folder, start in (("from", tmp_path / "first"), ("alone", None)):
        train(chosen, more, tmp_path / folder, say=lines.append, start=start, **how)
    expected = "phase train: starts from best.pt; fresh, because the classes differ: fc.weight, "
    assert [line for line in lines if "starts from" in line] == [f"{expected}fc.bias"], lines
    states = {
        name: run_files.load_checkpoint(tmp_path / name / "last.pt")["state"]
        for name in ("first", "from", "alone")
    }
    assert states["from"]["fc.weight"].shape[0] == 4
    # Both classifiers are fresh and drawn alike; what lies before them is not.
    assert not states["from"]["similarity.w.weight"].equal(states["alone"]["similarity.w.weight"])
