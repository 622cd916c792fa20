"""Which names of a checkout are public, and whether their docstrings list the parameters.

Names are followed through `from` imports and lazy tables by the syntax tree alone.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from _style_sources import FUNCTIONS, Source, is_inside

BUILDERS = ("heads/zoo", "pipeline/backbones", "pipeline/proposals")

FUNCTION_LIST = re.compile(r"^\s*(Args|Arguments|Parameters):\s*$", re.MULTILINE)
CLASS_LIST = re.compile(r"^\s*(Args|Arguments|Parameters|Attributes):\s*$", re.MULTILINE)


class Definition(NamedTuple):
    """A function, method or class with the place where it is defined."""

    path: str
    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    is_method: bool


def definitions(source: Source) -> Iterator[Definition]:
    """Yield the functions and classes of a module and the methods of its classes."""
    for node in _statements(source.tree.body):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield Definition(source.path, node.name, node, is_method=False)
        if isinstance(node, ast.ClassDef):
            yield from _methods(source.path, node)


def _methods(path: str, parent: ast.ClassDef) -> Iterator[Definition]:
    for node in _statements(parent.body):
        if isinstance(node, FUNCTIONS):
            yield Definition(path, f"{parent.name}.{node.name}", node, is_method=True)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body and those below its `if`s and `try`s."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _statements(node.body)
            yield from _statements(node.orelse)


def is_public(definition: Definition) -> bool:
    """Whether no part of the name begins with an underscore.

    Args:
        definition: overloads and setters do not count, whatever their names: what they
            document is the function or property that they belong to.
    """
    for decorator in definition.node.decorator_list:
        if ast.unparse(decorator).split(".")[-1] in ("overload", "setter"):
            return False
    return not any(part.startswith("_") for part in definition.name.split("."))


def has_parameters(definition: Definition) -> bool:
    """Whether a caller has something to give.

    Args:
        definition: a function counts without `self`; a class counts by its `__init__`, or by
            its annotated public fields, as a dataclass has them.
    """
    node = definition.node
    if isinstance(node, FUNCTIONS):
        return bool(_parameter_count(node, definition.is_method))
    for member in _statements(node.body):
        if isinstance(member, FUNCTIONS) and member.name == "__init__":
            return bool(_parameter_count(member, is_method=True))
        if isinstance(member, ast.AnnAssign):
            is_field = "ClassVar" not in ast.unparse(member.annotation)
            if is_field and not ast.unparse(member.target).startswith("_"):
                return True
    return False


def _parameter_count(node: ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool) -> int:
    arguments = node.args
    count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
    count += arguments.vararg is not None
    count += arguments.kwarg is not None
    is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
    return count - 1 if is_method and not is_static else count


def lists_parameters(definition: Definition) -> bool:
    """Whether the docstring has an `Args:` section.

    Args:
        definition: a class may have the section in its `__init__`, or call it `Attributes:`.
    """
    node = definition.node
    if isinstance(node, FUNCTIONS):
        return bool(FUNCTION_LIST.search(ast.get_docstring(node) or ""))
    if CLASS_LIST.search(ast.get_docstring(node) or ""):
        return True
    for member in _statements(node.body):
        if isinstance(member, FUNCTIONS) and member.name == "__init__":
            return bool(FUNCTION_LIST.search(ast.get_docstring(member) or ""))
    return False


def named_in_room(room: Source) -> set[str]:
    """Find the names that the `__init__` of a package offers.

    Args:
        room: the `__init__.py`. Its `__all__` decides where it has one. Otherwise these are
            its own public definitions and what it imports from modules of its own folder.
            The names of a lazy table count in both cases (see `lazy_table`).
    """
    names = set(lazy_table(room))
    listed = _assigned_value(room, "__all__")
    if listed is not None:
        for node in ast.walk(listed):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
        return names
    for node in _statements(room.tree.body):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.add(node.name)
        # An import from elsewhere serves the room's own code; it is not offered to others.
        if isinstance(node, ast.ImportFrom) and is_own_module(room, node):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def is_own_module(room: Source, node: ast.ImportFrom) -> bool:
    """Whether a statement `from module import name` takes from the room's own folder.

    Args:
        room: the `__init__.py` that has the statement.
        node: the statement.
    """
    module = _imported_module(room, node)
    return module == room.module or module.startswith(f"{room.module}.")


def lazy_table(source: Source) -> dict[str, str]:
    """Read the table of `__getattr__ = load_lazily(__name__, {"Cache": "reader"})`.

    Args:
        source: the file; the table is a literal in the call, or is assigned to a name before.

    Returns:
        The modules by the names taken from them; empty where nothing is loaded lazily.
    """
    table = {}
    for node in source.nodes:
        if not isinstance(node, ast.Call) or ast.unparse(node.func).split(".")[-1] != "load_lazily":
            continue
        for argument in node.args + [keyword.value for keyword in node.keywords]:
            if isinstance(argument, ast.Name):
                argument = _assigned_value(source, argument.id)
            if isinstance(argument, ast.Dict):
                table |= ast.literal_eval(argument)
    return table


def _assigned_value(source: Source, name: str) -> ast.expr | None:
    for node in _statements(source.tree.body):
        targets = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    return None


def _imported_module(source: Source, node: ast.ImportFrom) -> str:
    """The absolute name of the module that a `from` statement reads."""
    if not node.level:
        return node.module or ""
    package = source.module.split(".")
    # One dot means the package itself, which is the module of an `__init__`.
    up = node.level - 1 if source.is_room else node.level
    package = package[: len(package) - up]
    if node.module:
        package.append(node.module)
    return ".".join(package)


def resolve(modules: dict[str, Source], module: str, name: str) -> Definition | None:
    """Follow a name through imports and lazy tables to its function or class.

    Args:
        modules: the sources by their dotted names.
        module: the dotted name of the module that offers the name.
        name: what to look for, as that module calls it.

    Returns:
        The definition, or None for a constant, a module, or a name from elsewhere.
    """
    # Two modules may import a name from each other; following it must end.
    seen = set()
    while module in modules and (module, name) not in seen:
        seen.add((module, name))
        source = modules[module]
        for definition in definitions(source):
            if definition.name == name:
                return definition
        module, name = _next_step(modules, source, name)
    return None


def _next_step(modules: dict[str, Source], source: Source, name: str) -> tuple[str, str]:
    """The module that `source` takes a name from, and how it is called there; else blanks."""
    table = lazy_table(source)
    if name in table:
        submodule = f"{source.module}.{table[name].lstrip('.')}"
        return (submodule if submodule in modules else table[name]), name
    for node in _statements(source.tree.body):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _imported_module(source, node), alias.name
    return "", ""


def named_public(sources: list[Source], interfaces: Iterable[str]) -> list[Definition]:
    """Find the public things whose docstrings must list their parameters.

    Args:
        sources: all files of the checkout that names may lead to.
        interfaces: folders or modules of which every public class counts, with its methods.

    Returns:
        What rooms name in their `__init__`, every `build` of the folders in `BUILDERS`, and
        the classes and methods of `interfaces`, each once, if it has parameters.
    """
    modules = {source.module: source for source in sources}
    found: dict[tuple[str, str], Definition] = {}
    from_rooms: set[tuple[str, str]] = set()

    def add(definition: Definition | None) -> None:
        if definition and is_public(definition) and has_parameters(definition):
            found[definition.path, definition.name] = definition

    for source in sources:
        if source.is_room:
            for name in named_in_room(source):
                definition = resolve(modules, source.module, name)
                if definition:
                    from_rooms.add((definition.path, definition.name))
                    add(definition)
        if is_inside(source.path, BUILDERS) and not source.is_private:
            add(resolve(modules, source.module, "build"))

    # A private module's class is public where a room names it, and so are its methods.
    for source in sources:
        if is_inside(source.path, interfaces):
            for definition in definitions(source):
                name = definition.name.split(".")[0]
                is_class = definition.is_method or isinstance(definition.node, ast.ClassDef)
                is_named = not source.is_private or (source.path, name) in from_rooms
                if is_class and is_named:
                    add(definition)
    return sorted(found.values(), key=lambda definition: (definition.path, definition.node.lineno))
