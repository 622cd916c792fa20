"""Classes and tracks of boxes for heads that are trained from frames."""

import torch
from torch import nn

from heads.config.recipe_tables import FrameOptions
from heads.finetuning.joint_network import JointNetwork, joint_dims
from heads.interface.clips import Clips, Dims, HeadOutput, dims_from
from pipeline.backbones import build_backbone
from pipeline.regions.tracks import link_tracks


class ReadsLabels(nn.Module):
    """Reads boxes with their classes and tracks."""

    needs = ("boxes", "valid", "box_class", "track")

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, clips, want_maps=False):
        per_class = torch.stack([(clips.get("box_class") == k).sum((1, 2)) for k in range(3)], -1)
        return HeadOutput(self.weight * per_class.float())


def views(**more) -> Clips:
    torch.manual_seed(0)
    corner = torch.rand(2, 2, 3, 2) * 0.5
    valid = torch.ones(2, 2, 3, dtype=torch.bool)
    valid[0, 1, 2] = False
    boxes = torch.cat([corner, corner + 0.4], -1) * valid[..., None]
    classes = torch.randint(0, 3, (2, 2, 3)).where(valid, -1)
    frames = torch.randint(0, 256, (2, 2, 32, 32, 3), dtype=torch.uint8)
    return Clips(frames=frames, boxes=boxes, valid=valid, box_class=classes, **more)


def network() -> JointNetwork:
    backbone = build_backbone("digit_cnn", width=8)
    return JointNetwork(backbone, ReadsLabels(), FrameOptions(train_from="none"))


def test_tracks_that_no_source_gives_are_linked_from_boxes_nodes_and_classes():
    joint, clips = network().eval(), views()
    assert set(joint.needs) == {"frames", "boxes", "valid", "box_class"}
    assert "track" in joint.uses
    with torch.no_grad():
        found = joint.fields(clips)
    assert found.track.dtype == torch.int64
    for k in range(2):
        arrays = [found.get(name)[k].numpy() for name in ("boxes", "valid", "nodes", "box_class")]
        assert found.track[k].tolist() == link_tracks(*arrays).tolist()


def test_tracks_of_a_source_stay():
    given = torch.arange(12).reshape(2, 2, 3)
    with torch.no_grad():
        found = network().eval().fields(views(track=given))
    assert found.track.equal(given)


def test_a_head_gets_the_number_of_classes_and_a_checkpoint_keeps_it():
    dims = joint_dims(build_backbone("digit_cnn", width=8), 4, 32, boxes=3, box_classes=3)
    assert (dims.N, dims.box_classes) == (3, 3)
    dims.require("it", *ReadsLabels.needs)
    assert dims_from(dims.as_dict()) == dims
    # Checkpoints of heads without classes look as before.
    assert set(Dims(T=4, N=2).as_dict()) == {"T", "N", "C", "maps"}
