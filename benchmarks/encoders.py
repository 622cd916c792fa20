"""What a cache saves a probe: its epoch from the cache against the encoder in the loop; a study.

epoch    one epoch of a head on the last maps of a ViT (ViT-S by default), read from a cache of one
         view per clip, against the same epoch in which the encoder runs on every view. Pixels are
         in memory, so that decoding costs neither side anything. Weights are random, which cost
         what trained ones do. `pool` is linear on pooled features, `attentive 1` has the block of
         the query alone, `attentive 4` is V-JEPA 2's probe.
study    20 members (V-JEPA 2's learning rates by weight decays) in one pass, and also computed as
         one (`--batch-members`), against 20 runs with a pass each; seconds and CPU seconds.

    python benchmarks/encoders.py
    python benchmarks/encoders.py --width 64 --layers 2 --size 64 --frames 2 --clips 8   # a trial

This needs transformers.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _caches import random_cache
from _report import arguments, report

from heads.config.member import Member
from heads.config.recipe import recipe_from
from heads.config.study_file import read_study
from heads.interface.clips import Clips, Dims, clips_of
from heads.training.study import Failure
from heads.training.train import run_members
from heads.zoo import build_head
from pipeline.backbones import Backbone, build_backbone, freeze
from pipeline.cache.reader import Cache
from pipeline.workers.memory import keep_freed_memory

CLASSES = 174
PROBES = {
    "pool": ("pool", {}),
    "attentive 1": ("attentive", {"depth": 1}),
    "attentive 4": ("attentive", {"depth": 4}),
}


def encoder_of(folder: Path, width: int, layers: int, size: int) -> Backbone:
    """A frozen ViT with random weights, of patches of 16 pixels."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        image_size=size,
    )
    config.save_pretrained(folder)
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return freeze(build_backbone(f"hf:{folder}"))


def fields_of(encoder: Backbone, frames: int, size: int) -> dict[str, tuple]:
    """The fields of a cache of the encoder's last map."""
    channels, steps = encoder.channels(), encoder.steps(frames)
    return {
        "pooled": ((steps, channels), "float16"),
        "last": ((steps, channels, *encoder.grid("last", (size, size))), "float16"),
        "boxes": ((steps, 1, 4), "float32"),
        "scores": ((steps, 1), "float32"),
        "valid": ((steps, 1), "bool"),
        "flip": ((), "bool"),
        "grid": ((2,), "int16"),
    }


def epoch(
    head: torch.nn.Module, views: int, batch: int, clips_at: Callable[[list[int]], Clips]
) -> float:
    """Seconds of one epoch of training."""
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3)
    head.train()
    begun = time.perf_counter()
    for first in range(0, views, batch):
        rows = list(range(first, min(first + batch, views)))
        labels = torch.tensor(rows) % CLASSES
        loss = F.cross_entropy(head(clips_at(rows)).logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - begun


def compare_epochs(encoder: Backbone, cache: Cache, given) -> list[dict[str, object]]:
    """A row for each probe."""
    rng = np.random.default_rng(0)
    shape = (given.clips, given.frames, given.size, given.size, 3)
    pixels = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    dims = Dims(
        encoder.steps(given.frames),
        C=encoder.channels(),
        maps={"last": (encoder.channels(), *encoder.grid("last", (given.size, given.size)))},
    )
    rows = []
    for label, (name, options) in PROBES.items():
        field = "pooled" if name == "pool" else "last"

        def cached(rows: list[int], field: str = field) -> Clips:
            return clips_of(cache["train"].batch(rows, fields=(field,)))

        def live(rows: list[int], field: str = field) -> Clips:
            fmap = encoder(encoder.prepare(pixels[rows])).clone().transpose(1, 2)
            return clips_of({field: fmap.mean((-1, -2)) if field == "pooled" else fmap})

        seconds = {}
        for way, clips_at in (("cache", cached), ("loop", live)):
            head = build_head(name, dims, CLASSES, **options)
            times = [epoch(head, given.clips, given.batch, clips_at) for _ in range(given.rounds)]
            seconds[way] = statistics.median(times)
        rows.append(
            {
                "probe": label,
                "views": given.clips,
                "encoder in the loop, s": seconds["loop"],
                "from the cache, s": seconds["cache"],
                "ratio": seconds["loop"] / seconds["cache"],
            }
        )
    return rows


def compare_study(cache: Cache, place: Path, given) -> list[dict[str, object]]:
    """A row for each way: one run after the other, together in one pass, and as one."""
    recipes = []
    for row in read_study("attentive_grid").rows[: given.members]:
        table = row.recipe.as_dict()
        table["train"] |= {"epochs": given.rounds, "batch": given.batch}
        table["head"]["options"] |= {"depth": given.depth}
        recipes.append(recipe_from(table))

    def spend(folder: Path, chosen: list, as_one: bool) -> np.ndarray:
        """Seconds, and CPU seconds."""
        members = [Member(recipe, folder / str(k), 0) for k, recipe in enumerate(chosen)]
        begun = np.array([time.perf_counter(), time.process_time()])
        outcomes = run_members(
            members,
            cache,
            order_seed=0,
            device="cpu",
            resident="ram",
            batch_members=as_one,
            say=lambda line: None,
            announce=print,
        )
        failed = [one for one in outcomes if isinstance(one, Failure)]
        if failed:
            raise failed[0].error
        return np.array([time.perf_counter(), time.process_time()]) - begun

    spent = {"together": spend(place / "together", recipes, False)}
    spent["as one"] = spend(place / "as one", recipes, True)
    spent["apart"] = np.zeros(2)
    for k, recipe in enumerate(recipes):
        spent["apart"] += spend(place / f"apart{k}", [recipe], False)
    rows = []
    for way, (wall, cpu) in spent.items():
        rows.append(
            {
                "way": way,
                "members": len(recipes),
                "depth": given.depth,
                "s": wall,
                "CPU s": cpu,
                "CPU s / apart": cpu / spent["apart"][1],
            }
        )
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=384, help="of the encoder's tokens")
    parser.add_argument("--layers", type=int, default=12, help="of the encoder")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="epochs that are timed")
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--depth", type=int, default=4, help="blocks of the study's probes")
    parser.add_argument("--only", choices=("epoch", "study"))
    given = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # not in memory, as /tmp may be
        place = Path(folder)
        encoder = encoder_of(place / "encoder", given.width, given.layers, given.size)
        cache = random_cache(place, fields_of(encoder, given.frames, given.size), given.clips)
        if given.only != "study":
            rows = compare_epochs(encoder, cache, given)
            report("an epoch of a probe, seconds", rows, given.json)
        if given.only != "epoch":
            rows = compare_study(cache, place, given)
            report("a study of probes, seconds", rows, given.only and given.json)


if __name__ == "__main__":
    main()
