"""Folders of transformers with tiny models of every class that is tested, made on the spot.

No weights are fetched: configurations are written here, weights are random.
"""

import json
from pathlib import Path

PIXELS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3], "do_normalize": True}

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
_SQUARE = {"image_size": 32, "patch_size": 8}
_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
# By the name of a class of transformers without "Config" and "Model".
CONFIGS: dict[str, dict] = {
    "VideoMAE": {**_VIT, **_SQUARE, "num_frames": 8},
    "VJEPA2": {
        "crop_size": 32,
        "patch_size": 8,
        "frames_per_clip": 8,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "pred_hidden_size": 24,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
    },
    "Vivit": {**_VIT, "image_size": 32, "num_frames": 8, "tubelet_size": [2, 8, 8]},
    "Timesformer": {**_VIT, **_SQUARE, "num_frames": 4},
    "ViT": {**_VIT, **_SQUARE},
    "Dinov2": {**_SQUARE, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
    "DINOv3ViT": {**_VIT, **_SQUARE, "num_register_tokens": 4},
    "CLIPVision": {**_VIT, **_SQUARE},
    "SiglipVision": {**_VIT, **_SQUARE},
    "InternVLVision": {**_VIT, "image_size": [32, 32], "patch_size": [8, 8]},
    "Hiera": {
        "image_size": [64, 64],
        "embed_dim": 16,
        "depths": [1, 2, 1],
        "num_heads": [1, 2, 4],
        "masked_unit_size": [4, 4],
        "query_stride": [2, 2],
        "num_query_pool": 2,
    },
    "Swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "ConvNext": {**_STAGES, "num_stages": 2, "image_size": 32},
    "DINOv3ConvNext": {**_STAGES, "image_size": 32},
    "ResNet": {"embedding_size": 8, **_STAGES, "layer_type": "basic"},
}


def save_encoder(folder: Path, kind: str, seed: int = 0, **changed) -> Path:
    """Save a tiny model with random weights, as transformers saves one.

    Args:
        folder: where; it is made.
        kind: a key of CONFIGS.
        seed: of the weights.
        **changed: values of its configuration.

    Returns:
        The folder.
    """
    import torch
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**CONFIGS[kind], **changed})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind}Model")(config)
        # Position embeddings and class tokens start at zero, which would hide a mistake.
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return folder
