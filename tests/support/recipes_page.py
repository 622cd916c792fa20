"""Write docs/recipes.md from the recipes.

Run `python -m tests.support.recipes_page > docs/recipes.md`.
"""

from heads.config.recipe import read_recipe, recipe_names

# The first part of a recipe's name -> the section of the page.
SYSTEMS = {
    "gos": "GOS",
    "strg": "Space-Time Region Graphs",
    "dyreg": "DyReg-GNN",
    "rstg": "RSTG",
    "ean": "EAN",
    "demo": "The demo",
}

ABOVE = """# The recipes

A recipe is a TOML file. It names the head with its options, the data, the training, and how views
become a score. The recipes below come with the package: `vidgraph train NAME --cache CACHE`. Each
starts with the `extract` command that makes its cache, and with the `--set` options that give the
neighbouring rows of its table. `source` names these rows, `ours` what no paper states. *Frames* are
phases that `vidgraph finetune NAME --phase PHASE` runs; the other phases read the cache. None of
the published figures was reproduced with these recipes: the data sets and the pretrained weights
were not available.

The papers draw a new crop and other frames in every epoch; a cache holds `--train-views` of them.
Each recipe asks for enough, all of a table for the same number
([stages.md](stages.md#views) has the measurement).

Write your own recipe beside your data. `vidgraph train mine.toml` checks every key and type, and
names the nearest key where one is wrong. `--set KEY=VALUE` overrides any key. The dataclasses of
`heads/config/recipe.py`, `heads/config/recipe_tables.py` and `heads/config/training_options.py`
explain the keys.

`--set 'data.no_label=["-1"]'` lists labels that stand for no label: a clip with no other label
counts as one without a label. `data.class_list` names a file with one class per line.
"""

TABLE = "| recipe | head | phases | source |\n|---|---|---|---|"


def page() -> str:
    """Return the page as it should be."""
    groups: dict[str, list[str]] = {system: [] for system in SYSTEMS}
    for name in recipe_names():
        groups.setdefault(name.split("_")[0], []).append(name)

    parts = [ABOVE]
    for system, names in groups.items():
        parts.append(f"## {SYSTEMS[system]}\n\n{TABLE}")
        parts += [row(name) for name in names]
        parts[-1] += "\n"
    return "\n".join(parts)


def row(name: str) -> str:
    """Return the table's row of a recipe; phases that read frames are in italics."""
    recipe = read_recipe(name)
    phases = []
    for phase in recipe.phases:
        phases.append(f"*{phase.name}*" if phase.reads == "frames" else phase.name)
    source = recipe.source.replace("|", " ")
    return f"| `{name}` | `{recipe.head.name}` | {', '.join(phases) or 'one'} | {source} |"


if __name__ == "__main__":
    print(page(), end="")
