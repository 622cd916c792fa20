"""Pictures of views: what is drawn lies where the things are, and any text can be drawn. A red
square moves in each video.
"""

import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cli.__main__ import vidgraph
from heads.drawing import edges as draw_edges
from heads.drawing import maps as draw_maps
from heads.drawing.canvas import (
    BACK,
    FRONT,
    INK,
    PAPER,
    Canvas,
    FrameRect,
    colour_of,
    heat_overlay,
    legible,
    shorten,
    text_width,
)
from heads.drawing.draw import WHAT, Style, draw_view
from heads.drawing.edges import EdgeDrawing
from heads.drawing.head_output import HeadResult
from heads.drawing.panels import structure
from heads.drawing.sections import LABEL_SIZE
from heads.interface.masked_layers import front_back
from heads.papers.dyreg.kernels import kernels_of
from heads.reporting.cache_facts import KnownCache
from heads.reporting.clip_pictures import frames_of
from pipeline.cache.reader import Cache, CacheError
from pipeline.manifests.manifest import Clip
from pipeline.regions.graphs import iou_graph
from pipeline.stages.config import ExtractConfig
from pipeline.stages.graphs import build_graphs
from pipeline.video.decode import open_clip, write_video
from pipeline.views.sampling import Sampling
from tests.pipeline.stages.test_verify import change
from tests.support.tiny_cache import Tiny
from tests.support.tiny_videos import run, write_csv

HEIGHT, WIDTH, LENGTH, SIDE = 64, 96, 8, 24  # pixels, frames, pixels
RED = (250, 40, 40)
RECT = FrameRect(20, 10, 200, 100)
HERE, NEXT = FrameRect(0, 0, 100, 100), FrameRect(200, 0, 100, 100)
LABEL = "手を 振る, \u202eabc\u202c 'é'"


def left_of(frame: int) -> int:
    """Where the square is in a frame."""
    return 10 + 5 * frame


def frames() -> np.ndarray:
    """Dark frames with the square, which moves right."""
    video = np.full((LENGTH, HEIGHT, WIDTH, 3), 30, np.uint8)
    for k, frame in enumerate(video):
        frame[20 : 20 + SIDE, left_of(k) : left_of(k) + SIDE] = RED
    return video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three videos; a cache of them with graphs, whose boxes are the square and one that rests; a
    copy without graphs.
    """
    folder = tmp_path_factory.mktemp("squares")
    names = ("one", "two", "three")
    for name in names:
        write_video(folder / f"{name}.mp4", frames(), 8)
    boxes = []
    for name in names:
        for k in range(LENGTH):
            boxes += [
                (name, k, left_of(k), 20, left_of(k) + SIDE, 20 + SIDE),
                (name, k, 60, 46, 76, 60),
            ]
    write_csv(folder / "boxes.csv", ("clip", "frame", "x1", "y1", "x2", "y2"), boxes)
    rows = [(name, f"{name}.mp4", "train", LABEL if name == "two" else "a") for name in names]
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)
    config = ExtractConfig(
        backbone="digit_cnn",
        backbone_options={"width": 8},
        sampling=Sampling(
            frames=8, sampling="linspace", size=48, train_views=6, train_crop="multiscale", flip=0.5
        ),
        proposals="annotations",
        proposal_options={"file": str(folder / "boxes.csv"), "num_boxes": 3},
        dtype="float32",
    )
    run(folder, folder / "cache", config)
    run(folder, folder / "plain", config)
    build_graphs(folder / "cache", neighbours=3)
    return folder


def red_part(picture: Image.Image) -> tuple[float, ...]:
    """x1 y1 x2 y2 of what is red, in [0,1] of the picture."""
    rgb = np.asarray(picture).astype(int)
    rows, columns = np.nonzero((rgb[..., 0] > 150) & (rgb[..., 1] < 120))
    height, width = rgb.shape[:2]
    return (
        columns.min() / width,
        rows.min() / height,
        (columns.max() + 1) / width,
        (rows.max() + 1) / height,
    )


def painted(canvas: Canvas, colour) -> np.ndarray:
    """(y, x) of the pixels of a colour."""
    return np.argwhere((np.abs(np.asarray(canvas.finished()).astype(int) - colour) < 12).all(-1))


def on_paper(section, t: int) -> Canvas:
    canvas = Canvas(300, 130)
    section.paint(canvas, RECT, t)
    return canvas


def test_boxes_lie_on_the_object_in_every_view_mirrored_or_not(folder):
    cache, seen = Cache(folder / "cache"), []
    for clip in ("one", "two", "three"):
        for group, view in (*(("train", view) for view in range(6)), ("test", 0)):
            content = draw_view(cache, clip, group=group, view=view).view
            assert not content.missing
            for t, at in enumerate(content.steps):
                box = content.boxes[t, 0]
                if content.valid[t].sum() == 2 and box.min() > 0.02 and box.max() < 0.98:
                    np.testing.assert_allclose(red_part(content.images[at]), box, atol=0.04)
                    seen.append(content.flip)
    assert min(seen.count(False), seen.count(True)) > 4


def test_an_outline_is_drawn_at_its_box(folder):
    drawing = draw_view(folder / "cache", "one", group="test", what=["boxes"])
    view, canvas = drawing.view, on_paper(drawing.sections[0], 2)
    for i in (0, 1):
        x1, _, x2, y2 = RECT.rectangle(view.boxes[2, i])
        at = painted(canvas, colour_of(i))
        np.testing.assert_allclose(at.max(0), (y2, x2), atol=2)
        np.testing.assert_allclose(at[:, 1].min(), x1, atol=2)
    assert not len(painted(canvas, colour_of(2)))  # a padded box


def test_edges_join_the_centres_of_boxes_that_overlap(folder):
    drawing = draw_view(folder / "cache", "one", group="test", what=["edges"])
    view, (section,) = drawing.view, drawing.sections
    canvas = Canvas(300, 100)
    section.join(canvas, HERE, NEXT, 3, False)
    front, _ = front_back(
        torch.from_numpy(view.fields["iou"])[None], torch.from_numpy(view.valid)[None]
    )
    joined = {tuple(pair) for pair in np.argwhere(front[0, 3].numpy() > 0.25).tolist()}
    assert joined == {(0, 0), (1, 1)}
    for i in (0, 1):
        start, end = HERE.centre(view.boxes[3, i]), NEXT.centre(view.boxes[4, i])
        for colour in (FRONT, BACK):
            at = painted(canvas, colour)
            line = at[np.abs(at[:, 0] - (start[1] + end[1]) / 2) < 8]
            np.testing.assert_allclose(
                (line[:, 1].min(), line[:, 1].max()), (start[0], end[0]), atol=3
            )


def test_only_edges_of_some_weight_are_drawn(folder):
    graphs = tuple(np.tile(0.7 * np.eye(3, dtype=np.float32), (7, 1, 1)) for _ in range(2))
    view = draw_view(folder / "cache", "one", group="test").view
    for least, drawn in ((0.6, True), (0.8, False)):
        canvas = Canvas(300, 100)
        EdgeDrawing(view, graphs, least).strip(True).join(canvas, HERE, NEXT, 0, True)
        assert bool(len(painted(canvas, FRONT))) == drawn


def labels_of(monkeypatch, draw) -> list[str]:
    """What is written on labels while `draw` runs."""
    written: list[str] = []
    real = Canvas.tag
    monkeypatch.setattr(
        Canvas,
        "tag",
        lambda self, at, text, *more, **named: (
            written.append(text),
            real(self, at, text, *more, **named),
        ),
    )
    draw()
    monkeypatch.undo()
    return written


def test_weights_are_written_beside_edges(folder, monkeypatch):
    drawing = draw_view(folder / "cache", "one", group="test", what=["edges"])
    join = drawing.sections[0].join
    written = labels_of(
        monkeypatch,
        lambda: join(
            Canvas(300, 100), FrameRect(0, 0, 100, 100), FrameRect(200, 0, 100, 100), 0, True
        ),
    )
    assert sorted(written) == ["0>0: 1.0", "0>0: 1.0", "1>1: 1.0", "1>1: 1.0"]


def test_many_weights_stay_beside_their_frame():
    canvas = Canvas(300, 140)
    draw_edges._weights(
        canvas, FrameRect(0, 20, 100, 100), 110, [(110, k / 20, "0>1") for k in range(20)], FRONT
    )
    rows = painted(canvas, FRONT)[:, 0]
    assert rows.min() >= 20 - 1
    assert rows.max() <= 120 + 1


def test_graphs_that_are_not_stored_are_computed(folder):
    how = {
        "what": ["nearest", "similar", "edges"],
        "node": (2, 0),
        "style": Style(neighbours=3, height=60),
    }
    stored, computed = (draw_view(folder / name, "one", **how) for name in ("cache", "plain"))
    assert "similar" in stored.view.fields
    assert "similar" not in computed.view.fields
    assert stored.picture().tobytes() == computed.picture().tobytes()


def test_the_chosen_node_is_marked_in_its_step_alone(folder, monkeypatch):
    section = draw_view(folder / "cache", "one", what=["similar"], node=(2, 1)).sections[0]
    for t in range(4):
        assert ("chosen (2,1)" in labels_of(monkeypatch, lambda t=t: on_paper(section, t))) == (
            t == 2
        )


def test_heat_is_hottest_where_the_map_is_largest():
    maps = np.zeros((2, 4, 6), np.float32)
    maps[0, 1, 4], maps[1, 3, 0] = 1, 0.5
    frame = Image.new("RGB", (120, 80), (90, 90, 90))
    section = draw_maps.heat(maps, "heat")
    for t, (y, x) in enumerate(((1.5, 4.5), (3.5, 0.5))):
        bright = np.asarray(section.backdrop(t, frame)).astype(int).sum(-1)
        peak = np.argwhere(bright == bright.max()).mean(0)
        np.testing.assert_allclose(peak, (y * 20, x * 20), atol=10)
    assert np.asarray(heat_overlay(frame, np.zeros((2, 2)))).std() == pytest.approx(
        np.asarray(heat_overlay(frame, np.zeros((2, 2))))[0, 0].std()
    )


def test_a_region_is_outlined_around_its_kernel():
    kernels = np.zeros((1, 9, 5, 10), np.float32)
    kernels[0, 3, 1:4, 6:9] = [[0.2, 0.4, 0.2], [0.4, 1, 0.4], [0.2, 0.4, 0.2]]
    at = painted(on_paper(draw_maps.regions(kernels, "regions"), 7), colour_of(3))
    np.testing.assert_allclose(at.mean(0), RECT.at(7.5 / 10, 2.5 / 5)[::-1], atol=5)


def test_a_region_s_box_is_where_its_kernel_has_half_its_height():
    grid = (9, 12)
    centres, radii = torch.tensor([[[4.0, 7.0]]]), torch.tensor([[[3.0, 4.0]]])
    kernels = kernels_of(centres, radii, grid).numpy()
    box, outline = (
        painted(on_paper(draw_maps.regions(kernels, "regions", *more), 0), colour_of(0))
        for more in ((centres.numpy(), radii.numpy()), ())
    )
    for of in (np.min, np.max):
        np.testing.assert_allclose(of(box, 0), of(outline, 0), atol=5)


def test_annotated_boxes_are_drawn_beside_regions_and_joined_with_the_nearest():
    grid = (9, 12)
    centres = torch.tensor([[[4.0, 2.5], [4.0, 8.5]]])
    kernels = kernels_of(centres, torch.ones(1, 2, 2), grid)
    boxes = torch.tensor([[[[0.36, 0.3, 0.56, 0.7], [0.0, 0.0, 1.0, 1.0]]]])
    annotated = boxes, torch.tensor([[[True, False]]])
    maps = kernels.numpy(), "regions", centres.numpy(), np.ones((1, 2, 2), np.float32)
    strip = draw_maps.regions(*maps, annotated)
    canvas = Canvas(300, 130)
    canvas.rectangle((0, 0, 300, 130), INK, 0, fill=INK)
    strip.paint(canvas, RECT, 0)
    bright = np.asarray(canvas.finished()).min(-1) > 100

    def is_white(x: float, y: float) -> bool:
        column, row = RECT.at(x, y)
        return bool(bright[round(row) - 1 : round(row) + 2, round(column)].any())

    # The region at 3 of 12 is nearer than the one at 9 of 12; a line leads to it.
    assert is_white(0.31, 0.5)
    assert not is_white(0.66, 0.5)
    assert is_white(0.46, 0.3)
    assert is_white(0.46, 0.7)
    # The other row is no box.
    assert not is_white(0.46, 1.0)
    assert "annotated boxes in white, the nearest region is 0.210 away" in strip.note
    assert "annotated" not in draw_maps.regions(*maps).note


def test_a_grid_node_that_sends_more_has_a_larger_disc():
    weights = np.zeros((2, 14, 14), np.float32)
    weights[:, 3, 0], weights[:, 3, 8], weights[:, 5, 4] = 1, 0.2, 1
    at = painted(on_paper(draw_maps.grid(weights, 3, "grid"), 0), colour_of(1))
    first, last, middle = (
        ((np.abs(at - np.array(RECT.at(u, u)[::-1])) < 14).all(1)).sum()
        for u in (1 / 6, 5 / 6, 1 / 2)
    )
    assert first > last > middle


def test_without_the_video_the_boxes_are_on_grey_and_it_is_said(folder, tmp_path):
    drawing = draw_view(folder / "cache", "one", root=tmp_path)
    assert "no such file" in drawing.missing
    assert drawing.view.images[0].getextrema() == ((205, 205),) * 2 + ((210, 210),)
    same = draw_view(folder / "cache", "one")
    assert np.array_equal(drawing.view.boxes, same.view.boxes)
    assert drawing.view.images[0].size == same.view.images[0].size
    assert drawing.picture().size[0] == same.picture().size[0]


def test_another_video_under_the_same_name_is_not_shown(folder, tmp_path):
    write_video(tmp_path / "one.mp4", np.zeros((8, 32, 32, 3), np.uint8), 8)
    assert (
        "another video now: frames of 32x32 pixels, 96x64 when"
        in draw_view(folder / "cache", "one", root=tmp_path).missing
    )
    write_video(tmp_path / "one.mp4", frames()[:3], 8)
    assert "one" in draw_view(folder / "cache", "one", root=tmp_path).missing


@pytest.mark.parametrize(
    ("field", "value"), [("boxes", np.inf), ("boxes", 1e30), ("boxes", np.nan), ("crop", -np.inf)]
)
def test_values_that_no_picture_can_have_are_refused_in_a_line(folder, tmp_path, field, value):
    shutil.copytree(folder / "plain", tmp_path / "cache")
    cache = Cache(tmp_path / "cache")
    row = cache["test"].rows_of("two")[0]
    change(cache.shards.path(0), f"test/{field}", row, value)
    with pytest.raises(
        CacheError, match=f"clip two, test view 0: {field} has .*vidgraph verify.*vidgraph repair"
    ):
        draw_view(tmp_path / "cache", "two")
    known = KnownCache(cache.path, cache.fingerprint, cache=Cache(tmp_path / "cache"))
    pictures, why = frames_of(known, "two")
    assert pictures == ()
    assert f"No picture: {field} has" in why


def test_a_cache_that_does_not_know_its_frames_is_drawn_on_grey(tmp_path):
    drawing = draw_view(Tiny().write(tmp_path), "clip-3", group="train", view=1)
    assert "does not say" in drawing.missing
    assert drawing.picture().size[0] > 100


def test_a_cache_without_boxes_shows_its_frames(tmp_path):
    drawing = draw_view(Tiny(fields=("pooled",)).write(tmp_path), "clip-3")
    assert drawing.what == ()
    assert [section.title for section in drawing.sections] == ["frames"]
    with pytest.raises(ValueError, match="no boxes; extract with --keep boxes"):
        draw_view(tmp_path / "cache", "clip-3", what=["edges"])


def test_rows_wrap_within_the_page_and_hold_every_step(folder, monkeypatch):
    drawing = draw_view(folder / "cache", "one", what=["boxes"], style=Style(width=700, height=100))
    feet: list[str] = []
    real = Canvas.text
    monkeypatch.setattr(
        Canvas,
        "text",
        lambda self, at, text, *more: (feet.append(text), real(self, at, text, *more))[1],
    )
    picture = drawing.picture()
    assert picture.width <= 700
    assert [text for text in feet if text.startswith("step ")] == [
        f"step {t}, frame {t}" for t in range(8)
    ]
    narrow = draw_view(
        folder / "cache", "one", what=["boxes"], style=Style(width=700, height=100, steps=(1, 2))
    )
    assert narrow.picture().height < picture.height


def test_an_edge_to_the_next_row_goes_on_there_and_none_leaves_the_page(folder):
    style = Style(width=800, height=100)
    picture = draw_view(folder / "cache", "one", what=["edges"], style=style).picture()
    pixels = np.asarray(picture).astype(int)
    orange = (np.abs(pixels - FRONT) < 12).all(-1)
    # The lines begin at the border of the row's first frame, which lies behind the margin.
    assert orange[:, 20:24].any()
    assert (pixels[:, :19] == 255).all()
    assert (pixels[100:, -2:] == 255).all()


def test_strips_use_the_width_of_the_page(folder):
    for width in (700, 1600):
        style = Style(width=width, height=100)
        picture = draw_view(folder / "cache", "one", what=["boxes"], style=style).picture()
        columns = np.flatnonzero((np.asarray(picture)[150:] < 250).any((0, 2)))
        assert columns.max() - columns.min() >= 0.95 * (width - 40)
        assert picture.width <= width


class Crowd(Tiny):
    """Twelve boxes in every step that stand still, some over one another."""

    def tensors(self, clip, label, rng):
        made = super().tensors(clip, label, rng)
        corner = np.linspace(0, 0.7, self.N, dtype=np.float32)[:, None].repeat(2, 1)
        boxes = np.concatenate([corner, corner + 0.3], -1)
        made["boxes"] = np.broadcast_to(boxes, (self.T, self.N, 4)).copy()
        made["valid"] = np.ones((self.T, self.N), bool)
        return made


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    return Crowd(splits=("train", "test"), T=4, N=12, C=8).write(tmp_path_factory.mktemp("crowd"))


def test_many_edges_keep_out_of_the_frames_and_stand_in_a_table(crowd, monkeypatch):
    drawing = draw_view(crowd, "clip-1", what=["edges"], style=Style(least=0.1))
    (section,), (table,) = drawing.sections, drawing.panels
    canvas = Canvas(300, 100)
    section.join(canvas, HERE, NEXT, 0, True)
    drawn = np.argwhere((np.asarray(canvas.finished()) != 255).any(-1))
    assert len(drawn)
    assert drawn[:, 1].min() >= HERE.x + HERE.width
    assert drawn[:, 1].max() <= NEXT.x
    assert (drawn[:, 0].min(), drawn[:, 0].max()) >= (HERE.y, HERE.y)
    assert drawn[:, 0].max() <= HERE.y + HERE.height

    # The weights in the table are those of the equation, for every edge.
    boxes, valid = drawing.view.boxes, drawing.view.valid
    graph = torch.from_numpy(iou_graph(boxes, valid))[None]
    front = front_back(graph, torch.from_numpy(valid)[None])[0][0].numpy()
    edges = int((np.maximum(front, front.transpose(0, 2, 1)) >= 0.1).sum())
    written: list[str] = []
    real = Canvas.text
    monkeypatch.setattr(
        Canvas,
        "text",
        lambda self, at, text, *more: (written.append(text), real(self, at, text, *more))[1],
    )
    assert table.height > 100
    draw_view(crowd, "clip-1", what=["edges"], style=Style(least=0.1))
    assert sum(bool(re.fullmatch(r"\d+ - \d+", text)) for text in written) == edges


def test_smaller_weights_are_fainter():
    greys = [sum(draw_edges._faded(FRONT, weight)) for weight in (0.1, 0.3, 0.6, 1.0)]
    assert greys[0] > greys[1] > greys[2] == greys[3] == sum(FRONT)


def test_the_nearest_node_of_the_chosen_ones_own_step_can_be_read_beside_it(crowd, monkeypatch):
    section = draw_view(crowd, "clip-1", what=["nearest"], node=(1, 3)).sections[0]
    places, real = [], Canvas.text
    monkeypatch.setattr(
        Canvas,
        "text",
        lambda self, at, text, *more: (places.append((*at, text)), real(self, at, text, *more))[1],
    )
    on_paper(section, 1)
    (_, y, number), (_, y_chosen, chosen) = places
    assert number.startswith("3: ")
    assert chosen == "chosen (1,3)"
    # A label is higher than its letters.
    (x_left, _, left), (x_right, _, _) = sorted(places)
    assert abs(y - y_chosen) >= LABEL_SIZE or x_right - x_left >= text_width(left, LABEL_SIZE)


def test_neighbours_have_inner_product_and_cosine(crowd, monkeypatch):
    drawing = draw_view(crowd, "clip-1", what=["similar", "nearest"], node=(1, 3))
    nodes = drawing.view.fields["nodes"].astype(np.float64)
    chosen = nodes[1, 3]
    for section in drawing.sections:
        assert "inner product, then cosine" in section.note
        for t in range(4):
            for label in labels_of(monkeypatch, lambda t=t, s=section: on_paper(s, t)):
                found = re.fullmatch(r"(#?)(\d+): ([-.\d]+), ([-.\d]+)", label)
                if found is None:
                    assert label.startswith("chosen")
                    continue
                products = nodes[t] @ chosen
                lengths = np.linalg.norm(nodes[t], axis=-1) * np.linalg.norm(chosen)
                # A node of a padded box is all zeros.
                cosines = products / np.maximum(lengths, 1e-12)
                # One box of the step has both numbers.
                near = np.abs(products - float(found[3])) < 0.06
                near &= np.abs(cosines - float(found[4])) < 0.006
                assert near.any()
                if not found[1]:
                    assert near[int(found[2])]


def test_the_video_has_every_frame_of_the_view(folder, tmp_path):
    path = draw_view(
        folder / "cache", "one", what=["boxes", "similar"], style=Style(height=65)
    ).save(tmp_path / "x" / "one.mp4")
    clip = Clip("one", str(path), "train", ())
    with open_clip(clip) as reader:
        assert reader.info.frames == 8
        assert reader.info.width % 2 == reader.info.height % 2 == 0
    assert [p.name for p in path.parent.iterdir()] == ["one.mp4"]


@pytest.mark.parametrize("name", ["one.png", "one.jpg", "one.webp"])
def test_pictures_have_the_format_of_their_name(name, folder, tmp_path):
    drawing = draw_view(folder / "cache", "one", what=["boxes"])
    with Image.open(drawing.save(tmp_path / name)) as image:
        assert image.format.lower() == name.split(".")[1].replace("jpg", "jpeg")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        drawing.save(tmp_path / "one.tiff")


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "é·→",
        "手を振る",
        "\u202eevil",
        "a\nb\tc",
        "\U0001f600",
        "\x00",
        "क्षि",
        "",
        "\ud800",
    ],
)
def test_any_text_can_be_drawn(text):
    drawn, _ = legible(text)
    assert drawn.isprintable()
    canvas = Canvas(200, 40)
    canvas.text((2, 2), text, 12)
    assert (np.asarray(canvas.finished()) != PAPER).any() == bool(text)
    assert text_width(shorten(text * 30, 12, 60), 12) <= 60


def test_what_no_font_has_is_written_as_its_code():
    assert legible("a\U000f0000")[0] == "a\\U000f0000"
    assert legible("a\nb")[0] == "a\\x0ab"


def test_labels_in_any_script_are_drawn(folder):
    drawing = draw_view(folder / "cache", "two")
    assert drawing.view.clip.labels == (LABEL,)
    assert drawing.picture().width > 100


def test_every_operation_of_a_structure_is_named_with_its_weight(monkeypatch):
    space, edges = ("none", "skip", "comb1"), ((0, 1), (0, 2), (1, 2))
    weights = np.array([[[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.2, 0.6, 0.2]]], np.float32)
    maps = {"structure": weights.argmax(-1), "weights": weights}
    result = HeadResult(
        "run",
        "gos",
        "best",
        ("a", "b"),
        np.array([0.2, 0.8]),
        "softmax",
        maps,
        space=space,
        edges=edges,
    )
    assert labels_of(monkeypatch, lambda: structure(result)) == [
        "comb1 0.70",
        "none 0.80",
        "skip 0.60",
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"clip": "thre"}, "no clip 'thre' among its 3; the nearest is three"),
        ({"clip": "zzzzz"}, "no clip 'zzzzz' among its 3; there are one, three, two"),
        ({"view": 9}, "view 9 of clip one in group test: it has view 0 alone"),
        ({"group": "train", "view": 6}, "views 0 to 5"),
        ({"what": ["box"]}, "'box': did you mean boxes"),
        ({"what": ["structure"]}, "needs a trained head: pass --run"),
        ({"node": (3, 2)}, "node 3,2: there is no such box; boxes of step 3: 0, 1"),
        ({"node": (8, 0)}, "steps 0 to 7"),
        ({"style": Style(steps=(7, 8))}, "expected 0 to 7, got 8"),
        ({"run": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(asked, said, folder):
    with pytest.raises(ValueError, match=said):
        draw_view(folder / "cache", **{"clip": "one", **asked})


def test_every_name_of_what_is_explained_by_the_command():
    said = CliRunner().invoke(vidgraph, ["show", "--help"]).output
    for name, meaning in WHAT.items():
        assert re.search(rf"^ +{name} +\S", said, flags=re.M), meaning
