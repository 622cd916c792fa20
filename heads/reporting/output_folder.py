"""Write a report into its folder, and replace only the files of an earlier report there.

The file MARKER lists the report's files. It is written before the first of them, so a report that
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

# Names that a report's file may have. A list may be forged, and must not name files elsewhere.
_REPORT_FILE = re.compile(rf"report\.(html|md)|({'|'.join(FOLDERS)})/(?!\.)[^/\\]+")

# The beginning of every page, also of versions that wrote no MARKER.
_BEGINNING = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; "
    "script-src 'sha256-"
)


def report_files(out: Path) -> set[str]:
    """Return the files of an earlier report, as paths relative to `out`.

    Raises:
        ValueError: the folder holds something else.
    """
    for name in FOLDERS:
        folder = out / name
        # Files would be written, and removed, wherever a link leads.
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise ValueError(
                f"{folder}: expected a folder of the report's own, got a link or a file; choose "
                f"another --out"
            )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return set()

    if (out / MARKER).is_file():
        try:
            listed = json.loads(read_small_text(out / MARKER))["files"]
            names = [str(name) for name in listed]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"{out / MARKER}: damaged; expected a list of the report's files: choose a new "
                f"folder"
            ) from None
        return set(filter(_REPORT_FILE.fullmatch, names))

    # A report of a version without MARKER: its pictures are those that its text shows.
    if out.is_dir() and _is_page(out / PAGE):
        text = ""
        if (out / TEXT).is_file():
            text = read_small_text(out / TEXT, errors="replace")
        pictures = re.findall(r"\]\(((?:plots|pictures)/[^/)\\]+)\)", text)
        return {PAGE, TEXT, *filter(_REPORT_FILE.fullmatch, pictures)}

    if out.is_dir() and all(map(_is_unfinished_marker, out.iterdir())):
        return set()
    raise ValueError(
        f"{out}: exists and is no report; expected a new folder, or that of an earlier report"
    )


def write_report(out: Path, page: str, text: str, files: Mapping[str, bytes]) -> None:
    """Write a report's files, the page last, and remove files of the earlier report.

    Args:
        out: the folder; made where it does not exist.
        page: the HTML file.
        text: the Markdown file.
        files: the other files, by path relative to `out`.

    Raises:
        ValueError: it would replace a file of no earlier report; raised before anything is
            written.
    """
    before, names = report_files(out), {PAGE, TEXT, *files}
    # A report of a version without MARKER had files that nothing lists.
    if (out / MARKER).is_file() or not before:
        for name in sorted(names - before):
            if (out / name).exists():
                raise ValueError(
                    f"{out / name}: this file is of no earlier report, and the new report would "
                    "replace it; move it, or choose another folder"
                )

    make_folder(out)
    remove_abandoned(out, re.escape(MARKER), re.escape(PAGE), re.escape(TEXT))
    _write_marker(out, before | names)
    for name, data in files.items():
        path = out / name
        path.parent.mkdir(exist_ok=True)
        # A link is replaced; its target stays.
        path.unlink(missing_ok=True)
        with naming_errors(path):
            path.write_bytes(data)

    for name in before - names:
        (out / name).unlink(missing_ok=True)
    for folder in FOLDERS:
        # An error means that it does not exist, or holds files of somebody else.
        with suppress(OSError):
            (out / folder).rmdir()
    write_text(out / TEXT, text)
    write_text(out / PAGE, page)
    _write_marker(out, names)


def _write_marker(out: Path, names: set[str]) -> None:
    what = (
        "the files that `vidgraph report` wrote here: the next report replaces them, and no others"
    )
    record = {"what": what, "files": sorted(names)}
    write_text(out / MARKER, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _is_unfinished_marker(path: Path) -> bool:
    """Whether a file was left by a report that was killed while it wrote MARKER."""
    return path.name.startswith(f"{MARKER}.") and path.name.endswith(".part")


def _is_page(path: Path) -> bool:
    """Whether a file is the page of one of our reports."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_BEGINNING)) == _BEGINNING.encode()
