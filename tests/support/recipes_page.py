"""Write docs/recipes.md from the recipes, the studies, and the table of the papers' tables.

Run `python -m tests.support.recipes_page > docs/recipes.md`.
"""

from heads.config.recipe import OWN_VIDEOS, recipe_names
from heads.config.study_file import StudyPlan, study_names
from tests.support.paper_tables import TABLES, PaperTable, file_of

# The first part of a recipe's name -> the section of the page.
SYSTEMS = {
    "gos": "GOS",
    "strg": "Space-Time Region Graphs",
    "dyreg": "DyReg-GNN",
    "rstg": "RSTG",
    "ean": "EAN",
    "attentive": "The attentive probe of V-JEPA 2",
    "stin": "STIN (Something-Else)",
    "stlt": "STLT",
    "demo": "The demo",
    "own": "One's own videos",
}

ABOVE = """# The recipes and studies

A recipe is a TOML file. It names the head with its options, the data, the training, and how views
become a score. The recipes below come with the package: `vidgraph train NAME --cache CACHE`. Each
starts with the `extract` command that makes its cache, and with the `--set` options that give the
neighbouring rows of its table. `source` names these rows, `ours` what no paper states. *Frames* are
phases that `vidgraph finetune NAME --phase PHASE` runs; the other phases read the cache. None of
the published figures was reproduced with these recipes: the data sets and the pretrained weights
were not available.

A study is a TOML file, too: the rows of a table, each trained with several seeds, which end as one
table. It starts with the commands that make its cache and train it: `vidgraph ablate` where a cache
serves all rows ([ablate.md](ablate.md)), `vidgraph finetune --study` where frames are needed
([finetune.md](finetune.md#studies)).

The papers draw a new crop and other frames in every epoch; a cache holds `--train-views` of them.
All recipes of a table ask for the same number: STRG's for 8, and GOS's, whose maps take 3.2 MB a
view, for 4 ([stages.md](stages.md#views) has the measurement, and what fewer cost).

Ten recipes for one's own videos have the plain name of their head and fit any cache that has the
fields: see the [last section](#ones-own-videos). Their schedules suit hundreds of clips.
`--epochs`, `--lr` and `--batch` change them.

Write your own recipe beside your data. `vidgraph train mine.toml` checks every key and type, and
names the nearest key where one is wrong. `--set KEY=VALUE` overrides any key; a list may be written
with commas (`--set data.labels=cat,dog`). The dataclasses of
`heads/config/recipe.py`, `heads/config/recipe_tables.py` and `heads/config/training_options.py`
explain the keys.

`--set data.no_label=-1` lists labels that stand for no label: a clip with no other label
counts as one without a label. `data.class_list` names a file with one class per line.

Each section has one row per table and figure of the paper: what makes it, what of that is this
project's choice, and whether it was trained here.
"""

OF_PAPERS = (
    "| in the paper | what | recipe or study | what of it is ours | trained here |\n"
    "|---|---|---|---|---|"
)
RECIPES = "| recipe | head | phases | source |\n|---|---|---|---|"
STUDIES = "| study | command | rows × seeds | source |\n|---|---|---|---|"


def page() -> str:
    """Return the page as it should be."""
    parts = [ABOVE]
    for system, title in SYSTEMS.items():
        tables = [table for table in TABLES if table.system == system]
        recipes = [name for name in recipe_names() if system_of(name) == system]
        studies = [name for name in study_names() if name.split("_")[0] == system]
        parts.append(f"## {title}\n\n{OF_PAPERS}")
        parts += [row_of_paper(table) for table in tables]
        parts.append(f"\n{RECIPES}")
        parts += [row(name) for name in recipes]
        if studies:
            parts.append(f"\n{STUDIES}")
            parts += [row_of_study(name) for name in studies]
        parts[-1] += "\n"
    return "\n".join(parts)


def system_of(recipe: str) -> str:
    """Return the section of a recipe."""
    return "own" if recipe in OWN_VIDEOS else recipe.split("_")[0]


def row_of_paper(table: PaperTable) -> str:
    """Return the row of a table or figure of a paper."""
    ways = []
    if table.made_by:
        ways.append(", ".join(f"`{name}`" for name in table.made_by))
    if table.how:
        ways.append(table.how)
    choices = choices_of(table)
    if table.ours:
        choices.append(table.ours)
    cells = [table.where, table.what, "; ".join(ways), "; ".join(choices) or "-", table.trained]
    return f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |"


def choices_of(table: PaperTable) -> list[str]:
    """Return what the files of a table state as our choice, each clause once."""
    clauses: dict[str, None] = {}
    for name in table.made_by:
        for clause in file_of(name).ours.split(";"):
            if clause.strip():
                clauses[clause.strip()] = None
    return list(clauses)


def row(name: str) -> str:
    """Return the table's row of a recipe; phases that read frames are in italics."""
    recipe = file_of(name)
    phases = []
    for phase in recipe.phases:
        phases.append(f"*{phase.name}*" if phase.reads == "frames" else phase.name)
    source = recipe.source.replace("|", " ")
    return f"| `{name}` | `{recipe.head.name}` | {', '.join(phases) or 'one'} | {source} |"


def row_of_study(name: str) -> str:
    """Return the table's row of a study."""
    plan = file_of(name)
    source = plan.source.replace("|", " ")
    return f"| `{name}` | `{verb_of(plan)}` | {len(plan.rows)} × {len(plan.seeds)} | {source} |"


def verb_of(plan: StudyPlan) -> str:
    """Return the command that trains a study: "ablate", or "finetune --study"."""
    if plan.varied_extraction():
        return "finetune --study"
    for one in plan.rows:
        if all(phase.reads == "frames" for phase in one.recipe.all_phases):
            return "finetune --study"
    return "ablate"


if __name__ == "__main__":
    print(page(), end="")
