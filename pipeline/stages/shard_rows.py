"""What a shard of stage one consists of: decode tasks, rows of its clips, plans of its groups."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.cache.fields import field_of
from pipeline.cache.good_rows import GoodViews
from pipeline.cache.shard_writer import GroupPlan
from pipeline.manifests.manifest import Clip
from pipeline.stages.config import clip_opener
from pipeline.stages.frozen_networks import FrozenNetworks
from pipeline.video.view_pixels import DecodeViews, ProbeClip
from pipeline.views.sampling import Sampling, count_views

# Windows of one video that go to one decode worker together: as many as tasks that are under way
# for each worker (`extract_shards.TASKS_AHEAD`), so that all workers have some.
RUN = 8


def decode_tasks(
    models: FrozenNetworks, root: Path, clips: Sequence[Clip], good: GoodViews | None
) -> list[ProbeClip | DecodeViews]:
    """List what the decode workers do for a shard.

    Args:
        models: the networks, which know the config.
        root: the folder that no clip may leave.
        clips: the shard's clips.
        good: the views that are copied from the existing file. Clips whose views are all copied
            have no tasks.

    Returns:
        One probe per clip if test views have the clip's own size, then one decoding per clip.
    """
    config = models.config
    opener = clip_opener(root, config)
    decoded = []
    for position, clip in enumerate(clips):
        if not all_good(good, config.sampling, position):
            decoded.append(clip)

    # Probes come first: the file's shapes follow from the sizes of all clips.
    probes = []
    if config.sampling.test_clips and config.sampling.size_of("test") is None:
        probes = [ProbeClip(clip, opener, again) for clip, again, _ in _runs(decoded)]
    views = (config.sampling, config.seed, models.steps, models.frame_size, config.resize)
    tasks = []
    for clip, again, kin in _runs(decoded):
        tasks.append(DecodeViews(clip, opener, *views, again=again, kin=kin))
    return probes + tasks


def _runs(clips: Sequence[Clip]) -> Iterator[tuple[Clip, bool, str]]:
    """Yield (clip, whether the next one is of the same video, name of its run).

    A run is RUN consecutive windows of one video, which one worker decodes: so several workers
    share a video, and overlapping windows are mostly in the same one.
    """
    places = ["", *(clip.place for clip in clips), ""]
    number = 0
    for clip, before, after in zip(clips, places, places[2:], strict=False):
        number = number + 1 if clip.place == before else 0
        alone = clip.place not in (before, after)
        yield clip, clip.place == after, "" if alone else f"{clip.place} {number // RUN}"


def rows_of(sampling: Sampling, position: int) -> dict[str, range]:
    """Return the rows of a clip.

    Args:
        sampling: how many views a clip has.
        position: the clip's position in its shard, from 0.

    Returns:
        Group -> rows, of the groups that have any.
    """
    rows = {}
    for group, count in count_views(sampling).items():
        if count:
            rows[group] = range(position * count, (position + 1) * count)
    return rows


def all_good(good: GoodViews | None, sampling: Sampling, position: int) -> bool:
    """Return whether every view of a clip is copied from the existing file.

    Args:
        good: the views that are copied; None if none are.
        sampling: how many views a clip has.
        position: the clip's position in its shard, from 0.
    """
    return good is not None and good.has_all(rows_of(sampling, position))


def group_plans(
    models: FrozenNetworks, clips: Sequence[Clip], sizes: Mapping[str, list[tuple[int, int]]]
) -> dict[str, GroupPlan]:
    """Plan the groups of a shard's file.

    Args:
        models: the networks, which know the shapes.
        clips: the shard's clips.
        sizes: group -> the (height, width) of its views in pixels, where they differ. Maps are
            padded to the largest.

    Returns:
        Group -> its rows and fields.
    """
    sampling, config = models.config.sampling, models.config
    plans = {}
    for group, count in count_views(sampling).items():
        if not count:
            continue
        size = sampling.size_of(group)
        if not size:
            # Without a clip that opens, any size will do: no view is written.
            views = sizes.get(group) or [(sampling.resized, sampling.resized)]
            size = max(height for height, _ in views), max(width for _, width in views)

        fields = {}
        for name, shape in models.shapes(size).items():
            dtype = field_of(name).dtype
            fields[name] = (shape, config.dtype if dtype == "feature" else dtype)
        names: list[str] = []
        for clip in clips:
            names += [clip.clip] * count
        plans[group] = GroupPlan(names, list(range(count)) * len(clips), fields)
    return plans
