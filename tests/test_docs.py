"""The pages in docs/: their code runs as written, and their tables are those of the code."""

import re
from pathlib import Path

import pytest
import torch

import heads.zoo
from heads.config.recipe import read_recipe
from heads.training.train import train
from heads.zoo import build_head, head_names
from pipeline.cache.fields import FIELDS
from tests.support.tiny_cache import Tiny

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language in a page."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(), flags=re.M | re.S)
    return [text for named, text in fenced if named == language]


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """The head of the page on adding one, saved beside the others."""
    (source,) = blocks("adding_a_head.md", "python")
    assert len(source.splitlines()) <= 45
    (tmp_path / "pairs.py").write_text(source)
    monkeypatch.setattr(heads.zoo, "__path__", [*heads.zoo.__path__, str(tmp_path)])
    return source


def test_the_head_that_the_page_adds_trains_by_the_page_s_recipe(pairs, tmp_path):
    assert "pairs" in head_names()
    (recipe,) = blocks("adding_a_head.md", "toml")
    (tmp_path / "pairs.toml").write_text(recipe)
    cache = Tiny().write(tmp_path)
    result = train(
        read_recipe(tmp_path / "pairs.toml", {"train.epochs": 3}),
        cache,
        tmp_path / "run",
        say=lambda line: None,
        device="cpu",
    )
    assert result.metrics["test"]["top1"] > 1 / 3


def test_the_head_that_the_page_adds_ignores_padded_regions(pairs, tmp_path):
    cache = Tiny().write(tmp_path)
    from heads.data.splits import cache_dims
    from heads.interface.clips import clips_of

    head = build_head("pairs", cache_dims(cache), 3)
    batch = cache["train"].batch([0, 1], fields=head.needs)
    clips, noisy = clips_of(batch), clips_of(batch)
    noisy.nodes[~noisy.valid] = 7.0
    assert torch.equal(head(clips).logits, head(noisy).logits)


@pytest.mark.parametrize("block", range(2))
def test_the_code_that_reads_a_cache_runs_as_written(block, tmp_path, monkeypatch, capsys):
    Tiny(failed=(2,)).write(tmp_path)
    (tmp_path / "cache").rename(tmp_path / "CACHE")
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("file_format.md", "python")[block], "file_format.md", "exec"), {})
    if block == 0:
        said = capsys.readouterr().out.splitlines()
        assert len(said) == (24 - 1) * 2  # two training views of every clip that was read
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
    for page in (*DOCS.glob("*.md"), ROOT / "README.md", *(ROOT / "data_manifests").glob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_messages_that_troubleshooting_explains_are_those_of_the_code():
    source = "".join(
        path.read_text()
        for room in ("pipeline", "heads", "cli")
        for path in (ROOT / room).rglob("*.py")
    )
    headings = re.findall(r"^### `+(.*?)`+$", (DOCS / "troubleshooting.md").read_text(), flags=re.M)
    assert len(headings) > 15
    for heading in headings:
        assert heading.rstrip() in source, heading


def test_the_page_of_recipes_is_what_the_recipes_say():
    from tests.support.recipes_page import page

    assert (DOCS / "recipes.md").read_text() == page()
