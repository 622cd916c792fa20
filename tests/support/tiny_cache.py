"""A real cache of random features, written through ShardWriter, for tests of heads and training.

Classes are told apart by the mean of their features, so that a few epochs learn them.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.cache.reader import Cache, create_cache
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.manifests.manifest import write_manifest

SPLITS = ("train",) * 12 + ("val",) * 6 + ("test",) * 6


@dataclass
class Tiny:
    """Sizes and contents of a tiny cache. `labels`: one per clip, lists for several classes;
    `failed`: clips never written.
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
    poison: tuple[int, str] | None = None  # (clip, field) that gets a NaN behind the writer's back

    def tensors(self, clip: int, label: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One view of a clip, every field of `fields`."""
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
        """The cache in `folder`; clip k is named "clip-k" and has label k % 3 unless `labels` says
        otherwise.
        """
        folder.mkdir(parents=True, exist_ok=True)
        labels = self.labels or [f"class {k % 3}" for k in range(len(self.splits))]
        names = sorted(
            {name for label in labels for name in ([label] if isinstance(label, str) else label)}
        )
        rows = [
            {"clip": f"clip-{k}", "path": f"{k}.mp4", "split": split, "label": label}
            for k, (split, label) in enumerate(zip(self.splits, labels, strict=True))
        ]
        manifest = write_manifest(folder / "given.csv", rows)
        shards = create_cache(folder / "cache", self.config, manifest, self.per_shard)
        for shard in range(len(shards)):
            clips = shards.clips(shard)
            sample = self.tensors(0, 0, np.random.default_rng(0))
            fields = {
                name: (
                    value.shape,
                    self.dtype if name in ("pooled", "nodes", "res5") else value.dtype.name,
                )
                for name, value in sample.items()
            }
            views = {"train": self.train_views, "test": self.test_views}
            plans = {
                group: GroupPlan(
                    [c.clip for c in clips for _ in range(count)],
                    list(range(count)) * len(clips),
                    fields,
                )
                for group, count in views.items()
                if count
            }
            with ShardWriter(shards.path(shard), plans, attrs=shards.attrs(shard)) as writer:
                for k, clip in enumerate(clips):
                    if clip.position in self.failed:
                        continue
                    label = names.index(clip.labels[0]) if clip.labels else 0
                    for group, plan in plans.items():
                        for view in range(views[group]):
                            rng = np.random.default_rng([clip.position, view, group == "test"])
                            writer.write(
                                group,
                                k * views[group] + view,
                                self.tensors(clip.position, label, rng),
                            )
                            assert plan.clips[k * views[group] + view] == clip.clip
                writer.finish({"failures": [], "clips": len(clips)})
        return Cache(folder / "cache")
