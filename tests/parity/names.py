"""Where the project's modules are now.

The cases of this folder, `check_parity.py` and cases that are stored elsewhere use the names of
commit 4cc30e9. When a module or a class moves, add a row here. The cases then need no change.
"""

# "package.module" at 4cc30e9 -> "package.module" today. A module without a row has not moved.
MODULES: dict[str, str] = {}

# "package.module:Name" at 4cc30e9 -> "package.module:Name" today.
# For a class or function with a new name, or one that left its module. Wins over MODULES.
NAMES: dict[str, str] = {}


def current_name(where: str) -> str:
    """Translate "package.module:Name" of commit 4cc30e9 into its name today."""
    if where in NAMES:
        return NAMES[where]
    module, name = where.split(":")
    return f"{MODULES.get(module, module)}:{name}"
