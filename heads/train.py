"""Training a head on a cache: the plain loop.

    result = train(read_recipe("demo_strg"), Cache("cache"), "runs/strg-0", seed=0)
    result.metrics["test"]["top1"]

What a run computes depends on (recipe, cache, seed) and the arithmetic of the device alone. The initialisation follows from
(seed), the order of the views from (order seed, epoch), dropout from (seed, mini-batch), so that a run that was stopped and
resumed gives the weights of one that was not, bit for bit on a CPU in fp32 with the same number of threads.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heads import runs
from heads.batch import Dims, MissingFields
from heads.data import Part, Store, cache_dims, find_classes, how_to_add, part_of, swap_table
from heads.evaluate import default_checkpoint, figures, open_store, predict, say_excluded, splits_of, write_predictions
from heads.learner import INIT, Learner, pick_device, reseed
from heads.recipe import Recipe, to_toml
from heads.zoo import build_head

if TYPE_CHECKING:
    from pipeline.cache import Cache
    from pipeline.manifest import Manifest

Say = Callable[[str], None]


@dataclass
class EpochStats:
    """One epoch: the mean loss over its clips, and the seconds it took, of which `waiting` were spent waiting for data."""

    loss: float
    seconds: float
    waiting: float


@dataclass
class Result:
    """A finished run. `metrics`: split -> figure -> value, fractions in [0,1] but for `loss`; `excluded`: split -> how many
    clips were left out because their extraction `failed` or the cache does not have them (`absent`); seconds are
    wall-clock."""

    folder: Path
    metrics: dict[str, dict[str, float]]
    epochs: int
    best_epoch: int
    parameters: int
    seconds: float
    waiting: float
    excluded: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """The split that a table reports: test where it has labels, else val ("" without either)."""
        return next((name for name in ("test", "val") if self.metrics.get(name)), "")


def train(
    recipe: Recipe,
    cache: "Cache",
    folder: Path | str,
    *,
    seed: int = 0,
    order_seed: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    manifest: "Manifest | None" = None,
    resume: bool = True,
    resident: str = "auto",
    say: Say = print,
    tensorboard: bool = True,
) -> Result:
    """Trains `recipe`'s head on the split `train` of a cache and evaluates the chosen checkpoint on `val` and `test`.

    Labels and splits come from `manifest`, by default the cache's copy. The run's files go to `folder` (heads/runs.py lists
    them); with `resume` a run that is there is continued, or only read back if it is finished. `order_seed` (default: `seed`)
    fixes the order of the views, `seed` the initialisation and dropout. `resident`: see `heads.data.Store`. `say` gets lines
    for a person. Torch's global generators are reseeded.

    ValueError, before the first step, for whatever the recipe, the manifest and the cache do not agree on; LossNotFinite.
    """
    folder, where = Path(folder), pick_device(device, precision)
    manifest = manifest or cache.manifest
    classes = find_classes(manifest, recipe.data)
    parts = _parts(cache, manifest, classes, recipe, say)
    dims = cache_dims(cache)
    head = new_head(recipe, cache, dims, len(classes), seed, where)
    about = {
        "recipe": recipe.as_dict(),
        "seed": seed,
        "order_seed": seed if order_seed is None else order_seed,
        "precision": precision,
        "classes": list(classes),
        "dims": dims.as_dict(),
        "fingerprint": cache.fingerprint,
        "config": cache.config,
    }
    if resume and (finished := _finished(folder, about)):
        say(f"{folder}: finished before, read back")
        return finished
    stores = {name: open_store(head, cache, parts[name], recipe, resident) for name in ("train", "val") if name in parts}
    steps = math.ceil(len(parts["train"]) / recipe.train.batch)
    learner = Learner(head, recipe.train, recipe.data.target, steps, seed, precision)
    _open(folder, recipe, cache, about, learner, resume, say)
    swap = torch.from_numpy(swap_table(classes, recipe.data)).to(where)
    run = _Run(folder, recipe, about, learner, parts, stores, swap, say)
    begun = time.monotonic()
    waiting = run.fit(tensorboard)
    chosen = default_checkpoint(folder)
    head.load_state_dict(runs.load_checkpoint(folder / f"{chosen}.pt")["state"])
    metrics = {}
    for name in [name for name in ("val", "test") if name in parts]:
        store = stores.get(name) or open_store(head, cache, parts[name], recipe, "disk")
        predictions = predict(head, parts[name], store, recipe, precision)
        metrics[name] = write_predictions(folder, name, predictions, parts[name], recipe, classes)
    result = Result(
        folder,
        metrics,
        epochs=learner.progress.epoch,
        best_epoch=learner.progress.best_epoch if chosen == "best" else learner.progress.epoch,
        parameters=sum(p.numel() for p in head.parameters()),
        seconds=time.monotonic() - begun,
        waiting=waiting,
        excluded={name: {"failed": len(part.failed), "absent": len(part.absent)} for name, part in parts.items()},
    )
    runs.write_json(folder / "metrics.json", {**asdict(result), "folder": folder.name})
    return result


def train_one_epoch(learner: Learner, part: Part, store: Store, swap: Tensor, order_seed: int) -> EpochStats:
    """One pass over the clips of `part`, one view of each; swap [K] is the class that a mirrored view of each class shows.

    Stops early at the last mini-batch of the training. LossNotFinite.
    """
    learner.head.train()
    rows, video = part.draw(order_seed, learner.progress.epoch)
    targets = torch.from_numpy(part.targets[video])
    begun = time.monotonic()
    waiting = total = 0.0
    seen = 0
    batches = store.batches(rows, learner.training.batch, learner.device)
    while not learner.done:
        asked = time.monotonic()
        clips, place = next(batches, (None, None))
        waiting += time.monotonic() - asked
        if clips is None:
            break
        target = targets[place].to(learner.device)
        if clips.flip is not None:
            target = mirrored(target, clips.flip, swap)
        total += learner.step(clips, target) * clips.size
        seen += clips.size
    batches.close()
    return EpochStats(total / max(seen, 1), time.monotonic() - begun, waiting)


def mirrored(target: Tensor, flip: Tensor, swap: Tensor) -> Tensor:
    """Targets [B] or [B,K] with the classes exchanged by swap [K] where flip [B] holds."""
    if target.dim() == 1:
        return torch.where(flip, swap[target], target)
    return torch.where(flip[:, None], target[:, swap], target)


def new_head(recipe: Recipe, cache: "Cache", dims: Dims, classes: int, seed: int, device: torch.device) -> nn.Module:
    """The recipe's head on `device`, initialised by `seed` alone; ValueError with the command that adds fields it lacks."""
    reseed(device, seed, INIT)
    try:
        return build_head(recipe.head.name, dims, classes, **recipe.head.options).to(device)
    except MissingFields as error:
        raise ValueError(how_to_add(cache, recipe.head.name, error.names)) from None


@dataclass
class _Run:
    """A run between its opening and its last epoch."""

    folder: Path
    recipe: Recipe
    about: dict[str, Any]
    learner: Learner
    parts: dict[str, Part]
    stores: dict[str, Store]
    swap: Tensor
    say: Say

    def fit(self, tensorboard: bool) -> float:
        """Trains to the end, with a checkpoint and a line of the log per epoch; returns the seconds spent waiting for data."""
        learner, progress, waiting = self.learner, self.learner.progress, 0.0
        epochs = self.recipe.train.total_epochs(learner.steps_per_epoch)
        writer = _board(self.folder, progress.step) if tensorboard else None
        while not learner.done:
            lr = learner.lr
            stats = train_one_epoch(learner, self.parts["train"], self.stores["train"], self.swap, self.about["order_seed"])
            found = self.validate()
            better = learner.end_epoch(found.get("map", found.get("top1", math.nan)), found.get("loss", math.nan))
            line = {"epoch": progress.epoch, "step": progress.step, "lr": lr, **asdict(stats), "val": found}
            runs.append_log(self.folder / "log.jsonl", line)
            if better:
                best = {"about": self.about, "epoch": progress.epoch, "state": learner.head.state_dict()}
                runs.save_checkpoint(self.folder / "best.pt", best)
            # Last of all: a run killed before this repeats the epoch, log line and best.pt included.
            runs.save_checkpoint(self.folder / "last.pt", {"about": self.about, **learner.state()})
            if writer is not None:
                _write_board(writer, line)
            self.say(_line(line, epochs, better))
            waiting += stats.waiting
        if writer is not None:
            writer.close()
        return waiting

    def validate(self) -> dict[str, float]:
        """The figures of the validation split; {} where there is none, or it has no labels."""
        part = self.parts.get("val")
        if part is None or part.targets is None:
            return {}
        return figures(
            predict(self.learner.head, part, self.stores["val"], self.recipe, self.learner.precision), part, self.recipe
        )[0]


def _parts(cache: "Cache", manifest: "Manifest", classes: tuple[str, ...], recipe: Recipe, say: Say) -> dict[str, Part]:
    """The splits of the manifest with their views: train from the training views, val and test from the test views."""
    found = {
        name: part_of(cache, "train" if name == "train" else "test", name, manifest, classes, recipe.data)
        for name in ("train", "val", "test")
    }
    parts = {name: part for name, part in found.items() if part is not None}
    for name, why in (("train", "train on"), ("val or test", "evaluate on")):
        if not any(choice in parts for choice in name.split(" or ")):
            raise ValueError(f"{manifest.path}: no clip in split {name} to {why}; its splits: {', '.join(splits_of(manifest))}")
    if parts["train"].targets is None:
        raise ValueError(f"{manifest.path}: the clips of split train have no labels; write them in the column `label`")
    for part in parts.values():
        say_excluded(part, say)
    return parts


def _open(folder: Path, recipe: Recipe, cache: "Cache", about: dict, learner: Learner, resume: bool, say: Say) -> None:
    """Makes the run folder, or continues the run that is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.pt"
    if resume and last.exists():
        saved = runs.load_checkpoint(last)
        _same_run(folder, saved["about"], about)
        learner.load(saved)
        say(f"{folder}: continued after epoch {learner.progress.epoch}")
    else:
        for name in ("last.pt", "best.pt", "metrics.json"):
            (folder / name).unlink(missing_ok=True)
    runs.start_log(folder / "log.jsonl", learner.progress.epoch)
    runs.write_text(folder / "recipe.toml", to_toml(recipe))
    runs.write_json(
        folder / "run.json",
        {**about, "cache": str(cache.path.resolve()), "device": str(learner.device), "versions": runs.versions()},
    )


def _finished(folder: Path, about: dict) -> Result | None:
    """The result of a run that was finished in `folder`, if it is this one; ValueError if it is another."""
    done = folder / "metrics.json"
    if not done.exists() or not (folder / "run.json").exists():
        return None
    _same_run(folder, runs.read_json(folder / "run.json"), about)
    return Result(**{**runs.read_json(done), "folder": folder})


def _same_run(folder: Path, there: dict, asked: dict) -> None:
    """ValueError naming what differs unless the run in `folder` is the one that is asked for."""
    old, new = _flat(there), _flat(asked)
    keys = [key for key in new if old.get(key) != new[key]]
    keys += [key for key in old if key not in new and key.split(".")[0] in asked]
    if keys:
        shown = "; ".join(f"{key} is {old.get(key)!r} there, {new.get(key)!r} here" for key in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise ValueError(f"{folder} holds another run ({shown}{more}): choose another folder, or start over with --no-resume")


def _flat(record: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _board(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _write_board(writer: Any, line: dict[str, Any]) -> None:
    for name, value in {"train/loss": line["loss"], "train/lr": line["lr"]}.items():
        writer.add_scalar(name, value, line["step"])
    for name, value in line["val"].items():
        writer.add_scalar(f"val/{name}", value, line["step"])
    writer.flush()


def _line(line: dict[str, Any], epochs: int, better: bool) -> str:
    """One epoch for a person."""
    val = ", ".join(
        f"{name} {value:.3f}" if name == "loss" else f"{name} {100 * value:.1f} %" for name, value in line["val"].items()
    )
    return (
        f"epoch {line['epoch']}/{epochs}: loss {line['loss']:.4f}, lr {line['lr']:.2g}"
        f"{', val ' + val if val else ''}{' (best)' if better else ''}; "
        f"{line['seconds']:.1f} s, waited {line['waiting']:.1f} s for data"
    )
