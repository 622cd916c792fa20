"""Detectors as sources of boxes: what the libraries' own models give, with classes."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.models import detection, get_model_weights

from pipeline.proposals import build_proposals
from pipeline.proposals._contract import CHECKS, SourceCase
from pipeline.proposals._detections import Detector, numbered, require_names
from pipeline.proposals.torchvision_detector import LAST_LAYERS, MODELS

INFO = SimpleNamespace(frames=8, fps=12.0, width=96, height=64, first=0)
CLIP = SimpleNamespace(clip="17", path="videos/seventeen.mp4")
NAMES = ("cup", "hand")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of FCOS with two classes and the background, and the model."""
    path = tmp_path_factory.mktemp("weights") / "fcos.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    # Scores that are not all one half.
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save({"model": model.eval().state_dict()}, path)
    return path, model


def source_of(weights, **options):
    given = {"num_boxes": 3, "size": 64, "min_score": 0.0, "class_names": "cup,hand", **options}
    return build_proposals(
        "torchvision_detector", model="fcos_resnet50_fpn", weights=str(weights[0]), **given
    )


@pytest.fixture(scope="module")
def source(weights):
    """The smallest detector: built once, as that takes seconds."""
    return source_of(weights)


def frames_of(count=2):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 96, 3), dtype=np.uint8)
    return torch.from_numpy(pixels)


def test_boxes_classes_and_scores_are_those_of_torchvisions_own_model(weights, source):
    _, model = weights
    frames = frames_of()
    images = list(frames.permute(0, 3, 1, 2).float() / 255)
    model.transform.min_size, model.transform.max_size = (64,), 1000
    model.score_thresh, model.nms_thresh = 0.0, 0.5
    with torch.inference_mode():
        found = model(images)
    boxes, scores, labels = source.propose_labelled(frames, CLIP, INFO, (0, 1))
    assert source.class_names == NAMES
    for k, one in enumerate(found):
        size = torch.tensor([96, 64, 96, 64])
        np.testing.assert_allclose(boxes[k], (one["boxes"][:3] / size).clamp(0, 1), atol=1e-4)
        np.testing.assert_allclose(scores[k], one["scores"][:3], rtol=1e-4)
        # Class 1 of the library, behind the background, is the first name. FCOS's layer for the
        # background gives class 0, which is none.
        assert labels["box_class"][k].tolist() == (one["labels"][:3] - 1).tolist()


def test_the_detector_keeps_the_contract(source):
    case = SourceCase(source, CLIP, INFO, (0, 3))
    for check in CHECKS.values():
        check(case)


def test_bfloat16_convolutions_stay_close(source):
    frames = frames_of(1)
    boxes, scores = source.propose(frames, CLIP, INFO, (0,))
    rough = deepcopy(source).to("cpu", "bf16").propose(frames, CLIP, INFO, (0,))[1]
    np.testing.assert_allclose(rough, scores, atol=0.05)
    assert boxes.dtype == np.float32


def test_names_of_classes_must_be_as_many_as_the_file_has(weights):
    with pytest.raises(ValueError, match="class_names has 1 different names, expected 2"):
        source_of(weights, class_names=["cup"])
    assert require_names("it", (), 2) == ("0", "1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "fasterrcnn"}, "did you mean fasterrcnn_resnet50_fpn"),
        ({"min_score": 2}, "expected a number from 0 to 1"),
        ({"num_boxes": 0}, "expected a whole number from 1"),
        ({"weights": "no/such.pth"}, "no such weights file"),
    ],
)
def test_bad_values_are_refused_in_one_line(options, said):
    with pytest.raises(ValueError, match=said) as caught:
        build_proposals("torchvision_detector", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_weights_with_names_and_a_layer_that_tells_the_classes(model):
    """What `build` relies on; a model on the meta device takes no memory."""
    listed = get_model_weights(model).DEFAULT.meta["categories"]
    with torch.device("meta"):
        whole = getattr(detection, model)(weights=None, weights_backbone=None)
        small = getattr(detection, model)(weights=None, weights_backbone=None, num_classes=7)
    names, own = whole.state_dict(), small.state_dict()
    layer = next(name for name in LAST_LAYERS if name in names)
    per_class = names[layer].shape[0] // len(listed)
    assert own[layer].shape[0] == 7 * per_class
    chooser = getattr(whole, "roi_heads", whole)
    for option in ("score_thresh", "nms_thresh", "detections_per_img"):
        assert hasattr(chooser, option)
    assert hasattr(whole.transform, "min_size")
    assert whole.transform.fixed_size is None


def test_background_and_gaps_are_no_classes():
    names, number_of = numbered(["__background__", "person", "N/A", "cup", "N/A"])
    assert names == ("person", "cup")
    assert number_of == [-1, 0, -1, 1, -1]


class Fixed(Detector):
    """Detects the same in every frame."""

    def __init__(self, found, **options):
        options = {"num_boxes": 2, "batch": 1, "min_score": 0.3, **options}
        super().__init__(
            size=64, class_names=("a", "b"), number_of=[-1, 0, 1], sha256="", **options
        )
        self.found = found

    def detect(self, frames):
        return [self.found] * len(frames)


def test_the_best_detections_come_first_and_weak_or_broken_ones_are_left_out():
    boxes = torch.tensor(
        [[0, 0, 48, 32], [0, 0, 9, 9], [0, 0, 96, 64], [float("nan")] * 4, [-9, 0, 99, 64]]
    )
    scores = torch.tensor([0.5, 0.2, 0.9, 1.0, 0.4])
    source = Fixed((boxes, scores, torch.tensor([1, 1, 2, 1, 0])))
    found, confidence, labels = source.propose_labelled(frames_of(2), CLIP, INFO, (0, 1))
    np.testing.assert_allclose(found[1], [[0, 0, 1, 1], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(confidence[1], [0.9, 0.5])
    assert labels["box_class"][1].tolist() == [1, 0]
    wide = Fixed(source.found, num_boxes=5).propose_labelled(frames_of(1), CLIP, INFO, (0,))
    np.testing.assert_allclose(wide[0][0, 2], [0, 0, 1, 1])
    assert wide[2]["box_class"][0].tolist() == [1, 0, -1, -1, -1]
    np.testing.assert_allclose(wide[1][0], [0.9, 0.5, 0.4, -1, -1])
