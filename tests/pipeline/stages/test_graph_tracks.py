"""`vidgraph graphs --tracks`: what it stores, and where tracks are there already."""

import numpy as np
import pytest
from click.testing import CliRunner

from cli.__main__ import vidgraph
from heads.data.missing_fields import how_to_add
from pipeline.cache.reader import Cache
from pipeline.regions.tracks import link_tracks
from pipeline.stages.graphs import build_graphs
from pipeline.stages.repair import redo_graphs
from pipeline.stages.verify import verify
from tests.pipeline.stages.test_box_labels import cache, labelled  # noqa: F401 (fixtures)
from tests.support.small_cache import make_cache


@pytest.fixture
def linked(tmp_path):
    path = make_cache(tmp_path, clips=4, failed=("clip1",))
    call = CliRunner().invoke(
        vidgraph, ["graphs", "--cache", str(path), "--which", "iou", "--tracks"]
    )
    assert call.exit_code == 0, call.output
    return path


def test_tracks_are_stored_with_the_graphs(linked):
    for group in ("train", "test"):
        rows = Cache(linked)[group]
        for row in np.flatnonzero(rows.ok):
            view = rows.view(row)
            meant = link_tracks(view["boxes"], view["valid"], view["nodes"])
            assert view["track"].tolist() == meant.tolist()
            assert view["track"].dtype == np.int32
    found = verify(linked)
    assert {finding.what for finding in found if finding.stage == "graphs"} == set()
    assert build_graphs(linked, ("iou",), tracks=True) == []  # up to date


def test_graphs_without_tracks_replace_them_only_where_asked(linked):
    before = Cache(linked)["train"].batch([0], ("track",))["track"]
    redo_graphs(linked, [0])
    assert np.array_equal(Cache(linked)["train"].batch([0], ("track",))["track"], before)
    build_graphs(linked, ("iou",))
    assert "track" not in Cache(linked)["train"].fields


def test_the_command_goes_on_linking_until_it_is_told_not_to(linked):
    for flags, kept in (([], True), (["--no-tracks"], False), ([], False)):
        call = CliRunner().invoke(
            vidgraph, ["graphs", "--cache", str(linked), "--which", "iou", *flags]
        )
        assert call.exit_code == 0, call.output
        assert ("track" in Cache(linked)["test"].fields) == kept


def test_tracks_alone_can_be_computed(tmp_path):
    path = make_cache(tmp_path, clips=2)
    build_graphs(path, (), tracks=True)
    assert Cache(path).stages["graphs"] == ("track",)


def test_tracks_of_the_extraction_stay(cache):  # noqa: F811
    lines = []
    before = cache["train"].batch([0], ("track",))["track"]
    build_graphs(cache.path, ("iou",), tracks=True, say=lines.append)
    assert "came with tracks, which stay" in lines[0]
    after = Cache(cache.path)
    assert "track" not in after.stages["graphs"]
    assert np.array_equal(after["train"].batch([0], ("track",))["track"], before)


def test_a_head_that_lacks_labels_is_told_where_to_get_them(tmp_path):
    opened = Cache(make_cache(tmp_path, clips=2))
    assert "graphs --cache" in how_to_add(opened, "mine", ("track",))
    assert "--tracks" in how_to_add(opened, "mine", ("track",))
    said = how_to_add(opened, "mine", ("box_class", "track"))
    assert "--cache NEW --proposals torchvision-detector`" in said
    assert "then `vidgraph graphs --cache NEW --tracks`" in said
    assert "--proposals annotations --annotations FILE" in said
