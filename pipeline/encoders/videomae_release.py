"""Weights of VideoMAE's and VideoMAE V2's own releases in the names of transformers' VideoMAE.

Their modules are those of transformers' class, under other names. A release has one matrix for
queries, keys and values, and a norm with 1e-6. Its classifiers norm the mean of all tokens
(`fc_norm`) in place of the tokens (`norm`): then a map has no norm.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

MODEL_TYPE = "videomae"
EPS = 1e-6

_QKV = re.compile(r"blocks\.(\d+)\.attn\.qkv\.weight")
# Names in a release -> names in transformers. N is the number of a block.
_NAMES = (
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.norm1\.(\w+)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(\w+)", r"encoder.layer.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.attn\.q_bias", r"encoder.layer.\1.attention.attention.query.bias"),
    (r"blocks\.(\d+)\.attn\.v_bias", r"encoder.layer.\1.attention.attention.value.bias"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layer.\1.attention.output.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"encoder.layer.\1.output.dense.\2"),
    (r"norm\.(\w+)", r"layernorm.\1"),
)


def is_release(config: Any, state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is that of a release, for a configuration of transformers."""
    return config.model_type == MODEL_TYPE and any(_QKV.search(name) for name in state)


def from_release(config: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a release, and set the configuration to what it computes.

    Args:
        config: of transformers; `layer_norm_eps` and `use_mean_pooling` are set.
        state: a release's, of its encoder alone, of its classifier or of its training by masking.

    Returns:
        A state dict of transformers' VideoMAE. Names that are not known stay as they are.
    """
    # Training by masking calls the encoder so; what it decodes with is no part of the features.
    inside = {}
    for name, tensor in state.items():
        inside[name.removeprefix("encoder.")] = tensor
    config.layer_norm_eps = EPS
    config.use_mean_pooling = "norm.weight" not in inside

    renamed = {}
    for name, tensor in inside.items():
        qkv = _QKV.fullmatch(name)
        if qkv:
            attention = f"encoder.layer.{qkv[1]}.attention.attention"
            for part, matrix in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"{attention}.{part}.weight"] = matrix.contiguous()
            continue
        renamed[_renamed(name)] = tensor
    return renamed


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name
