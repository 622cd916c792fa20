"""What a shard of stage one consists of: decode tasks, rows of its clips, plans of its groups."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.cache.fields import GROUPS, field_of
from pipeline.cache.good_rows import GoodViews
from pipeline.cache.parts import ViewKey
from pipeline.cache.shard_writer import GroupPlan
from pipeline.manifests.manifest import Clip
from pipeline.stages.config import clip_opener
from pipeline.stages.frozen_networks import FrozenNetworks
from pipeline.stages.jobs import ShardJob
from pipeline.video.view_pixels import DecodeViews, ProbeClip
from pipeline.views.sampling import Sampling, count_views

# Windows of one video that go to one decode worker together: as many as tasks that are under way
# for each worker (`extract_shards.TASKS_AHEAD`), so that all workers have some.
RUN = 8


class ShardRows:
    """Which rows of a shard belong to which clip.

    Attributes:
        clips: group -> for each row, the number of its clip in the shard.
        views: group -> for each row, the number of its view.
    """

    def __init__(self, views: Sequence[Sequence[ViewKey]]):
        """Number the rows: clip after clip, and view after view.

        Args:
            views: for each clip the (group, number) of its views.
        """
        self.clips: dict[str, list[int]] = {group: [] for group in GROUPS}
        self.views: dict[str, list[int]] = {group: [] for group in GROUPS}
        self._of: list[dict[str, range]] = []
        for clip, keys in enumerate(views):
            rows = {}
            for group in GROUPS:
                first = len(self.views[group])
                for name, number in keys:
                    if name == group:
                        self.clips[group].append(clip)
                        self.views[group].append(number)
                if len(self.views[group]) > first:
                    rows[group] = range(first, len(self.views[group]))
            self._of.append(rows)

    @property
    def groups(self) -> list[str]:
        """The groups that have any row."""
        return [group for group in GROUPS if self.views[group]]

    def of(self, clip: int) -> dict[str, range]:
        """Return the rows of a clip.

        Args:
            clip: the clip's number in the shard.

        Returns:
            Group -> rows, of the groups in which it has any.
        """
        return self._of[clip]


def decode_tasks(
    models: FrozenNetworks, root: Path, job: ShardJob, good: GoodViews | None
) -> list[ProbeClip | DecodeViews]:
    """List what the decode workers do for a shard.

    Args:
        models: the networks, which know the config.
        root: the folder that no clip may leave.
        job: the shard.
        good: the views that are copied from the existing file. Clips whose views are all copied
            have no tasks.

    Returns:
        One probe per clip with test views that have the clip's own size, then one decoding per
        clip.
    """
    config = models.config
    opener, rows = clip_opener(root, config), ShardRows(job.views)
    decoded = []
    for number in range(len(job.clips)):
        if not is_settled(job, rows, good, number):
            decoded.append(number)

    # Probes come first: the file's shapes follow from the sizes of all clips.
    probes = []
    if config.sampling.size_of("test") is None:
        tested = [number for number in decoded if "test" in rows.of(number)]
        for number, again, _ in _runs(job.clips, tested):
            probes.append(ProbeClip(job.clips[number], opener, again))

    how = (config.sampling, config.seed, models.steps, models.frame_size, config.resize)
    tasks = []
    for number, again, kin in _runs(job.clips, decoded):
        only = () if _are_all(job.views[number], config.sampling) else tuple(job.views[number])
        tasks.append(DecodeViews(job.clips[number], opener, *how, only, again=again, kin=kin))
    return probes + tasks


def _runs(clips: Sequence[Clip], numbers: Sequence[int]) -> Iterator[tuple[int, bool, str]]:
    """Yield (number of a clip, whether the next one may be of the same video, name of its run).

    A run is RUN consecutive windows of one video, which one worker decodes: so several workers
    share a video, and overlapping windows are mostly in the same one. After the last window of a
    shard its video stays open, too: the next shard often has the windows that follow.
    """
    places = ["", *(clips[number].place for number in numbers), ""]
    in_run = 0
    for number, before, place, after in zip(numbers, places, places[1:], places[2:], strict=False):
        in_run = in_run + 1 if place == before else 0
        clip = clips[number]
        is_window = clip.start is not None or clip.end is not None
        again = place == after or (is_window and not after)
        if is_window:
            kin = f"{place} {clip.position // RUN}"
        else:
            kin = "" if place not in (before, after) else f"{place} {in_run // RUN}"
        yield number, again, kin


def _are_all(views: Sequence[ViewKey], sampling: Sampling) -> bool:
    """Whether these are all the views that a sampling gives a clip."""
    return len(views) == sum(count_views(sampling).values())


def is_settled(job: ShardJob, rows: ShardRows, good: GoodViews | None, number: int) -> bool:
    """Return whether a clip needs no decoding.

    Args:
        job: the shard.
        rows: its rows.
        good: the views that are copied from the existing file; None if none are.
        number: the clip's number in the shard.

    Returns:
        Whether all its views are copied, or it failed when its features were extracted.
    """
    if number in job.skipped:
        return True
    return good is not None and good.has_all(rows.of(number))


def group_plans(
    models: FrozenNetworks, job: ShardJob, sizes: Mapping[str, list[tuple[int, int]]]
) -> dict[str, GroupPlan]:
    """Plan the groups of a shard's file.

    Args:
        models: the networks, which know the shapes.
        job: the shard.
        sizes: group -> the (height, width) of its views in pixels, where they differ. Maps are
            padded to the largest.

    Returns:
        Group -> its rows and fields.
    """
    sampling, config, rows = models.config.sampling, models.config, ShardRows(job.views)
    plans = {}
    for group in rows.groups:
        size = sampling.size_of(group)
        if not size:
            # Without a clip that opens, any size will do: no view is written.
            views = sizes.get(group) or [(sampling.resized, sampling.resized)]
            size = max(height for height, _ in views), max(width for _, width in views)

        fields = {}
        for name, shape in models.shapes(size).items():
            if job.fields is not None and name not in job.fields:
                continue
            dtype = field_of(name).dtype
            fields[name] = (shape, config.dtype if dtype == "feature" else dtype)
        names = [job.clips[number].clip for number in rows.clips[group]]
        plans[group] = GroupPlan(names, rows.views[group], fields)
    return plans
