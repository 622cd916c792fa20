"""Train a digit network on single digits, before it is frozen.

RSTG (sec. 3.1) trains its network so too, but no source gives the recipe: it is our choice. The
classifier takes the maximum over positions. So the network learns features of a digit wherever it
is. RoIAlign with max pooling later reads these features from a frame with several digits.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.interface.random_streams import INIT, reseed
from heads.runs.run_files import write_atomically
from pipeline.backbones import Backbone, build_backbone
from pipeline.digits.images import Images, single_digits
from pipeline.networks.memory_format import lay_out

CLASSES = 10
# Pictures on which the accuracy is measured, and how many at a time.
CHECKED, CHECK_BATCH = 500, 100
# Steps between two measurements.
CHECK_EVERY = 25


@dataclass(frozen=True)
class Pretraining:
    """How the digit network is trained.

    Adam's learning rate rises to `lr` and falls to 0 in one cycle. Training ends early when the
    validation accuracy reaches `target`.

    Attributes:
        backbone: name of the network.
        width: its width.
        options: its other options.
        tile: side of a digit, in pixels.
        canvas: side of a validation picture, in pixels.
        train_canvas: side of a training picture. A smaller one is cheaper and teaches the same,
            because the network is convolutional and the classifier takes a maximum.
        steps: steps at most.
        batch: pictures per step.
        lr: highest learning rate.
        target: validation accuracy in [0,1].
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
    """A trained digit network.

    Attributes:
        path: its checkpoint.
        accuracy: on the validation pictures after the last step, in [0,1].
        steps: steps taken.
        seconds: how long training took.
    """

    path: Path
    accuracy: float
    steps: int
    seconds: float


def pretrain(
    path: str | Path,
    images: Mapping[str, Images],
    options: Pretraining | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Pretrained:
    """Train a backbone to tell ten digits apart, and write its state dict.

    `build_backbone` loads the file with the same name, width and options. A network that misses
    the target is written, too, with a message.

    Args:
        path: where to write.
        images: the images of the splits train and val.
        options: how to train; default `Pretraining()`.
        seed: of weights and pictures.
        say: prints a line.

    Returns:
        The path, the accuracy and the cost.

    Raises:
        ValueError: the digits do not fit the canvas.
    """
    options = options or Pretraining()
    started = time.monotonic()
    train_digits = images["train"].resized(options.tile)
    val_digits = images["val"].resized(options.tile)

    device = torch.device("cpu")
    reseed(device, seed, INIT)
    network = build_backbone(options.backbone, width=options.width, **options.options)
    backbone = lay_out(network, device)
    initialise(backbone)
    classifier = nn.Linear(backbone.channels(), CLASSES)
    optimiser = torch.optim.Adam([*backbone.parameters(), *classifier.parameters()], options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.lr, total_steps=options.steps)

    # Two streams, so that neither set of pictures depends on how many the other one draws.
    rng = np.random.default_rng([seed, 1])
    val_rng = np.random.default_rng([seed, 2])
    val_pictures = single_digits(val_digits, CHECKED, options.canvas, val_rng)
    accuracy, step = 0.0, 0
    while step < options.steps and accuracy < options.target:
        frames, classes = single_digits(train_digits, options.batch, options.train_canvas, rng)
        loss = F.cross_entropy(classifier(_features(backbone, frames)), torch.from_numpy(classes))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        step += 1
        if step % CHECK_EVERY == 0 or step == options.steps:
            accuracy = _accuracy(backbone, classifier, *val_pictures)
            say(
                f"step {step}: loss {loss.item():.3f}, {100 * accuracy:.1f} % of {CHECKED} "
                "validation digits right"
            )

    if accuracy < options.target:
        say(
            f"the digit network reached {100 * accuracy:.1f} % in {step} steps; the target is "
            f"{100 * options.target:.0f} %"
        )
    write_atomically(Path(path), lambda file: torch.save(backbone.state_dict(), file))
    return Pretrained(Path(path), accuracy, step, time.monotonic() - started)


def initialise(backbone: Backbone) -> None:
    """Set the convolutions with a bias to He's initialisation.

    PyTorch's default, with a gain of 1/3, needs twice the steps.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Conv3d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


def _features(backbone: Backbone, frames: np.ndarray) -> Tensor:
    """Return the maximum of the last map over positions: uint8 [B,S,S,3] -> [B,C]."""
    # uint8 [B,1,S,S,3] -> [B,C,1,h,w] -> [B,C]
    return backbone(backbone.prepare(torch.from_numpy(frames)[:, None])).amax((2, 3, 4))


@torch.inference_mode()
def _accuracy(
    backbone: Backbone, classifier: nn.Module, frames: np.ndarray, classes: np.ndarray
) -> float:
    backbone.eval()
    right = 0
    for first in range(0, len(frames), CHECK_BATCH):
        batch = slice(first, first + CHECK_BATCH)
        predicted = classifier(_features(backbone, frames[batch])).argmax(1).numpy()
        right += (predicted == classes[batch]).sum()
    backbone.train()
    return float(right / len(frames))
