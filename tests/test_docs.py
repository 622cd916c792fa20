"""The pages in docs/: their code runs as written, and their tables are those of the code."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch

import heads.zoo
from cli.__main__ import main
from heads.interface.contract import CHECKS, CLASSES, HeadCase
from heads.zoo import build_head, head_names
from pipeline import plugins
from pipeline.backbones import build_backbone
from pipeline.cache.fields import FIELDS
from pipeline.cache.reader import Cache
from tests.support.tiny_cache import SPLITS, Tiny
from tests.support.tiny_videos import make_videos

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language in a page."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(), flags=re.M | re.S)
    return [text for named, text in fenced if named == language]


def commands(page: str) -> list[str]:
    """The commands of a page, without `vidgraph`; continued lines are joined."""
    text = (DOCS / page).read_text().replace("\\\n", " ")
    return re.findall(r"^vidgraph (.*)$", text, flags=re.M)


@pytest.fixture
def vidgraph(tmp_path, monkeypatch, capsys):
    """A command in a folder with a tiny cache, as in a process of its own; its standard output."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> str:
        monkeypatch.setattr(plugins, "_given", {})
        with pytest.raises(SystemExit) as left:
            main(list(args))
        found = capsys.readouterr()
        assert left.value.code == 0, found.out + found.err
        return found.out

    return run


def code_of(page: str, lines: int) -> str:
    """The plug-in of a page, which is short."""
    source = blocks(page, "python")[0]
    written = [line for line in source.splitlines() if line.strip()]
    assert len(written) <= lines
    return source


def test_the_head_of_the_page_is_checked_trained_evaluated_and_counted_as_written(
    vidgraph, tmp_path
):
    (tmp_path / "my_head.py").write_text(code_of("adding_a_head.md", 30))
    recipe, study = blocks("adding_a_head.md", "toml")
    (tmp_path / "mine.toml").write_text(recipe)
    Tiny().write(tmp_path)
    (tmp_path / "cache").rename(tmp_path / "CACHE")
    of_head, of_cache = commands("adding_a_head.md")[:4], commands("adding_a_head.md")[4:]
    verbs = [command.split()[0] for command in of_head]
    assert verbs == ["check-plugin", "train", "evaluate", "summary"]
    for command in of_head:
        vidgraph(*command.split())
    metrics = json.loads((tmp_path / "runs/mine-seed0/metrics.json").read_text())
    assert metrics["metrics"]["test"]["top1"] > 1 / 3

    assert [command.split()[0] for command in of_cache] == ["manifest", "extract", "graphs"]
    for command in of_cache:
        vidgraph(*command.split())
    (tmp_path / "study.toml").write_text(study)
    said = vidgraph("ablate", "study.toml", "--cache", "C", "--set", "train.epochs=1")
    assert "my_head" in said
    assert "strg" in said


def test_the_means_and_maxima_of_the_page_give_0_where_no_node_is_valid():
    nodes = torch.randn(3, 2, 4, 5, requires_grad=True)
    valid = torch.rand(3, 2, 4) < 0.5
    valid[0], valid[1, 0], valid[1, 1], valid[2, :, 0] = False, False, True, True
    found = {"nodes": nodes, "valid": valid}
    exec(compile(blocks("adding_a_head.md", "python")[1], "adding_a_head.md", "exec"), found)
    torch.testing.assert_close(found["mean"][1], nodes[1, 1].mean(0))
    torch.testing.assert_close(found["steps"][1, 1], nodes[1, 1].mean(0))
    torch.testing.assert_close(found["largest"][2, 0], nodes[2, 0, valid[2, 0]].amax(0))
    for values in (found["mean"][0], found["steps"][1, 0], found["largest"][1, 0]):
        assert (values == 0).all()
    found["largest"].sum().backward()
    assert nodes.grad.isfinite().all()


def test_the_head_of_the_page_is_a_head_of_the_zoo_when_it_lies_there(tmp_path, monkeypatch):
    (tmp_path / "my_head.py").write_text(code_of("adding_a_head.md", 30))
    monkeypatch.setattr(heads.zoo, "__path__", [*heads.zoo.__path__, str(tmp_path)])
    assert "my_head" in head_names()
    case = HeadCase(lambda dims: build_head("my_head", dims, CLASSES))
    for check in CHECKS.values():
        check(case)


def test_the_backbone_and_the_source_of_boxes_of_the_pages_extract_as_written(vidgraph, tmp_path):
    (tmp_path / "my_backbone.py").write_text(code_of("adding_a_backbone.md", 30))
    (tmp_path / "my_boxes.py").write_text(code_of("adding_a_source_of_boxes.md", 30))
    make_videos(tmp_path, clips=3)
    (tmp_path / "manifest.csv").rename(tmp_path / "clips.csv")
    name = plugins.give_file("my_backbone.py")
    torch.save(build_backbone(name, width=32).state_dict(), "my.pt")
    small = ["--device", "cpu", "--workers", "0", "--frames", "4", "--size", "64"]

    check, extract = commands("adding_a_backbone.md")
    vidgraph(*check.split())
    vidgraph(*extract.split(), *small, "--proposals", "grid", "--keep", "pooled,nodes")
    assert Cache("CACHE")["train"].shape("pooled") == (4, 128)

    (tmp_path / "CACHE").rename(tmp_path / "first")
    check, extract = commands("adding_a_source_of_boxes.md")
    vidgraph(*check.split())
    options = ("--backbone", "digit_cnn", "--weights", "none")
    vidgraph(*extract.split(), *small, *options)
    assert Cache("CACHE")["train"].shape("boxes") == (4, 5, 4)


@pytest.mark.parametrize("kind", [plugins.HEAD, plugins.BACKBONE, plugins.PROPOSALS])
def test_the_pages_name_the_groups_of_entry_points(kind):
    page = {"vidgraph.heads": "head", "vidgraph.backbones": "backbone"}.get(
        kind.group, "source_of_boxes"
    )
    assert f"\n{kind.group} =\n" in (DOCS / f"adding_a_{page}.md").read_text()


@pytest.mark.parametrize("block", range(2))
def test_the_code_that_reads_a_cache_runs_as_written(block, tmp_path, monkeypatch, capsys):
    Tiny(failed=(2,)).write(tmp_path)
    (tmp_path / "cache").rename(tmp_path / "CACHE")
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("file_format.md", "python")[block], "file_format.md", "exec"), {})
    if block == 0:
        said = capsys.readouterr().out.splitlines()
        # Two training views of every clip of the split train that was read.
        assert len(said) == (SPLITS.count("train") - 1) * 2
        assert said[0].startswith("clip-0 class 0 (3, 2, 4)")


def test_the_table_of_datasets_is_that_of_the_code():
    table = (
        (DOCS / "file_format.md")
        .read_text()
        .split("<!-- fields -->")[1]
        .split("<!-- /fields -->")[0]
    )
    for field in FIELDS.values():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{field.name}` |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:3] == [" ".join(("R", *field.dims)), field.dtype]
        assert field.unit in cells[3]


def test_links_between_the_pages_lead_somewhere():
    pages = [*DOCS.glob("*.md"), *(ROOT / "data_manifests").glob("*.md")]
    for page in (*pages, ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_index_lists_every_page():
    listed = re.findall(r"^\| \[(\S+)\]\(\1\) \|", (DOCS / "README.md").read_text(), flags=re.M)
    pages = [*DOCS.glob("*.md"), *DOCS.glob("*.ipynb")]
    assert sorted(listed) == sorted(page.name for page in pages if page.name != "README.md")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
@pytest.mark.parametrize("package", ["pipeline", "heads"])
def test_the_front_pages_name_every_room(page, package):
    section = (ROOT / page).read_text().split("\n## Where things are\n")[1].split("\n## ")[0]
    rooms = [folder.name for folder in (ROOT / package).iterdir() if folder.is_dir()]
    for room in rooms:
        assert room.startswith("__") or f"`{room}`" in section, room


def strings_of(path: Path) -> list[str]:
    """The string literals of a module, joined over lines, without its docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(node.value)
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
    ]


def test_the_messages_that_troubleshooting_explains_are_those_of_the_code():
    strings = []
    for package in ("pipeline", "heads", "cli", "vidgraph"):
        for path in (ROOT / package).rglob("*.py"):
            strings += strings_of(path)
    headings = re.findall(r"^### `+(.*?)`+$", (DOCS / "troubleshooting.md").read_text(), flags=re.M)
    assert len(headings) > 15
    missing = [
        heading for heading in headings if not any(heading.rstrip() in text for text in strings)
    ]
    assert not missing


def test_the_page_of_recipes_is_what_the_recipes_say():
    from tests.support.recipes_page import page

    assert (DOCS / "recipes.md").read_text() == page()
