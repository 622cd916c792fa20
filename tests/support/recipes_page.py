"""docs/recipes.md, made from the recipes: `PYTHONPATH=.:tests python tests/support/recipes_page.py
> docs/recipes.md`.
"""

from heads.config.recipe import read_recipe, recipe_names

SYSTEMS = {
    "gos": "GOS",
    "strg": "Space-Time Region Graphs",
    "dyreg": "DyReg-GNN",
    "rstg": "RSTG",
    "ean": "EAN",
    "demo": "The demo",
}

ABOVE = """# The recipes

A recipe is a TOML file: the head with its options, what is learned from, how the weights move, how views become a score. Those
below come with the package: `vidgraph train NAME --cache CACHE`. Each opens with the `extract` command that makes its cache,
and with the `--set` that gives the neighbouring rows of its table; `source` says which rows, `ours` what no paper states.
*Frames* are phases that `vidgraph finetune NAME --phase PHASE` runs; the others read the cache. None of the published figures
was reproduced with them here: the data sets and the pretrained weights are not at hand.

Write your own beside your data; `vidgraph train mine.toml` checks every key and type, and names the nearest where one is wrong.
`--set KEY=VALUE` overrides any key. The keys, with what they mean, are the dataclasses of `heads/config/recipe.py`, `heads/config/recipe_tables.py`
and `heads/config/training_options.py`.

`--set 'data.no_label=["-1"]'` lists labels that stand for none: a clip with no other label counts as one without a label.
`data.class_list` names a file with one class per line.
"""


def page() -> str:
    """The page as it should be."""
    groups: dict[str, list[str]] = {system: [] for system in SYSTEMS}
    for name in recipe_names():
        groups.setdefault(name.split("_")[0], []).append(name)
    parts = [ABOVE]
    for system, names in groups.items():
        parts.append(
            f"## {SYSTEMS[system]}\n\n| recipe | head | phases | source |\n|---|---|---|---|"
        )
        parts += [row(name) for name in names]
        parts[-1] += "\n"
    return "\n".join(parts)


def row(name: str) -> str:
    recipe = read_recipe(name)
    phases = ", ".join(
        f"*{phase.name}*" if phase.reads == "frames" else phase.name for phase in recipe.phases
    )
    return f"| `{name}` | `{recipe.head.name}` | {phases or 'one'} | {recipe.source.replace('|', ' ')} |"


if __name__ == "__main__":
    print(page(), end="")
