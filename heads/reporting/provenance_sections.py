"""Where the numbers come from: the extraction's statistics, and the commands, fingerprints and
versions to get them again.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from heads.config.recipe import PLAIN
from heads.reporting.cache_facts import KnownCache
from heads.reporting.document import Block, Cell, Code, Column, Fold, Notice, Section, Table, Text
from heads.reporting.groups import RunGroup, flatten, setting_text
from heads.reporting.result_sections import LONG
from heads.reporting.run_folders import FoundRun
from pipeline.files.regular_files import read_small_text


def extraction(caches: Sequence[KnownCache]) -> Section | None:
    """The section of every cache's statistics; None without runs that name one."""
    if not caches:
        return None
    gone = tuple(f"{known.path}: {known.problem}" for known in caches if known.cache is None)
    blocks: list[Block] = [Notice(gone)] if gone else []
    rows: list[tuple[Cell, ...]] = []
    for known in caches:
        for stage, found in known.statistics.items():
            shards = f"{found.shards} of {known.shards}"
            failed = sum(found.failures.values()) if stage == "features" else None
            device = ", ".join(found.devices)
            rows.append(
                (
                    str(known.path),
                    stage,
                    shards,
                    found.clips,
                    found.views,
                    failed,
                    found.rate,
                    found.bytes,
                    device,
                )
            )
    if rows:
        names = (
            ("cache", "text"),
            ("stage", "text"),
            ("shards", "text"),
            ("clips", "count"),
            ("views", "count"),
        )
        more = (("failed", "count"), ("clips/s", "percent"), ("bytes", "short"), ("device", "text"))
        columns = tuple(Column(*pair) for pair in (*names, *more))
        caption = "clips/s: of one process, by the seconds of the shards; several may have worked at the same time."
        blocks.append(Table("extraction", caption, columns, tuple(rows)))
    for known in caches:
        blocks += _details(known)
    return Section("Extraction", "extraction", tuple(blocks))


def _details(known: KnownCache) -> list[Block]:
    """Seconds by part, failures by reason and one by one, the configuration, of a cache that is
    there.
    """
    found = known.statistics.get("features")
    if known.cache is None or found is None:
        return []
    blocks: list[Block] = []
    name = known.fingerprint[:8]
    if found.failures:
        columns = (Column("reason"), Column("clips", "count"), Column("of all %", "percent"))
        rows = tuple(
            (reason, n, 100 * n / max(found.clips, 1)) for reason, n in found.failures.items()
        )
        blocks.append(
            Table(f"failures-{name}", f"Failures of {known.path} by reason.", columns, rows)
        )
        columns = (Column("clip"), Column("reason"), Column("message"))
        rows = tuple(
            (str(one["clip"]), str(one["error"]), str(one["message"])) for one in known.failed
        )
        table = Table(
            f"failed-clips-{name}", "Every clip that failed.", columns, rows, long=len(rows) >= LONG
        )
        blocks.append(Fold(f"Clips that failed in {known.path}", (table,)))
    inside: list[Block] = []
    if found.seconds:
        wall = found.seconds.get("wall") or 0.0
        rows = tuple(
            (part, float(seconds), 100 * seconds / wall if wall else None)
            for part, seconds in sorted(found.seconds.items())
        )
        columns = (Column("part"), Column("seconds", "seconds"), Column("of wall %", "percent"))
        inside.append(
            Table(
                f"seconds-{name}",
                "Parts overlap: decoding runs beside the networks.",
                columns,
                rows,
            )
        )
    rows = tuple((key, setting_text(value)) for key, value in flatten(known.cache.config).items())
    columns = (Column("key"), Column("value"))
    inside.append(
        Table(
            f"config-{name}",
            f"Fingerprint {known.fingerprint}",
            columns,
            rows,
            long=len(rows) >= LONG,
        )
    )
    return [*blocks, Fold(f"Seconds and configuration of {known.path}", tuple(inside))]


def reproduce(
    groups: Sequence[RunGroup], found: Sequence[FoundRun], caches: Sequence[KnownCache]
) -> Section:
    """The section of commands, recipes and versions."""
    blocks: list[Block] = []
    if made := [command for known in caches if (command := _extract_command(known))]:
        blocks += [Text("The caches, from the same videos and weights:"), Code("\n\n".join(made))]
    if groups:
        blocks.append(Text("The runs, each from the recipe that its folder keeps:"))
        blocks.append(
            Code("\n".join(_train_command(run, caches) for group in groups for run in group.runs))
        )
    blocks.append(_versions(found))
    for group in groups:
        if (said := _recipe(group.runs[0])) is not None:
            blocks.append(Fold(f"Recipe of {group.name}", (said,)))
    return Section("How to reproduce", "reproduce", tuple(blocks))


def _recipe(run: FoundRun) -> Block | None:
    """The text of the recipe that a run's folder keeps, or why it is not shown; None where there is
    none.
    """
    path = run.folder / "recipe.toml"
    if path.is_symlink():  # whoever made the folder would have any file of the reader's shown
        return Text(f"{path} is a link, which is not followed.")
    try:
        return Code(read_small_text(path, errors="replace"))
    except FileNotFoundError:
        return None
    except OSError as error:
        return Text(f"{path} cannot be read: {error.strerror or error}.")


def _train_command(run: FoundRun, caches: Sequence[KnownCache]) -> str:
    """The call of `vidgraph train`, or `finetune`, that gives this run, and what it cannot say."""
    about, phase, notes = run.about, run.result.get("phase", PLAIN), []
    known = next((one for one in caches if one.fingerprint == about["fingerprint"]), None)
    words = ["vidgraph", "finetune" if "frames" in about else "train", run.folder / "recipe.toml"]
    if known is not None:
        words += ["--cache", known.path]
    words += _manifest_options(about.get("manifest"), known)
    words += ["--name", run.folder.name, "--seed", about["seed"]]
    if about.get("precision", "fp32") != "fp32":
        words += ["--precision", about["precision"]]
    if "start" in about:
        words += ["--start", about["start"]]
    if "frames" in about:
        words += ["--phase", phase] if phase != PLAIN else []
        words += ["--views", "fresh"] if about["frames"].get("fresh") and known is not None else []
        if known is None:
            more = "" if about.get("manifest") else "--manifest, and "
            notes.append(
                f"without a cache: add {more}the options of vidgraph extract that run.json has as "
                f"config"
            )
    if about.get("order_seed", about["seed"]) != about["seed"]:
        notes.append(
            f"as a member of a study, its views came in the order of seed {about['order_seed']}"
        )
    return _joined(words) + "".join(f"  # {note}" for note in notes)


def _manifest_options(record: Mapping[str, Any] | None, known: KnownCache | None) -> list[Any]:
    """--manifest, where the labels and splits are not those of the cache's copy; --root where there
    is no cache to tell it.
    """
    if not record:
        return []
    if known is None:
        return ["--manifest", record["path"], "--root", record["root"]]
    return [] if known.labels_sha256 == record["sha256"] else ["--manifest", record["path"]]


def _extract_command(known: KnownCache) -> str:
    """The call of `vidgraph extract` with every option as it was asked for; "" where the cache does
    not tell.
    """
    if known.cache is None or not known.asked:
        return ""
    record = known.cache.record["manifest"]
    words: list[Any] = [
        "vidgraph",
        "extract",
        "--manifest",
        known.path / "manifest.csv",
        "--root",
        record["root"],
        "--cache",
        "NEW",
    ]
    for key, value in flatten(known.asked).items():
        if value is not None and value != {}:
            words += ["--set", f"{key}={_toml(value)}"]
    return _joined(words)


def _toml(value: Any) -> str:
    """A value of JSON as `--set` reads it."""
    return json.dumps(value, ensure_ascii=False)


def _joined(words: Sequence[Any]) -> str:
    """For a shell; an option and its value stay on one line."""
    parts = [shlex.quote(str(word)) for word in words]
    lines, line = [], ""
    for part in parts:
        if line and part.startswith("--") and len(line) + len(part) > 90:
            lines.append(line)
            line = f"  {part}"
        else:
            line = f"{line} {part}" if line else part
    return " \\\n".join([*lines, line])


def _versions(found: Sequence[FoundRun]) -> Table:
    """What computed the runs: one row for each combination that occurs."""
    rows: dict[tuple, list[str]] = {}
    for run in found:
        if run.about is not None:
            versions = run.about.get("versions") or {}
            said = ", ".join(f"{name} {version}" for name, version in versions.items())
            key = (
                said,
                str(run.about.get("device", "")),
                str(run.about.get("precision", "")),
                str(run.about["fingerprint"]),
            )
            rows.setdefault(key, []).append(run.folder.name)
    columns = (
        Column("versions"),
        Column("device"),
        Column("precision"),
        Column("cache's fingerprint"),
        Column("runs", "count"),
    )
    return Table(
        "versions",
        "What computed the runs.",
        columns,
        tuple((*key, len(names)) for key, names in rows.items()),
    )
