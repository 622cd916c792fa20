"""`Clips` and `Dims`: what a head receives."""

import numpy as np
import pytest
import torch

from heads.interface.clips import Clips, Dims, MissingFields, clips_of, dims_from, dims_of

ARRAYS = {
    "boxes": np.zeros((2, 3, 4, 4), np.float32),
    "valid": np.ones((2, 3, 4), bool),
    "nodes": np.ones((2, 3, 4, 5), np.float16),
    "res5": np.ones((2, 3, 5, 2, 2), np.float16),
    "grid": np.full((2, 2), 2, np.int16),
    "nearest": np.zeros((2, 3, 4, 3), np.int32),
}


def test_features_are_widened_and_indices_become_integers_that_index():
    clips = clips_of(ARRAYS)
    assert clips.nodes.dtype == clips.maps["res5"].dtype == torch.float32
    assert clips.valid.dtype == torch.bool
    assert clips.grid.dtype == clips.nearest.dtype == torch.int64
    assert clips.size == 2
    assert clips.to(dtype=torch.float64).nodes.dtype == torch.float64
    assert clips.to(dtype=torch.float64).valid.dtype == torch.bool


def test_a_field_that_was_not_read_is_named():
    clips = clips_of(ARRAYS)
    with pytest.raises(ValueError, match="no pooled"):
        clips.get("pooled")
    with pytest.raises(ValueError, match="no res4"):
        clips.get("res4")
    assert clips.without("nodes", "res5").maps == {}
    with pytest.raises(ValueError, match="no nodes"):
        clips.without("nodes").get("nodes")
    with pytest.raises(ValueError, match="at least one tensor"):
        _ = Clips().size


@pytest.mark.parametrize(
    ("name", "match"), [("boxen", "expected one of"), ("crop", "expected a field that heads read")]
)
def test_what_no_head_reads_is_refused(name, match):
    with pytest.raises(ValueError, match=match):
        clips_of({name: np.zeros((2, 6), np.float32)})


def test_dims_follow_from_shapes_with_or_without_rows():
    whole = dims_of({name: array.shape for name, array in ARRAYS.items()})
    views = dims_of({name: array.shape[1:] for name, array in ARRAYS.items()})
    assert whole == views == Dims(T=3, N=4, C=5, maps={"res5": (5, 2, 2)})
    assert dims_from(whole.as_dict()) == whole
    assert dims_of({"res5": (3, 5, 2, 2)}).T == 3


def test_fields_of_two_extractions_are_refused():
    with pytest.raises(ValueError, match="pooled has C=7 but nodes has C=5"):
        dims_of({"nodes": (3, 4, 5), "pooled": (3, 7)})


def test_every_missing_field_is_named_at_once():
    with pytest.raises(MissingFields, match="head strg needs nodes, res4") as error:
        Dims(T=3, C=5, maps={"res5": (5, 2, 2)}).require("strg", "pooled", "nodes", "res5", "res4")
    assert error.value.names == ("nodes", "res4")
