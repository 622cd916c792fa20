"""The product on a pretended GPU (tests/support/fake_cuda.py): nothing mixes devices, and the
figures are the CPU's.

What the CPU gives for the same input is the right value: the pretended device computes with the
CPU's kernels.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, nms

from cli.__main__ import vidgraph
from heads.config.recipe import recipe_from
from heads.config.study_file import read_study
from heads.config.training_options import Training
from heads.data.feature_store import FeatureStore
from heads.evaluation.evaluate import evaluate
from heads.finetuning.end_to_end import train_frames
from heads.finetuning.finetune import SourceOptions, finetune, frames_phase
from heads.finetuning.frame_training import FrameRunOptions
from heads.runs import run_files as runs
from heads.training.ablate import ablate
from heads.training.estimates import AblateOptions
from heads.training.learner import Learner
from heads.training.train import train
from pipeline.cache.reader import Cache
from pipeline.digits import TASKS, DigitVideos, load_images
from pipeline.digits.digit_cache import cache_digits
from pipeline.manifests.manifest import Clip, read_manifest
from pipeline.networks.transfers import Transfers
from pipeline.proposals import digit_rpn
from pipeline.proposals.detectron2 import Detectron2RPN
from pipeline.regions.graphs import GraphOptions, graphs_of
from pipeline.regions.roi_align import roi_align
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions
from pipeline.stages.frozen_networks import BatchRow, FrozenNetworks, source_of
from pipeline.stages.graphs import build_graphs
from pipeline.stages.plan import make_plan
from pipeline.video.view_pixels import ClipPixels
from pipeline.views.sampling import Sampling, views_of
from pipeline.views.video_info import VideoInfo
from tests.cli.test_demo import run as run_demo
from tests.heads.finetuning.test_finetune import Videos
from tests.heads.finetuning.test_finetune import network as live_network
from tests.heads.finetuning.test_finetune import recipe as live_recipe
from tests.heads.zoo.test_zoo import CASES, fresh, some_clips
from tests.support.cuda_sites import call_sites
from tests.support.fake_cuda import CudaTensor
from tests.support.tiny_backbone import NAMES, relative
from tests.support.tiny_cache import Tiny
from tests.support.tiny_videos import config_of, make_videos, write_csv
from tests.support.tiny_videos import run as extract_run

SPLITS = ("train",) * 6 + ("val",) * 2 + ("test",) * 2
QUIET = {"say": lambda line: None}


pytestmark = pytest.mark.usefixtures("gpu")


def places(state) -> set[str]:
    return {str(tensor.device) for tensor in state.values()}


# --- heads


def learner(case: str, place: str, precision: str = "fp32", **training) -> Learner:
    head = fresh(case).to(place)
    return Learner(
        head, Training(**{"epochs": 1, "lr": 0.01, **training}), "single", 4, 0, precision
    )


@pytest.mark.parametrize("case", CASES)
def test_every_head_learns_and_predicts_there_what_it_does_on_the_cpu(case):
    clips, targets = some_clips(dtype=torch.float32), torch.tensor([0, 1, 5])
    logits = []
    for place in ("cpu", "cuda"):
        one = learner(case, place, clip_norm=1.0, ema=0.9)
        mine = clips.to(place)
        assert np.isfinite(float(one.step(mine, targets.to(place))))
        head = fresh(case).to(place).eval()
        with torch.no_grad():
            out = head(mine, want_maps=True)
        logits.append(out.logits.cpu())
        if place == "cuda":
            assert places(one.head.state_dict()) == {"cuda:0"}
            assert places({"logits": out.logits, **out.maps, **out.stored}) == {"cuda:0"}
    assert torch.allclose(*logits, atol=1e-4)


BF16 = ("pool", "mean_lstm", "rstg", "strg", "dyreg", "ean")


@pytest.mark.parametrize(
    ("case", "precision"), [*((case, "fp16") for case in CASES), *((case, "bf16") for case in BF16)]
)
def test_every_head_learns_there_in_mixed_precision(case, precision):
    one = learner(case, "cuda", precision, optimiser="adam")
    loss = one.step(
        some_clips(dtype=torch.float32).to("cuda"), torch.tensor([0, 1, 5], device="cuda")
    )
    assert np.isfinite(float(loss))
    state = one.state()
    again = learner(case, "cuda", precision, optimiser="adam")
    again.load(state)
    assert all(
        tensor.equal(again.head.state_dict()[name]) for name, tensor in state["state"].items()
    )


# --- stage one


def views_config(**changes) -> ExtractConfig:
    sampling = Sampling(frames=8, size=48, train_views=1, train_crop="centre", test_clips=0)
    return ExtractConfig(
        **{"sampling": sampling, "keep": ("pooled",), "dtype": "float32", **changes}
    )


def pixels_of(config: ExtractConfig, models: FrozenNetworks) -> tuple[Clip, ClipPixels]:
    """A clip of noise, as a decode worker hands it over."""
    rng, info = np.random.default_rng(0), VideoInfo(16, 8.0, 64, 48)
    clip = Clip("clip0", "clip0.mp4", "train", ("a",), None, None, {})
    views = views_of(config.sampling, info, clip.clip, clip.labels, 0)
    pixels = [rng.integers(0, 256, (len(view.frames), *view.size, 3), np.uint8) for view in views]
    numbers = tuple(sorted({number for view in views for number in view.frames}))
    whole = rng.integers(0, 256, (len(numbers), 48, 64, 3), np.uint8)
    return clip, ClipPixels(info, views, pixels, numbers, whole if models.frame_size else None)


def computed(config: ExtractConfig, place: str) -> dict[str, np.ndarray]:
    models = FrozenNetworks(config, place)
    clip, pixels = pixels_of(config, models)
    view, frames = pixels.views[0], pixels.pixels[0]
    row = BatchRow(frames, view, models.regions(clip, pixels))
    arrays = models.launch([row, BatchRow(), row], view.size).wait()
    return {name: array[::2] for name, array in arrays.items()}


def same_arrays(config: ExtractConfig, tolerance: float = 1e-4) -> dict[str, np.ndarray]:
    here, there = computed(config, "cpu"), computed(config, "cuda")
    assert here.keys() == there.keys()
    for name, array in here.items():
        # A CPU and a GPU take other memory formats: float32 sums have another order, and values
        # that cancel keep the error of the largest.
        scale = max(1.0, float(np.abs(array.astype(float)).max(initial=0)))
        assert np.allclose(
            array.astype(float), there[name].astype(float), rtol=0, atol=tolerance * scale
        ), name
    return there


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, dict]:
    """The options of every source of boxes that can be built here."""
    folder = tmp_path_factory.mktemp("sources")
    write_csv(
        folder / "boxes.csv",
        ("clip", "frame", "x1", "y1", "x2", "y2"),
        [("clip0", k, 4, 5, 40, 44) for k in range(16)],
    )
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 48, 64, 3), np.uint8)
    digit_rpn.fit(
        folder / "rpn.pt",
        frames,
        np.tile([4, 4, 20, 20], (4, 1, 1)).astype(float),
        steps=2,
        batch=2,
    )
    return {
        "annotations": {"file": str(folder / "boxes.csv"), "num_boxes": 2},
        "grid": {},
        "torchvision": {"weights": "none", "size": 48, "num_boxes": 3, "batch": 8},
        "digit_rpn": {
            "weights": str(folder / "rpn.pt"),
            "size": 48,
            "num_boxes": 3,
            "min_score": 0.0,
        },
    }


@pytest.mark.parametrize("backbone", NAMES)
def test_every_backbone_gives_there_what_it_gives_on_the_cpu(backbone, sources):
    keep = ("pooled", "nodes", "conv2" if backbone == "digit_cnn" else "res4")
    frames = 40 if backbone == "ean_r50" else 8
    sampling = Sampling(frames=frames, size=48, train_views=1, train_crop="centre", test_clips=0)
    if backbone == "ean_r50":
        sampling = Sampling(
            frames=frames, size=48, train_views=1, train_crop="centre", test_clips=0, consecutive=5
        )
    config = views_config(
        backbone=backbone,
        backbone_options={"width": 8},
        keep=keep,
        proposals="annotations",
        proposal_options=sources["annotations"],
        sampling=sampling,
    )
    assert {*keep, "boxes"} <= same_arrays(config).keys()


POOLED = [
    (source, pool)
    for source in ("annotations", "grid", "digit_rpn")
    for pool in ("max", "mean", "area")
]


@pytest.mark.parametrize(
    ("source", "pool"), [*POOLED, ("torchvision", "max"), ("detectron2", "max")]
)
def test_every_source_of_boxes_feeds_the_nodes_there(source, pool, sources):
    if source == "detectron2":
        pytest.importorskip(
            "detectron2", reason="detectron2 is not installed; what is ours of it is tested below"
        )
    options = sources.get(source, {"weights": "none", "size": 48, "num_boxes": 3})
    small = {"backbone": "digit_cnn", "backbone_options": {"width": 8}}
    config = views_config(
        **small, keep=("nodes",), proposals=source, proposal_options=options, roi_pool=pool
    )
    found = same_arrays(config)
    assert found["valid"].any()


@pytest.mark.parametrize("source", ["grid", "torchvision", "digit_rpn"])
@pytest.mark.parametrize("backbone", NAMES)
def test_every_backbone_takes_every_source_there_without_mixing_devices_or_streams(
    backbone, source, sources
):
    consecutive = {"consecutive": 5} if backbone == "ean_r50" else {}
    frames = 40 if backbone == "ean_r50" else 8
    sampling = Sampling(
        frames=frames, size=48, train_views=1, train_crop="centre", test_clips=0, **consecutive
    )
    keep = ("pooled", "nodes", "conv2" if backbone == "digit_cnn" else "res4")
    config = views_config(
        backbone=backbone,
        backbone_options={"width": 8},
        keep=keep,
        proposals=source,
        proposal_options=sources[source],
        sampling=sampling,
        dtype="float16",
    )
    found = computed(config, "cuda")
    assert {*keep, "boxes"} <= found.keys()
    assert all(np.isfinite(array.astype(float)).all() for array in found.values())


def test_a_batch_is_chosen_there_by_a_trial(tmp_path, monkeypatch):
    from pipeline.stages import batch_choice

    config = views_config(backbone="digit_cnn", backbone_options={"width": 8})
    models, sizes = FrozenNetworks(config, "cuda"), []
    launch = models.launch

    def noted(rows, size):
        sizes.append(len(rows))
        return launch(rows, size)

    monkeypatch.setattr(models, "launch", noted)
    monkeypatch.setattr(batch_choice, "TRIED", (2, 4, 8))
    # This device takes no time at all, so that a larger batch always pays.
    assert batch_choice.choose_batch(models) == 8
    assert sizes == [2, 2, 4, 4, 8, 8]


def test_memory_that_was_locked_is_unlocked_once(monkeypatch):
    calls = []

    class Runtime:
        def cudaHostRegister(self, address, size, flags):
            calls.append(("lock", address))
            return 0

        def cudaHostUnregister(self, address):
            calls.append(("unlock", address))
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    transfers = Transfers(torch.device("cuda"))
    assert transfers.lock_pages(4096, 8192) == ""
    transfers.unlock_pages()
    transfers.unlock_pages()
    # The device may still be reading.
    assert calls == [("lock", 4096), "wait", ("unlock", 4096)]


def test_memory_that_the_system_does_not_lock_is_used_all_the_same(monkeypatch):
    class Runtime:
        def cudaHostRegister(self, address, size, flags):
            return 2

        def cudaGetErrorString(self, error):
            return "out of memory"

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    transfers = Transfers(torch.device("cuda"))
    assert transfers.lock_pages(4096, 8192) == "out of memory"
    rows = transfers.rows([np.ones((2, 2), np.uint8), None], (2, 2))
    assert rows.cpu().sum() == 4


def test_views_without_boxes_are_computed_there():
    small = {"backbone": "digit_cnn", "backbone_options": {"width": 8}}
    boxes = same_arrays(views_config(**small, keep=("pooled", "conv2")))["boxes"]
    assert boxes.shape == (2, 8, 0, 4)


@pytest.mark.parametrize(("precision", "kind"), [("tf32", "tf32"), ("fp32", "ieee")])
def test_fp32_is_float32_there_and_tf32_is_asked_for(precision, kind):
    """Left alone, torch rounds the factors of convolutions and not those of matrices."""
    small = {"backbone": "digit_cnn", "backbone_options": {"width": 8}}
    config = views_config(**small, precision=precision)
    assert config.computed("", "")["precision"] == precision
    FrozenNetworks(config, "cuda")
    assert torch.backends.cudnn.conv.fp32_precision == kind
    assert torch.backends.cuda.matmul.fp32_precision == kind


@pytest.mark.parametrize("source", ["torchvision", "digit_rpn", "annotations"])
def test_a_batch_waits_for_its_boxes_alone_and_copies_all_pixels_in_the_background(
    source, sources, gpu
):
    """Once for the boxes of a network, and once in the thread that writes."""
    small = {"backbone": "digit_cnn", "backbone_options": {"width": 8}}
    options = {"proposals": source, "proposal_options": sources[source]}
    config = views_config(**small, **options, keep=("pooled", "nodes", "conv2"))
    models, rows = FrozenNetworks(config, "cuda"), []
    for _ in range(3):
        clip, pixels = pixels_of(config, models)
        frames = torch.from_numpy(pixels.pixels[0]).pin_memory().numpy()
        rows.append(BatchRow(frames, pixels.views[0], models.regions(clip, pixels)))
    models.launch(rows[:1], rows[0].view.size).wait()  # what is made once

    with call_sites(gpu) as sites:
        computed = models.launch(rows[1:], rows[0].view.size)
        assert sites.waits.total() == (0 if source == "annotations" else 1), sites.waits
        sites.clear()
        computed.wait()
    assert [site.split(": ")[1] for site in sites.waits.elements()] == ["synchronize"], sites.waits


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_stage_one_computes_there_in_half_precision(precision, sources):
    small = {
        "backbone": "resnet18",
        "backbone_options": {"width": 8},
        "keep": ("pooled", "nodes", "res4"),
    }
    options = {"proposals": "digit_rpn", "proposal_options": sources["digit_rpn"]}
    found = computed(views_config(**small, **options, precision=precision), "cuda")
    wide = computed(views_config(**small, **options), "cpu")
    assert relative(torch.from_numpy(found["res4"]), torch.from_numpy(wide["res4"])) < 0.1


def test_boxes_that_a_gpu_finds_in_half_precision_are_found_on_a_cpu_in_full(sources):
    """Fine-tuning on a CPU from a cache that a GPU made in fp16 looks for boxes as that cache's
    configuration says.
    """
    made = {
        "backbone": "digit_cnn",
        "keep": ("nodes",),
        "proposals": "digit_rpn",
        "proposal_options": sources["digit_rpn"],
    }
    half, full = views_config(**made, precision="fp16"), views_config(**made)
    assert source_of(half, "cuda").dtype == torch.float16
    frames = torch.randint(0, 256, (2, 48, 64, 3), dtype=torch.uint8)
    found = [source_of(config, "cpu").propose(frames, None, None, ()) for config in (half, full)]
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


class Head(torch.nn.Module):
    """The head of detectron2's region proposal network, for one anchor per cell."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 8, 1)
        self.objectness_logits = torch.nn.Conv2d(8, 1, 1)
        self.anchor_deltas = torch.nn.Conv2d(8, 4, 1)

    def forward(self, maps):
        hidden = [self.conv(one).relu() for one in maps]
        return [self.objectness_logits(h) for h in hidden], [self.anchor_deltas(h) for h in hidden]


class Anchors(torch.nn.Module):
    """Squares of 8 pixels around the cells of a map with a stride of 2 pixels."""

    def __init__(self):
        super().__init__()
        self.register_buffer("square", torch.tensor([-4.0, -4.0, 4.0, 4.0]))

    def forward(self, maps):
        found = []
        for one in maps:
            y, x = (2.0 * torch.arange(side, device=one.device) for side in one.shape[-2:])
            centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
            found.append(SimpleNamespace(tensor=centres.repeat(1, 2) + self.square))
        return found


class StandIn(torch.nn.Module):
    """As much of a proposal generator of detectron2 as our source of boxes looks at. Its own way to
    the boxes is torchvision's code, frame by frame.
    """

    def __init__(self):
        super().__init__()
        self.rpn_head, self.anchor_generator = Head(), Anchors()
        self.in_features, self.nms_thresh = ["p2"], 0.7
        self.box2box_transform = SimpleNamespace(weights=(1.0, 1.0, 2.0, 2.0))

    def forward(self, images, features, targets):
        maps = [features[name] for name in self.in_features]
        logits, deltas = self.rpn_head(maps)
        anchors = self.anchor_generator(maps)[0].tensor
        coder = BoxCoder(self.box2box_transform.weights)
        height, width = 48, 64
        found = []
        for scores, moves in zip(logits[0].flatten(1), deltas[0].flatten(2).mT, strict=True):
            boxes = coder.decode_single(moves.float(), anchors)
            boxes = clip_boxes_to_image(boxes, (height, width))
            best = nms(boxes, scores.float(), self.nms_thresh)[:2]
            found.append(Found(boxes[best], scores[best]))
        return found, {}


class Pyramid(torch.nn.Module):
    """A backbone of detectron2 with one level."""

    size_divisibility = 32

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, 2)

    def forward(self, images):
        return {"p2": self.conv(images)}


class Found:
    """Boxes of a frame, with a length as detectron2's have."""

    def __init__(self, boxes, logits):
        self.proposal_boxes, self.objectness_logits = SimpleNamespace(tensor=boxes), logits

    def __len__(self):
        return len(self.objectness_logits)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_our_part_of_detectron2s_boxes_works_there(precision, monkeypatch):
    structures = SimpleNamespace(ImageList=lambda images, sizes: images)
    monkeypatch.setitem(sys.modules, "detectron2", SimpleNamespace(structures=structures))
    monkeypatch.setitem(sys.modules, "detectron2.structures", structures)
    model = SimpleNamespace(
        RPN=SimpleNamespace(POST_NMS_TOPK_TEST=2), PIXEL_MEAN=[100.0] * 3, PIXEL_STD=[50.0] * 3
    )
    cfg = SimpleNamespace(MODEL=model, INPUT=SimpleNamespace(FORMAT="BGR"))
    torch.manual_seed(0)
    source = Detectron2RPN(cfg, Pyramid(), StandIn(), 48, 2, "").to("cuda", precision)
    frames = torch.randint(0, 256, (3, 48, 64, 3), dtype=torch.uint8)
    there = source.propose(frames, None, None, ())
    assert (there[1] > 0).sum() == 6
    if precision == "fp32":
        here = source.to("cpu", "fp32").propose(frames, None, None, ())
        assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(here, there, strict=True))


def test_padded_maps_and_gradients_go_through_roi_align_there():
    fmap = torch.rand(2, 8, 3, 6, 6)
    boxes, valid = (
        torch.tensor([0.1, 0.1, 0.8, 0.9]).expand(2, 3, 2, 4),
        torch.ones(2, 3, 2, dtype=torch.bool),
    )
    grid = torch.tensor([[6, 6], [4, 5]])
    for pool in ("max", "mean", "area"):
        grads = []
        for place in ("cpu", "cuda"):
            x = fmap.clone().to(place).requires_grad_()
            roi_align(
                x, boxes.to(place), valid.to(place), pool=pool, grid=grid.to(place)
            ).square().sum().backward()
            grads.append(x.grad.cpu())
        assert torch.allclose(*grads, atol=1e-4)


def test_graphs_are_the_same_there():
    rng = np.random.default_rng(0)
    tensors = {
        "boxes": rng.random((2, 3, 4, 4)).astype(np.float32),
        "valid": rng.random((2, 3, 4)) < 0.8,
        "nodes": rng.normal(size=(2, 3, 4, 8)).astype(np.float32),
    }
    here, there = (
        graphs_of(tensors, GraphOptions(neighbours=3), place) for place in ("cpu", "cuda")
    )
    assert here.keys() == there.keys()
    assert all(np.allclose(here[name], there[name], equal_nan=True) for name in here)


@pytest.mark.parametrize("task", TASKS)
def test_digits_are_drawn_there_bit_for_bit(task):
    images = load_images()["train"]
    here, there = (
        DigitVideos(TASKS[task](), images, device=place)[[3, 0, 7]] for place in ("cpu", "cuda")
    )
    for name in ("frames", "labels", "boxes", "corners", "classes", "chosen"):
        assert getattr(there, name).is_cuda
        assert getattr(there, name).cpu().equal(getattr(here, name))


def test_a_cache_of_digits_is_made_there(tmp_path):
    from pipeline.backbones import build_backbone, freeze

    torch.save(build_backbone("digit_cnn", width=8).state_dict(), tmp_path / "cnn.pt")
    caches = []
    for place in ("cpu", "cuda"):
        backbone = freeze(
            build_backbone("digit_cnn", weights=str(tmp_path / "cnn.pt"), width=8), device=place
        )
        images, videos = load_images(), {"train": 3, "val": 2}
        task = TASKS["sync3"]()
        made = cache_digits(
            tmp_path / place, task, images, videos, backbone, tmp_path / "cnn.pt", device=place
        )
        caches.append(made["train"].batch([0, 1, 2])["pooled"])
    assert np.allclose(*caches, atol=1e-2)


# --- stage three, from caches


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    made = Tiny(T=4, N=3, C=8, fields=(*Tiny.fields, "res5")).write(
        tmp_path_factory.mktemp("cache")
    )
    build_graphs(made.path, neighbours=2, device="cuda")
    return Cache(made.path)


def recipe_of(
    head: str = "strg", options: dict | None = None, data: dict | None = None, **training
):
    training = {"epochs": 2, "batch": 5, "lr": 0.05, **training}
    table = {
        "name": "tiny",
        "source": "a test",
        "head": {"name": head, **(options or {})},
        "train": training,
    }
    return recipe_from({**table, "data": data or {}})


@pytest.mark.parametrize("resident", ["auto", "gpu", "ram", "disk"])
def test_training_there_gives_the_figures_of_the_cpu(cache, resident, tmp_path):
    asked = recipe_of(
        options={"dropout": 0.0},
        data={"swap_on_flip": [["class 0", "class 1"]]},
        clip_norm=1.0,
        accumulate=2,
    )
    results = [
        train(
            asked, cache, tmp_path / place, device=place, resident=how, tensorboard=False, **QUIET
        )
        for place, how in (("cpu", "ram"), ("cuda", resident))
    ]
    assert results[0].metrics["test"]["loss"] == pytest.approx(
        results[1].metrics["test"]["loss"], abs=1e-3
    )
    saved = runs.load_checkpoint(tmp_path / "cuda" / "last.pt")
    assert places(saved["state"]) == {"cpu"}


def test_rows_that_are_resident_there_are_given_out_there(cache):
    store = FeatureStore(
        cache["train"], ("nodes", "valid"), np.arange(8), "gpu", "cache", torch.device("cuda")
    )
    assert {str(t.device) for t in store.tensors.values()} == {"cuda:0"}
    tensors, _ = next(store.batches(np.array([3, 1]), 2))
    assert isinstance(tensors["nodes"], CudaTensor)


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"precision": "bf16"}, {}])
def test_a_run_that_was_stopped_goes_on_there_as_if_it_had_not(cache, options, tmp_path):
    asked = recipe_of("pool", {"dropout": 0.5}, optimiser="adam", ema=0.5, epochs=3)
    how = {"device": "cuda", "tensorboard": False, **QUIET, **options}
    train(asked, cache, tmp_path / "whole", **how)
    stop = Stop(1)
    with pytest.raises(KeyboardInterrupt):
        train(asked, cache, tmp_path / "parts", **{**how, "say": stop})
    train(asked, cache, tmp_path / "parts", **how)
    whole, parts = (
        runs.load_checkpoint(tmp_path / name / "last.pt")["state"] for name in ("whole", "parts")
    )
    assert all(whole[name].equal(parts[name]) for name in whole)


class Stop:
    """Interrupts after so many epochs."""

    def __init__(self, epochs: int):
        self.left = epochs

    def __call__(self, line: str) -> None:
        if "epoch" in line:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


def test_weighted_losses_two_optimisers_and_auxiliary_losses_work_there(cache, tmp_path):
    options = {"width": 16, "diversity": 0.1}
    training = {
        "alternate": {"parameters": "structure", "lr": 0.01},
        "losses": {"diversity": {"weight": 0.5}},
    }
    asked = recipe_of("gos", options, {"balance": "loss"}, epochs=1, **training)
    result = train(asked, cache, tmp_path, device="cuda", tensorboard=False, **QUIET)
    assert np.isfinite(result.metrics["test"]["loss"])


def test_teachers_teach_there(cache, tmp_path):
    module = {"width": 8, "offset_width": 4, "anchors": "grid"}
    phases = [
        {
            "name": name,
            "head": {"name": "dyreg", **module},
            "train": {"epochs": 1, "batch": 6, "lr": 0.01},
        }
        for name in ("one", "two")
    ]
    phases[1]["train"]["distil"] = {"teachers": ["one"], "until": 1.0}
    asked = recipe_from(
        {"name": "tiny", "source": "a test", "head": {"name": "dyreg", **module}, "phases": phases}
    )
    result = train(asked, cache, tmp_path, device="cuda", tensorboard=False, **QUIET)
    assert result.phase == "two"


def test_evaluation_and_pictures_work_after_training_there(cache, tmp_path):
    train(recipe_of(), cache, tmp_path / "run", device="cuda", tensorboard=False, **QUIET)
    figures = [
        evaluate(tmp_path / "run", cache, "test", device=place, **QUIET)
        for place in ("cpu", "cuda")
    ]
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], abs=1e-4)
    picture = tmp_path / "picture.png"
    shown = [
        "--cache",
        str(cache.path),
        "--run",
        str(tmp_path / "run"),
        "clip-20",
        "--out",
        str(picture),
    ]
    result = CliRunner().invoke(vidgraph, ["show", *shown])
    assert result.exit_code == 0, result.output + str(result.exception)
    assert picture.stat().st_size > 0


def test_a_study_shares_its_passes_there(cache, tmp_path):
    text = (
        'name = "tiny"\nseeds = [0, 1]\n[head]\nname = "strg"\n[train]\nepochs = 1\nbatch = 4\nlr '
        "= 0.1\n"
        '[grid]\nhead = ["strg", "pool", "roi_pool", "mean_lstm"]\n[subsets.all]\n[subsets.two]\n'
        'labels = ["class 0", "class 2"]\n'
    )
    (tmp_path / "study.toml").write_text(text)
    outcome = ablate(
        read_study(tmp_path / "study.toml"),
        cache,
        tmp_path / "runs",
        AblateOptions(device="cuda"),
        **QUIET,
    )
    assert not outcome.failed
    assert len(list(tmp_path.glob("runs/*/metrics.json"))) == 16


def test_a_checkpoint_that_was_written_there_opens_without_a_gpu(cache, tmp_path):
    train(
        recipe_of("pool", optimiser="adam"),
        cache,
        tmp_path,
        device="cuda",
        tensorboard=False,
        **QUIET,
    )
    saved = torch.load(tmp_path / "last.pt", weights_only=True)  # without map_location
    tensors = [
        t
        for one in saved["optimiser"]["state"].values()
        for t in one.values()
        if isinstance(t, torch.Tensor)
    ]
    assert {str(t.device) for t in (*saved["state"].values(), *tensors)} == {"cpu"}


def test_clips_that_come_back_are_there_at_once(cache):
    from heads.interface.clips import clips_of

    clips = clips_of(cache["train"].batch([0, 1], ("pooled",)))
    assert clips.to("cuda").to("cpu").pooled.equal(clips.pooled)


def test_a_phase_starts_there_from_the_one_before(cache, tmp_path):
    phases = [
        {"name": name, "train": {"epochs": 1, "batch": 6, "lr": 0.01}}
        for name in ("search", "discrete")
    ]
    phases[1] |= {"start": "previous", "head": {"mode": "discrete"}}
    head = {"name": "gos", "width": 8, "cells": 1}
    asked = recipe_from({"name": "tiny", "source": "a test", "head": head, "phases": phases})
    assert (
        train(asked, cache, tmp_path, device="cuda", tensorboard=False, **QUIET).phase == "discrete"
    )


def test_building_networks_leaves_the_gpus_random_numbers_alone(sources):
    torch.cuda.manual_seed(123)  # another seed than that of any network
    before = torch.cuda.get_rng_state()
    for source in ("digit_rpn", "torchvision"):
        FrozenNetworks(
            views_config(
                backbone="digit_cnn",
                keep=("nodes",),
                proposals=source,
                proposal_options=sources[source],
            )
        )
    assert torch.cuda.get_rng_state().equal(before)


def test_the_papers_digit_experiments_run_there(tmp_path, monkeypatch):
    from heads.reproduction import reproduce
    from heads.reproduction.experiments import reads_frames
    from heads.reproduction.tables import RSTG

    monkeypatch.setattr(reproduce, "STEPS", 2)
    work = reproduce.Reproduction(
        RSTG, RSTG.sizes[0], tmp_path, device="cuda", say=lambda line: None
    )
    frozen = next(row for row in RSTG.rows if not reads_frames(row, work.size))
    whole = next(row for row in RSTG.rows if reads_frames(row, work.size))
    found = reproduce.train_rows(work, RSTG.tasks[0], [frozen, whole], [0])
    assert [np.isfinite(result.metrics["test"]["loss"]) for result in found] == [True, True]


def test_env_names_the_gpu():
    result = CliRunner().invoke(vidgraph, ["env"])
    assert result.exit_code == 0, result.output + str(result.exception)
    assert torch.cuda.get_device_name() in result.output


# --- from videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Ten videos with boxes, splits and a cache that was made on the GPU."""
    folder = make_videos(tmp_path_factory.mktemp("videos"), len(SPLITS))
    rows = [(f"clip{k}", f"clip{k}.mp4", split, k % 2) for k, split in enumerate(SPLITS)]
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)
    extract_run(
        folder,
        folder / "cache",
        live_config(folder),
        RunOptions(device="cuda", workers=0, batch=4, shard_size=4),
    )
    build_graphs(folder / "cache", ("iou", "nearest"), device="cuda")
    return folder


def live_config(folder: Path):
    return config_of(
        folder,
        backbone="tsm_r18",
        backbone_options={"width": 8},
        keep=("pooled", "nodes", "res3.0"),
    )


def test_a_cache_that_was_made_there_says_so(videos):
    record = json.loads((videos / "cache" / "features" / "00000.json").read_text())
    assert record["device"] == torch.cuda.get_device_name()
    extract_run(videos, videos / "here", live_config(videos))
    here, there = Cache(videos / "here"), Cache(videos / "cache")
    assert here.fingerprint == there.fingerprint
    for name in ("pooled", "nodes", "res3.0"):
        assert np.allclose(
            here["train"].batch([0, 3])[name], there["train"].batch([0, 3])[name], atol=1e-3
        )


def test_a_plan_in_half_precision_is_measured_there(videos, tmp_path):
    config = replace(live_config(videos), precision="fp16")
    manifest = read_manifest(videos / "manifest.csv")
    plan = make_plan(
        config, manifest, tmp_path / "cache", RunOptions(device="cuda", workers=0, batch=2), clips=2
    )
    assert plan.device == torch.cuda.get_device_name()
    with pytest.raises(ValueError, match="fp16 on a CPU"):
        make_plan(config, manifest, tmp_path / "cache", RunOptions(workers=0, batch=2), clips=2)
    assert not list(tmp_path.iterdir())


# Reads a graph that is computed on the way.
GRAPH = {"regions": "nodes", "neighbours": "cached", "width": 8}


@pytest.mark.parametrize(
    ("head", "options", "checkpointing"),
    [
        ("roi_pool", {}, False),
        ("roi_pool", {}, True),
        ("strg", {}, False),
        ("gos_temp_conv", GRAPH, False),
    ],
)
def test_fine_tuning_there_starts_from_the_caches_logits(
    videos, head, options, checkpointing, tmp_path
):
    head = {"name": head, **options}
    phase = {"train": {"epochs": 1, "batch": 4, "lr": 0.01}, "name": "joint", "reads": "frames"}
    asked = recipe_from({"name": "tiny", "source": "a test", "head": head, "phases": [phase]})
    whole, chosen = frames_phase(asked, "", train_from="res3")
    lines: list[str] = []
    result = finetune(
        whole,
        tmp_path,
        chosen,
        cache=Cache(videos / "cache"),
        source_options=SourceOptions(workers=0),
        options=FrameRunOptions(
            tensorboard=False,
            checkpointing=checkpointing,
            precision="fp16" if checkpointing else "fp32",
        ),
        device="cuda",
        say=lines.append,
    )
    agree = "logits from the frames equal the cached ones"
    assert any(agree in line for line in lines) or checkpointing
    assert np.isfinite(result.metrics["test"]["loss"])


INSIDE = {"backbone": "tsm_r18", "backbone_options": {"width": 8}, "at": "res3.0"}


@pytest.mark.parametrize(("head", "options"), [("pool", {"dropout": 0.5}), ("rstg_map", INSIDE)])
def test_heads_learn_from_frames_there(head, options, tmp_path):
    asked = live_recipe(head, options, epochs=1)
    network = live_network(asked, width=8).to("cuda")
    source = OnGPU()
    options = FrameRunOptions(tensorboard=False)
    train_frames(asked, tmp_path, network, source, ("a", "b", "c"), options, **QUIET)
    saved = runs.load_checkpoint(tmp_path / "last.pt")
    assert places(saved["backbone"]) == {"cpu"}


def test_a_mini_batch_without_any_video_moves_nothing_in_half_precision(tmp_path):
    """No gradient, so nothing whose scale could be checked; a process among several may begin with
    one.
    """
    asked = live_recipe("pool", {"dropout": 0.0}, epochs=1)
    network = live_network(asked, width=8).to("cuda")
    options = FrameRunOptions(tensorboard=False, precision="fp16")
    gone = tuple(f"train{k}" for k in range(9))
    lines: list[str] = []
    train_frames(
        asked,
        tmp_path,
        network,
        OnGPU(clips=9, gone=gone[:8]),
        ("a", "b", "c"),
        options,
        say=lines.append,
    )
    assert sum("cannot be read" in line for line in lines) == 8
    assert runs.load_checkpoint(tmp_path / "last.pt")["progress"]["step"] == 3


class OnGPU(Videos):
    """As `Videos`, on the device, which is what a source promises."""

    def batches(self, split, batches, epoch):
        for pieces in super().batches(split, batches, epoch):
            yield [(clips.to("cuda"), at) for clips, at in pieces]


def test_the_demo_runs_there(tmp_path):
    result = run_demo(tmp_path / "out", "--device", "cuda", "--seeds", "1")
    assert result.exit_code == 0, result.output + str(result.exception)
    record = json.loads((tmp_path / "out" / "cache" / "features" / "00000.json").read_text())
    assert record["device"] == torch.cuda.get_device_name()
    metrics = json.loads((tmp_path / "out" / "runs" / "demo_strg-seed0" / "run.json").read_text())
    assert metrics["device"] == "cuda"
