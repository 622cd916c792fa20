"""Pictures of an attentive probe: heat lies where a query reads, boxes as bright as they weigh."""

from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli.__main__ import vidgraph
from heads.drawing.draw import draw_view
from heads.drawing.queries import MAX_QUERIES, queries
from pipeline.cache.reader import Cache
from tests.support.tiny_cache import Tiny

FRAME = Image.new("RGB", (80, 60), (40, 40, 40))


def view_of(valid: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(valid=valid, boxes=np.zeros((*valid.shape, 4), np.float32))


def hottest(image: Image.Image) -> tuple[int, int]:
    """(row, column) of the middle of the brightest pixels."""
    light = np.asarray(image.convert("L")).astype(float)
    return tuple(np.argwhere(light > light.max() - 3).mean(0).round().astype(int))


def test_heat_lies_where_each_query_reads_and_the_padding_is_cut_off():
    weights = np.zeros((2, 3, 4, 5))
    # The grid is 3 x 4 cells; the last row and column are padding.
    weights[:, :, :3, :4] = 0.4 / 34
    weights[0, 1, 0, 0] += 0.6 - 0.4 / 17
    weights[1, 2, 2, 3] += 0.6 - 0.4 / 17
    first, second = queries(view_of(np.zeros((3, 0), bool)), {"attention": weights})
    assert (first.title, second.title) == ("what query 0 reads", "what query 1 reads")
    row, column = hottest(first.backdrop(1, FRAME))
    assert row < 20
    assert column < 20
    row, column = hottest(second.backdrop(2, FRAME))
    assert row > 40
    assert column > 60
    assert f"spread evenly, {1 / 36:.2g}" in first.note


def test_notes_say_how_much_of_the_weight_cells_and_boxes_have():
    valid = np.array([[True, False], [True, True]])
    maps = {
        "attention": np.full((1, 2, 2, 2), 0.25 / 8),
        "node_attention": np.array([[[0.5, 0.0], [0.125, 0.125]]]),
    }
    cells, boxes = queries(view_of(valid), maps)
    assert cells.title == "what the query reads"
    assert cells.note.startswith("cells have 25 % of the weight")
    assert boxes.note.startswith("boxes have 75 % of the weight")
    assert "from 0.12 to 0.5" in boxes.note
    (alone,) = queries(view_of(valid), {"node_attention": maps["node_attention"] / 0.75})
    assert alone.note.startswith("all boxes of all steps add up to 1")


def test_of_many_queries_the_mean_is_drawn():
    count = MAX_QUERIES + 1
    weights = np.zeros((count, 1, 2, 2))
    weights[0, 0, 0, 0] = weights[1:, 0, 1, 1] = 1
    (strip,) = queries(view_of(np.zeros((1, 0), bool)), {"attention": weights})
    assert strip.title == f"what the mean of {count} queries reads"
    row, column = hottest(strip.backdrop(0, FRAME))
    assert row > 30
    assert column > 40


@pytest.mark.parametrize(("reads", "strips"), [("map", 1), ("nodes", 1), ("both", 2)])
def test_a_trained_probe_is_drawn(reads, strips, tmp_path):
    fields = ("pooled", "nodes", "boxes", "valid", "flip", "grid", "res5")
    # Without boxes its attention over cells is drawn too.
    if reads == "map":
        fields = ("pooled", "flip", "grid", "res5")
    cache = Tiny(fields=fields).write(tmp_path / "cache")
    settings = {"head.reads": reads, "head.heads": 2, "train.epochs": 1, "train.batch": 4}
    words = ["train", "attentive", "--cache", str(cache.path), "--runs", str(tmp_path / "runs")]
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    call = CliRunner().invoke(vidgraph, words)
    assert call.exit_code == 0, call.output
    drawing = draw_view(
        Cache(cache.path), "clip-0", run=tmp_path / "runs" / "attentive-seed0", what=["attention"]
    )
    assert len(drawing.sections) == strips
    assert drawing.picture().size[0] > 100
