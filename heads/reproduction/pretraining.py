"""Pre-training of a digit network on single digits, before it is frozen (RSTG sec. 5; its recipe is
in no source, spec 10).

The classifier looks at the maximum over places, so that the network learns features of a digit
wherever it is, the ones that RoIAlign with max pooling will read out of a frame with several.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.runs.run_files import write_atomically
from heads.training.learner import INIT, reseed
from pipeline.backbones import Backbone, build_backbone
from pipeline.digits import Images, single_digits
from pipeline.networks.memory_format import lay_out

CLASSES = 10
CHECKED = 500  # validation pictures
CHECK_EVERY = 25  # steps


@dataclass(frozen=True)
class Pretraining:
    """How the digit network is pre-trained: `backbone` of `width` with these `options`; digits of
    `tile` × `tile` pixels at random places of frames of `canvas` pixels (`train_canvas` while it
    learns: a smaller frame is cheaper and teaches the same, since the network is convolutional and
    the classifier takes a maximum); Adam, its rate rising to `lr` and falling to 0 in one cycle of
    `steps`, ended as soon as the validation accuracy reaches `target`.
    """

    backbone: str = "digit_cnn"
    width: int = 64
    options: Mapping[str, object] = field(default_factory=lambda: {"pixels": "unit"})
    tile: int = 16
    canvas: int = 64
    train_canvas: int = 40
    steps: int = 300
    batch: int = 32
    lr: float = 4e-3
    target: float = 0.98


@dataclass(frozen=True)
class Pretrained:
    """The checkpoint's path, the validation accuracy in [0,1] at its step, and how long it took."""

    path: Path
    accuracy: float
    steps: int
    seconds: float


def pretrain(
    path: str | Path,
    images: Mapping[str, Images],
    how: Pretraining | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Pretrained:
    """Trains the backbone to tell ten digits apart, on the split train of `images`, until the split
    val says it can.

    Writes the backbone's state dict to `path`, for build_backbone(BACKBONE, weights=path, width=…,
    …). A result below the target is still written, and said. ValueError for digits that do not fit
    the canvas.
    """
    how, begun = how or Pretraining(), time.monotonic()
    tiles = {split: images[split].resized(how.tile) for split in ("train", "val")}
    device = torch.device("cpu")
    reseed(device, seed, INIT)
    backbone = lay_out(build_backbone(how.backbone, width=how.width, **how.options), device)
    for module in backbone.modules():
        if (
            isinstance(module, nn.Conv3d) and module.bias is not None
        ):  # PyTorch's default, a gain of 1/3, takes twice the steps
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    classifier = nn.Linear(backbone.channels(), CLASSES)
    optimiser = torch.optim.Adam([*backbone.parameters(), *classifier.parameters()], how.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, how.lr, total_steps=how.steps)
    rng = np.random.default_rng([seed, 1])
    checked = single_digits(tiles["val"], CHECKED, how.canvas, np.random.default_rng([seed, 2]))
    accuracy, step = 0.0, 0
    while step < how.steps and accuracy < how.target:
        frames, classes = single_digits(tiles["train"], how.batch, how.train_canvas, rng)
        loss = F.cross_entropy(classifier(_features(backbone, frames)), torch.from_numpy(classes))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        step += 1
        if step % CHECK_EVERY == 0 or step == how.steps:
            accuracy = _accuracy(backbone, classifier, *checked)
            say(
                f"step {step}: loss {loss.item():.3f}, {100 * accuracy:.1f} % of {CHECKED} "
                f"validation digits right"
            )
    if accuracy < how.target:
        say(
            f"the digit network reached {100 * accuracy:.1f} %, not the {100 * how.target:.0f} % "
            f"aimed at, in {step} steps"
        )
    write_atomically(Path(path), lambda file: torch.save(backbone.state_dict(), file))
    return Pretrained(Path(path), accuracy, step, time.monotonic() - begun)


def _features(backbone: Backbone, frames: np.ndarray) -> Tensor:
    """frames uint8 [B,S,S,3] -> [B,C], the maximum of the last map over places."""
    return backbone(backbone.prepare(torch.from_numpy(frames)[:, None])).amax((2, 3, 4))


@torch.inference_mode()
def _accuracy(
    backbone: Backbone, classifier: nn.Module, frames: np.ndarray, classes: np.ndarray
) -> float:
    backbone.eval()
    right = [
        (
            classifier(_features(backbone, frames[k : k + 100])).argmax(1).numpy()
            == classes[k : k + 100]
        ).sum()
        for k in range(0, len(frames), 100)
    ]
    backbone.train()
    return float(sum(right) / len(frames))
