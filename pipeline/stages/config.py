"""What an extraction computes: every option that changes a stored value, and nothing else.

The device, the number of workers, and the batch size are not here: they are how a run does it, not
what it computes.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pipeline.cache.fields import FIELDS, field_of, is_cut
from pipeline.plugins import without_file_name
from pipeline.video.orientation import PIXEL_ASPECTS
from pipeline.video.view_pixels import ClipOpener
from pipeline.views.sampling import Sampling

PRECISIONS = (
    "fp32",
    "bf16",
    "fp16",
)  # their dtypes: `pipeline.networks.precision`, which needs torch
DTYPES = ("float16", "float32")
POOLS = ("max", "mean", "area")
NESTED = ("backbone_options", "proposal_options")  # of the named file's build()

TEXTS = (
    *("backbone", "weights", "cut", "proposals", "roi_pool", "precision", "dtype"),
    *("decoder", "pixel_aspect", "frame_pattern"),
)
KINDS = dict.fromkeys(TEXTS, str) | {"keep": tuple, "seed": int, "allow_truncated": bool}


@dataclass(frozen=True)
class ExtractConfig:
    """The options of stage one. ValueError for a value outside what it names.

    `keep` names the fields to store: any of `pooled`, `boxes` (with `scores` and `valid`), `nodes`
    (which brings `boxes`), and maps by their cut (`res5`, `res4.3`). `cut` is the last cut, whose
    map is pooled and aligned ("": the backbone's last stage). `weights` is `none`, `imagenet` or a
    checkpoint's path; `backbone_options` and `proposal_options` are the keyword arguments of the
    named file's build(). `pixel_aspect`: pixels that are not square get the width that a player
    gives them (displayed), or are taken as they are (stored). `frame_pattern` is a glob of the
    pictures that are frames, "" where a folder holds one series.
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

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            object.__setattr__(
                self, "keep", tuple(filter(None, (name.strip() for name in self.keep.split(","))))
            )
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
        if not self.keep:
            raise ValueError("keep: expected at least one field, such as pooled,nodes,boxes")
        for name in self.keep:
            row = field_of(name)
            if row.stage != "features" or row.name.split(".")[0] in (
                "frames",
                "crop",
                "flip",
                "grid",
            ):
                raise ValueError(
                    f"keep: expected pooled, boxes, nodes or a cut such as res5, got {name}, "
                    f"which is always written, or "
                    "made by `vidgraph graphs`; leave it out"
                )
        if self.cut and not is_cut(self.cut):
            raise ValueError(
                f"cut: expected a cut such as res5, res4.3 or reduced, got {self.cut!r}"
            )
        object.__setattr__(self, "keep", _with_companions(self.keep))

    @property
    def wants_boxes(self) -> bool:
        """Whether a source of boxes has to run."""
        return "boxes" in self.keep

    @property
    def cuts(self) -> tuple[str, ...]:
        """The cuts whose maps are stored."""
        return tuple(name for name in self.keep if is_cut(name))

    def computed(self, weights_sha256: str, proposal_sha256: str) -> dict[str, Any]:
        """The configuration as the cache's fingerprint sees it: a file of weights, or of a plug-in,
        counts by what is in it, not by its path.
        """
        record = asdict(self)
        record["weights"] = weights_sha256 or "none"
        for key in ("backbone", "proposals"):
            record[key] = without_file_name(record[key])
        options = dict(record["proposal_options"])
        for key in ("weights", "file"):
            if key in options:
                options[key] = proposal_sha256 or options[key]
        record["proposal_options"] = options
        if (
            self.pixel_aspect == "displayed"
        ):  # as it is for square pixels, of which caches are older than this option
            record.pop("pixel_aspect")
        if not self.frame_pattern:  # so that caches of versions without this option stay the same
            record.pop("frame_pattern")
        if not self.wants_boxes:  # nothing of the source of boxes reaches the disk
            for key in ("proposals", "proposal_options", "roi_pool"):
                record.pop(key)
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "ExtractConfig":
        """The inverse of dataclasses.asdict; ValueError names a key that is no option."""
        record = dict(record)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(record) - known):
            raise ValueError(
                f"option {unknown[0]!r} of an extraction: expected one of "
                f"{', '.join(sorted(known))}"
            )
        sampling = Sampling.from_dict(record.pop("sampling", {}))
        if "keep" in record:
            record["keep"] = tuple(record["keep"])
        return cls(**record, sampling=sampling)


def with_settings(config: ExtractConfig, settings: dict[str, Any]) -> ExtractConfig:
    """A copy of `config` with dotted keys replaced (`sampling.fps`, `backbone_options.temporal`,
    `roi_pool`).
    """
    for key, value in settings.items():
        head, _, rest = key.partition(".")
        if head == "sampling" and rest:
            config = replace(
                config, sampling=Sampling.from_dict({**asdict(config.sampling), rest: value})
            )
        elif head in NESTED and rest:
            config = replace(config, **{head: {**getattr(config, head), rest: value}})
        elif head in {f.name for f in fields(ExtractConfig)} - {"sampling", *NESTED} and not rest:
            config = replace(config, **{head: tuple(value) if isinstance(value, list) else value})
        else:
            known = ", ".join(f.name for f in fields(ExtractConfig))
            raise ValueError(
                f"--set {key}: expected one of {known} (the nested ones as "
                f"backbone_options.NAME=VALUE)"
            )
    return config


def _with_companions(keep: tuple[str, ...]) -> tuple[str, ...]:
    """Nodes mean nothing without their boxes, nor boxes without their scores and which of them are
    real.
    """
    wanted = set(keep)
    if wanted & {"nodes", "boxes", "scores", "valid"}:
        wanted |= {"boxes", "scores", "valid"}
    ordered = [name for name in FIELDS if name in wanted]
    return tuple(ordered + sorted(wanted - set(ordered)))


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def clip_opener(root: Path, config: ExtractConfig) -> ClipOpener:
    """How an extraction opens the files below `root`."""
    return ClipOpener(
        root,
        config.decoder,
        config.allow_truncated,
        config.pixel_aspect,
        config.frame_pattern,
        config.sampling.source_fps,
    )
