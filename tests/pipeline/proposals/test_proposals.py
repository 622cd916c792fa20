"""Sources of boxes: one contract for all, the RPNs against the libraries they come from, and
annotations frame by frame.
"""

import csv
import importlib
import inspect
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.proposals import BoxesError, MissingBoxes, build_proposals, proposal_names
from pipeline.proposals._contract import CHECKS, SourceCase
from pipeline.proposals._model_zoo import why_no_detectron2

INFO = SimpleNamespace(frames=8, fps=12.0, width=80, height=40, first=0)
CLIP = SimpleNamespace(clip="17", path="videos/seventeen.mp4")
SIZE = [80, 40, 80, 40]


def frames_of(count=3, height=64, width=100, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    )


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


# ---- the contract ----


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a state dict of torchvision's whole detector, whose activations keep their
    scale, and the detector.
    """
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2).eval()
        with torch.no_grad():
            for name, norm in model.named_modules():
                if isinstance(norm, nn.BatchNorm2d):
                    unsettle(norm, 0.2 if name.endswith("bn3") else 1.0)
    torch.save(model.state_dict(), folder / "torchvision.pth")
    return folder, model


def unsettle(norm, scale):
    """Statistics that folding has to get right, without making activations grow from block to
    block.
    """
    norm.running_mean.normal_(0, 0.1)
    norm.running_var.uniform_(0.8, 1.2)
    norm.weight.uniform_(0.8, 1.2).mul_(scale)
    norm.bias.normal_(0, 0.1)


def make(name, weights, tmp_path):
    """The smallest source of that name."""
    folder, _ = weights
    if name == "annotations":
        listed = {"17": [[[0.1, 0.2, 0.3, 0.4]] * k for k in range(6)]}
        return build_proposals(name, file=written(tmp_path / "boxes.json", listed), num_boxes=4)
    if name == "torchvision":
        return build_proposals(
            name, weights=str(folder / "torchvision.pth"), size=64, num_boxes=4, bn_eps=1e-5
        )
    if name in ("detectron2", "detectron2_detector"):
        require_detectron2()
    if name in ("detectron2", "detectron2_detector", "torchvision_detector"):
        return build_proposals(name, weights="none", size=64, num_boxes=4)
    if name == "digit_rpn":
        from pipeline.proposals.digit_rpn import Net

        net = Net()
        net.anchor.fill_(16.0)
        torch.save(net.state_dict(), tmp_path / "digits.pth")
        return build_proposals(name, weights=str(tmp_path / "digits.pth"), num_boxes=4)
    return build_proposals(name)


def require_detectron2():
    """Skips where detectron2 is not installed or does not load, and says why."""
    if reason := why_no_detectron2():
        pytest.skip(f"detectron2: {reason}")


@pytest.mark.parametrize("name", proposal_names())
def test_every_source_keeps_the_contract(name, weights, tmp_path):
    case = SourceCase(make(name, weights, tmp_path), CLIP, INFO)
    for check in CHECKS.values():
        check(case)


@pytest.mark.parametrize("name", proposal_names())
def test_options_are_named_and_none_is_handed_through(name):
    module = importlib.import_module(f"pipeline.proposals.{name}")
    kinds = {parameter.kind for parameter in inspect.signature(module.build).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


def test_sources_are_the_files_of_the_folder():
    assert {"annotations", "detectron2", "grid", "torchvision"} <= set(proposal_names())
    assert not [name for name in proposal_names() if name.startswith("_")]


def test_an_unknown_source_or_option_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean torchvision"):
        build_proposals("torchvison")
    with pytest.raises(ValueError, match="did you mean num_boxes"):
        build_proposals("torchvision", num_box=3)
    with pytest.raises(ValueError, match=r"needs the option --annotations \('file'\)"):
        build_proposals("annotations")
    with pytest.raises(ValueError, match=r"no option --boxes \('num_boxes'\)"):
        build_proposals("grid", num_boxes=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision", {"size": 0}),
        ("torchvision", {"num_boxes": 2.5}),
        ("torchvision", {"nms": 0}),
        ("grid", {"scales": ()}),
        ("grid", {"scales": (2, 0)}),
        ("annotations", {"file": "x.json", "num_boxes": 0}),
        ("annotations", {"file": "x.json", "unit": "inch"}),
        ("annotations", {"file": "x.json", "key": "name"}),
        ("annotations", {"file": "x.txt"}),
        ("annotations", {"file": "there/is/none.json"}),
    ],
)
def test_bad_values_are_refused_in_one_line(name, options):
    with pytest.raises(ValueError, match="expected") as caught:
        build_proposals(name, **options)
    assert "\n" not in str(caught.value)


def test_a_clips_failure_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(MissingBoxes("17", "boxes.json", "not listed")))
    assert type(error) is MissingBoxes
    assert str(error) == "boxes.json: clip '17': not listed"


# ---- grid ----


def test_the_grid_is_nine_then_four_then_one_region_row_by_row():
    boxes, scores = build_proposals("grid").propose(None, CLIP, INFO, (5, 6))
    assert boxes.shape == (2, 14, 4)
    np.testing.assert_array_equal(boxes[0], boxes[1])
    np.testing.assert_allclose(
        boxes[0, [0, 1, 3, 8]],
        np.array([[0, 0, 1, 1], [1, 0, 2, 1], [0, 1, 1, 2], [2, 2, 3, 3]]) / 3,
    )
    np.testing.assert_array_equal(
        boxes[0, 9:],
        [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1], [0, 0, 1, 1]],
    )
    assert (scores == 1).all()


def test_the_cells_of_each_scale_cover_the_view_once():
    for scale in (1, 2, 3, 7):
        boxes, _ = build_proposals("grid", scales=(scale,)).propose(None, CLIP, INFO, (0,))
        sides = boxes[0, :, 2:] - boxes[0, :, :2]
        assert len(boxes[0]) == scale**2
        np.testing.assert_allclose(sides.prod(-1).sum(), 1, rtol=1e-6)


# ---- torchvision ----


def test_the_rpn_gives_what_torchvisions_own_gives(weights):
    from torchvision.models.detection.image_list import ImageList

    folder, model = weights
    frames = frames_of(2, 96, 130)
    source = build_proposals(
        "torchvision", weights=str(folder / "torchvision.pth"), size=96, num_boxes=40, bn_eps=1e-5
    )
    boxes, scores = source.propose(frames, None, None, (0, 1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((frames / 255 - mean) / std).permute(0, 3, 1, 2)
    images = nn.functional.pad(images, (0, 160 - 130))
    scored = []
    own_filter = model.rpn.filter_proposals
    model.rpn.filter_proposals = lambda *given: scored.append(own_filter(*given)) or scored[-1]
    with torch.inference_mode():
        expected, _ = model.rpn(ImageList(images, [(96, 130)] * 2), model.backbone(images))
    del model.rpn.filter_proposals
    for k in range(2):
        np.testing.assert_allclose(boxes[k] * [130, 96, 130, 96], expected[k][:40], atol=2e-3)
        np.testing.assert_allclose(scores[k], scored[0][1][k][:40], atol=1e-5)


def test_batches_do_not_change_the_boxes(weights):
    folder, _ = weights
    frames, path = frames_of(5), str(folder / "torchvision.pth")
    one, all_at_once = (
        build_proposals("torchvision", weights=path, size=64, batch=batch).propose(
            frames, None, None, range(5)
        )
        for batch in (1, 8)
    )
    np.testing.assert_allclose(one[0], all_at_once[0], atol=1e-4)
    np.testing.assert_allclose(one[1], all_at_once[1], rtol=1e-4)


def test_bf16_moves_scores_little_and_ties_none(weights):
    folder, _ = weights
    source = build_proposals(
        "torchvision", weights=str(folder / "torchvision.pth"), size=64, num_boxes=30
    )
    frames = frames_of(1)
    _, exact = source.propose(frames, None, None, (0,))
    boxes, scores = source.to("cpu", "bf16").propose(frames, None, None, (0,))
    np.testing.assert_allclose(scores, exact, atol=0.02)
    assert len(np.unique(scores)) == scores.size
    assert boxes.dtype == np.float32
    with pytest.raises(ValueError, match="build the source again"):
        source.to("cpu", "fp32")
    with pytest.raises(ValueError, match="expected one of fp32"):
        source.to("cpu", "int8")


def test_random_weights_follow_their_seed_and_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first, same, other = (
        build_proposals("torchvision", weights="none", seed=seed).body.body.conv1.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_network_keeps_no_batch_norm_and_no_gradients(weights):
    folder, _ = weights
    source = build_proposals("torchvision", weights=str(folder / "torchvision.pth"))
    modules = [*source.body.modules(), *source.head.modules()]
    assert not [m for m in modules if "Norm2d" in type(m).__name__ and len(list(m.children())) == 0]
    assert not [p for m in modules for p in m.parameters() if p.requires_grad]
    assert source.body.body.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_of_another_network_are_refused_by_name(weights, tmp_path):
    _, model = weights
    state = {
        key: value for key, value in model.state_dict().items() if not key.startswith("roi_heads")
    }
    state["rpn.head.cls_logits.bias"] = torch.zeros(5)
    state["rpn.surprise"] = state.pop("rpn.head.bbox_pred.bias")
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError,
        match=r"missing: rpn.head.bbox_pred.bias; .*unexpected: rpn.surprise; .*cls_logits.bias "
        r"\(5,\)",
    ):
        build_proposals("torchvision", weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("proposal_generator.rpn_head.conv.weight", "detectron2's; pass --proposals detectron2"),
        ("backbone.fpn.inner_blocks.0.1.weight", "fasterrcnn_resnet50_fpn_v2"),
        ("backbone.body.0.0.weight", "a detector on MobileNet"),
    ],
)
def test_weights_of_another_known_detector_are_named(name, said, tmp_path):
    torch.save({name: torch.ones(3), "rpn.head.bbox_pred.bias": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=said):
        build_proposals("torchvision", weights=str(tmp_path / "w.pth"))


def test_names_of_old_torchvision_files_are_understood(weights, tmp_path):
    folder, model = weights
    state = {
        key.replace("rpn.head.conv.0.0.", "rpn.head.conv."): value
        for key, value in model.state_dict().items()
    }
    torch.save(state, tmp_path / "old.pth")
    old = build_proposals("torchvision", weights=str(tmp_path / "old.pth"), size=64)
    new = build_proposals("torchvision", weights=str(folder / "torchvision.pth"), size=64)
    assert torch.equal(old.head.conv[0][0].weight, new.head.conv[0][0].weight)
    assert old.weights_sha256 != new.weights_sha256 != ""


def test_a_weights_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": print}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("not weights")
    for name in ("code.pth", "text.pth"):
        with pytest.raises(ValueError, match="not a file of tensors"):
            build_proposals("torchvision", weights=str(tmp_path / name))
    with pytest.raises(ValueError, match="no such weights file"):
        build_proposals("torchvision", weights=str(tmp_path / "none.pth"))


def test_suppression_stopped_early_is_the_start_of_full_suppression():
    from torchvision.ops import batched_nms

    from pipeline.proposals._rpn import suppress

    torch.manual_seed(0)
    boxes = torch.rand(3, 200, 2, 2).sort(2).values.flatten(2) * 50
    scores, levels = torch.randn(3, 200), torch.randint(0, 3, (200,))
    # Without width: dropped, so that frame 0 has fewer boxes than asked for.
    boxes[0, :195, 2] = boxes[0, :195, 0]
    found, found_scores = suppress(boxes, scores, levels, 30, 0.2)
    for k in range(3):
        wide = torch.where((boxes[k, :, 2:] - boxes[k, :, :2] > 1e-3).all(-1))[0]
        keep = wide[batched_nms(boxes[k][wide], scores[k][wide], levels[wide], 0.2)[:30]]
        count = len(keep)
        torch.testing.assert_close(found[k, :count], boxes[k][keep])
        torch.testing.assert_close(found_scores[k, :count], scores[k][keep])
        # What is missing is missing at the end.
        assert not found[k, count:].any()
        assert (found_scores[k, count:] == -torch.inf).all()
    assert (found_scores[0] > -torch.inf).sum() <= 5


# ---- detectron2 ----


def test_detectron2_is_asked_for_only_when_chosen_and_says_how_to_install_it(monkeypatch):
    for name in ("detectron2", "detectron2.modeling"):
        monkeypatch.setitem(sys.modules, name, None)  # what an import of a missing package meets
    with pytest.raises(
        ValueError, match=r"INSTALL\.md of the repository facebookresearch/detectron2"
    ):
        build_proposals("detectron2")


@pytest.mark.parametrize("ending", [".pth", ".pkl"])
def test_detectron2_gives_what_its_own_model_gives(ending, tmp_path):
    require_detectron2()
    import detectron2
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    package, name = Path(detectron2.__file__).parent, "configs/COCO-Detection/rpn_R_50_FPN_1x.yaml"
    cfg = get_cfg()
    cfg.merge_from_file(
        next(
            str(path)
            for path in (package / "model_zoo" / name, package.parent / name)
            if path.exists()
        )
    )
    cfg.MODEL.DEVICE, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = "cpu", 40
    model = build_model(cfg).eval()
    with torch.no_grad():
        for name, norm in model.named_modules():
            if type(norm).__name__ == "FrozenBatchNorm2d":
                unsettle(norm, 0.2 if name.endswith("conv3.norm") else 1.0)
        # Its pixels are not divided by their deviation.
        model.backbone.bottom_up.stem.conv1.weight.mul_(0.02)
    state = model.state_dict()
    if ending == ".pth":
        torch.save({"model": state, "iteration": 3}, tmp_path / "weights.pth")
    else:
        arrays = {key: value.numpy() for key, value in state.items()}
        arrays["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4))
        (tmp_path / "weights.pkl").write_bytes(
            pickle.dumps({"model": arrays, "__author__": "somebody"})
        )
    frames = frames_of(2, 96, 130)
    source = build_proposals(
        "detectron2", weights=str(tmp_path / f"weights{ending}"), size=96, num_boxes=40
    )
    boxes, scores = source.propose(frames, None, None, (0, 1))
    with torch.inference_mode():
        expected = [
            out["proposals"]
            for out in model([{"image": f.flip(-1).permute(2, 0, 1)} for f in frames])
        ]
    for k in range(2):
        np.testing.assert_allclose(
            boxes[k] * [130, 96, 130, 96], expected[k].proposal_boxes.tensor, atol=2e-3
        )
        np.testing.assert_allclose(scores[k], expected[k].objectness_logits.sigmoid(), atol=1e-5)


def test_a_model_zoo_file_that_would_run_code_is_refused(tmp_path):
    require_detectron2()
    (tmp_path / "code.pkl").write_bytes(pickle.dumps({"model": print}))
    with pytest.raises(ValueError, match=r"loading it would execute builtins\.print"):
        build_proposals("detectron2", weights=str(tmp_path / "code.pkl"))


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "model.", "module.detector._orig_mod."]
)
def test_weights_of_a_wrapped_detector_load(weights, prefix, tmp_path):
    folder, model = weights
    torch.save(
        {
            "state_dict": {prefix + key: value for key, value in model.state_dict().items()},
            "epoch": 1,
        },
        tmp_path / "w.pth",
    )
    plain, wrapped = (
        build_proposals("torchvision", weights=str(p), size=64)
        for p in (folder / "torchvision.pth", tmp_path / "w.pth")
    )
    for one, other in zip(plain.head.parameters(), wrapped.head.parameters(), strict=True):
        assert torch.equal(one, other)


def test_two_networks_in_one_file_of_weights_are_refused_by_their_prefixes(tmp_path):
    from pipeline.proposals.digit_rpn import Net

    state = Net().state_dict()
    torch.save(
        {f"{part}.{key}": value for part in ("model", "ema") for key, value in state.items()},
        tmp_path / "w.pth",
    )
    with pytest.raises(ValueError, match=r"several such networks, below 'model\.', 'ema\.'"):
        build_proposals("digit_rpn", weights=str(tmp_path / "w.pth"))
    torch.save({"student": state, "teacher": state, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="several such networks, below 'student', 'teacher'"):
        build_proposals("digit_rpn", weights=str(tmp_path / "w.pth"))
    torch.save({"last": {"ema": state}, "epoch": 3}, tmp_path / "w.pth")
    assert build_proposals("digit_rpn", weights=str(tmp_path / "w.pth")).weights_sha256


# ---- annotations ----


def something_else(*frames):
    """A clip of Something-Else: for each frame a list of (category, box in pixels)."""
    return [
        {
            "name": f"17/{k + 1:04d}.jpg",
            "nr_instances": len(found),
            "labels": [
                {
                    "box2d": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
                    "standard_category": category,
                    "category": "x",
                }
                for category, box in found
            ],
        }
        for k, found in enumerate(frames)
    ]


def test_something_else_gives_objects_before_hands_and_frame_k_from_entry_k(tmp_path):
    a, b, hand = (8, 4, 40, 20), (0, 0, 80, 40), (16, 10, 32, 30)
    listed = {
        "17": something_else([("hand", hand), ("0001", b), ("0000", a)], [], [("hand", hand)])
    }
    source = build_proposals(
        "annotations", file=written(tmp_path / "boxes.json", listed), num_boxes=2
    )
    boxes, scores = source.propose(None, CLIP, INFO, (2, 0, 1, 5))
    np.testing.assert_allclose(boxes[0] * SIZE, [hand, (0, 0, 0, 0)], rtol=1e-6)
    np.testing.assert_allclose(boxes[1] * SIZE, [a, b], rtol=1e-6)
    np.testing.assert_array_equal(scores, [[1, -1], [1, 1], [-1, -1], [-1, -1]])


def test_boxes_measured_at_another_height_are_scaled(tmp_path):
    file = written(tmp_path / "boxes.json", {"17": something_else([("0000", (20, 10, 120, 60))])})
    boxes, _ = build_proposals("annotations", file=file, annotated_height=80).propose(
        None, CLIP, INFO, (0,)
    )
    np.testing.assert_allclose(boxes[0, 0] * SIZE, [10, 5, 60, 30], rtol=1e-6)


def test_gos_json_is_in_fractions_and_keeps_its_order(tmp_path):
    rows = [[0.5, 0.5, 0.6, 0.6], [0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]]
    file = written(tmp_path / "boxes.json", {"16": [], "17": [[], rows]})
    boxes, scores = build_proposals("annotations", file=file, num_boxes=2).propose(
        None, CLIP, INFO, (1, 0)
    )
    np.testing.assert_allclose(boxes[0], rows[:2], rtol=1e-6)
    np.testing.assert_array_equal(scores, [[1, 1], [-1, -1]])


def csv_of(path, rows, header=("clip", "frame", "x1", "y1", "x2", "y2", "score", "label")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_csv_rows_are_found_by_clip_and_frame_best_score_first(tmp_path):
    rows = [
        ["17", 3, 0, 0, 40, 20, 0.5, "cup"],
        ["18", 3, 0, 0, 8, 4, 0.9, "cup"],
        ["17", 0, 8, 4, 80, 40, 0.25, "cup"],
        ["17", 3, 40, 20, 80, 40, 0.75, "hand, left"],
        ["17", 3, 0, 20, 40, 40, 0.5, "box"],
    ]
    source = build_proposals("annotations", file=csv_of(tmp_path / "boxes.csv", rows), num_boxes=2)
    boxes, scores = source.propose(None, CLIP, INFO, (3, 0, 1))
    np.testing.assert_allclose(boxes[0] * SIZE, [(40, 20, 80, 40), (0, 0, 40, 20)], rtol=1e-6)
    np.testing.assert_array_equal(scores, [[0.75, 0.5], [0.25, -1], [-1, -1]])


def test_csv_without_numbers_above_one_is_in_fractions_unless_told_otherwise(tmp_path):
    file = csv_of(
        tmp_path / "boxes.csv",
        [["17", 0, 0.1, 0.2, 0.9, 1.0]],
        ("clip", "frame", "x1", "y1", "x2", "y2"),
    )
    boxes, scores = build_proposals("annotations", file=file).propose(None, CLIP, INFO, (0,))
    np.testing.assert_allclose(boxes[0, 0], [0.1, 0.2, 0.9, 1.0], rtol=1e-6)
    assert scores[0, 0] == 1
    boxes, _ = build_proposals("annotations", file=file, unit="pixels").propose(
        None, CLIP, INFO, (0,)
    )
    np.testing.assert_allclose(boxes[0, 0] * SIZE, [0.1, 0.2, 0.9, 1.0], rtol=1e-6)


def test_a_clip_cut_from_a_longer_file_is_looked_up_by_the_files_own_frame_numbers(tmp_path):
    file = csv_of(tmp_path / "boxes.csv", [["17", k, 0, 0, k + 1, 40, 1, ""] for k in range(60)])
    boxes, _ = build_proposals("annotations", file=file).propose(None, CLIP, INFO, (50, 51))
    np.testing.assert_allclose(boxes[:, 0, 2] * 80, [51, 52], rtol=1e-6)


def test_boxes_reach_no_further_than_the_frame(tmp_path):
    file = csv_of(tmp_path / "boxes.csv", [["17", 0, -4, -2, 88, 44, 1, ""]])
    boxes, _ = build_proposals("annotations", file=file).propose(None, CLIP, INFO, (0,))
    np.testing.assert_array_equal(boxes[0, 0], [0, 0, 1, 1])


def test_boxes_far_outside_the_frame_were_measured_in_another(tmp_path):
    file = csv_of(tmp_path / "boxes.csv", [["17", 0, 10, 10, 427, 240, 1, ""]])
    with pytest.raises(BoxesError, match=r"80x40.*annotated_height"):
        build_proposals("annotations", file=file).propose(None, CLIP, INFO, (0,))
    file = written(tmp_path / "boxes.json", {"17": [[[10, 10, 40, 20]]]})
    with pytest.raises(BoxesError, match="fraction"):
        build_proposals("annotations", file=file).propose(None, CLIP, INFO, (0,))


def listed(kind, path, box, size=SIZE):
    """A file in which clip 17 has one box, xyxy as a share of the frame, in frame 0; `size` of the
    frame in pixels, twice.
    """
    pixels = [float(v) for v in np.multiply(box, size)]
    if kind == "csv":
        return csv_of(path / "boxes.csv", [["17", 0, *pixels, 1, ""]])
    if kind == "fractions in csv":
        return csv_of(path / "boxes.csv", [["17", 0, *box, 1, ""]])
    content = {"17": [[list(box)]]} if kind == "gos" else {"17": something_else([("0000", pixels)])}
    return written(path / "boxes.json", content)


@pytest.mark.parametrize("kind", ["csv", "something else", "gos", "fractions in csv"])
@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((0.5, 0.5, 1.0, 1.0), True),
        ((0.5, 0.5, 1.09, 1.09), True),  # a detector's overhang
        ((-0.02, 0.5, 1.09, 1.0), True),
        ((0.5, 0.5, 1.2, 1.0), False),  # of a picture 1.2 times as wide
        ((0.75, 0.75, 1.5, 1.5), False),  # the lower right quarter of one 1.5 times as large
        ((0.1, 0.1, 0.5, 1.3), False),
        ((-0.1, 0.1, 1.2, 1.0), True),  # sticks out both ways: an object larger than the frame
        ((-0.6, 0.1, 1.2, 1.0), False),
        ((-0.06, 0.5, 1.4, 1.4), False),  # overhangs a little in a picture 1.4 times as large
    ],
)
def test_boxes_that_end_outside_were_measured_in_a_larger_picture(kind, box, kept, tmp_path):
    """In every format: clipped where a picture of this size has such boxes, else the clip fails
    with the cure.
    """
    source = build_proposals("annotations", file=listed(kind, tmp_path, box))
    if kept:
        boxes, _ = source.propose(None, CLIP, INFO, (0,))
        np.testing.assert_allclose(boxes[0, 0], np.clip(box, 0, 1), rtol=1e-5)
    else:
        with pytest.raises(BoxesError, match=r"outside a frame of 80x40 pixels.*annotated_height"):
            source.propose(None, CLIP, INFO, (0,))


def test_the_cure_that_the_message_names_cures(tmp_path):
    # Drawn in the original, 1.5 times as large.
    file = listed("csv", tmp_path, (0.5, 0.5, 1, 1), [120, 60] * 2)
    with pytest.raises(BoxesError, match="annotated_height"):
        build_proposals("annotations", file=file).propose(None, CLIP, INFO, (0,))
    boxes, _ = build_proposals("annotations", file=file, annotated_height=60).propose(
        None, CLIP, INFO, (0,)
    )
    np.testing.assert_allclose(boxes[0, 0], [0.5, 0.5, 1, 1], rtol=1e-6)
    boxes, _ = build_proposals("annotations", file=file, overhang=0.5).propose(
        None, CLIP, INFO, (0,)
    )
    np.testing.assert_allclose(boxes[0, 0], [0.75, 0.75, 1, 1], rtol=1e-6)
    for overhang in (-0.1, 0.6, True, "0.1"):
        with pytest.raises(ValueError, match="overhang"):
            build_proposals("annotations", file=file, overhang=overhang)


def test_boxes_without_an_area_are_remarked_on(tmp_path):
    """x, y, width and height where corners are expected, of a square at its own distance from the
    corner.
    """
    rows = [["17", k, 20, 20, 20, 20, 1, ""] for k in range(4)]
    source = build_proposals("annotations", file=csv_of(tmp_path / "boxes.csv", rows))
    assert "no box with an area at the 2 frames" in source.remark(CLIP, INFO, (0, 2))
    rows[2][4:6] = 30, 30
    assert (
        build_proposals("annotations", file=csv_of(tmp_path / "boxes.csv", rows)).remark(
            CLIP, INFO, (0, 2)
        )
        == ""
    )


def test_boxes_that_no_frame_meets_are_remarked_on(tmp_path):
    rows = [["17", k, 0, 0, 40, 20, 1, ""] for k in (1, 3, 5)] + [
        ["18", 0, 0, 0, 4, 4, 1, ""],
        ["19", 60, 0, 0, 4, 4, 1, ""],
    ]
    source = build_proposals("annotations", file=csv_of(tmp_path / "boxes.csv", rows))
    assert "none of its 3 frames with boxes (1, 3, 5) is one of the 4" in source.remark(
        CLIP, INFO, (0, 2, 4, 6)
    )
    assert source.remark(CLIP, INFO, (0, 3)) == ""
    other = SimpleNamespace(clip="18", path="x")
    assert source.remark(other, INFO, (0, 2)) == ""
    assert source.remark(SimpleNamespace(clip="none", path="x"), INFO, (0,)) == ""
    long = SimpleNamespace(clip="19", path="x")
    assert "boxes up to frame 60, the video only frames 0 to 7" in source.remark(
        long, INFO, (0, 60)
    )


def test_a_separator_other_than_the_comma_and_a_mark_are_told(tmp_path):
    text = "clip;frame;x1;y1;x2;y2\n17;0;0;0;1;1\n"
    with pytest.raises(
        ValueError, match=r"line 1: no column clip, .* separated by semicolons, expected commas"
    ):
        build_proposals("annotations", file=written(tmp_path / "boxes.csv", text))
    marked = written(tmp_path / "boxes.csv", "\ufeff" + text.replace(";", ","))
    assert build_proposals("annotations", file=marked).propose(None, CLIP, INFO, (0,))[1][0, 0] == 1
    (tmp_path / "boxes.json").write_bytes('{"17": []}'.encode("utf-16"))
    with pytest.raises(ValueError, match=r"UTF-16 text; save the file as UTF-8"):
        build_proposals("annotations", file=str(tmp_path / "boxes.json"))


def test_a_clip_that_is_not_listed_fails_alone_unless_allowed(tmp_path):
    file = written(tmp_path / "boxes.json", {"seventeen": [[[0, 0, 1, 1]]], "18": []})
    with pytest.raises(MissingBoxes, match="'17'"):
        build_proposals("annotations", file=file).propose(None, CLIP, INFO, (0,))
    _, scores = build_proposals("annotations", file=file, allow_missing=True).propose(
        None, CLIP, INFO, (0,)
    )
    assert (scores == -1).all()
    _, scores = build_proposals("annotations", file=file, key="stem").propose(
        None, CLIP, INFO, (0,)
    )
    assert scores[0, 0] == 1


def test_a_folder_of_parts_is_one_source_and_no_clip_is_listed_twice(tmp_path):
    written(tmp_path / "part1.json", {"17": [[[0, 0, 1, 1]]]})
    written(tmp_path / "part2.json", {"18": [[[0, 0, 0.5, 0.5]]]})
    source = build_proposals("annotations", file=str(tmp_path))
    assert set(source.clips) == {"17", "18"}
    assert (
        source.weights_sha256
        != build_proposals("annotations", file=str(tmp_path / "part1.json")).weights_sha256
    )
    written(tmp_path / "part3.json", {"17": []})
    with pytest.raises(ValueError, match=r"part3.json: clip '17' is listed twice"):
        build_proposals("annotations", file=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", "line 1, column 1: no '{'"),
        ("[]", "line 1, column 1: no '{'"),
        ('{"17": [[\n[0, 0, 1 1]]]}', "line 2, column 10"),
        ('{"17" []}', "line 1, column 7: no ':'"),
        ('{"17": []', "line 1, column 10: no '}'"),
        ('{"17": [],}', "line 1, column 11"),
        ('{"17": []} {}', "column 12: more"),
        ('{"17": [], 18: []}', "column 12: no clip id"),
        ('{"17": ' + "[" * 200_000, "nested|column"),
    ],
)
def test_broken_json_is_refused_with_its_place(content, place, tmp_path):
    with pytest.raises(ValueError, match=place) as caught:
        build_proposals("annotations", file=written(tmp_path / "boxes.json", content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "place"),
    [
        ({"a": 1}, "one entry per frame"),
        ([[], [[0, 0, 1, 1], [0, 0, 1]]], r"frame 1: .*\[0, 0, 1\]"),
        ([[[0, 0, "left", 1]]], "frame 0: .*left"),
        ([[[0.5, 0, 0.4, 1]]], "frame 0: .*x1 <= x2"),
        ([[[0, 0, float("nan"), 1]]], "frame 0: .*nan"),
        ([[[0, 0, 1, 1]], 5], "frame 1"),
        ([{"labels": [{"box2d": {"x1": 0, "y1": 0, "x2": 4}}]}], "frame 0: .*y2"),
        ([{"labels": []}, {"gt": []}], "frame 1: .*labels"),
        ([{"labels": []}, None], "frame 1"),
    ],
)
def test_a_malformed_entry_fails_its_clip_and_no_other(entries, place, tmp_path):
    file = written(tmp_path / "boxes.json", {"17": entries, "18": [[[0, 0, 1, 1]]]})
    source = build_proposals("annotations", file=file)
    with pytest.raises(BoxesError, match=place) as caught:
        source.propose(None, CLIP, INFO, (0,))
    assert "\n" not in str(caught.value)
    assert source.propose(None, SimpleNamespace(clip="18", path="x"), INFO, (0,))[1][0, 0] == 1


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", "line 1: no column clip, frame"),
        ("clip,frame,x1,y1,x2\n", "line 1: no column y2"),
        ("clip,frame,x1,y1,x2,y2\n17,0,0,0,4,4\n17,one,0,0,4,4\n", "line 3: column frame: .*'one'"),
        ("clip,frame,x1,y1,x2,y2\n17,0.5,0,0,4,4\n", "line 2: column frame"),
        ("clip,frame,x1,y1,x2,y2\n17,inf,0,0,4,4\n", "line 2: column frame"),
        ("clip,frame,x1,y1,x2,y2\n17,0,0,0,nan,4\n", "line 2: .*finite"),
        ("clip,frame,x1,y1,x2,y2\n17,0,5,0,4,4\n", "line 2: .*x1 <= x2"),
        ("clip,frame,x1,y1,x2,y2\n17,0,5\n", "line 2: 3 cells, expected 6"),
        ("clip,frame,x1,y1,x2,y2,score\n17,0,0,0,4,4,-1\n", "line 2: column score"),
    ],
)
def test_broken_csv_is_refused_with_its_place(content, place, tmp_path):
    with pytest.raises(ValueError, match=place) as caught:
        build_proposals("annotations", file=written(tmp_path / "boxes.csv", content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "boxes.csv").write_bytes(b"clip,frame\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        build_proposals("annotations", file=str(tmp_path / "boxes.csv"))
