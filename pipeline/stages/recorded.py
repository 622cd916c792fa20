"""A recorded extraction becomes an ExtractConfig again, with its files found and compared.

`repair`, `--like CACHE`, `finetune` and `predict` do what an earlier extraction did. The record has
the paths of its files, and the fingerprint of its cache has their checksums.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cache.asked import extraction_record
from pipeline.cache.reader import Cache, CacheError
from pipeline.encoder_names import is_encoder, library_and_model, with_absolute_folder
from pipeline.files.atomic_files import sha256_of
from pipeline.stages.config import ExtractConfig

# The options that say where a file of the source of boxes is now.
FLAGS = {"file": "--annotations", "weights": "--proposal-weights"}


@dataclass(frozen=True)
class MovedFiles:
    """Where files are now that the first run found elsewhere. None: where they were.

    The content of the last three must be the same: the cache's fingerprint covers it.

    Attributes:
        root: the folder of the videos.
        weights: the backbone's weights.
        annotations: the file of annotated boxes.
        proposal_weights: the weights of the source of boxes.
    """

    root: str | Path | None = None
    weights: str | Path | None = None
    annotations: str | Path | None = None
    proposal_weights: str | Path | None = None


def config_like(cache: Cache) -> tuple[ExtractConfig, dict[str, Any]]:
    """Return the config that a cache was extracted with.

    Its files are not looked for (see `require_same_files`).

    Args:
        cache: the cache.

    Returns:
        The config, and the record that it comes from (`pipeline.cache.asked.extraction_record`).

    Raises:
        CacheError: no shard is complete yet, or `vidgraph extract` did not make the cache.
    """
    record = extraction_record(cache.path)
    if record is None:
        raise CacheError(
            f"{cache.path}: it does not say which options it was extracted with; expected a cache "
            f"of `vidgraph extract` with at least one complete shard"
        )
    return ExtractConfig.from_dict(record["asked"]), record


def with_moved(config: ExtractConfig, moved: MovedFiles) -> ExtractConfig:
    """Return a recorded config with its files where they are now.

    Args:
        config: as it was recorded.
        moved: where files are now.

    Raises:
        ValueError: a file is not where it was, or the config has no such file. The message names
            the option that says where it is.
    """
    options = box_options_of(config, moved, "the boxes of this cache (SOURCE) came")
    weights = config.weights if moved.weights is None else str(moved.weights)
    backbone = backbone_of(config, moved)
    config = replace(config, backbone=backbone, weights=weights, proposal_options=options)
    require_files(config)
    return config


def box_options_of(config: ExtractConfig, moved: MovedFiles, whose: str) -> dict[str, Any]:
    """Return a recorded config's options of its source of boxes, with its files as they are now.

    Args:
        config: as it was recorded.
        moved: where files are now.
        whose: how the message begins, with SOURCE for the source's name.

    Raises:
        ValueError: the source has no such file.
    """
    options = dict(config.proposal_options)
    for key, path in (("file", moved.annotations), ("weights", moved.proposal_weights)):
        if path is None:
            continue
        if key not in options:
            raise ValueError(
                f"{FLAGS[key]}: {whose.replace('SOURCE', config.proposals)} from no such file; "
                f"leave it out"
            )
        options[key] = os.path.abspath(path)
    return options


def backbone_of(config: ExtractConfig, moved: MovedFiles) -> str:
    """Return the name of a recorded config's backbone, with the folder of an encoder as it is now.

    Args:
        config: with absolute paths.
        moved: where files are now. The folder of an encoder holds its weights, too.
    """
    if moved.weights is None or not _is_gone_encoder(config.backbone):
        return config.backbone
    if not os.path.isdir(moved.weights):
        return config.backbone
    return with_absolute_folder(f"hf:{moved.weights}")


def _is_gone_encoder(backbone: str) -> bool:
    """Whether a backbone is an encoder in a folder that is not there."""
    folder = library_and_model(backbone)[1] if is_encoder(backbone) else ""
    return os.path.isabs(folder) and not os.path.isdir(folder)


def require_files(config: ExtractConfig) -> None:
    """Check that the files of a recorded config are where they were.

    Args:
        config: with absolute paths.

    Raises:
        ValueError: a file is gone. The message names the option that says where it is now.
    """
    if _is_gone_encoder(config.backbone):
        _require_where_it_was("--weights", library_and_model(config.backbone)[1])
    _require_where_it_was("--weights", config.weights)
    for key, flag in FLAGS.items():
        if key in config.proposal_options:
            _require_where_it_was(flag, str(config.proposal_options[key]))


def _require_where_it_was(flag: str, path: str) -> None:
    if os.path.isabs(path) and not os.path.exists(path):
        raise ValueError(
            f"{path}: no such file, expected it where the first run found it; pass {flag} with "
            f"where it is now"
        )


def require_same_files(
    config: ExtractConfig,
    computed: Mapping[str, Any],
    where: object,
    replaced: Collection[str] = (),
) -> None:
    """Check that the files of a config are those that a cache was extracted with.

    Args:
        config: as it was recorded.
        computed: the cache's own config, which has the checksums (`ExtractConfig.computed`).
        where: what was made with these files, for the message.
        replaced: the options whose files are replaced, such as "--weights": they do not count.

    Raises:
        ValueError: a file is gone, or its content is another one.
    """
    if "--weights" not in replaced and os.path.isabs(config.weights):
        _require_where_it_was("--weights", config.weights)
        # An encoder's weights may be a folder, which is compared by what it loads.
        found = sha256_of(Path(config.weights)) if os.path.isfile(config.weights) else ""
        if found != computed["weights"] and _loaded_sha256(config) != computed["weights"]:
            raise _other_file("--weights", config.weights, where)

    if "--weights" not in replaced and is_encoder(config.backbone):
        folder = library_and_model(config.backbone)[1]
        if os.path.isabs(folder):
            _require_where_it_was("--weights", folder)
            if _loaded_sha256(config) != computed["weights"]:
                raise _other_file("--weights", folder, where)

    wanted = computed.get("proposal_options", {})
    for key, flag in FLAGS.items():
        path = str(config.proposal_options.get(key, ""))
        if flag in replaced or not os.path.isabs(path) or not config.wants_boxes:
            continue
        _require_where_it_was(flag, path)
        if sha256_of(Path(path)) != wanted.get(key) and _boxes_sha256(config) != wanted.get(key):
            raise _other_file(flag, path, where)


def _loaded_sha256(config: ExtractConfig) -> str:
    """The checksum of the loaded weights, which also covers what loading changes in them."""
    # Loading needs torch, and most files are compared without it.
    from pipeline.stages.frozen_networks import backbone_of

    return backbone_of(config).weights_sha256


def _boxes_sha256(config: ExtractConfig) -> str:
    from pipeline.stages.frozen_networks import source_of

    return source_of(config, "cpu").weights_sha256


def _other_file(flag: str, path: str, where: object) -> ValueError:
    return ValueError(
        f"{path}: changed since {where} was made with it; expected the same content; pass {flag} "
        f"with a copy of that file, or with another one to use"
    )
