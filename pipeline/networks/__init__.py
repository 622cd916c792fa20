"""What every network of the project needs: precision, memory format, names in checkpoints.

    precision          fp32, tf32, bf16 and fp16, what a CPU has of them, autocast
    memory_format      channels last or contiguous, for every convolution
    transfers          arrays to a device and back, while it computes
    checkpoint_names   state dicts with the prefixes of other programs removed
    checkpoint_files   torch files and pickles, read without running code
    array_pickle       what such a pickle may hold: arrays and plain values

The room uses torch, and no other room.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "autocast": "precision",
    "autocast_runs_lstm": "precision",
    "bf16_on_cpu": "precision",
    "channels_last_is_safe": "memory_format",
    "convolve": "memory_format",
    "dtype_of": "precision",
    "guard": "memory_format",
    "lay_out": "memory_format",
    "refuse_on_cpu": "precision",
    "states": "checkpoint_names",
    "unwrapped": "checkpoint_names",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
