"""Whether a network gives from the frames what its head gives from the cache: asked once, before
fine-tuning starts.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from heads.data.splits import SplitViews
from heads.finetuning.joint_network import JointNetwork
from heads.interface.clips import clips_of

if TYPE_CHECKING:
    from heads.finetuning.video_views import VideoViews
    from pipeline.cache.reader import Cache

CHECKED = 4  # views whose logits are compared
# The largest difference that rounding explains, as a share of the largest value: what is stored,
# and what computed it.
STORED = {"float32": 1e-3, "float16": 1e-2}
COMPUTED = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}


@torch.no_grad()
def compare(network: JointNetwork, cache: "Cache", source: "VideoViews", part: SplitViews) -> str:
    """Compares what `network` makes of some training views from their frames with what its head
    makes of the cache, in words.

    ValueError if they differ by more than rounding explains, with what differs and the likely
    cause.
    """
    rows = part.all_rows()[0]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, CHECKED).astype(int))]
    network.eval()
    device = next(network.parameters()).device
    limit = max(
        STORED[cache.config["dtype"]],
        COMPUTED[cache.config["precision"]],
        1e-2 if device.type == "cuda" else 0,
    )
    pieces = next(iter(source.views(part, [rows], None)))
    places = np.concatenate([at for _, at in pieces]) if pieces else []
    if len(places) < len(rows):
        lost = sorted(
            {part.group.clips[rows[k]] for k in set(range(len(rows))) - set(map(int, places))}
        )
        raise ValueError(
            f"{cache.path}: clip {lost[0]} cannot be decoded now; pass --root with the videos of "
            f"the extraction"
        )
    clips, at = pieces[0]
    own = _own_fields(network.head, cache["train"].fields)
    cached = clips_of(part.group.batch(rows[at], fields=own)).to(device)
    live = network.fields(clips)
    for name in own:
        here, there = live.get(name), cached.get(name)
        if here.is_floating_point() and (found := _apart(here, there)) > limit:
            raise ValueError(
                f"the live {name} differ from those of {cache.path} by {found:.2g} of the largest "
                f"(rounding explains "
                f"{limit:g}): the videos or the decoder are not those of the extraction; "
                f"--no-check trains all the same"
            )
    if missing := [name for name in network.head.needs if name not in own]:
        if not own:
            return f"{cache.path} holds nothing that the head reads ({', '.join(missing)}): nothing to compare with"
        lacking = f"{', '.join(missing)} are not in the cache, so logits are not compared"
        return f"live {', '.join(own)} equal the cached ones; {lacking}"
    found = _apart(network(clips).logits, network.head(cached).logits)
    if found > limit:
        raise ValueError(
            f"the live logits differ from those of {cache.path} by {found:.2g} of the largest "
            f"(rounding explains "
            f"{limit:g}), though what the head reads is equal: a choice in it, such as a nearest "
            f"node, may hinge on "
            "rounding; --no-check trains all the same"
        )
    return f"live logits equal the cached ones: {len(rows)} views differ by at most {found:.1e} of the largest"


def _own_fields(head: nn.Module, there: tuple[str, ...]) -> tuple[str, ...]:
    """What the head needs and the cache has."""
    return tuple(name for name in head.needs if name in there)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float(
        (one.float() - other.float()).abs().max() / other.float().abs().max().clamp(min=1e-12)
    )
