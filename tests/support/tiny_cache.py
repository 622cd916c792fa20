"""A real cache of random features, written with ShardWriter, for tests of heads and training.

Each class has features with another mean, so that a few epochs learn them.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.cache.reader import Cache, create_cache
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.cache.shards import Shards
from pipeline.manifests.manifest import write_manifest

SPLITS = ("train",) * 12 + ("val",) * 6 + ("test",) * 6


@dataclass
class Tiny:
    """The sizes and contents of a tiny cache.

    Attributes:
        splits: of each clip.
        labels: of each clip; a list for several classes; empty takes "class k % 3".
        side: height and width of the map.
        failed: positions of clips that are never written.
        prefix: of the clips' ids, before their number.
    """

    splits: tuple[str, ...] = SPLITS
    labels: list = field(default_factory=list)
    T: int = 3
    N: int = 2
    C: int = 4
    side: int = 4
    train_views: int = 2
    test_views: int = 2
    fields: tuple[str, ...] = ("pooled", "nodes", "boxes", "scores", "valid", "flip", "grid")
    failed: tuple[int, ...] = ()
    per_shard: int = 10
    config: dict = field(default_factory=lambda: {"backbone": "digit_cnn"})
    dtype: str = "float16"
    prefix: str = "clip-"

    def tensors(self, clip: int, label: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return one view of a clip: every field of `fields`."""
        T, N, C = self.T, self.N, self.C
        signal = np.zeros(C, np.float32)
        signal[label % C] = 2
        valid = np.ones((T, N), bool)
        valid[:, -1] = rng.random(T) < 0.5
        corner = rng.random((T, N, 2)).astype(np.float32) * 0.5
        boxes = np.concatenate([corner, corner + 0.5], -1) * valid[..., None]
        tensors = {
            "pooled": rng.normal(size=(T, C)).astype(np.float32) + signal,
            "nodes": (rng.normal(size=(T, N, C)).astype(np.float32) + signal) * valid[..., None],
            "boxes": boxes.astype(np.float32),
            "scores": rng.random((T, N)).astype(np.float32) * valid,
            "valid": valid,
            "flip": np.array(bool(clip % 2)),
            "grid": np.array([self.side, self.side], np.int16),
            "res5": rng.normal(size=(T, C, self.side, self.side)).astype(np.float32),
        }
        return {name: tensors[name] for name in self.fields}

    def write(self, folder: Path) -> Cache:
        """Write the cache to folder/cache and open it.

        Clip k is called "clip-k", or as `prefix` says. Its label is "class k % 3" unless `labels`
        says otherwise.
        """
        folder.mkdir(parents=True, exist_ok=True)
        labels = self.labels or [f"class {k % 3}" for k in range(len(self.splits))]
        rows, names = [], set()
        for k, (split, label) in enumerate(zip(self.splits, labels, strict=True)):
            name = f"{self.prefix}{k}"
            rows.append({"clip": name, "path": f"{k}.mp4", "split": split, "label": label})
            names.update([label] if isinstance(label, str) else label)
        classes = {name: number for number, name in enumerate(sorted(names))}

        manifest = write_manifest(folder / "given.csv", rows)
        shards = create_cache(folder / "cache", self.config, manifest, self.per_shard)
        for shard in range(len(shards)):
            self._write_shard(shards, shard, classes)
        return Cache(folder / "cache")

    def _write_shard(self, shards: Shards, shard: int, classes: dict[str, int]) -> None:
        clips, fields = shards.clips(shard), {}
        for name, value in self.tensors(0, 0, np.random.default_rng(0)).items():
            is_feature = name in ("pooled", "nodes", "res5")
            fields[name] = (value.shape, self.dtype if is_feature else value.dtype.name)

        views, plans = {"train": self.train_views, "test": self.test_views}, {}
        for group, count in views.items():
            if count:
                names = np.repeat([clip.clip for clip in clips], count).tolist()
                plans[group] = GroupPlan(names, list(range(count)) * len(clips), fields)

        with ShardWriter(shards.path(shard), plans, attrs=shards.attrs(shard)) as writer:
            for k, clip in enumerate(clips):
                if clip.position in self.failed:
                    continue
                label = classes[clip.labels[0]] if clip.labels else 0
                for group in plans:
                    for view in range(views[group]):
                        rng = np.random.default_rng([clip.position, view, group == "test"])
                        tensors = self.tensors(clip.position, label, rng)
                        writer.write(group, k * views[group] + view, tensors)
            writer.finish({"failures": [], "clips": len(clips)})
