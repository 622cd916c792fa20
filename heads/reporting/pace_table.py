"""A table of how near each extraction came to what its networks alone could do."""

from collections.abc import Sequence

from heads.reporting.cache_facts import KnownCache
from heads.reporting.document import Block, Cell, Column, Table
from pipeline.cache.joined import caches_of
from pipeline.stages.bottleneck import Work, has_figures, pace_of


def pace(caches: Sequence[KnownCache]) -> list[Block]:
    """Make the table of the caches' pace.

    Args:
        caches: the caches.

    Returns:
        The table; nothing where no cache has statistics of an extraction.
    """
    rows: list[tuple[Cell, ...]] = []
    for known in caches:
        if known.cache is None:
            continue
        work = Work()
        for cache in caches_of(known.cache):
            for record in cache.records["features"].values():
                # A cache of digits is computed without decoding: it has no such figures.
                if has_figures(record):
                    work.add(record)
        found = pace_of(work, work.wall)
        if found is None:
            continue
        rows.append(
            (
                str(known.path),
                found.rate,
                found.alone,
                100 * found.networks,
                100 - 100 * found.decoders,
                100 - 100 * found.writer,
                found.advice,
            )
        )
    if not rows:
        return []
    columns = (
        Column("cache"),
        Column("views/s", "percent"),
        Column("networks alone, views/s", "percent"),
        Column("networks busy %", "percent"),
        Column("decoders idle %", "percent"),
        Column("writer idle %", "percent"),
        Column("what held it back"),
    )
    caption = (
        "Pace of the extraction, from the statistics of its shards: views per second of one "
        "process, and what its networks alone could do."
    )
    return [Table("pace", caption, columns, tuple(rows))]
