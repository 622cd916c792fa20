"""Stages one and two: videos become cached tensors, cached boxes become graphs."""

import os

# Read when h5py is first imported, and stronger than the argument `locking` of a file: shards are
# never locked, because network file systems refuse locks, or hang over them, and nobody writes to a
# file that another one knows the name of.
os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
