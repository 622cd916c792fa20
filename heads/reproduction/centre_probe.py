"""A linear probe: how far from the digits' centres a linear layer on frozen maps is.

    c = W flatten(x) + b       x [C,h,w], c the centre of the digit of one class, in pixels

It tells in a minute whether maps say where digits are. A graph cannot use what it does not find.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Weight of the squared norm of W, as a fraction of the features' mean variance.
RIDGE = 1e-3


@dataclass(frozen=True)
class ProbeResult:
    """Mean distances to the digits' centres over the test frames, in pixels.

    Attributes:
        features: of the linear layer on the features.
        guess: of the class's mean centre, which sees nothing.
    """

    features: float
    guess: float


def probe_centres(
    train: tuple[Tensor, Tensor, Tensor], test: tuple[Tensor, Tensor, Tensor], count: int
) -> ProbeResult:
    """Fit the linear layer of every class by least squares, and measure it on other frames.

    Args:
        train: features [B,D] of frames, centres [B,n,2] in pixels and classes int64 [B,n] of
            their digits. No class occurs twice in a frame.
        test: the same for other frames.
        count: K, the number of classes.

    Raises:
        ValueError: there are fewer training frames of a class than features, so that the layer
            could learn them by heart; or a class is missing among the test frames.
    """
    errors, guesses = [], []
    for number in range(count):
        x, c = _frames_of(number, *train)
        seen_x, seen_c = _frames_of(number, *test)
        if len(x) <= x.shape[1] or not len(seen_x):
            raise ValueError(
                f"probe of class {number}: expected more than {x.shape[1]} training frames and at "
                f"least one test frame, got {len(x)} and {len(seen_x)}"
            )
        # Without the means, the ridge leaves b alone.
        mean_x, mean_c = x.mean(0), c.mean(0)
        gram = (x - mean_x).mT @ (x - mean_x)
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        weights = torch.linalg.solve(gram, (x - mean_x).mT @ (c - mean_c))
        errors.append(((seen_x - mean_x) @ weights + mean_c - seen_c).norm(dim=-1))
        guesses.append((mean_c - seen_c).norm(dim=-1))
    return ProbeResult(torch.cat(errors).mean().item(), torch.cat(guesses).mean().item())


def _frames_of(
    number: int, features: Tensor, centres: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return features [b,D] and centres [b,2] of the frames that have a class, in float64."""
    frame, digit = torch.nonzero(classes == number, as_tuple=True)
    return features[frame].double(), centres[frame, digit].double()
