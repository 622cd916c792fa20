"""The cache: features of views on disk, and the only code that reads or writes their HDF5 files.

Open a cache with `Cache`, make one with `create_cache`, write its shards with `ShardWriter`. The
room imports from `pipeline.files`, `pipeline.manifests` and `pipeline.workers` only. It knows
neither videos nor networks.

    fields         which tensors there are, with their axes, dtypes and units
    reader         Cache: what notebooks and training open
    group          Group: its rows, and the reading of views and batches
    joined         several caches of the same options as one
    folder         cache.json and the copy of the manifest
    identity       the fingerprint of a config, the hash of a shard's clips
    creation       makes a folder, or checks that it is the cache that was asked for
    parts          what the shards were planned to hold, each time that the cache grew
    growth         lets a cache grow by clips, views and fields
    shards         which shard holds which clips, where its files are, whether it is complete
    shard_writer   writes one shard's HDF5 file and its statistics (through part_file)
    shard_reader   reads one shard (shard_layout asks HDF5; open_files limits descriptors)
    shard_check    verifies every byte of a shard (good_rows looks at the numbers)
    good_rows      which values can be right; the rows of a damaged shard that can be kept
    asked          the options of a cache's extraction and graphs, with paths
    accepted       the failed clips that a person has accepted
    records        types and sizes of everything that is read from JSON
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "Cache": "reader",
    "Group": "group",
    "CacheError": "folder",
    "JoinedCache": "joined",
    "open_caches": "joined",
    "Shards": "shards",
    "create_cache": "creation",
    "FIELDS": "fields",
    "Field": "fields",
    "field_of": "fields",
    "is_cut": "fields",
    "GroupPlan": "shard_writer",
    "NotFinite": "shard_writer",
    "ShardWriter": "shard_writer",
}

__all__ = list(_HOMES)

__getattr__ = load_lazily(__name__, _HOMES)
