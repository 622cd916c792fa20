"""Annotated boxes of a file, put into cached views by what the cache records of them."""

from dataclasses import dataclass

import numpy as np
import pytest

from heads.data.annotated_boxes import AnnotatedBoxes, has_annotated_boxes
from pipeline.proposals import build_proposals
from tests.support.tiny_cache import Tiny

# The left half of a frame of 96 x 64 pixels: its frames 3, 5, …, 13 give steps 3, 7 and 11.
CROP, FRAMES = [0, 0, 48, 64, 96, 64], [3, 5, 7, 9, 11, 13]


@dataclass
class Cropped(Tiny):
    """Views that know their frames and crop; those of odd clips are mirrored."""

    def tensors(self, clip, label, rng):
        made = super().tensors(clip, label, rng)
        return {**made, "crop": np.array(CROP, np.float32), "frames": np.array(FRAMES, np.int32)}


@pytest.fixture
def group(tmp_path):
    return Cropped().write(tmp_path / "cropped")["test"]


def source(tmp_path, rows: list[str]):
    file = tmp_path / "boxes.csv"
    file.write_text("\n".join(["clip,frame,x1,y1,x2,y2", *rows]) + "\n")
    return build_proposals("annotations", file=str(file), num_boxes=4, allow_missing=True)


def test_boxes_of_a_file_are_cropped_mirrored_and_taken_at_the_steps_frames(group, tmp_path):
    rows = ["clip-0,3,12,16,36,48", "clip-0,5,0,0,9,9", "clip-0,11,72,0,90,64"]
    rows += ["clip-1,7,12,16,24,48"]
    boxes = AnnotatedBoxes(group, source(tmp_path, rows))
    # Two test views per clip.
    found, valid = boxes.of([0, 2, 4], 3)
    assert valid.sum(-1).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert found[0, 0, 0].tolist() == pytest.approx([0.25, 0.25, 0.75, 0.75])
    # Mirrored: 12 to 24 of 48 pixels from the left are 24 to 36.
    assert found[1, 1, 0].tolist() == pytest.approx([0.5, 0.25, 0.75, 0.75])


def test_boxes_of_a_cache_are_its_own(group):
    found, valid = AnnotatedBoxes(group).of([5, 1], 3)
    expected = group.batch([5, 1], ["boxes", "valid"])
    assert np.array_equal(found, expected["boxes"])
    assert np.array_equal(valid, expected["valid"])


def test_a_cache_without_what_is_needed_is_refused(tmp_path):
    bare = Tiny().write(tmp_path)["test"]
    with pytest.raises(ValueError, match="need frames, crop, flip of its views, and it lacks fra"):
        AnnotatedBoxes(bare, source(tmp_path, []))


def test_only_a_cache_made_from_annotations_has_annotated_boxes(tmp_path):
    made = {}
    for name in ("annotations", "torchvision"):
        config = {"backbone": "digit_cnn", "proposals": name}
        made[name] = has_annotated_boxes(Tiny(config=config).write(tmp_path / name)["test"])
    assert made == {"annotations": True, "torchvision": False}
    config = {"backbone": "digit_cnn", "proposals": "annotations"}
    bare = Tiny(config=config, fields=("pooled",)).write(tmp_path / "bare")
    assert not has_annotated_boxes(bare["test"])
