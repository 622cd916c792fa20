"""Report sections on where the numbers come from: extraction statistics, commands, versions."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from heads.config.recipe import PLAIN
from heads.reporting.cache_facts import KnownCache, StageStatistics
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
from heads.reporting.pace_table import pace
from heads.reporting.run_folders import FoundRun
from pipeline.files.regular_files import read_small_text

# Characters of a command's line, after which the next option starts a new one.
LINE = 90


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
    commands = list(filter(None, map(_extract_command, caches)))
    if commands:
        text = "The caches, from the same videos and weights:"
        blocks += [Text(text), Code("\n\n".join(commands))]
    if groups:
        lines = []
        for group in groups:
            lines += [_train_command(run, caches) for run in group.runs]
        text = "The runs, each from the recipe that its folder keeps:"
        blocks += [Text(text), Code("\n".join(lines))]
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
    fingerprint, manifest = about["fingerprint"], about.get("manifest")
    known = next((cache for cache in caches if cache.fingerprint == fingerprint), None)
    frames = about.get("frames")

    command = "train" if frames is None else "finetune"
    words = ["vidgraph", command, run.folder / "recipe.toml"]
    if known is not None:
        words += ["--cache", known.path]
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


def _extract_command(known: KnownCache) -> str:
    """The call of `vidgraph extract` with every option that was asked for; "" if it is unknown."""
    if known.cache is None or not known.asked:
        return ""
    manifest, root = known.path / "manifest.csv", known.cache.record["manifest"]["root"]
    words: list[Any] = ["vidgraph", "extract", "--manifest", manifest, "--root", root]
    words += ["--cache", "NEW"]
    for key, value in flatten(known.asked).items():
        if value is not None and value != {}:
            # --set reads values of JSON.
            words += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    return _shell_command(words)


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
