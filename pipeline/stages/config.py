"""The options of stage one that change a stored value, and no others.

The device, the number of workers and the batch size are not here. They say how a run works, not
what it computes (`pipeline.stages.jobs.RunOptions`).
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pipeline.cache.fields import FIELDS, LABELS, field_of, is_cut
from pipeline.encoder_names import is_encoder, with_absolute_folder
from pipeline.plugins import without_file_name
from pipeline.video.orientation import PIXEL_ASPECTS
from pipeline.video.view_pixels import ClipOpener
from pipeline.views.sampling import Sampling

# The torch dtypes of these are in `pipeline.networks.precision`, which needs torch.
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DTYPES = ("float16", "float32")
POOLS = ("max", "mean", "area")
RESIZES = ("pil", "device")

# Options that are dictionaries: the keyword arguments of the named file's `build`.
NESTED = ("backbone_options", "proposal_options")

# Keys of the computed config that are there only where boxes are wanted.
OF_BOXES = ("proposals", "proposal_options", "roi_pool", "resize")
# Keys of the computed config that only the loaded networks know.
OF_LABELS = ("box_classes", "box_tracks")
OF_NETWORKS = ("backbone_version", *OF_LABELS)
# Options of a source of boxes that name a file, which counts by its content.
OF_FILES = ("weights", "file", "images")

# Fields that every shard has, so that `keep` need not name them.
ALWAYS_WRITTEN = ("frames", "crop", "flip", "time", "grid")

TEXTS = (
    *("backbone", "weights", "cut", "proposals", "roi_pool", "precision", "dtype"),
    *("decoder", "pixel_aspect", "frame_pattern", "resize"),
)
KINDS = dict.fromkeys(TEXTS, str) | {"keep": tuple, "seed": int}
KINDS |= {"allow_truncated": bool, "box_labels": bool}


@dataclass(frozen=True)
class ExtractConfig:
    """The options of stage one.

    Attributes:
        backbone: a module of `pipeline.backbones`, or an encoder (`pipeline.encoder_names`).
        backbone_options: keyword arguments of its `build`.
        weights: "none", "imagenet" ("pretrained" for an encoder), or the path of a checkpoint.
        cut: the last cut, whose map is pooled and aligned; "" is the backbone's last stage.
        keep: the fields to store: "pooled", "nodes" (which adds boxes), "boxes" (which adds
            "scores" and "valid"), maps by their cuts, such as "res5" or "res4.3", and "tokens", an
            encoder's class and register tokens.
        sampling: which frames and which crop each view has.
        proposals: a module of `pipeline.proposals`, the source of boxes.
        proposal_options: keyword arguments of its `build`.
        roi_pool: how RoIAlign's 7×7 values become one node: "max", "mean" or "area".
        precision: what the networks compute in: "fp32", "tf32", "bf16" or "fp16".
        dtype: what features are stored in: "float16" or "float32".
        seed: of the training views, and of a backbone without weights.
        decoder: the video library, such as "decord".
        allow_truncated: whether to accept videos with fewer frames than they promise.
        pixel_aspect: "displayed" gives pixels that are not square the width that a player shows;
            "stored" takes them as they are.
        frame_pattern: a glob for the pictures in a folder that are frames; "" where a folder
            holds one series.
        resize: who resizes whole frames for the source of boxes: "pil" in the decode workers, or
            "device", where the source computes. Their pixels differ by rounding.
        box_labels: whether classes, tracks and slots are stored where the source of boxes has
            them. Caches made before there were any go on without.

    Raises:
        ValueError: an option has a value or a type that it does not take.
    """

    backbone: str = "i3d_r50"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    weights: str = "none"
    cut: str = ""
    keep: tuple[str, ...] = ("pooled", "nodes", "boxes")
    sampling: Sampling = field(default_factory=Sampling)
    proposals: str = "torchvision"
    proposal_options: dict[str, Any] = field(default_factory=dict)
    roi_pool: str = "max"
    precision: str = "fp32"
    dtype: str = "float16"
    seed: int = 0
    decoder: str = "decord"
    allow_truncated: bool = False
    pixel_aspect: str = "displayed"
    frame_pattern: str = ""
    resize: str = "pil"
    box_labels: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            names = [name.strip() for name in self.keep.split(",")]
            object.__setattr__(self, "keep", tuple(name for name in names if name))

        # `type`, because True is an instance of int.
        for name, kind in KINDS.items():
            if type(getattr(self, name)) is not kind:
                raise ValueError(f"{name}: expected {kind.__name__}, got {getattr(self, name)!r}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed: expected a whole number of 64 bits, got {self.seed}")
        if not all(isinstance(name, str) for name in self.keep):
            raise ValueError(f"keep: expected names of fields, got {self.keep!r}")
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("roi_pool", self.roi_pool, POOLS)
        _one_of("pixel_aspect", self.pixel_aspect, PIXEL_ASPECTS)
        _one_of("resize", self.resize, RESIZES)

        if not self.keep:
            raise ValueError("keep: expected at least one field, such as pooled,nodes,boxes")
        for name in self.keep:
            # "grid.res4" is written where "grid" is.
            if name in LABELS:
                raise ValueError(
                    f"keep: {name} is stored with the boxes where their source has it; keep boxes, "
                    f"and leave {name} out"
                )
            if field_of(name).stage != "features" or name.split(".")[0] in ALWAYS_WRITTEN:
                raise ValueError(
                    f"keep: expected pooled, boxes, nodes or a cut such as res5, got {name}, "
                    f"which is always written, or made by `vidgraph graphs`; leave it out"
                )
        if self.cut and not is_cut(self.cut):
            raise ValueError(
                f"cut: expected a cut such as res5, res4.3 or reduced, got {self.cut!r}"
            )
        object.__setattr__(self, "keep", _with_companions(self.keep))

    @property
    def wants_boxes(self) -> bool:
        """Whether a source of boxes must run."""
        return "boxes" in self.keep

    @property
    def cuts(self) -> tuple[str, ...]:
        """The cuts whose maps are stored."""
        return tuple(filter(is_cut, self.keep))

    def computed(
        self,
        weights_sha256: str,
        proposal_sha256: str,
        backbone_version: int = 1,
        labels: Sequence[str] = (),
        box_classes: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return the config that the cache's fingerprint is made from.

        Files of weights and of plug-ins count by their content, not by their path.

        Args:
            weights_sha256: of the backbone's weights, "" without any.
            proposal_sha256: of the file of the source of boxes, "" without any.
            backbone_version: `Backbone.version`.
            labels: the fields of labels that are stored with the boxes.
            box_classes: the names of the boxes' classes.

        Returns:
            A dictionary that JSON can hold.
        """
        record = asdict(self)
        record["weights"] = weights_sha256 or "none"
        for key in ("backbone", "proposals"):
            record[key] = without_file_name(record[key])
        options = dict(record["proposal_options"])
        for key in OF_FILES:
            if key in options:
                options[key] = proposal_sha256 or options[key]
        record["proposal_options"] = options

        # These are younger than the first caches. Their defaults are left out, so that those
        # caches keep their fingerprints.
        if self.pixel_aspect == "displayed":
            record.pop("pixel_aspect")
        if not self.frame_pattern:
            record.pop("frame_pattern")
        if self.resize == "pil":
            record.pop("resize")
        record.pop("box_labels")
        if "box_class" in labels:
            record["box_classes"] = list(box_classes)
        if "track" in labels:
            record["box_tracks"] = True
        if self.sampling.stretch is None:
            record["sampling"].pop("stretch")
        if backbone_version > 1:
            record["backbone_version"] = backbone_version

        # Without boxes, no value depends on their source.
        if not self.wants_boxes:
            for key in OF_BOXES:
                record.pop(key, None)
        return record

    def as_asked(self) -> dict[str, Any]:
        """Return the config as `from_dict` takes it, with paths that hold in every folder."""
        record = asdict(self)
        options = {}
        for key, value in self.proposal_options.items():
            is_path = key == "file" or os.path.isfile(str(value))
            options[key] = os.path.abspath(value) if is_path else value
        record["proposal_options"] = options
        # An encoder's weights may be a folder.
        is_folder = os.path.isdir(self.weights) and is_encoder(self.backbone)
        if is_folder or os.path.isfile(self.weights):
            record["weights"] = os.path.abspath(self.weights)
        record["backbone"] = with_absolute_folder(self.backbone)
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "ExtractConfig":
        """Make a config from what `dataclasses.asdict` made of one.

        Args:
            record: option -> value; missing options have their defaults, but `box_labels`.

        Returns:
            The config.

        Raises:
            ValueError: a key is no option, or a value is not allowed.
        """
        # A record from before there were labels describes a cache without them.
        record = {"box_labels": False, **record}
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(record) - known)
        if unknown:
            raise ValueError(
                f"option {unknown[0]!r} of an extraction: expected one of "
                f"{', '.join(sorted(known))}"
            )
        sampling = Sampling.from_dict(record.pop("sampling", {}))
        if "keep" in record:
            record["keep"] = tuple(record["keep"])
        return cls(**record, sampling=sampling)


def with_settings(config: ExtractConfig, settings: dict[str, Any]) -> ExtractConfig:
    """Return a copy of a config with some options replaced.

    Args:
        config: the config.
        settings: dotted key -> value, such as "roi_pool", "sampling.fps" or
            "backbone_options.temporal".

    Returns:
        The new config.

    Raises:
        ValueError: a key is no option, or a value is not allowed.
    """
    for key, value in settings.items():
        try:
            config = _with_setting(config, key, value)
        except ValueError as error:
            raise ValueError(f"--set {key}: {error}") from None
    return config


def _with_setting(config: ExtractConfig, key: str, value: Any) -> ExtractConfig:
    """Return a copy of a config with one option replaced."""
    names = [f.name for f in fields(ExtractConfig)]
    option, _, rest = key.partition(".")
    if option == "sampling" and rest:
        sampling = Sampling.from_dict({**asdict(config.sampling), rest: value})
        return replace(config, sampling=sampling)
    if option in NESTED and rest:
        return replace(config, **{option: {**getattr(config, option), rest: value}})
    if option in names and option not in ("sampling", *NESTED) and not rest:
        if isinstance(value, list):
            value = tuple(value)
        return replace(config, **{option: value})
    raise ValueError(
        f"expected one of {', '.join(names)} (the nested ones as backbone_options.NAME=VALUE)"
    )


def _with_companions(keep: tuple[str, ...]) -> tuple[str, ...]:
    """Add what nodes and boxes mean nothing without: boxes, their scores, which are valid."""
    wanted = set(keep)
    if wanted & {"nodes", "boxes", "scores", "valid"}:
        wanted |= {"boxes", "scores", "valid"}
    ordered = [name for name in FIELDS if name in wanted]
    return tuple(ordered + sorted(wanted - set(ordered)))


def for_views(config: ExtractConfig, keep: tuple[str, ...], train: int, test: int) -> ExtractConfig:
    """Return a config for a part of a cache: other fields, and other numbers of views.

    Args:
        config: the config.
        keep: the fields.
        train: training views.
        test: test clips in time.
    """
    sampling = replace(config.sampling, train_views=train, test_clips=test)
    return replace(config, keep=keep, sampling=sampling)


def recorded_for_views(record: dict[str, Any], config: ExtractConfig) -> dict[str, Any]:
    """Return what `ExtractConfig.computed` gives for a part of a cache, without loading weights.

    Args:
        record: what it gives for the whole.
        config: the config of the part, from `for_views`.

    Returns:
        The record with the part's fields and numbers of views.
    """
    counts = {
        "train_views": config.sampling.train_views,
        "test_clips": config.sampling.test_clips,
    }
    record = {
        **record,
        "keep": list(config.keep),
        "sampling": {**record["sampling"], **counts},
    }
    if not config.wants_boxes:
        # A part without boxes loads no source of them, which knows classes and tracks.
        for key in (*OF_BOXES, *OF_LABELS):
            record.pop(key, None)
    return record


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def clip_opener(root: Path, config: ExtractConfig) -> ClipOpener:
    """Return what opens the files of an extraction.

    Args:
        root: the folder that no clip may leave.
        config: its options of decoding.

    Returns:
        The opener.
    """
    return ClipOpener(
        root,
        config.decoder,
        config.allow_truncated,
        config.pixel_aspect,
        config.frame_pattern,
        config.sampling.source_fps,
    )
