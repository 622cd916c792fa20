"""detectron2's detection models, through a stand-in with the interface of its models."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.proposals import build_proposals
from pipeline.proposals._contract import CHECKS, SourceCase
from tests.pipeline.proposals.test_model_zoo import FILES, package  # noqa: F401 (a fixture)

ZOO = "COCO-Detection/faster_rcnn_R_50_FPN_3x"
INFO = SimpleNamespace(frames=8, fps=12.0, width=96, height=64, first=0)
CLIP = SimpleNamespace(clip="17", path="videos/seventeen.mp4")

# The model detects one object, whose place and score follow the frame's mean blue and red.
MODEL = """

from types import SimpleNamespace as Found
import torch

class Detecting(Backbone):
    def forward(self, images):
        return {"p2": self.stem(images)}

class Model(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.backbone, self.cfg = Detecting(), cfg
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))

    def forward(self, inputs):
        out = []
        for one in inputs:
            assert self.backbone.size_divisibility == 32
            image = one["image"]
            maps = self.backbone(image[None])
            assert maps["p2"].dtype == torch.float32
            first, last = image[0].mean() / 255, image[2].mean() / 255
            box = torch.stack([0 * first, 0 * first, first * one["width"], 1 + 0 * first])
            count = self.cfg.TEST.DETECTIONS_PER_IMAGE
            boxes = Found(tensor=box.expand(count, 4))
            classes = torch.tensor([1] * count)
            scores = (last * 0.5).expand(count)
            keep = scores >= self.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
            boxes.tensor = boxes.tensor[keep]
            found = Found(pred_boxes=boxes, scores=scores[keep], pred_classes=classes[keep])
            out.append({"instances": found})
        return out

def build_model(cfg):
    return Model(cfg)
"""
CONFIG = """

_of_rpn = get_cfg

def get_cfg():
    cfg = _of_rpn()
    cfg.TEST = Node(DETECTIONS_PER_IMAGE=100)
    cfg.DATASETS = Node(TRAIN=("coco_2017_train",))
    cfg.MODEL.MASK_ON, cfg.MODEL.DEVICE = True, "cuda"
    cfg.MODEL.ROI_HEADS = Node(SCORE_THRESH_TEST=0.05, NMS_THRESH_TEST=0.5, NUM_CLASSES=2)
    return cfg
"""
DATA = """
from types import SimpleNamespace as Node

class MetadataCatalog:
    @staticmethod
    def get(name):
        return Node(thing_classes=["person", "cup"])
"""


@pytest.fixture
def detecting(package):  # noqa: F811
    """The stand-in with a detection model."""
    for name, more in (("modeling/__init__.py", MODEL), ("config.py", CONFIG)):
        (package / name).write_text(FILES[name] + more)
    (package / "data.py").write_text(DATA)
    text = "MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n"
    (package / "model_zoo" / "configs" / f"{ZOO}.yaml").write_text(text)
    return package


def source_of(**options):
    return build_proposals(
        "detectron2-detector", weights="none", size=64, num_boxes=2, min_score=0.1, **options
    )


def test_boxes_scores_and_names_are_the_models(detecting):
    frames = torch.zeros((2, 64, 96, 3), dtype=torch.uint8)
    # Blue in half of the first frame; red everywhere.
    frames[0, :32, :, 2] = 255
    frames[0, ..., 0] = 204
    source = source_of()
    boxes, scores, labels = source.propose_labelled(frames, CLIP, INFO, (0, 1))
    assert source.class_names == ("person", "cup")
    np.testing.assert_allclose(boxes[0, 0], [0, 0, 0.5, 1 / 64], rtol=1e-5)
    np.testing.assert_allclose(scores[:, 0], [0.4, -1], rtol=1e-5)
    assert labels["box_class"].tolist() == [[1, 1], [-1, -1]]


def test_it_keeps_the_contract(detecting):
    for check in CHECKS.values():
        check(SourceCase(source_of(), CLIP, INFO))


def test_weights_of_a_file_are_loaded_without_masks_and_what_the_config_gives(detecting, tmp_path):
    from detectron2.modeling import Model

    state = {name: torch.full_like(value, 0.25) for name, value in Model(None).state_dict().items()}
    arrays = {name: value.numpy() for name, value in state.items()}
    arrays["roi_heads.mask_head.fcn1.bias"] = np.ones(3, np.float32)
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = np.ones(3, np.float32)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays}))
    source = build_proposals("detectron2_detector", weights=str(tmp_path / "w.pkl"), size=64)
    assert (source.network.backbone.backbone.stem.weight == 0.25).all()
    assert (source.network.pixel_mean == 0).all()
    assert source.weights_sha256


def test_a_model_without_detections_is_refused_with_the_source_that_takes_it(detecting):
    with pytest.raises(ValueError, match=r"is a ProposalNetwork; expected one of Gene.*detectron2"):
        source_of(config="COCO-Detection/rpn_R_50_FPN_1x")
    with pytest.raises(ValueError, match="class_names has 1 different names, expected 2"):
        source_of(class_names="cup")
