"""Writes a report into its folder, and replaces the files of an earlier report there, but no other
files.

The file MARKER lists the report's files and is written before the first of them. So a report that
was stopped, or met a full disk, can be written again. Files that it does not list belong to
somebody else and stay.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.files.atomic_files import make_folder, naming_errors, write_text
from pipeline.files.owners import remove_abandoned
from pipeline.files.regular_files import read_small_text

PAGE = "report.html"
TEXT = "report.md"
MARKER = "vidgraph-report.json"
FOLDERS = ("plots", "pictures", "tables")
_OWN = re.compile(rf"report\.(html|md)|({'|'.join(FOLDERS)})/(?!\.)[^/\\]+")
# How every page begins, also those of versions that wrote no MARKER.
_BEGINNING = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; "
    "script-src 'sha256-"
)


def own_files(out: Path) -> set[str]:
    """The files of an earlier report, as paths relative to `out`. ValueError for a folder that
    holds something else.
    """
    for folder in (out / name for name in FOLDERS):
        if folder.is_symlink() or (
            folder.exists() and not folder.is_dir()
        ):  # a list may name files of wherever a link leads
            raise ValueError(
                f"{folder}: expected a folder of the report's own, got a link or a file; choose "
                f"another --out"
            )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return set()
    if (out / MARKER).is_file():
        try:
            listed = json.loads(read_small_text(out / MARKER))["files"]
            return {name for name in listed if isinstance(name, str) and _OWN.fullmatch(name)}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"{out / MARKER}: damaged; expected a list of the report's files: choose a new "
                f"folder"
            ) from None
    if out.is_dir() and _is_page(
        out / PAGE
    ):  # of a version without MARKER: the pictures that its text shows are its own
        text = read_small_text(out / TEXT, errors="replace") if (out / TEXT).is_file() else ""
        shown = re.findall(r"\]\(((?:plots|pictures)/[^/)\\]+)\)", text)
        return {PAGE, TEXT, *(name for name in shown if _OWN.fullmatch(name))}
    if out.is_dir() and all(_left_before_the_marker(path) for path in out.iterdir()):
        return set()
    raise ValueError(
        f"{out}: exists and is no report; expected a new folder, or that of an earlier report"
    )


def write_report(out: Path, page: str, text: str, files: Mapping[str, bytes]) -> None:
    """Writes a report's files, the page last, and removes files of the earlier report that this one
    does not have.

    ValueError, before anything is written, if it would replace a file that is not an earlier
    report's.
    """
    before, mine = own_files(out), {PAGE, TEXT, *files}
    marked = (out / MARKER).is_file()
    foreign = (
        [name for name in sorted(mine - before) if (out / name).exists()]
        if marked or not before
        else []
    )
    if foreign:
        raise ValueError(
            f"{out / foreign[0]}: this file is of no earlier report, and the new report would "
            f"replace it; "
            "move it, or choose another folder"
        )
    make_folder(out)
    remove_abandoned(out, re.escape(MARKER), re.escape(PAGE), re.escape(TEXT))
    _mark(out, before | mine)
    for name, data in files.items():
        path = out / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # a link is replaced; its target stays
        with naming_errors(path):
            path.write_bytes(data)
    for name in before - mine:
        (out / name).unlink(missing_ok=True)
    for folder in FOLDERS:
        with suppress(OSError):  # it holds files of somebody else, or does not exist
            (out / folder).rmdir()
    write_text(out / TEXT, text)
    write_text(out / PAGE, page)
    _mark(out, mine)


def _mark(out: Path, names: set[str]) -> None:
    what = (
        "the files that `vidgraph report` wrote here: the next report replaces them, and no others"
    )
    write_text(
        out / MARKER,
        json.dumps({"what": what, "files": sorted(names)}, indent=1, ensure_ascii=False) + "\n",
    )


def _left_before_the_marker(path: Path) -> bool:
    """Whether a file was left by a report that was killed before MARKER had its name."""
    return path.name.startswith(f"{MARKER}.") and path.name.endswith(".part")


def _is_page(path: Path) -> bool:
    """Whether a file is the page of one of our reports."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING.encode()
