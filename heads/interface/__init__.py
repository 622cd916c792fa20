"""What every head receives and returns, and the layers and checks that heads share.

The room imports nothing from the other rooms of `heads`; all of them may import it.

    clips                what a head receives (`Clips`, `Dims`) and returns (`HeadOutput`)
    masked_layers        masked means, softmax and box graphs; joint_norm and lstm: two layers
    variants             checks of a head's options, and what "paper" and "released" decide
    network_above_cut    the part of a backbone that a head trains itself
    loss, checkpoints    the loss of a batch; the checkpoint file of a run
    votes                what the views of a training epoch vote for
    run_records          the JSON files of a run: which keys they have, of which types
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "Clips": "clips",
    "Dims": "clips",
    "HeadAboveCut": "network_above_cut",
    "HeadOutput": "clips",
    "JointNorm": "joint_norm",
    "LSTM": "lstm",
    "LossNotFinite": "loss",
    "MissingFields": "clips",
    "along_back": "masked_layers",
    "along_front": "masked_layers",
    "at_least": "variants",
    "clips_of": "clips",
    "device_for": "loss",
    "dims_from": "clips",
    "dims_of": "clips",
    "front_back": "masked_layers",
    "grid_mean": "masked_layers",
    "head_above_cut": "network_above_cut",
    "load_checkpoint": "checkpoints",
    "loss_of": "loss",
    "masked_mean": "masked_layers",
    "masked_softmax": "masked_layers",
    "network_above": "network_above_cut",
    "next_frame_iou": "masked_layers",
    "one_of": "variants",
    "resolve": "variants",
    "row_normalise": "masked_layers",
}

__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
