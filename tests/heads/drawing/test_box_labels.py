"""Classes and tracks of boxes in pictures."""

from types import SimpleNamespace

import numpy as np
import pytest

from heads.drawing.canvas import Canvas, FrameRect, colour_of
from heads.drawing.sections import boxes, colour_of_box

RECT = FrameRect(10, 20, 240, 100)


def view_of(**fields):
    """Two steps of two boxes; the object of row 0 is in row 1 of the next step."""
    places = np.array([[0.1, 0.3, 0.4, 0.9], [0.6, 0.3, 0.9, 0.9]], np.float32)
    stored = {
        "boxes": np.stack([places, places]),
        "valid": np.ones((2, 2), bool),
        "scores": np.full((2, 2), 0.5, np.float32),
        **fields,
    }
    return SimpleNamespace(
        fields=stored,
        boxes=stored["boxes"],
        valid=stored["valid"],
        cache=SimpleNamespace(box_classes=("cup", "hand")),
    )


LABELLED = {
    "box_class": np.array([[0, 1], [-1, 0]], np.int16),
    "track": np.array([[7, 2], [-1, 7]], np.int32),
}


@pytest.fixture
def written(monkeypatch):
    """The labels that are drawn, with their colours."""
    found = []
    tag = Canvas.tag

    def noted(self, place, text, colour, *more):
        found.append((text, colour))
        return tag(self, place, text, colour, *more)

    monkeypatch.setattr(Canvas, "tag", noted)
    return found


def test_labels_name_slot_class_track_and_score(written):
    strip = boxes(view_of(**LABELLED))
    assert strip.note == "slot, class, track and score; a colour per track"
    for t in (0, 1):
        strip.paint(Canvas(300, 140), RECT, t)
    texts = [text for text, _ in written]
    assert texts == ["0 cup #7: 0.50", "1 hand #2: 0.50", "0: 0.50", "1 cup #7: 0.50"]


def test_a_track_keeps_its_colour_in_every_slot(written):
    view = view_of(**LABELLED)
    assert colour_of_box(view, 0, 0) == colour_of_box(view, 1, 1) == colour_of(7)
    # A box without a track has the colour of its slot.
    assert colour_of_box(view, 1, 0) == colour_of(0)
    boxes(view).paint(Canvas(300, 140), RECT, 1)
    assert [colour for _, colour in written] == [colour_of(0), colour_of(7)]


def test_without_labels_boxes_are_drawn_as_before(written):
    strip = boxes(view_of())
    assert strip.note == "slot and score"
    strip.paint(Canvas(300, 140), RECT, 0)
    assert written == [("0: 0.50", colour_of(0)), ("1: 0.50", colour_of(1))]


def test_a_class_that_has_no_name_is_shown_by_its_number(written):
    view = view_of(box_class=np.array([[5, 0], [0, 0]], np.int16))
    boxes(view).paint(Canvas(300, 140), RECT, 0)
    assert written[0][0] == "0 class 5: 0.50"
