"""The folder that a report is written to: which files in it are the report's own, so that no others are ever removed.

Its file MARKER lists them, and is written before the first of them: so a report that was stopped, or met a full disk, can be
written again. Everything else in the folder is somebody else's.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.owners import remove_abandoned
from pipeline.sealed import make_folder, named, write_text
from pipeline.smallfile import read_small_text

PAGE = "report.html"
TEXT = "report.md"
MARKER = "vidgraph-report.json"
FOLDERS = ("plots", "pictures", "tables")
_OWN = re.compile(rf"report\.(html|md)|({'|'.join(FOLDERS)})/(?!\.)[^/\\]+")
# What pages began with before there was a marker, and still begin with.
_BEGINNING = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'sha256-"
)


def own_files(out: Path) -> set[str]:
    """The files of an earlier report in a folder, by their paths in it. ValueError for a folder that holds something else."""
    for folder in (out / name for name in FOLDERS):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):  # a list may name files of wherever a link leads
            raise ValueError(f"{folder}: expected a folder of the report's own, got a link or a file; choose another --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return set()
    if (out / MARKER).is_file():
        try:
            listed = json.loads(read_small_text(out / MARKER))["files"]
            return {name for name in listed if isinstance(name, str) and _OWN.fullmatch(name)}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{out / MARKER}: damaged; expected a list of the report's files: choose a new folder") from None
    if out.is_dir() and _is_page(out / PAGE):  # of a version that wrote no marker: what its text shows is its own
        text = read_small_text(out / TEXT, errors="replace") if (out / TEXT).is_file() else ""
        shown = re.findall(r"\]\(((?:plots|pictures)/[^/)\\]+)\)", text)
        return {PAGE, TEXT, *(name for name in shown if _OWN.fullmatch(name))}
    if out.is_dir() and all(_left_before_the_marker(path) for path in out.iterdir()):
        return set()
    raise ValueError(f"{out}: is there and is no report; expected a new folder, or one of an earlier report")


def write_report(out: Path, page: str, text: str, files: Mapping[str, bytes]) -> None:
    """Writes a report's files, the page last, and removes those of an earlier report that this one has not.

    ValueError, before anything is written, where one of them would replace a file that is no report's.
    """
    before, mine = own_files(out), {PAGE, TEXT, *files}
    marked = (out / MARKER).is_file()
    foreign = [name for name in sorted(mine - before) if (out / name).exists()] if marked or not before else []
    if foreign:
        raise ValueError(
            f"{out / foreign[0]}: is there, is of no earlier report, and this one would replace it; move it, or choose another "
            "folder"
        )
    make_folder(out)
    remove_abandoned(out, re.escape(MARKER), re.escape(PAGE), re.escape(TEXT))
    _mark(out, before | mine)
    for name, data in files.items():
        path = out / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # where it is a link now, what that leads to stays as it is
        with named(path):
            path.write_bytes(data)
    for name in before - mine:
        (out / name).unlink(missing_ok=True)
    for folder in FOLDERS:
        with suppress(OSError):  # it holds what is somebody else's, or is not there
            (out / folder).rmdir()
    write_text(out / TEXT, text)
    write_text(out / PAGE, page)
    _mark(out, mine)


def _mark(out: Path, names: set[str]) -> None:
    what = "the files that `vidgraph report` wrote here: the next report replaces them, and no others"
    write_text(out / MARKER, json.dumps({"what": what, "files": sorted(names)}, indent=1, ensure_ascii=False) + "\n")


def _left_before_the_marker(path: Path) -> bool:
    """Whether a file is what a report leaves that was killed at its very first step."""
    return path.name.startswith(f"{MARKER}.") and path.name.endswith(".part")


def _is_page(path: Path) -> bool:
    """Whether a file is the page of one of our reports."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING.encode()
