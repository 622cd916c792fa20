"""Report sections on where the numbers come from: extraction statistics, commands, versions."""

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from heads.config.recipe import PLAIN
from heads.reporting.cache_facts import KnownCache, StageStatistics, cache_of, pace
from heads.reporting.document import (
    Block,
    Cell,
    Code,
    Column,
    Fold,
    Notice,
    Section,
    Table,
    Text,
    long_table,
)
from heads.reporting.groups import RunGroup, flatten, setting_text
from heads.reporting.run_folders import FoundRun
from pipeline.cache.joined import JoinedCache
from pipeline.files.regular_files import read_small_text

# Characters of a command's line, after which the next option starts a new one.
LINE = 90

# Keys of an extraction's configuration whose flags have their names. Others are given with --set.
NAMED = (
    *("frames", "sampling", "fps", "source_fps", "size", "train_views", "train_crop", "flip"),
    *("flip_protect", "test_clips", "test_crops", "test_short_side"),
    *("keep", "backbone", "weights", "cut", "proposals", "roi_pool", "precision", "dtype", "seed"),
    *("decoder", "allow_truncated", "pixel_aspect", "frame_pattern"),
)
# Keys whose flags have other names.
FLAGS = {
    "proposal_options.weights": "--proposal-weights",
    "proposal_options.size": "--proposal-size",
    "proposal_options.num_boxes": "--boxes",
    "proposal_options.file": "--annotations",
    "resize": "--frame-resize",
}


def extraction(caches: Sequence[KnownCache]) -> Section | None:
    """Make the section of the caches' statistics; None without a cache."""
    if not caches:
        return None
    blocks: list[Block] = []
    missing = [f"{known.path}: {known.problem}" for known in caches if known.cache is None]
    if missing:
        blocks.append(Notice(tuple(missing)))

    rows: list[tuple[Cell, ...]] = []
    for known in caches:
        for stage, found in known.statistics.items():
            failed = sum(found.failures.values()) if stage == "features" else None
            rows.append(
                (
                    str(known.path),
                    stage,
                    f"{found.shards} of {known.shards}",
                    found.clips,
                    found.views,
                    failed,
                    found.rate,
                    found.bytes,
                    ", ".join(found.devices),
                )
            )
    if rows:
        columns = (
            Column("cache"),
            Column("stage"),
            Column("shards"),
            Column("clips", "count"),
            Column("views", "count"),
            Column("failed", "count"),
            Column("clips/s", "percent"),
            Column("bytes", "short"),
            Column("device"),
        )
        caption = (
            "clips/s: of one process, by the seconds of the shards; several may have worked at "
            "the same time."
        )
        blocks.append(Table("extraction", caption, columns, tuple(rows)))
    blocks += pace(caches)
    for known in caches:
        found = known.statistics.get("features")
        if known.cache is not None and found is not None:
            blocks += _failures(known, found)
            blocks.append(_details(known, found))
    return Section("Extraction", "extraction", tuple(blocks))


def _failures(known: KnownCache, found: StageStatistics) -> list[Block]:
    """Failures of a cache by reason, and every clip that failed."""
    if not found.failures:
        return []
    name = known.fingerprint[:8]
    columns = (Column("reason"), Column("clips", "count"), Column("of all %", "percent"))
    rows = []
    for reason, count in found.failures.items():
        rows.append((reason, count, 100 * count / max(found.clips, 1)))
    caption = f"Failures of {known.path} by reason."
    reasons = Table(f"failures-{name}", caption, columns, tuple(rows))

    columns = (Column("clip"), Column("reason"), Column("message"))
    rows = []
    for failure in known.failed:
        rows.append((str(failure["clip"]), str(failure["error"]), str(failure["message"])))
    caption = "Every clip that failed."
    clips = long_table(f"failed-clips-{name}", caption, columns, rows)
    return [reasons, Fold(f"Clips that failed in {known.path}", (clips,))]


def _details(known: KnownCache, found: StageStatistics) -> Fold:
    """Seconds of a cache's extraction by part, and its configuration."""
    name = known.fingerprint[:8]
    inner: list[Block] = []
    if found.seconds:
        wall = found.seconds.get("wall") or 0.0
        rows = []
        for part, seconds in sorted(found.seconds.items()):
            rows.append((part, float(seconds), 100 * seconds / wall if wall else None))
        columns = (Column("part"), Column("seconds", "seconds"), Column("of wall %", "percent"))
        caption = "Parts overlap: decoding runs beside the networks."
        inner.append(Table(f"seconds-{name}", caption, columns, tuple(rows)))

    rows = [(key, setting_text(value)) for key, value in flatten(known.cache.config).items()]
    caption = f"Fingerprint {known.fingerprint}"
    columns = (Column("key"), Column("value"))
    inner.append(long_table(f"config-{name}", caption, columns, rows))
    return Fold(f"Seconds and configuration of {known.path}", tuple(inner))


def reproduce(
    groups: Sequence[RunGroup], found: Sequence[FoundRun], caches: Sequence[KnownCache]
) -> Section:
    """Make the section of commands, recipes and versions.

    Args:
        groups: whose commands and recipes are shown.
        found: all runs, whose versions are shown.
        caches: of the runs.

    Returns:
        The section.
    """
    blocks: list[Block] = []
    commands: list[str] = []
    # Two caches never share a folder, because the second would be added to the first.
    folders = (f"NEW{number}" if number > 1 else "NEW" for number in itertools.count(1))
    for known in caches:
        commands += _cache_commands(known, folders)
    if commands:
        text = (
            "The caches, from the same videos and weights. NEW, NEW2 and so on are folders of your "
            "choice; the runs below read the caches where they are."
        )
        blocks += [Text(text), Code("\n\n".join(commands))]
    if groups:
        lines = []
        for group in groups:
            lines += [_train_command(run, caches) for run in group.runs]
        text = "The runs, each from the recipe that its folder keeps:"
        blocks += [Text(text), Code("\n".join(lines))]
    evaluations = []
    for run in found:
        evaluations += _evaluate_commands(run)
    if evaluations:
        text = "Evaluations after the training:"
        blocks += [Text(text), Code("\n".join(evaluations))]
    if groups:
        blocks += [Text("This report:"), Code(_report_command(found, caches))]
    blocks.append(_versions(found))
    for group in groups:
        recipe = _recipe(group.runs[0])
        if recipe is not None:
            blocks.append(Fold(f"Recipe of {group.name}", (recipe,)))
    return Section("How to reproduce", "reproduce", tuple(blocks))


def _recipe(run: FoundRun) -> Block | None:
    """The recipe that a run's folder keeps, or why it is not shown; None where there is none."""
    path = run.folder / "recipe.toml"
    # A link could show any of the reader's files to whoever gets the report.
    if path.is_symlink():
        return Text(f"{path} is a link, which is not followed.")
    try:
        return Code(read_small_text(path, errors="replace"))
    except FileNotFoundError:
        return None
    except OSError as error:
        return Text(f"{path} cannot be read: {error.strerror or error}.")


def _train_command(run: FoundRun, caches: Sequence[KnownCache]) -> str:
    """The call of `vidgraph train` or `finetune` that gives this run, with what it cannot express.

    That follows as a comment.
    """
    about, phase, notes = run.about, run.result.get("phase", PLAIN), []
    manifest, known = about.get("manifest"), cache_of(caches, about)
    frames = about.get("frames")

    command = "train" if frames is None else "finetune"
    words = ["vidgraph", command, run.folder / "recipe.toml"]
    if known is not None:
        for path in known.paths:
            words += ["--cache", path]
    words += _manifest_options(manifest, known)
    words += ["--name", run.folder.name, "--seed", about["seed"]]
    if about.get("precision", "fp32") != "fp32":
        words += ["--precision", about["precision"]]
    if "start" in about:
        words += ["--start", about["start"]]
    if frames is not None:
        if phase != PLAIN:
            words += ["--phase", phase]
        if frames.get("fresh") and known is not None:
            words += ["--views", "fresh"]
        if known is None:
            more = "" if manifest else "--manifest, and "
            notes.append(
                f"without a cache: add {more}the options of vidgraph extract that run.json has as "
                "config"
            )
    if about.get("order_seed", about["seed"]) != about["seed"]:
        notes.append(
            f"as a member of a study, its views came in the order of seed {about['order_seed']}"
        )
    return "  # ".join([_shell_command(words), *notes])


def _manifest_options(record: Mapping[str, Any] | None, known: KnownCache | None) -> list[Any]:
    """--manifest, where labels and splits are not the cache's; --root where there is no cache."""
    if not record:
        return []
    if known is None:
        return ["--manifest", record["path"], "--root", record["root"]]
    if known.labels_sha256 == record["sha256"]:
        return []
    return ["--manifest", record["path"]]


def _evaluate_commands(run: FoundRun) -> list[str]:
    """The calls of `vidgraph evaluate` that left their figures in a run's folder."""
    commands = []
    for tag, record in run.evaluations:
        split = tag.split("_")[0]
        words: list[Any] = ["vidgraph", "evaluate", run.folder, "--split", split]
        if record.get("phase"):
            words += ["--phase", record["phase"]]
        elif record.get("checkpoint") in ("best", "last"):
            words += ["--checkpoint", record["checkpoint"]]
        if record.get("structure"):
            words += ["--structure", record["structure"]]
        if run.about is not None and record.get("manifest"):
            own = (run.about.get("manifest") or {}).get("path")
            if record["manifest"] != own:
                words += ["--manifest", record["manifest"]]
        commands.append(_shell_command(words))
    return commands


def _report_command(found: Sequence[FoundRun], caches: Sequence[KnownCache]) -> str:
    """The call of `vidgraph report` for the same runs."""
    words: list[Any] = ["vidgraph", "report"]
    words += dict.fromkeys([str(run.folder.parent) for run in found])
    for known in caches:
        if known.cache is not None:
            for path in known.paths:
                words += ["--cache", path]
    return _shell_command([*words, "--out", "report"])


def _cache_commands(known: KnownCache, folders: Iterator[str]) -> list[str]:
    """The calls of `vidgraph extract` and `vidgraph graphs` for a cache; [] if it is unknown.

    Each part of the cache takes the next of `folders`.
    """
    if known.cache is None or not known.asked:
        return []
    parts = known.cache.parts if isinstance(known.cache, JoinedCache) else (known.cache,)
    commands = []
    for part in parts:
        new = next(folders)
        root = part.record["manifest"]["root"]
        words: list[Any] = ["vidgraph", "extract", "--manifest", part.path / "manifest.csv"]
        words += ["--root", root, "--cache", new, *_extract_options(known.asked)]
        commands.append(_shell_command(words))
        if known.graphs:
            commands.append(_shell_command(["vidgraph", "graphs", "--cache", new, *_graphs(known)]))
    return commands


def _graphs(known: KnownCache) -> list[Any]:
    """The options of `vidgraph graphs`."""
    words: list[Any] = []
    if known.graphs.get("which"):
        words += ["--which", ",".join(known.graphs["which"])]
    if known.graphs.get("neighbours"):
        words += ["--neighbours", known.graphs["neighbours"]]
    return words


def _extract_options(asked: Mapping[str, Any]) -> list[Any]:
    """Every option that was asked for: as a flag, or as --set where there is no flag."""
    from pipeline.stages.config import ExtractConfig

    # Lists for tuples, as a shard's record has them.
    defaults = flatten(json.loads(json.dumps(asdict(ExtractConfig()))))
    words: list[Any] = []
    for key, value in flatten(dict(asked)).items():
        if value is None or value in ({}, []):
            continue
        flag, name = FLAGS.get(key), key.removeprefix("sampling.")
        if name in NAMED:
            flag = f"--{name.replace('_', '-')}"
        if flag is None and value == defaults.get(key, {}):
            continue
        if flag is None:
            # --set reads values of JSON.
            words += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
        elif isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, list):
            words += [flag, ",".join(map(str, value))]
        elif value != "":
            words += [flag, value]
    return words


def _shell_command(words: Sequence[Any]) -> str:
    """Quote the words for a shell; an option and its value stay on one line."""
    lines, line = [], ""
    for word in words:
        part = shlex.quote(str(word))
        if line and part.startswith("--") and len(line) + len(part) > LINE:
            lines.append(line)
            line = f"  {part}"
        else:
            line = f"{line} {part}" if line else part
    return " \\\n".join([*lines, line])


def _versions(found: Sequence[FoundRun]) -> Table:
    """What computed the runs: a row for each combination of versions, device, precision, cache."""
    count: dict[tuple[str, ...], int] = {}
    for run in found:
        if run.about is None:
            continue
        versions = run.about.get("versions") or {}
        key = (
            ", ".join([f"{name} {version}" for name, version in versions.items()]),
            str(run.about.get("device", "")),
            str(run.about.get("precision", "")),
            str(run.about["fingerprint"]),
        )
        count[key] = count.get(key, 0) + 1
    columns = (
        Column("versions"),
        Column("device"),
        Column("precision"),
        Column("cache's fingerprint"),
        Column("runs", "count"),
    )
    rows = tuple([(*key, number) for key, number in count.items()])
    return Table("versions", "What computed the runs.", columns, rows)
