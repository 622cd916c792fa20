"""STIN: what happens, from boxes and identities alone.

Materzynska et al., Something-Else: Compositional Action Recognition with Spatial-Temporal
Interaction Networks, CVPR 2020.

    x_i^t = F [MLP(cx, cy, w, h), E class], or MLP(cx, cy, w, h)                      [B,S,T,D]
    f(x_i^t) = ReLU(W_f [x_i^t, 1/(S-1) sum of x_j^t over j != i])                    [B,S,T,D]
    g_i = MLP [f(x_i^1), .., f(x_i^T)]                                                [B,S,D]
    h = mean of g_i over i, behind non-local blocks for +NL                           [B,D]
    y = W_p drop(h) + b, or W_p drop [W_a mean of `pooled` over t, h] + b             [B,K]

S objects have slots: slot i is one object at every step (heads/papers/stin/objects.py). An object
that is absent at a step is a box of zeros without a class; it speaks and counts, as in the paper.
With absent="left_out", which is ours, it does neither, and is no part of a layer norm's mean and
variance. In training, batch norms alone still see it: a batch has few enough boxes as it is.
The paper's rows: STIN is classes="none", +OIE has classes, +NL has non_local=3, I3D + STIN has
appearance="pooled".

The release differs (variant="released"): f has two layers, y is an MLP of three. In training it
holds the batch norms of +NL at their start: that is norm="none".
Beside the I3D it also reads W_a's T means of 512 channels as T rows of 512, which mixes channels
with steps: taken for an oversight, and not done here.

Differs from the paper: the network that makes `pooled` is fixed. That makes a convolution before
the means, as in the release, the same as our W_a behind them. Not stated in the paper, and as in
the release: batch norms, F, the MLPs' sizes and the non-local block's form.
"""

import torch
from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import masked_mean
from heads.interface.variants import at_least, one_of, resolve
from heads.papers.stin.interaction import NORMS, BoxFeatures, NonLocal, layers, messages
from heads.papers.stin.objects import objects_of

VARIANTS = {
    "paper": {"interaction": "one", "classifier": "linear"},
    "released": {"interaction": "two", "classifier": "mlp"},
}
LAYERS = {"one": 1, "two": 2}
CLASSES = ("boxes", "none")
SLOTS = ("track", "row")
APPEARANCE = ("none", "pooled")
ABSENT = ("null", "left_out")
LAST_HIDDEN = 512  # of the release's classifier


class STIN(nn.Module):
    """Objects of a view, their interaction in space and time, and the classifier.

    Args:
        steps: T.
        slots: S.
        width: D.
        kinds: classes of boxes; 0: none are read.
        appearance: (channels of `pooled`, width of what it becomes); None: it is not read.
        num_classes: K.
        interaction: the layers of f.
        classifier: "linear" or "mlp".
        non_local: the number of blocks.
        by_track: whether slots are tracks, not rows.
        absent_counts: whether absent objects speak and count.
        norm: of `heads.papers.stin.interaction.NORMS`.
        dropout: before the classifier.
    """

    def __init__(
        self,
        steps: int,
        slots: int,
        width: int,
        kinds: int,
        appearance: tuple[int, int] | None,
        num_classes: int,
        *,
        interaction: int,
        classifier: str,
        non_local: int,
        by_track: bool,
        absent_counts: bool,
        norm: str,
        dropout: float,
    ):
        super().__init__()
        self.steps, self.slots, self.absent_counts = steps, slots, absent_counts
        self.box = BoxFeatures(width, kinds, norm)
        self.space = layers(norm, 2 * width, *(width,) * interaction)
        self.time = layers(norm, steps * width, width, width)
        self.non_local = nn.ModuleList([NonLocal(width, norm) for _ in range(non_local)])
        self.seen = nn.Linear(*appearance) if appearance else None
        self.drop = nn.Dropout(dropout)
        total = width + (appearance[1] if appearance else 0)
        if classifier == "linear":
            self.fc: nn.Module = nn.Linear(total, num_classes)
        else:
            self.fc = nn.Sequential(
                nn.Linear(total, width),
                nn.ReLU(),
                nn.Linear(width, LAST_HIDDEN),
                nn.ReLU(),
                nn.Linear(LAST_HIDDEN, num_classes),
            )

        self.needs: tuple[str, ...] = ("boxes", "valid")
        if kinds:
            self.needs += ("box_class",)
        if by_track:
            self.needs += ("track",)
        if appearance:
            self.needs += ("pooled",)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the fields of `needs`.
            want_maps: ignored, there are no maps.

        Returns:
            logits [B,K].

        Raises:
            ValueError: views of another number of steps.
        """
        boxes = clips.get("boxes")
        if boxes.shape[1] != self.steps:
            raise ValueError(
                f"head stin: its weights are for views of {self.steps} steps, got "
                f"{boxes.shape[1]}; evaluate views of the length that it was trained on"
            )
        track, kind = (
            clips.get(name) if name in self.needs else None for name in ("track", "box_class")
        )
        objects = objects_of(boxes, clips.get("valid"), track, kind, self.slots)
        present = None if self.absent_counts else objects.present

        x = self.box(objects)  # [B,S,T,D]
        x = self.space(torch.cat([x, messages(x, present)], -1))
        if present is not None:
            x = x.masked_fill(~present[..., None], 0)
        x = self.time(x.flatten(2))  # [B,S,D]

        ever = None if present is None else present.any(2)  # [B,S]
        for block in self.non_local:
            x = block(x, ever)
        h = x.mean(1) if ever is None else masked_mean(x, ever)
        if self.seen is not None:
            h = torch.cat([self.seen(clips.get("pooled").mean(1)), h], -1)
        return HeadOutput(self.fc(self.drop(h)))


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    classes: str = "boxes",
    non_local: int = 0,
    appearance: str = "none",
    slots: str = "track",
    objects: int = 0,
    absent: str = "null",
    width: int = 256,
    image_width: int = 512,
    interaction: str = "",
    classifier: str = "",
    norm: str = "batch",
    dropout: float = 0.0,
) -> STIN:
    """Build STIN: Materzynska et al., CVPR 2020.

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released"; decides what is "".
        classes: "boxes" reads `box_class` (the paper's +OIE), "none" does not.
        non_local: blocks between objects (the paper's +NL has 3).
        appearance: "pooled" reads the pooled features too (the paper's I3D + STIN); "none".
        slots: what is one object: boxes with the same number in `track`, or the same "row".
        objects: S, slots of a view; 0 is the number of boxes of a step. The release has 4.
        absent: what an object is at a step without it: "null", a box of zeros that speaks and
            counts (the paper), or "left_out".
        width: D. The release's command has 256.
        image_width: of what pooled features become (512).
        interaction: layers of f, "one" (the paper) or "two" (the release).
        classifier: "linear" (the paper) or "mlp" (the release).
        norm: behind every linear layer, "batch" or "none". Not stated in the paper.
        dropout: before the classifier. Not stated in the paper; the release has none.

    Returns:
        The head with fresh weights. It takes views of `dims.T` steps only.

    Raises:
        ValueError: an unknown value, or a size that is too small.
        MissingFields: the cache lacks what the head reads.
    """
    chosen = resolve(
        "stin", VARIANTS, variant, {"interaction": interaction, "classifier": classifier}
    )
    one_of("stin", "classes", classes, CLASSES)
    one_of("stin", "appearance", appearance, APPEARANCE)
    one_of("stin", "slots", slots, SLOTS)
    one_of("stin", "absent", absent, ABSENT)
    one_of("stin", "norm", norm, NORMS)
    at_least("stin", 2, width=width)
    at_least("stin", 1, image_width=image_width)
    at_least("stin", 0, non_local=non_local, objects=objects)

    needs = ["boxes", "valid"]
    if classes == "boxes":
        needs.append("box_class")
    if slots == "track":
        needs.append("track")
    if appearance == "pooled":
        needs.append("pooled")
    dims.require("stin", *needs)
    return STIN(
        dims.T,
        objects or dims.N,
        width,
        dims.box_classes if classes == "boxes" else 0,
        (dims.C, image_width) if appearance == "pooled" else None,
        num_classes,
        interaction=LAYERS[chosen["interaction"]],
        classifier=chosen["classifier"],
        non_local=non_local,
        by_track=slots == "track",
        absent_counts=absent == "null",
        norm=norm,
        dropout=dropout,
    )
