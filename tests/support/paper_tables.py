"""Every table and figure of the five papers, and what makes it here: `TABLES`.

docs/recipes.md is written from it (tests/support/recipes_page.py). A new recipe or study is one
name more in the entry of its table; tests/heads/config/test_paper_tables.py says which is missing.
"""

from dataclasses import dataclass

STH = "no: Something-Something and GPUs are needed"
CHARADES = "no: Charades and GPUs are needed"
KINETICS = "no: Kinetics and GPUs are needed"
DIVING = "no: Diving48 and GPUs are needed"
COUNTED = "counted, without training: [counts.md](counts.md)"
RSTG_DIGITS = "yes, narrower: [rstg-small](../benchmarks/results/rstg-small.md)"
DYREG_DIGITS = "yes, narrower: [dyreg-small](../benchmarks/results/dyreg-small.md)"
MEETING = "yes, on the task of [heads.md](heads.md#what-they-learn-where-pooling-cannot)"
NO_TRAINING = "nothing to train"


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of a paper.

    Attributes:
        system: the first part of the names of its recipes.
        where: its number in the paper.
        what: what it shows.
        made_by: the recipes and studies that make it.
        trained: whether that was trained here, and where the figures are.
        how: what else makes it, or makes it where no recipe does; Markdown.
        ours: choices of this project that no file of `made_by` states.
    """

    system: str
    where: str
    what: str
    made_by: tuple[str, ...] = ()
    trained: str = NO_TRAINING
    how: str = ""
    ours: str = ""


TABLES = (
    # --- GOS
    PaperTable(
        "gos",
        "Table 1",
        "adaptive and non-adaptive structures on Something-Something V1 and V2",
        ("gos_table1",),
        STH,
    ),
    PaperTable(
        "gos",
        "Table 2",
        "pooling, and one graph operation at a time",
        (
            "gos_table2_global_pool",
            "gos_table2_roi_pool",
            "gos_table2_feat_aggr",
            "gos_table2_diff_prop",
            "gos_table2_temp_conv",
            "gos_table2_back_incor",
            "gos_table2_node_att",
        ),
        f"{STH}; {MEETING}",
    ),
    PaperTable(
        "gos", "Figure 4", "the structure of a video", how="`vidgraph show` on a run of `gos`"
    ),
    PaperTable(
        "gos",
        "Figure 5",
        "videos with the structure of another video",
        how="`vidgraph evaluate` and `vidgraph show` with a given structure: see "
        "[heads.md](heads.md)",
        trained=STH,
    ),
    PaperTable("gos", "Figure 6", "how often each structure is chosen", how="`vidgraph report`"),
    PaperTable(
        "gos", "Figure 7", "similar nodes of other frames", how="`vidgraph show` on a cache"
    ),
    PaperTable(
        "gos",
        "supp. Table 1",
        "test server of Something-Something",
        ("gos_table1",),
        STH,
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
        "gos",
        "supp. Table 4",
        "original operations against fixed substructures",
        ("gos_supp_table4_original_ops",),
        STH,
    ),
    PaperTable(
        "gos",
        "supp. Table 5",
        "without and with the diversity loss",
        ("gos_supp_table5_diversity",),
        STH,
    ),
    PaperTable(
        "gos",
        "supp. Table 6",
        "structures searched on one version, trained on the other",
        ("gos_supp_table6_transfer",),
        STH,
    ),
    PaperTable(
        "gos", "supp. Table 7", "2, 3 and 4 supernodes", ("gos_supp_table7_supernodes",), STH
    ),
    PaperTable("gos", "supp. Table 8", "1 and 2 stacked cells", ("gos_supp_table8_cells",), STH),
    PaperTable("gos", "supp. Figure 6", "gains by class", how="`vidgraph report` on two runs"),
    # --- STRG
    PaperTable(
        "strg",
        "Table 1",
        "layers of the backbone",
        how="backbone `i3d_r50`; `vidgraph summary i3d_r50`",
    ),
    PaperTable(
        "strg",
        "Table 2a",
        "graphs one by one on Charades",
        (
            "strg_table2a_charades_i3d",
            "strg_table2a_charades_avgpool",
            "strg_table2a_charades_joint",
        ),
        f"{CHARADES}; {MEETING}",
    ),
    PaperTable(
        "strg",
        "Table 2b",
        "non-local blocks on Charades",
        ("strg_table2b_charades_nl", "strg_table2b_charades_nl_joint"),
        CHARADES,
    ),
    PaperTable(
        "strg",
        "Table 3",
        "ResNet-101 on Charades",
        (
            "strg_table3_charades_r101",
            "strg_table3_charades_r101_gcn",
            "strg_table3_charades_r101_nl",
            "strg_table3_charades_r101_nl_gcn",
        ),
        CHARADES,
    ),
    PaperTable(
        "strg",
        "Table 4",
        "Something-Something V1",
        (
            "strg_table4_sth_i3d",
            "strg_table4_sth_gcn",
            "strg_table4_sth_gcn_res5",
            "strg_table4_sth_nl",
            "strg_table4_sth_nl_gcn",
        ),
        STH,
    ),
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
        "sec. 6.1",
        "25, 50 and 100 proposals",
        ("strg_table2a_charades_joint",),
        CHARADES,
    ),
    PaperTable("strg", "sec. 6.1", "FLOPs", trained=COUNTED, how="`vidgraph summary`"),
    # --- DyReg-GNN
    PaperTable(
        "dyreg",
        "Table 1",
        "fixed regions, a detector's and dynamic ones on Something-Something V2",
        (
            "dyreg_table1_regions",
            "dyreg_table1_sth_tsm",
            "dyreg_table1_sth_v2_fixed",
            "dyreg_table1_sth_v2",
        ),
        STH,
    ),
    PaperTable(
        "dyreg",
        "Table 1, column Dist",
        "distance between regions and objects",
        trained=DYREG_DIGITS,
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
    PaperTable(
        "dyreg",
        "Table 2",
        "three backbones on Something-Something V1",
        (
            "dyreg_table2_backbones",
            "dyreg_table1_sth_tsm",
            "dyreg_table2_sth_v1_tsm_r18",
            "dyreg_table2_sth_v1_i3d_r50",
            "dyreg_table2_sth_v1_tsm_r50",
        ),
        STH,
    ),
    PaperTable(
        "dyreg",
        "Table 3",
        "Something-Something V1, several views",
        ("dyreg_table1_sth_tsm", "dyreg_table3_sth_v1"),
        STH,
    ),
    PaperTable(
        "dyreg",
        "Table 4",
        "Something-Something V2, one module and three",
        (
            "dyreg_table4_places",
            "dyreg_table1_sth_tsm",
            "dyreg_table4_sth_v2_r4",
            "dyreg_table4_sth_v2_r345",
        ),
        STH,
    ),
    PaperTable(
        "dyreg",
        "Table 5",
        "how regions are found, on MultiSyncMNIST",
        ("dyreg_table5_regions", "dyreg_table5_multisync"),
        DYREG_DIGITS,
        how="`vidgraph reproduce dyreg`",
    ),
    PaperTable(
        "dyreg",
        "Table 6",
        "ResNet-18, Semantic and Lite, on MultiSyncMNIST",
        ("dyreg_table6_regions", "dyreg_table6_multisync_r18", "dyreg_table6_multisync"),
        DYREG_DIGITS,
        how="`vidgraph reproduce dyreg`",
    ),
    PaperTable(
        "dyreg",
        "Figure 3",
        "regions on frames",
        how="`vidgraph show` on a run of `dyreg`",
    ),
    # --- RSTG
    PaperTable(
        "rstg",
        "Table 1",
        "three and five moving digits (SyncMNIST)",
        (
            "rstg_table1_mean_lstm",
            "rstg_table1_conv_lstm",
            "rstg_table1_i3d",
            "rstg_table1_nl",
            "rstg_table1_rstg",
        ),
        RSTG_DIGITS,
        how="`vidgraph reproduce rstg`",
    ),
    PaperTable(
        "rstg",
        "Table 2",
        "Something-Something V1",
        (
            "rstg_table2_sth_c2d",
            "rstg_table2_sth_c2d_rstg",
            "rstg_table2_sth_i3d",
            "rstg_table2_sth_i3d_rstg",
        ),
        STH,
    ),
    PaperTable(
        "rstg",
        "Table 3",
        "where the graph is placed",
        ("rstg_table3_sth_vec", "rstg_table3_sth_map"),
        STH,
    ),
    # --- EAN
    PaperTable(
        "ean",
        "Table 1",
        "8 and 16 frames and both, without and with Latent Motion Code, Something-Something",
        ("ean_table1_sth",),
        STH,
        how="both: `vidgraph evaluate RUN8 RUN16 --ensemble`",
    ),
    PaperTable("ean", "Table 2", "Kinetics-400", ("ean_table2_kinetics",), KINETICS),
    PaperTable(
        "ean",
        "Table 3",
        "not known to this project",
        how="no recipe: none of the sources that this project was written from describes it",
    ),
    PaperTable("ean", "Table 4", "Diving48", ("ean_table4_diving48",), DIVING),
    PaperTable(
        "ean",
        "Table 5",
        "without and with blocks and transformer",
        (
            "ean_table1_sth",
            "ean_table5_baseline",
            "ean_table5_eabs",
            "ean_table5_soi",
            "ean_table5_both",
        ),
        STH,
        ours="the recipes of Table 5 train on a cache of a frozen trunk",
    ),
    PaperTable("ean", "Table 6", "which stages have blocks", ("ean_table1_sth",), STH),
    PaperTable(
        "ean",
        "Table 7",
        "where the transformer's tokens come from",
        ("ean_table1_sth", "ean_table7_fixed", "ean_table7_boxes", "ean_table7_all"),
        STH,
        ours="the recipes of Table 7 train on a cache of a frozen trunk",
    ),
    PaperTable("ean", "Table 8", "kinds of blocks", ("ean_table1_sth",), STH),
    PaperTable("ean", "Table 9", "how a block mixes channels", ("ean_table1_sth",), STH),
    PaperTable("ean", "Table 10", "parts of a block", ("ean_table1_sth",), STH),
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
    # --- this project's own
    PaperTable(
        "demo",
        "`vidgraph demo`",
        "what relations are worth on generated videos",
        ("demo", "demo_mean_lstm", "demo_pool", "demo_roi_pool", "demo_strg"),
        "yes: by `vidgraph demo`, in minutes",
    ),
    PaperTable("demo", "one's own videos", "a recipe to start from", ("strg",)),
)
