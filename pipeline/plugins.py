"""Heads, backbones and sources of boxes from somebody else's package or file.

A plug-in is a module with a function `build`. It is found in two ways:

- by a name, through an entry point of an installed package, e.g. in its setup.cfg

      [options.entry_points]
      vidgraph.heads =
          my_head = my_package.my_head

  A name of ours wins over the same name of a package.
- by the path of a file, such as `./my_head.py`.

A file is executed only if a person named it to this process: on the command line, in a recipe
that the command line names, or through `give_file`. `give_file` reads the bytes, and what is
executed later are these bytes, whatever happens to the file. From then on the file is called
`my_head.py@SHA256`, and that is what recipes, run folders and caches record. Such a name says which
code is meant, and executes nothing. It leads to a file only after the same bytes were given to this
process again (`--plugin ./my_head.py`).
"""

import importlib
import importlib.abc
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.encoder_names import is_encoder, without_folder
from pipeline.files.regular_files import read_small
from pipeline.text.printable import first_line, visible
from pipeline.text.typed_options import short

OPTION = "--plugin"  # gives a file again to a verb that reads a run or a cache
MOST_SOURCE = 16 << 20  # bytes of a file of Python code
_RECORDED = re.compile(r"(?P<file>.*)@(?P<sha256>[0-9a-f]{64})", re.DOTALL)


@dataclass(frozen=True)
class PluginKind:
    """What a plug-in may be.

    Attributes:
        noun: what people call it.
        package: the package that holds ours, one module each.
        group: the entry points of other packages.
        call: how its `build` is called, for messages.
    """

    noun: str
    package: str
    group: str
    call: str


HEAD = PluginKind(
    "head", "heads.zoo", "vidgraph.heads", "build(dims, num_classes, *, named options)"
)
BACKBONE = PluginKind(
    "backbone", "pipeline.backbones", "vidgraph.backbones", "build(*, named options)"
)
PROPOSALS = PluginKind(
    "source of boxes", "pipeline.proposals", "vidgraph.proposals", "build(*, named options)"
)


@dataclass(frozen=True)
class PluginFile:
    """A file that a person gave to this process.

    Attributes:
        path: where it lay, absolute.
        source: its bytes as they were read then. They are what is executed.
    """

    path: Path
    source: bytes

    @property
    def sha256(self) -> str:
        """The checksum of its bytes, as `sha256sum` prints it."""
        return sha256(self.source).hexdigest()

    @property
    def name(self) -> str:
        """What records call it: the file's name and its checksum."""
        return f"{self.path.name}@{self.sha256}"


_given: dict[str, PluginFile] = {}  # by checksum: what may be executed
_noted: dict[str, str] = {}  # checksum -> path, as records have it: for messages only


# Names and paths


def is_path(name: str) -> bool:
    """Whether a name of a head, backbone or source of boxes is the path of a file."""
    if is_encoder(name):
        return False
    return name.endswith(".py") or "/" in name or os.sep in name


def is_recorded(name: str) -> bool:
    """Whether a name is that of a plug-in's file, as records have it: FILE@SHA256."""
    return _RECORDED.fullmatch(name) is not None


def display_name(name: str) -> str:
    """A name for people: a plug-in's file without its checksum and ".py", other names unchanged."""
    found = _RECORDED.fullmatch(name)
    return found["file"].removesuffix(".py") if found else name


def without_file_name(name: str) -> str:
    """The part of a recorded name that says what is computed: its checksum; other names unchanged.

    Fingerprints use it, so that a plug-in's file, or an encoder's folder, may be moved and renamed.
    """
    found = _RECORDED.fullmatch(name)
    return f"plugin@{found['sha256']}" if found else without_folder(name)


def give_file(path: str | Path, beside: Path | None = None) -> str:
    """Allow this process to execute a plug-in's file, and return the name that stands for it.

    Nothing is executed yet.

    Args:
        path: the file.
        beside: the folder that a relative path starts from; None is the working directory.

    Returns:
        FILE@SHA256, a name for `build_head`, `build_backbone` or `build_proposals`.

    Raises:
        ValueError: there is no such file, or it is no file of Python code.
    """
    full = Path(os.path.abspath((beside or Path.cwd()) / Path(path).expanduser()))
    try:
        file = PluginFile(full, read_small(full, MOST_SOURCE))
    except OSError as error:
        said = error.strerror or first_line(error)
        raise ValueError(
            f"{path}: {said}: expected the file of a plug-in, a head, a backbone or "
            "a source of boxes, such as ./my_head.py"
        ) from None
    if full.suffix != ".py":
        raise ValueError(f"{path}: expected the file of a plug-in, with a name that ends in .py")
    _given[file.sha256] = file
    return file.name


def given_name(name: str, beside: Path | None = None) -> str:
    """Return what `give_file` returns for the path of a file, and any other name as it is.

    Args:
        name: the path of a file, or a name.
        beside: the folder that a relative path starts from; None is the working directory.
    """
    return give_file(name, beside) if is_path(name) and not is_recorded(name) else name


def given_files() -> dict[str, str]:
    """Return the files that this process may execute, path -> checksum: its workers get them."""
    return {str(file.path): checksum for checksum, file in _given.items()}


def take_over(files: Mapping[str, str]) -> None:
    """Allow this worker to execute the files that its client may execute.

    Args:
        files: the client's `given_files()`.

    Raises:
        ValueError: a file is not there on this machine, or has other bytes.
    """
    for path, checksum in files.items():
        if checksum in _given:
            continue
        found = give_file(path)
        if not found.endswith(checksum):
            raise ValueError(
                f"{path}: another file than on the machine where the command was started: SHA-256 "
                f"{short(_RECORDED.fullmatch(found)['sha256'])} here, {short(checksum)} there; let "
                "all machines read the same"
            )


# What records say


def mentioned_in(record: Any) -> dict[str, str]:
    """Find the plug-in files that a record names.

    Args:
        record: tables, lists and strings, such as the configuration of a cache.

    Returns:
        Checksum -> path. The path is where the file was given to this process, or where an older
        record saw it; "" where neither is known.
    """
    found: dict[str, str] = {}
    if isinstance(record, str):
        match = _RECORDED.fullmatch(record)
        if match:
            file = _given.get(match["sha256"])
            found[match["sha256"]] = str(file.path) if file else _noted.get(match["sha256"], "")
    elif isinstance(record, Mapping):
        for value in record.values():
            found |= mentioned_in(value)
    elif isinstance(record, Iterable):
        for value in record:
            found |= mentioned_in(value)
    return found


def note_paths(paths: Mapping[str, str]) -> None:
    """Remember where a record saw plug-in files, for error messages alone: it allows nothing."""
    _noted.update(paths)


def may_execute(name: str) -> bool:
    """Whether the file that a recorded name stands for was given to this process."""
    found = _RECORDED.fullmatch(name)
    return found is not None and found["sha256"] in _given


# Look-up


def own_names(kind: PluginKind) -> tuple[str, ...]:
    """The names of the project's own, in alphabetical order. Loads none of them."""
    folder = importlib.import_module(kind.package).__path__
    names = []
    for module in pkgutil.iter_modules(folder):
        if not module.name.startswith("_"):
            names.append(module.name)
    return tuple(sorted(names))


def known_names(kind: PluginKind) -> tuple[str, ...]:
    """The names of ours and of installed packages, in alphabetical order. Loads none of them."""
    return tuple(sorted({*own_names(kind), *_entry_points(kind.group)}))


def is_known(kind: PluginKind, name: str) -> bool:
    """Whether `load_build` has something to load: false for a name that is nobody's."""
    if is_path(name) or is_recorded(name) or (kind is BACKBONE and is_encoder(name)):
        return True
    return name in own_names(kind) or name in _entry_points(kind.group)


def load_build(kind: PluginKind, name: str) -> Callable[..., Any]:
    """Load the module that a name stands for, and return its function `build`.

    Args:
        kind: HEAD, BACKBONE or PROPOSALS.
        name: a name that `is_known`, or FILE@SHA256 of a file that was given.

    Raises:
        ValueError: the file was not given to this process; two packages have the name; the module
            cannot be imported, or has no `build`.
    """
    if is_recorded(name):
        file = _file_of(kind, name)
        return _build_in(_load_file(file), kind, str(file.path))
    if is_path(name):
        raise ValueError(
            f"{kind.noun} {name!r}: a path that no person gave to this process is not executed; "
            f"pass it with {OPTION}, or call pipeline.plugins.give_file and use the name that it "
            "returns"
        )
    if name in own_names(kind):
        return importlib.import_module(f"{kind.package}.{name}").build
    found = _entry_points(kind.group)[name]
    if len(found) > 1:
        packages = " and ".join(sorted(map(_package_of, found)))
        raise ValueError(
            f"{kind.noun} {name!r}: the packages {packages} both have one of this name; "
            "uninstall one of them, or give the file of yours by its path"
        )
    where = f"{kind.noun} {name} of the package {_package_of(found[0])} ({found[0].value})"
    return _build_in(_loaded(found[0].load, where), kind, where)


def kind_of(build: Callable[..., Any]) -> PluginKind | None:
    """HEAD for a `build` that takes dims and num_classes; None for another kind, which only what it
    builds can tell."""
    positional = [
        parameter.name
        for parameter in inspect.signature(build).parameters.values()
        if parameter.kind is not parameter.KEYWORD_ONLY
    ]
    return HEAD if positional[:2] == ["dims", "num_classes"] else None


@lru_cache
def _entry_points(group: str) -> dict[str, list[metadata.EntryPoint]]:
    """The entry points of a group by their names."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=group):
        # What looks like a path or a private module could never be asked for.
        if not is_path(point.name) and not point.name.startswith("_"):
            found.setdefault(point.name, []).append(point)
    return found


def _package_of(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _file_of(kind: PluginKind, name: str) -> PluginFile:
    """The file that FILE@SHA256 stands for; ValueError unless these bytes were given."""
    match = _RECORDED.fullmatch(name)
    file, checksum = match["file"], match["sha256"]
    if checksum in _given:
        return _given[checksum]
    path = visible(_noted.get(checksum, "") or file)
    for given in _given.values():
        if given.path.name == Path(path).name:
            raise ValueError(
                f"{kind.noun} {path}: its SHA-256 was {short(checksum)} when it was recorded; "
                f"{given.path} has {short(given.sha256)}: it was changed since. Give the file as "
                f"it was with {OPTION}"
            )
    raise ValueError(
        f"{kind.noun} {path}: a plug-in's file that only a record names (SHA-256 "
        f"{short(checksum)}) is "
        f"not executed; give the same file again with {OPTION} {path}"
    )


class _GivenSource(importlib.abc.InspectLoader):
    """Executes the bytes that were given, and no others: neither a file that changed since, nor
    compiled code from __pycache__."""

    def __init__(self, file: PluginFile):
        self.file = file

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.file.source)

    def get_code(self, fullname: str):
        return self.source_to_code(self.file.source, str(self.file.path))


def _load_file(file: PluginFile) -> ModuleType:
    """The module of a file, executed once in a process."""
    name = f"vidgraph_plugin_{file.sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file.path, loader=_GivenSource(file))
    module = importlib.util.module_from_spec(spec)

    def execute() -> ModuleType:
        sys.modules[name] = module  # dataclasses look their module up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    return _loaded(execute, str(file.path))


def _loaded(load: Callable[[], Any], where: str) -> Any:
    """load(), with whatever somebody else's code does on the way: prints, raises, exits."""
    try:
        with redirect_stdout(sys.stderr):  # standard output is for results, such as --json
            return load()
    except (Exception, SystemExit) as error:
        said = visible(first_line(error))
        raise ValueError(
            f"{where}: cannot be loaded: {type(error).__name__}: {said}; correct it, or choose "
            "another"
        ) from error


def _build_in(module: Any, kind: PluginKind, where: str) -> Callable[..., Any]:
    build = getattr(module, "build", None)
    if not callable(build):
        raise ValueError(f"{where}: expected a function {kind.call}, found none")
    return build


# Contracts: what `vidgraph check-plugin` and the tests hold a plug-in to


class ContractBroken(AssertionError):
    """A plug-in, or one of ours, does not do what others rely on; the message says what."""


def require(holds: bool, broken: str) -> None:
    """ContractBroken, with what is `broken`, unless something holds."""
    if not holds:
        raise ContractBroken(broken)
