"""Stages one and two: videos become cached tensors, and cached boxes become graphs."""

import os

# Shards are never locked: network file systems refuse locks or hang over them, and a shard has
# one writer, which nobody else knows by name. h5py reads this variable when it is first imported,
# and prefers it to the argument `locking` of a file.
os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
