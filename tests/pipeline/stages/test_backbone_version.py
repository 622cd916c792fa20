"""Options of a backbone that now compute something else: their caches are made anew, others not."""

from types import SimpleNamespace

import pytest

from pipeline.cache.creation import create_cache
from pipeline.cache.reader import CacheError
from pipeline.manifests.manifest import read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.frozen_networks import StoredShapes, backbone_of_cache

SAME = [
    {},
    {"variant": "released"},
    {"variant": "released", "lmc": True},
    {"variant": "paper", "segments": 16},
    {"pool": "avg"},
    {"pool": "none", "eab": "none"},
]
CHANGED = [
    {"variant": "released", "lmc": True, "segments": 16},
    {"variant": "paper", "lmc": True},
    {"variant": "paper", "lmc": True, "segments": 16},
    {"pool": "none"},
]


def record(options):
    config = ExtractConfig(
        backbone="ean_r50", backbone_options={"width": 4, **options}, keep=("res5",)
    )
    return StoredShapes(config).record()


@pytest.mark.parametrize("options", SAME)
def test_a_cache_whose_values_did_not_change_keeps_its_record(options):
    assert "backbone_version" not in record(options)


@pytest.mark.parametrize("options", CHANGED)
def test_a_cache_whose_values_changed_has_another_record(options):
    assert record(options)["backbone_version"] == 2


def test_a_backbone_that_computes_something_else_than_a_cache_has_is_refused():
    """With the words that `vidgraph show` and `vidgraph finetune` share."""
    config = ExtractConfig(
        backbone="ean_r50", backbone_options={"width": 4, "pool": "none"}, keep=("res5",)
    )
    new = StoredShapes(config).record()
    now = SimpleNamespace(path="cache", config=new)
    assert backbone_of_cache(config, now).version == 2
    before = {key: value for key, value in new.items() if key != "backbone_version"}
    with pytest.raises(ValueError, match="cache: ean_r50 of version 1 made it, this is version 2"):
        backbone_of_cache(config, SimpleNamespace(path="cache", config=before))
    others = SimpleNamespace(path="cache", config={**new, "weights": "0123456789abcdef"})
    with pytest.raises(ValueError, match=r"expected 0123456789ab.*pass --weights with that file"):
        backbone_of_cache(config, others)


def test_a_cache_of_before_is_refused_in_words(tmp_path):
    path = tmp_path / "clips.csv"
    path.write_text("clip,path,split,label\na,a.mp4,train,one\n")
    (tmp_path / "a.mp4").touch()
    manifest, new = read_manifest(path), record({"pool": "none"})
    before = {key: value for key, value in new.items() if key != "backbone_version"}
    create_cache(tmp_path / "cache", before, manifest, 1)
    with pytest.raises(CacheError, match=r"now computes something else .*Point --cache at another"):
        create_cache(tmp_path / "cache", new, manifest, 1)
