"""What a person is told to do where a cache lacks what a head reads: it can be done."""

from dataclasses import replace

import pytest

from heads.data import missing_fields
from heads.data.missing_fields import how_to_add
from pipeline.cache.reader import Cache
from pipeline.stages.config import ExtractConfig
from pipeline.views.sampling import Sampling
from tests.support.tiny_cache import Tiny
from tests.support.tiny_encoders import save_encoder

CONFIG = ExtractConfig(
    backbone="digit_cnn", weights="none", keep=("pooled",), sampling=Sampling(frames=4, size=32)
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A function: a cache with some fields, as an extraction with a config would have recorded."""

    def of(config: ExtractConfig, fields: tuple[str, ...]) -> Cache:
        record = {"asked": config.as_asked()}
        monkeypatch.setattr(missing_fields, "extraction_record", lambda path: record)
        return Cache(Tiny(fields=fields).write(tmp_path / "cache").path)

    return of


def test_a_cut_that_the_backbone_lacks_is_not_advised_but_its_last_one(cache):
    said = how_to_add(cache(CONFIG, ("pooled", "flip", "grid")), "stlt", ("res5",))
    assert "its backbone digit_cnn has no res5" in said
    assert "--keep conv3`" in said
    assert "--set head.cut=conv3" in said


def test_a_map_that_the_cache_has_is_advised_before_another_extraction(cache):
    found = cache(CONFIG, ("pooled", "flip", "grid", "res5"))
    said = how_to_add(found, "strg", ("last",))
    assert "has no last; pass --set head.cut=res5" in said
    assert "run `" not in said


def test_a_cut_that_the_backbone_has_is_advised_as_it_is(cache):
    said = how_to_add(cache(CONFIG, ("pooled", "flip", "grid")), "stlt", ("conv2",))
    assert "--keep pooled,conv2`" in said
    assert "head.cut" not in said


def test_where_the_backbone_cannot_be_built_the_advice_is_what_the_head_asked_for(cache):
    gone = replace(CONFIG, backbone="hf:/nowhere/at/all", weights="pretrained")
    said = how_to_add(cache(gone, ("pooled", "flip", "grid")), "stlt", ("res5",))
    assert "--keep pooled,res5`" in said


@pytest.mark.parametrize("kind", ["", "VideoMAE", "ViT"])
def test_class_tokens_are_advised_only_where_the_backbone_has_some(kind, cache, tmp_path):
    config = CONFIG
    if kind:
        pytest.importorskip("transformers")
        folder = save_encoder(tmp_path / kind, kind)
        config = replace(CONFIG, backbone=f"hf:{folder}", weights="pretrained")
    said = how_to_add(cache(config, ("pooled", "flip", "grid")), "attentive", ("tokens",))
    if kind == "ViT":
        assert "--keep pooled,tokens`" in said
    else:
        assert "has no class or register tokens; pass --set head.class_tokens=false" in said
        assert "run `" not in said
