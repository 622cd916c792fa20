"""YOLO's text: a file per frame, a line per box: class, middle x, middle y, width, height in [0,1].

A line may go on with a confidence, a track, or both. Of six numbers the last one is a track if it
is whole in every line of the folder. A file's name says clip and frame: `clip_000012.txt`, or
`clip/000012.txt`. Classes have the names in `data.yaml` (or another YAML file with `names`),
`classes.txt` or `*.names` of the folder or the one above; else their numbers.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.box_files.file_text import text_of
from pipeline.box_files.names import clip_and_frame
from pipeline.box_files.table import BoxCollector, ClassNames, ClipBoxes, ReadOptions

# names: [a, b], names: {0: a, 1: b}, or one entry per line below, as "- a" or "0: a".
_NAMES = re.compile(
    r"^names:[ \t]*(?:(?P<flow>[\[{][^\]}]*[\]}])"
    r"|(?:#.*)?\n(?P<block>(?:[ \t]*(?:-|\d+:)[ \t].*\n?)+))",
    re.MULTILINE,
)
_ENTRY_GAP = re.compile(r",\s*")
_NUMBERED = re.compile(r"(\d+):\s*(.*)")
NAME_FILES = ("classes.txt", "*.names", "*.yaml", "*.yml")


def read_folder(
    folder: Path, texts: Sequence[tuple[Path, str]], names: ClassNames, options: ReadOptions
) -> Iterator[tuple[str, ClipBoxes]]:
    """Yield every clip of a folder with its boxes.

    Args:
        folder: where paths start that name clips.
        texts: every file and its text.
        names: numbers the classes.
        options: `count_from` and `class_names`.

    Raises:
        ValueError: a malformed line, with its file and number.
    """
    listed = options.class_names or class_names_of(folder)
    names.add_listed(listed)
    sixths = []
    for _, text in texts:
        sixths += [line.split()[5] for line in text.splitlines() if len(line.split()) == 6]
    tracked = bool(sixths) and all(cell.isdigit() for cell in sixths)
    collector = BoxCollector(names, "fraction")
    for path, text in texts:
        clip, frame = clip_and_frame(path.relative_to(folder).as_posix())
        collector.see(clip, frame)
        for number, line in enumerate(text.splitlines(), 1):
            cells = line.split()
            if not cells:
                continue
            try:
                _add(collector, clip, frame, cells, listed, tracked)
            except ValueError as error:
                raise ValueError(
                    f"{path}: line {number}: {error}; expected class, middle x, middle y, width, "
                    f"height and, if wanted, confidence and track"
                ) from error
    yield from collector.finish(collector.first_number(options))


def _add(
    collector: BoxCollector,
    clip: str,
    frame: int,
    cells: list[str],
    listed: Sequence[str],
    tracked: bool,
) -> None:
    if not 5 <= len(cells) <= 7:
        raise ValueError(f"{len(cells)} numbers")
    class_number = int(cells[0])
    x, y, width, height = map(float, cells[1:5])
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    score, track = 1.0, None
    if len(cells) == 6 and tracked:
        track = int(cells[5])
    elif len(cells) >= 6:
        score = float(cells[5])
    if len(cells) == 7:
        track = int(cells[6])
    name = listed[class_number] if 0 <= class_number < len(listed) else str(class_number)
    collector.add(clip, frame, corners, score, name, track)


def class_names_of(folder: Path) -> tuple[str, ...]:
    """Return the names of the classes that a folder, or the one above it, lists; () without any."""
    for place in (folder, folder.parent):
        for pattern in NAME_FILES:
            for path in sorted(place.glob(pattern)):
                found = _names_in(path)
                if found:
                    return found
    return ()


def _names_in(path: Path) -> tuple[str, ...]:
    """The names in a file: a line each, or `names` of a YAML file."""
    text = text_of(path)
    if path.suffix not in (".yaml", ".yml"):
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    return _yaml_names(text)


def _yaml_names(text: str) -> tuple[str, ...]:
    """The list or table `names` of a YAML file, as these files have it.

    A library of YAML could do far more than to read names. It is not used on files of others.
    """
    found = _NAMES.search(text)
    if not found:
        return ()
    flow, block = found["flow"], found["block"]
    entries = _ENTRY_GAP.split(flow[1:-1]) if flow else block.strip().splitlines()
    names: dict[int, str] = {}
    for entry in entries:
        entry = entry.partition(" #")[0].strip().removeprefix("- ").strip()
        if not entry:
            continue
        numbered = _NUMBERED.fullmatch(entry)
        number = int(numbered[1]) if numbered else len(names)
        names[number] = (numbered[2] if numbered else entry).strip("'\"")
    # A number that is left out keeps its number as its name.
    return tuple(names.get(k, str(k)) for k in range(max(names, default=-1) + 1))
