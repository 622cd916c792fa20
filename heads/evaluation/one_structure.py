"""Evaluate a head of GOS with one structure for all videos (Li et al., CVPR 2020).

Its Table 1 has a row whose test videos all get the structure that most training videos chose, and
its Figure 5 shows videos with the structure of another video. `structure_named` finds such a
structure, `exchange` makes the table of Figure 5.

A structure in a file is a CSV with one row per edge: cell, from, to, operation. Cells count from 1,
supernodes from 0 (s_0 is the cell's input).
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from heads.config.recipe import Recipe
from heads.data.splits import SplitViews, fields_for
from heads.evaluation.metrics import aggregate, scores_of
from heads.interface.clips import Clips, clips_of
from heads.runs import run_files
from heads.runs.start_weights import checkpoint_of
from pipeline.cache.reader import Cache, Group
from pipeline.text.suggestions import nearest, nearest_names
from pipeline.text.text_files import read_text

CLIP = "clip:"  # before the name of a clip whose structure is meant
COLUMNS = ("cell", "from", "to", "operation")
EXPECTED = "a CSV table with the columns cell, from, to and operation"
# Of a name and of a checksum that are part of a file's name.
LONGEST_NAME, CHECKSUM = 60, 8


def structure_named(name: str, head: nn.Module, cache: Cache) -> tuple[Tensor, str]:
    """Find the structure that a name stands for.

    Args:
        name: "common" is the one that most training views of the head's own run chose. The path
            of a CSV file is the one in it, that of another run or checkpoint its common one.
            "clip:NAME" is the one that the head chooses for a clip of the cache.
        head: with its trained weights, on the CPU.
        cache: has the clip.

    Returns:
        Numbers in `head.space` [cells,E], and what files are named after: the name, and a checksum
        of the structure, since other structures may have a similar name.

    Raises:
        ValueError: the head has no structures, or there is no such structure, or it does not fit.
    """
    _require_structures(head)
    structure = _find(name, head, cache)
    safe = re.sub(r"[^\w.-]+", "_", name)[-LONGEST_NAME:]
    digest = hashlib.sha256(json.dumps(structure.tolist()).encode()).hexdigest()
    return structure, f"{safe}-{digest[:CHECKSUM]}"


def _require_structures(head: nn.Module) -> None:
    if not hasattr(head, "force"):
        raise ValueError(
            f"head {type(head).__name__} chooses no structures: expected a run of head gos"
        )


def _find(name: str, head: nn.Module, cache: Cache) -> Tensor:
    if name == "common":
        if head.common is None:
            raise ValueError(
                "this run counted no structures (an earlier version trained it): expected a CSV "
                "file, another run, or clip:NAME"
            )
        return head.common.clone()

    if name.startswith(CLIP):
        return clip_structure(head, cache, name.removeprefix(CLIP))
    path = Path(name)
    if path.suffix == ".csv":
        return read_structure(path, head)
    if not path.exists():
        raise ValueError(
            f"structure {name!r}: expected common, a CSV file, a run, or clip:NAME; there is no "
            f"such file or folder"
        )
    return _common_of(path, head)


def clip_structure(head: nn.Module, cache: Cache, clip: str) -> Tensor:
    """Return the structure [cells,E] that most test views of a clip choose; the first of a tie.

    It is the clip's own, also where the head evaluates with another one.

    Raises:
        ValueError: the cache has no test view of the clip.
    """
    group = cache["test"]
    rows = _rows_of(group, clip)
    with torch.inference_mode():
        weights = head.eval()(_clips(head, group, rows), want_maps=True).maps["weights"]
    own = weights.argmax(-1)
    votes = Counter(map(tuple, own.flatten(1).tolist()))
    return torch.tensor(votes.most_common(1)[0][0]).view(own.shape[1:])


def _common_of(path: Path, head: nn.Module) -> Tensor:
    """Return the structure that most training views of another run chose."""
    file = checkpoint_of(path)
    state = run_files.load_checkpoint(file)["state"]
    common = state.get("structure.common")
    if common is None or bool((common < 0).any()):
        raise ValueError(
            f"{file}: holds no common structure; expected a run of head gos that this version "
            f"trained"
        )
    operations = int(state["structure.shape"][-1])
    if operations != len(head.space):
        raise ValueError(
            f"{file}: its space has {operations} operations, expected {len(head.space)} "
            f"({', '.join(head.space)})"
        )
    # Tied cells store the structure that they share.
    if len(common) == 1:
        common = common.expand(len(head.cells), -1)
    return common.clone()


def read_structure(path: Path, head: nn.Module) -> Tensor:
    """Read a structure [cells,E] from a CSV file.

    Raises:
        ValueError: the file cannot be read, an edge is listed twice, or a column, an edge or an
            operation is wrong or missing.
    """
    places = {}
    for cell in range(len(head.cells)):
        for edge, (start, end) in enumerate(head.edges):
            places[str(cell + 1), str(start), str(end)] = cell, edge

    structure = torch.full((len(head.cells), len(head.edges)), -1)
    rows = csv.DictReader(io.StringIO(read_text(path, EXPECTED)))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}")
    for row in rows:
        place = places.get((row["cell"], row["from"], row["to"]))
        where = f"{path}, line {rows.line_num}"
        if place is None:
            raise ValueError(
                f"{where}: the head has no edge from {row['from']} to {row['to']} in cell "
                f"{row['cell']}; it has {len(head.cells)} cells with edges {list(head.edges)}"
            )
        if row["operation"] not in head.space:
            advice = nearest(str(row["operation"]), head.space)
            raise ValueError(f"{where}: no operation {row['operation']!r}: {advice}")
        if structure[place] >= 0:
            raise ValueError(
                f"{where}: the edge from {row['from']} to {row['to']} in cell {row['cell']} has a "
                f"row already; keep one of them"
            )
        structure[place] = head.space.index(row["operation"])
    if bool((structure < 0).any()):
        raise ValueError(
            f"{path}: expected a row for each of {structure.numel()} edges, got "
            f"{int((structure >= 0).sum())}"
        )
    return structure


def structure_rows(structure: Tensor, head: nn.Module) -> list[tuple[str, ...]]:
    """Return the rows of a structure's CSV file, with its header."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for cell, operations in enumerate(structure.tolist()):
        for (start, end), number in zip(head.edges, operations, strict=True):
            rows.append((str(cell + 1), str(start), str(end), head.space[number]))
    return rows


@dataclass(frozen=True)
class Exchanged:
    """A video with the structure of a video (a row of Figure 5).

    Attributes:
        clip: the video.
        label: its label; "" without one.
        structure_of: the video whose structure it gets.
        predicted: the class with the best score.
        score: that score.
        score_of_label: the score of its own label; NaN without one.
    """

    clip: str
    label: str
    structure_of: str
    predicted: str
    score: float
    score_of_label: float


def exchange(
    head: nn.Module,
    part: SplitViews,
    recipe: Recipe,
    classes: Sequence[str],
    cache: Cache,
    names: Sequence[str],
) -> list[Exchanged]:
    """Evaluate videos with their own and with one another's structures.

    Args:
        head: of a run of `gos`, on the CPU.
        part: the split that the videos belong to.
        recipe: says how the views of a video become one score.
        classes: the K class names.
        cache: the features.
        names: the videos, at least two; one that is named twice counts once.

    Returns:
        One row for each video with each structure.

    Raises:
        ValueError: fewer than two videos, or one that the split has not.
    """
    _require_structures(head)
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise ValueError("expected at least two different videos to exchange structures")
    numbers = {clip: number for number, clip in enumerate(part.clips)}
    for name in names:
        if name not in numbers:
            near = nearest_names(name, numbers)
            raise ValueError(f"split {part.split} has no clip {name!r}; {near}")

    structures = {name: clip_structure(head, cache, name) for name in names}
    found = []
    for name in names:
        rows = _rows_of(part.group, name)
        label = -1
        if part.targets is not None and part.targets.ndim == 1:
            label = int(part.targets[numbers[name]])
        for other, structure in structures.items():
            logits = _logits(head.eval(), part.group, rows, structure)
            scores = scores_of(logits.float().numpy(), recipe.scores)
            video = np.zeros(len(rows), int)
            scores = aggregate(scores, video, 1, recipe.evaluate.aggregate)[0]
            best = int(scores.argmax())
            own = float(scores[label]) if label >= 0 else float("nan")
            name_of_label = classes[label] if label >= 0 else ""
            row = Exchanged(name, name_of_label, other, classes[best], float(scores[best]), own)
            found.append(row)
    return found


def _rows_of(group: Group, clip: str) -> list[int]:
    rows = []
    for row, name in enumerate(group.clips):
        if name == clip and group.ok[row]:
            rows.append(row)
    if not rows:
        raise ValueError(
            f"the cache has no {group.name} view of clip {clip!r}: "
            f"{nearest_names(clip, set(group.clips))}"
        )
    return rows


def _clips(head: nn.Module, group: Group, rows: Sequence[int]) -> Clips:
    return clips_of(group.batch(list(rows), fields_for(head, group)))


def _logits(head: nn.Module, group: Group, rows: Sequence[int], structure: Tensor) -> Tensor:
    """Return the logits [R,K] of views with one structure."""
    before = head.forced
    head.force(structure)
    try:
        with torch.inference_mode():
            return head(_clips(head, group, rows)).logits
    finally:
        head.force(before)
