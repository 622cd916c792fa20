"""Every table and figure of the five papers, and what makes it here: `TABLES`.

docs/recipes.md is written from it (tests/support/recipes_page.py). A recipe or study is found by
the table that its `source` names; tests/heads/config/test_paper_tables.py says which is in no row.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property

from heads.config.recipe import OWN_VIDEOS, Recipe, read_recipe, recipe_names
from heads.config.study_file import StudyPlan, read_study, study_names

STH = "no: Something-Something and GPUs are needed"
CHARADES = "no: Charades and GPUs are needed"
KINETICS = "no: Kinetics and GPUs are needed"
DIVING = "no: Diving48 and GPUs are needed"
COUNTED = "counted, without training: [counts.md](counts.md)"
RSTG_DIGITS = "yes, narrower: [rstg-small](../benchmarks/results/rstg-small.md)"
DYREG_DIGITS = "yes, narrower: [dyreg-small](../benchmarks/results/dyreg-small.md)"
MEETING = (
    "on the task of [heads.md](heads.md#what-they-learn-where-pooling-cannot), not on the paper's"
)
NO_TRAINING = "nothing to train"


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of a paper.

    Attributes:
        system: the first part of the names of its recipes.
        where: its number in the paper: "Table 2a", "supp. Table 4".
        what: what it shows.
        trained: whether that was trained here, and where the figures are.
        how: what else makes it, or makes it where no recipe does; Markdown.
        ours: choices of this project that none of its recipes and studies states.
        phrase: recipes and studies with this in their source make it, too.
        also: further recipes and studies that make it.
    """

    system: str
    where: str
    what: str
    trained: str = NO_TRAINING
    how: str = ""
    ours: str = ""
    phrase: str = ""
    also: tuple[str, ...] = ()

    @cached_property
    def made_by(self) -> tuple[str, ...]:
        """The studies and recipes that make it, in this order."""
        found = []
        for name in (*study_names(), *recipe_names()):
            if name.split("_")[0] != self.system:
                continue
            source = file_of(name).source
            if self.where in numbered(source) or (self.phrase and self.phrase in source):
                found.append(name)
        return (*found, *self.also)


@cache
def file_of(name: str) -> Recipe | StudyPlan:
    """Return a recipe or a study of the package; each is read once."""
    return read_recipe(name) if name in recipe_names() else read_study(name)


def numbered(source: str) -> set[str]:
    """Return the tables that a source names, as `PaperTable.where` writes them.

    "Table 1; Tables 5 to 7" are Table 1, Table 5, Table 6 and Table 7; "supplement, Table 4" is
    supp. Table 4.
    """
    found = set()
    for clause in re.split("[;:]", source):
        paper = "supp. Table" if "supplement" in clause else "Table"
        for number in re.findall(r"Table (\d+[ab]?)", clause):
            found.add(f"{paper} {number}")
        for numbers in re.findall(r"Tables ([\d, andto]*\d)", clause):
            spans = re.findall(r"(\d+)(?: to (\d+))?", numbers)
            for first, last in spans:
                for number in range(int(first), int(last or first) + 1):
                    found.add(f"{paper} {number}")
    return found


TABLES = (
    # --- GOS
    PaperTable(
        "gos",
        "Table 1",
        "adaptive and non-adaptive structures on Something-Something V1 and V2",
        trained=STH,
    ),
    PaperTable(
        "gos", "Table 2", "pooling, and one graph operation at a time", trained=f"{STH}; {MEETING}"
    ),
    PaperTable(
        "gos", "Figure 4", "the structure of a video", how="`vidgraph show` on a run of `gos`"
    ),
    PaperTable(
        "gos",
        "Figure 5",
        "videos with the structure of another video",
        trained=STH,
        how="`vidgraph evaluate` and `vidgraph show` with a given structure: see "
        "[heads.md](heads.md)",
    ),
    PaperTable("gos", "Figure 6", "how often each structure is chosen", how="`vidgraph report`"),
    PaperTable(
        "gos", "Figure 7", "similar nodes of other frames", how="`vidgraph show` on a cache"
    ),
    PaperTable(
        "gos",
        "supp. Table 1",
        "test server of Something-Something",
        trained=STH,
        also=("gos_table1",),
        how="`vidgraph evaluate --submission FILE` writes what the server takes",
    ),
    PaperTable(
        "gos", "supp. Table 2", "parameters and FLOPs", trained=COUNTED, how="`vidgraph summary`"
    ),
    PaperTable(
        "gos",
        "supp. Table 3",
        "layers of the backbone",
        how="backbone `i3d_r50`; `vidgraph summary i3d_r50`",
    ),
    PaperTable(
        "gos", "supp. Table 4", "original operations against fixed substructures", trained=STH
    ),
    PaperTable("gos", "supp. Table 5", "without and with the diversity loss", trained=STH),
    PaperTable(
        "gos",
        "supp. Table 6",
        "structures searched on one version, trained on the other",
        trained=STH,
    ),
    PaperTable("gos", "supp. Table 7", "2, 3 and 4 supernodes", trained=STH),
    PaperTable("gos", "supp. Table 8", "1 and 2 stacked cells", trained=STH),
    PaperTable("gos", "supp. Figure 6", "gains by class", how="`vidgraph report` on two runs"),
    # --- STRG
    PaperTable(
        "strg",
        "Table 1",
        "layers of the backbone",
        how="backbone `i3d_r50`; `vidgraph summary i3d_r50`",
    ),
    PaperTable(
        "strg", "Table 2a", "graphs one by one on Charades", trained=f"{CHARADES}; {MEETING}"
    ),
    PaperTable("strg", "Table 2b", "non-local blocks on Charades", trained=CHARADES),
    PaperTable("strg", "Table 3", "ResNet-101 on Charades", trained=CHARADES),
    PaperTable("strg", "Table 4", "Something-Something V1", trained=STH),
    PaperTable("strg", "Figure 3", "neighbours of a node", how="`vidgraph show` on a cache"),
    PaperTable(
        "strg",
        "Figure 5",
        "accuracy by attributes of classes",
        trained=CHARADES,
        how="`vidgraph report --attributes FILE`, a CSV file with class, attribute and value",
        ours="the paper's attributes of the classes of Charades are not part of this project",
    ),
    PaperTable(
        "strg",
        "sec. 6.1, proposals",
        "25, 50 and 100 proposals",
        trained=CHARADES,
        phrase="proposals",
    ),
    PaperTable("strg", "sec. 6.1, FLOPs", "FLOPs", trained=COUNTED, how="`vidgraph summary`"),
    # --- DyReg-GNN
    PaperTable(
        "dyreg",
        "Table 1",
        "fixed regions, a detector's and dynamic ones on Something-Something V2",
        trained=STH,
    ),
    PaperTable(
        "dyreg",
        "Table 1, column Dist",
        "distance between regions and objects",
        trained="not yet; `vidgraph reproduce dyreg` measures it on digits",
        how="a figure of `vidgraph evaluate` with annotated boxes (`--annotations`): see "
        "[heads.md](heads.md#dyreg)",
        ours="the definition: the paper's is in a supplement that was not at hand",
    ),
    PaperTable(
        "dyreg",
        "Table 1, column FLOPs",
        "cost of the graph",
        trained=COUNTED,
        how="`vidgraph summary`",
    ),
    PaperTable("dyreg", "Table 2", "three backbones on Something-Something V1", trained=STH),
    PaperTable("dyreg", "Table 3", "Something-Something V1, several views", trained=STH),
    PaperTable("dyreg", "Table 4", "Something-Something V2, one module and three", trained=STH),
    PaperTable(
        "dyreg",
        "Table 5",
        "how regions are found, on MultiSyncMNIST",
        trained=DYREG_DIGITS,
        how="`vidgraph reproduce dyreg`",
    ),
    PaperTable(
        "dyreg",
        "Table 6",
        "ResNet-18, Semantic and Lite, on MultiSyncMNIST",
        trained=DYREG_DIGITS,
        how="`vidgraph reproduce dyreg`",
    ),
    PaperTable("dyreg", "Figure 3", "regions on frames", how="`vidgraph show` on a run of `dyreg`"),
    # --- RSTG
    PaperTable(
        "rstg",
        "Table 1",
        "three and five moving digits (SyncMNIST)",
        trained=RSTG_DIGITS,
        how="`vidgraph reproduce rstg`; from three to five digits: `vidgraph train --start RUN`",
    ),
    PaperTable("rstg", "Table 2", "Something-Something V1", trained=STH),
    PaperTable("rstg", "Table 3", "where the graph is placed", trained=STH),
    # --- EAN
    PaperTable(
        "ean",
        "Table 1",
        "8 and 16 frames and both, without and with Latent Motion Code, Something-Something",
        trained=STH,
        how="both: `vidgraph evaluate RUN8 RUN16 --ensemble`",
    ),
    PaperTable("ean", "Table 2", "Kinetics-400", trained=KINETICS),
    PaperTable(
        "ean",
        "Table 3",
        "not known to this project",
        how="no recipe: none of the sources that this project was written from describes it",
    ),
    PaperTable("ean", "Table 4", "Diving48", trained=DIVING),
    PaperTable(
        "ean",
        "Table 5",
        "without and with blocks and transformer",
        trained=STH,
        ours="the recipes of Table 5 train on a cache of a frozen trunk",
    ),
    PaperTable("ean", "Table 6", "which stages have blocks", trained=STH),
    PaperTable(
        "ean",
        "Table 7",
        "where the transformer's tokens come from",
        trained=STH,
        ours="the recipes of Table 7 train on a cache of a frozen trunk",
    ),
    PaperTable("ean", "Table 8", "kinds of blocks", trained=STH),
    PaperTable("ean", "Table 9", "how a block mixes channels", trained=STH),
    PaperTable("ean", "Table 10", "parts of a block", trained=STH),
    PaperTable(
        "ean",
        "Tables 1, 5 to 10, columns of costs",
        "parameters and FLOPs",
        trained=COUNTED,
        how="`vidgraph summary`",
    ),
    PaperTable("ean", "Figure 6", "gains by class", how="`vidgraph report` on two runs"),
    PaperTable(
        "ean",
        "Figures 9 to 11",
        "M, the kernels made from it, a stage's maps, the attention vector",
        trained=STH,
        how="`vidgraph show` on a run of `ean` that was trained from frames",
    ),
    # --- the attentive probe of encoders
    PaperTable(
        "attentive",
        "V-JEPA 2, probes",
        "a frozen encoder's classes by 20 attentive probes",
        trained=STH,
        phrase="V-JEPA 2",
    ),
    # --- heads on boxes and identities
    PaperTable(
        "stin",
        "Compositional split",
        "boxes, classes, non-local blocks and appearance on Something-Else",
        trained=f"{STH}; {MEETING}",
        phrase="compositional split",
    ),
    PaperTable(
        "stlt",
        "Compositional split",
        "layout alone, and three fusions with appearance, on Something-Else",
        trained=f"{STH}; {MEETING}",
        phrase="compositional split",
    ),
    # --- this project's own
    PaperTable(
        "demo",
        "`vidgraph demo`",
        "what relations are worth on generated videos",
        trained="yes: by `vidgraph demo`, in minutes",
        phrase="project's demo",
    ),
    PaperTable("own", "any videos", "a recipe of each system to start from", also=OWN_VIDEOS),
)
