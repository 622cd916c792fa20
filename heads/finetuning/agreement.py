"""Check, before fine-tuning starts, that frames and cache give a head the same logits."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from heads.data.splits import SplitViews
from heads.finetuning.joint_network import JointNetwork
from heads.interface.clips import Clips, clips_of
from pipeline.text.counted import agree, counted

if TYPE_CHECKING:
    from heads.finetuning.video_views import VideoViews
    from pipeline.cache.reader import Cache

# How many views are compared.
VIEWS = 4

# The largest difference that rounding explains, relative to the largest value. It depends on the
# dtype that the cache stores and on the precision that the extraction computed with.
STORED_TOLERANCE = {"float32": 1e-3, "float16": 1e-2}
COMPUTED_TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 2e-2, "bf16": 1e-1}
CUDA_TOLERANCE = 1e-2


@torch.no_grad()
def check_agreement(
    network: JointNetwork, cache: "Cache", source: "VideoViews", part: SplitViews
) -> str:
    """Compare what a network computes from frames with what its head computes from the cache.

    Args:
        network: the network, on its device; it is left in evaluation mode.
        cache: the cache.
        source: decodes the cache's views.
        part: the split whose views are compared, a few of them.

    Returns:
        The outcome, in words.

    Raises:
        ValueError: a field or the logits differ by more than rounding explains, or a clip
            cannot be decoded. The message names the likely cause.
    """
    # A few rows from all over the split.
    rows = part.all_rows()[0]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, VIEWS).astype(int))]
    network.eval()
    device = next(network.parameters()).device
    tolerance = max(
        STORED_TOLERANCE[cache.config["dtype"]],
        COMPUTED_TOLERANCE[cache.config["precision"]],
        CUDA_TOLERANCE if device.type == "cuda" else 0,
    )

    clips, positions = _decode(cache, source, part, rows)
    stored = cache["train"].fields
    # A head may need a cut that the cache does not keep.
    fields = tuple([name for name in network.head.needs if name in stored])
    cached = clips_of(part.group.batch(rows[positions], fields=fields)).to(device)
    computed = network.fields(clips)
    for name in fields:
        values = computed.get(name)
        # Rounding can change an index, such as that of the nearest node, as a whole.
        if not values.is_floating_point():
            continue
        difference = _relative_difference(values, cached.get(name))
        if difference > tolerance:
            raise ValueError(
                f"{name} computed from the frames differ from those of {cache.path} by "
                f"{difference:.2g} of the largest (rounding explains {tolerance:g}): the videos or "
                "the decoder are not those of the extraction; --no-check skips this comparison"
            )

    missing = [name for name in network.head.needs if name not in fields]
    if missing and not fields:
        names = ", ".join(missing)
        return f"{cache.path} holds nothing that the head reads ({names}): nothing to compare with"
    if missing:
        return (
            f"{', '.join(fields)} computed from the frames equal the cached ones; "
            f"{', '.join(missing)} are not in the cache, so logits are not compared"
        )

    difference = _relative_difference(network(clips).logits, network.head(cached).logits)
    if difference > tolerance:
        raise ValueError(
            f"logits from the frames differ from those of {cache.path} by {difference:.2g} of the "
            f"largest (rounding explains {tolerance:g}), though what the head reads is equal: the "
            "head makes a hard choice (e.g. nearest node) that rounding can flip; --no-check skips "
            "this comparison"
        )
    return (
        f"logits from the frames equal the cached ones: {counted(len(rows), 'view')} "
        f"{agree(len(rows), 'differs', 'differ')} by at most {difference:.1e} of the largest"
    )


def _decode(
    cache: "Cache", source: "VideoViews", part: SplitViews, rows: np.ndarray
) -> tuple[Clips, np.ndarray]:
    """The first piece of the views, with positions in `rows`; ValueError unless all decode."""
    pieces = next(iter(source.views(part, [rows], None)))
    decoded: set[int] = set()
    for _, positions in pieces:
        decoded.update(positions.tolist())
    if len(decoded) < len(rows):
        lost = sorted([part.group.clips[rows[k]] for k in set(range(len(rows))) - decoded])
        raise ValueError(
            f"{cache.path}: clip {lost[0]} cannot be decoded now; pass --root with the videos of "
            "the extraction"
        )
    return pieces[0]


def _relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference, relative to the largest absolute value of `b`."""
    difference = (a.float() - b.float()).abs().max()
    return float(difference / b.float().abs().max().clamp(min=1e-12))
