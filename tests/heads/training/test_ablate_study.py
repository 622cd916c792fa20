"""Study files: which members a grid has, what they are called, what is refused."""

import re
from pathlib import Path

import pytest

from heads.config.study_file import read_study, study_names

RECIPE = """source = "a test"
[head]
name = "strg"
dropout = 0.5
[train]
epochs = 2
batch = 4
"""


@pytest.fixture
def write(tmp_path):
    """write(study text) -> its path; beside it lie the recipes one.toml and two.toml."""
    (tmp_path / "one.toml").write_text(RECIPE)
    (tmp_path / "two.toml").write_text(RECIPE.replace('"strg"', '"pool"'))

    def file(text: str) -> Path:
        (tmp_path / "study.toml").write_text(text)
        return tmp_path / "study.toml"

    return file


def test_every_combination_is_a_row_and_every_seed_of_it_a_member(write):
    plan = read_study(
        write(
            'name = "grid"\nrecipes = ["one.toml", "two.toml"]\nseeds = [3, 1]\norder_seed = 7\n'
            '[grid]\n"train.lr" = [0.1, 0.2]\ndata.train_views = [0, '
            "1]\n[subsets.all]\n[subsets.few]\nfirst_labels = 2\n"
        )
    )
    assert (plan.name, plan.order_seed, len(plan.rows)) == ("grid", 7, 16)
    members = plan.members(Path("runs"))
    assert [member.seed for member in members] == [3, 1] * 16
    assert len({member.folder for member in members}) == 32
    seen = {
        (
            r.recipe.name,
            r.recipe.train.lr,
            r.recipe.data.train_views,
            r.recipe.data.first_labels,
        ): r.cells
        for r in plan.rows
    }
    assert len(seen) == 16
    for (name, lr, views, labels), cells in seen.items():
        subset = "few" if labels else "all"
        head = {"one": "strg", "two": "pool"}[name]
        assert cells == {
            "recipe": name,
            "head": head,
            "train.lr": lr,
            "data.train_views": views,
            "subset": subset,
        }
    assert plan.columns == ("recipe", "head", "train.lr", "data.train_views", "subset")


def test_keys_of_a_head_belong_to_its_members_alone(write):
    plan = read_study(
        write(
            'recipes = ["one.toml"]\n[set]\n"pool.dropout" = 0.25\n'
            '[grid]\nhead = ["strg", "pool", {name = "strg", variant = "released"}]\n'
            '"strg.form" = ["similarity", "joint"]\n"pool.train.lr" = [0.5, 0.6]\n'
        )
    )
    found = [
        (row.recipe.head.name, row.recipe.head.options, row.recipe.train.lr) for row in plan.rows
    ]
    assert found == [
        ("strg", {"dropout": 0.5, "form": "similarity"}, 0.01),  # its own head keeps its options
        ("strg", {"dropout": 0.5, "form": "joint"}, 0.01),
        ("pool", {"dropout": 0.25}, 0.5),
        ("pool", {"dropout": 0.25}, 0.6),
        ("strg", {"variant": "released", "form": "similarity"}, 0.01),
        ("strg", {"variant": "released", "form": "joint"}, 0.01),
    ]
    assert [row.cells["head"] for row in plan.rows[::2]] == [
        "strg",
        "pool",
        "strg variant=released",
    ]
    assert [row.cells["strg.form"] for row in plan.rows[1:3]] == ["joint", ""]


def test_a_recipe_may_be_written_out_in_the_study(write):
    text = (
        '[head]\nname = "strg"\n[train]\nepochs = 1\n[grid]\nhead.form = ["similarity", "joint"]\n'
    )
    plan = read_study(write(text), {"train.epochs": 5})
    assert [row.recipe.head.options for row in plan.rows] == [
        {"form": "similarity"},
        {"form": "joint"},
    ]
    assert [row.recipe.train.epochs for row in plan.rows] == [5, 5]
    assert plan.columns == ("head", "head.form")


def test_a_rows_name_does_not_depend_on_other_rows_nor_on_their_order(write):
    grid = '[grid]\n"train.lr" = [0.1, 0.2]\n"train.batch" = [4, 8]\n'
    wide = f'recipes = ["one.toml", "two.toml"]\n{grid}'
    narrow = 'recipes = ["two.toml"]\n[grid]\n"train.batch" = [8, 2]\n"train.lr" = [0.2, 0.4]\n'
    names = [{row.name for row in read_study(write(text)).rows} for text in (wide, narrow)]
    assert names[0] & names[1] == {"two,train.batch=8,train.lr=0.2"}


def test_values_that_no_folder_can_be_called_give_different_names(write):
    path = write('recipes = ["one.toml"]\n[grid]\n"data.labels" = [["a/b", "c"], ["a b", "c"]]\n')
    names = [row.name for row in read_study(path).rows]
    assert len(set(names)) == 2
    assert not any(set("/ \\:*?\"'") & set(name) for name in names)


def test_rows_differ_in_several_keys_and_multiply_with_the_grid(write):
    plan = read_study(
        write(
            'recipes = ["one.toml"]\n[grid]\n"train.lr" = [0.1, 0.2]\n'
            '[rows.plain]\n[rows."both, longer"]\n"head.form" = "joint"\ntrain.epochs = 9\n'
            '[rows.pool]\nrecipe = "two.toml"\n'
        )
    )
    found = [
        (row.cells["row"], row.recipe.head.name, row.recipe.head.options, row.recipe.train.epochs)
        for row in plan.rows
    ]
    strg, joint = {"dropout": 0.5}, {"dropout": 0.5, "form": "joint"}
    assert found == [
        *[("plain", "strg", strg, 2)] * 2,
        *[("both, longer", "strg", joint, 9)] * 2,
        *[("pool", "pool", {"dropout": 0.5}, 2)] * 2,
    ]
    assert [row.recipe.train.lr for row in plan.rows] == [0.1, 0.2] * 3
    assert plan.columns == ("row", "head", "train.lr")
    assert plan.rows[0].name == "one,plain,train.lr=0.1"
    assert plan.rows[2].name == "one,both__longer,train.lr=0.1"
    assert plan.rows[4].name == "two,pool,train.lr=0.1"


def test_rows_with_recipes_of_their_own_need_no_other(write):
    plan = read_study(
        write('[rows.a]\nrecipe = "one.toml"\n[rows.b]\nrecipe = "two.toml"\nhead = "roi_pool"\n')
    )
    assert [(row.name, row.recipe.head.name) for row in plan.rows] == [
        ("a", "strg"),
        ("b", "roi_pool"),
    ]


def test_keys_of_the_extraction_and_of_frames_are_in_no_table_of_the_recipe(write):
    plan = read_study(
        write(
            'recipes = ["one.toml"]\n[set]\n"extract.sampling.frames" = 8\n'
            '"frames.train_from" = "res4"\n[grid]\n"extract.roi_pool" = ["max", "mean"]\n'
        )
    )
    assert [row.extract for row in plan.rows] == [
        {"sampling.frames": 8, "roi_pool": "max"},
        {"sampling.frames": 8, "roi_pool": "mean"},
    ]
    assert plan.varied_extraction() == ("roi_pool",)
    for row in plan.rows:
        (phase,) = row.recipe.phases
        assert (phase.reads, phase.frames.train_from) == ("frames", "res4")
        assert phase.train.epochs == 2
        assert phase.frames.frozen_bn


ONE = 'recipes = ["one.toml"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe = 1\n", "no key recipe; did you mean recipes?"),
        ("seeds = [0]\n", "expected recipes = [...], or tables [head] and [train]"),
        (ONE + '[head]\nname = "pool"\n', "expected recipes or a table [head], got both"),
        (ONE + "seeds = []\n", "seeds: expected at least one"),
        (ONE + "seeds = [1, 1]\n", "seeds: duplicate 1"),
        (ONE + "seeds = [-1]\n", "seeds.0"),
        (ONE + 'name = "a/b"\n', "name: expected letters, digits"),
        ('recipes = ["on.toml"]\n', "recipe 'on.toml': no such file"),
        ('recipes = ["demo_stgr"]\n', "did you mean demo_strg"),
        ('recipes = ["one.toml", "one.toml"]\n', "recipes: duplicate 'one.toml'"),
        (ONE + '[grid]\n"train.lr" = 0.1\n', "grid.train.lr: expected a list of values, got 0.1"),
        (ONE + '[grid]\n"train.lr" = [0.1, 0.1]\n', "grid.train.lr: duplicate 0.1"),
        (
            ONE + '[grid]\n"train.lrr" = [0.1]\n',
            "member one,train.lrr=0.1: no key train.lrr; did you mean lr?",
        ),
        (ONE + '[grid]\n"trian.lr" = [0.1]\n', "no key trian.lr; did you mean train"),
        (ONE + '[grid]\n"strgg.form" = ["joint"]\n', "no key strgg.form; did you mean strg"),
        (ONE + "[grid]\ntrain = [1]\n", "no key train; did you mean train.KEY?"),
        (
            ONE + '[grid]\n"train.lr" = ["fast"]\n',
            "train.lr: input should be a valid number, got 'fast'",
        ),
        (ONE + '[grid]\nhead = ["pol"]\n', "no head 'pol': did you mean pool"),
        (
            ONE + '[grid]\nhead = [{form = "joint"}]\n',
            "head: expected the name of a head, or a table with a name",
        ),
        (
            ONE + '[grid]\n"strg.frm" = ["joint"]\n',
            "head strg has no option 'frm': did you mean form",
        ),
        (
            ONE + '[grid]\n"gos.top" = [3]\n',
            "gos.top: no member has head gos; expected one of strg",
        ),
        (ONE + '[set]\n"gos.top" = 3\n', "gos.top: no member has head gos"),
        (
            ONE + '[set]\ntrain.lr = 0.1\n[grid]\n"train.lr" = [1.0]\n',
            "train.lr: expected it in [grid], or in [set]",
        ),
        (ONE + '[rows.a]\n"trian.lr" = 1\n', "no key trian.lr; did you mean train"),
        (ONE + '[rows.a]\n"train.lrr" = 1\n', "member one,a: no key train.lrr; did you mean lr?"),
        (ONE + '[rows.a]\nhead = "pol"\n', "no head 'pol': did you mean pool"),
        (ONE + '[rows.a]\n"gos.top" = 3\n', "gos.top: no member has head gos"),
        (ONE + "[rows.a]\nrecipe = 3\n", "rows.a: recipe is the name of one, got 3"),
        (ONE + '[rows.a]\nrecipe = "on.toml"\n', "recipe 'on.toml': no such file"),
        (
            ONE + "[rows.a]\ntrain.lr = 0.1\n[set]\ntrain.lr = 1.0\n",
            "train.lr: expected it in [rows], or in [set], --set or [grid]; got both",
        ),
        (
            ONE + "[rows.a]\ntrain.lr = 0.1\n[grid]\ntrain.lr = [1.0]\n",
            "train.lr: expected it in [rows], or in [set], --set or [grid]; got both",
        ),
        ('[rows.a]\nrecipe = "one.toml"\n[rows.b]\n', "expected recipes = [...], or tables"),
        (ONE + '[set]\n"extract" = 3\n', "no key extract; did you mean extract.KEY?"),
        (ONE + '[rows."a b"]\n[rows.a_b]\n', "two rows would be called one,a_b: rename the rows"),
        (ONE + "rows = 3\n", "rows: input should be an object, got 3"),
        (ONE + "[subsets.a]\nlabel = 3\n", "no key subsets.a.label; did you mean labels?"),
        (
            ONE + '[subsets.a]\nfirst_labels = 2\nlabels = ["x", "y"]\n',
            "expected labels or first_labels, got both",
        ),
        (ONE + "[grid\n", "not TOML"),
    ],
)
def test_a_study_that_is_wrong_is_refused_in_one_line(write, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_study(write(text))
    assert "study.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_may_not_hide_what_the_grid_varies(write):
    path = write(ONE + '[grid]\n"train.lr" = [0.1, 0.2]\n')
    with pytest.raises(
        ValueError, match=r"train.lr: expected it in \[grid\], or in \[set\] or --set; got both"
    ):
        read_study(path, {"train.lr": 1.0})


def test_a_list_of_classes_is_beside_the_study_or_with_settings_in_the_working_directory(
    write, tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = write(
        '[head]\nname = "pool"\n[train]\nepochs = 1\nbatch = 2\n[set]\n"data.class_list" = '
        '"list.txt"\n'
    )
    for settings, folder in (({}, path.parent), ({"data.class_list": "list.txt"}, Path.cwd())):
        assert read_study(path, settings).rows[0].recipe.data.class_list == str(
            folder.resolve() / "list.txt"
        )


def test_every_study_of_the_package_can_be_read():
    assert "demo" in study_names()
    for name in study_names():
        assert read_study(name).rows
    with pytest.raises(
        ValueError, match="study 'dem': no such file, nor a study of the package: did you mean demo"
    ):
        read_study("dem")


def test_the_study_of_the_page_is_one(write):
    page = (Path(__file__).parents[3] / "docs" / "ablate.md").read_text()
    path = write(page.split("```toml\n")[1].split("```")[0])
    (path.parent / "mine.toml").write_text(RECIPE)
    plan = read_study(path)
    assert plan.name == "regions"
    # Recipes, roi_pool and two forms of strg, rates, views, rows, subsets.
    assert len(plan.rows) == 2 * (1 + 2) * 2 * 2 * 2 * 3
    assert len({row.name for row in plan.rows}) == len(plan.rows)
