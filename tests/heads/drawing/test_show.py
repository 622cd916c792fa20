"""`vidgraph show`, and what trained heads give it to draw: every head of the zoo, by the names in
docs/show.md.
"""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cli.__main__ import main, vidgraph
from heads.config.recipe import read_recipe
from heads.data.splits import cache_dims, fields_for
from heads.drawing.draw import Style, draw_view
from heads.interface.clips import clips_of
from heads.papers.rstg.grid import NODES
from heads.runs.run_files import save_checkpoint, write_json
from heads.zoo import build_head, head_names, head_version
from pipeline.cache.reader import Cache
from tests.support.tiny_cache import Tiny

DOCS = Path(__file__).parents[3] / "docs" / "show.md"
NOTEBOOK = DOCS.parent / "from_cache_to_picture.ipynb"
CLASSES = ("class 0", "class 1", "classe numéro 2")
SMALL = {
    **{name: {"width": 16} for name in head_names() if name.startswith("gos")},
    "rstg": {"width": 16},
    "rstg_map": {"width": 16},
    "conv_lstm": {"width": 8, "hidden": 8, "convs": 1},
    "dyreg": {"width": 8, "offset_width": 4, "anchors": "grid"},
    "ean": {"width": 32},
    "stin": {"width": 16, "classes": "none", "slots": "row"},
    "stlt": {"width": 16, "heads": 2, "classes": "none"},
}
# What is drawn from each head's maps.
SHOWS = {
    "strg": {"attention"},
    **{
        name: {"attention"}
        for name in head_names()
        if name.startswith("gos_") or name.startswith("rstg")
    },
    "attentive": {"attention"},
    "gos": {"structure"},
    "dyreg": {"regions"},
    "ean": {"saliency", "attention"},
}
ALWAYS = {"boxes", "edges", "nearest", "similar", "predictions"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    """Tiny views with nodes, boxes and a map of 4 x 4 cells."""
    return Tiny(T=4, N=3, C=8, fields=(*Tiny.fields, "res5")).write(tmp_path_factory.mktemp("show"))


def run_of(folder: Path, cache: Cache, name: str, **options) -> Path:
    """The folder of a run of a head with lively weights, as training leaves it."""
    torch.manual_seed(0)
    options = {**SMALL.get(name, {}), **options}
    recipe = read_recipe("demo_strg").as_dict()
    recipe |= {"name": name, "head": {"name": name, "options": options}}
    dims = cache_dims(cache)
    head = build_head(name, dims, len(CLASSES), **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    about = {
        "recipe": recipe,
        "classes": list(CLASSES),
        "head_versions": {name: head_version(name)},
        "dims": dims.as_dict(),
        "fingerprint": cache.fingerprint,
        "config": cache.config,
    }
    folder.mkdir(parents=True)
    write_json(folder / "run.json", about)
    save_checkpoint(folder / "last.pt", {"state": head.state_dict(), "about": about})
    return folder


def maps_of(cache: Cache, name: str, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    head = build_head(
        name, cache_dims(cache), len(CLASSES), **{**SMALL.get(name, {}), **options}
    ).eval()
    group = cache["test"]
    return head(clips_of(group.batch([0, 1], fields_for(head, group))), want_maps=True).maps


@pytest.mark.parametrize("name", head_names())
def test_every_head_shows_what_it_has(name, cache, tmp_path):
    run, mine = run_of(tmp_path / name, cache, name), ALWAYS | SHOWS.get(name, set())
    drawing = draw_view(cache, "clip-18", run=run, style=Style(height=40, width=600))
    found = set(drawing.what)
    # GOS has attention where an operation that it chose has it.
    if name == "gos":
        found.discard("attention")
    assert found == mine
    # Boxes and edges are one strip.
    assert len(drawing.sections) + len(drawing.panels) >= len(mine) - 1
    assert drawing.picture().width <= 700
    with pytest.raises(ValueError, match=f"head {name} gives"):
        draw_view(cache, "clip-18", run=run, what=["saliency" if name != "ean" else "regions"])


@pytest.mark.parametrize("name", head_names())
def test_the_page_names_every_map_of_every_head(name, cache):
    rows = [
        line for line in DOCS.read_text(encoding="utf-8").splitlines() if re.match(r"\| `\w", line)
    ]
    mine = [row for row in rows if f"`{name}`" in row.split("|")[1]]
    told = {
        re.sub(r"\.POINT$", "", m)
        for row in mine
        for m in re.findall(r"`([\w.]+)`", row.split("|")[2])
    }
    maps = maps_of(cache, name)
    assert {m.split(".")[0] for m in maps} == told
    B, T, N = 2, *cache["test"].shape("valid")
    sizes = {"B": B, "T": T, "N": N, "n": T * N, "T-1": T - 1, "M": 4, "P": 16, "G": 16, "Q": 1}
    sizes |= {"cells": 1, "E": 6, "O": 5, "layers": 2, "heads": 8, "m": T * 4, "h": 4, "w": 4}
    for row in mine:
        for m, shape in re.findall(r"`([\w.]+)` \[([\w ,-]+)\]", row.split("|")[2]):
            found = next(
                tensor for key, tensor in maps.items() if key.split(".")[0] == m.split(".")[0]
            )
            wanted = [int(axis) if axis.isdigit() else sizes[axis] for axis in shape.split(",")]
            assert list(found.shape) == wanted, (m, shape)


def test_node_attention_is_that_of_the_chosen_operations(cache):
    torch.manual_seed(0)
    head = build_head("gos", cache_dims(cache), 3, width=16, mode="discrete").eval()
    alpha = head.structure.alpha
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        alpha.weight.zero_()
        alpha.bias.zero_()
        chosen = [2, 1, 0, 4, 3, 2]  # comb1, skip, none, comb3, comb2, comb1
        alpha.bias.view(1, 6, 5)[0, range(6), chosen] = 9.0
    group = cache["test"]
    clips = clips_of(group.batch([0, 1], fields_for(head, group)))
    seen: list[torch.Tensor] = []
    for module in head.modules():
        if type(module).__name__ == "NodeAtt":
            module.register_forward_hook(
                lambda module, inputs, out: seen.append((out / inputs[0]).nanmedian(-1).values)
            )
    maps = head(clips, want_maps=True).maps
    assert maps["structure"][0, 0].tolist() == chosen
    attention = maps["node_attention"][:, 0]  # [B,E,T,N]
    without = attention.isnan().flatten(2).all(-1)[0].tolist()
    assert without == [False, True, True, False, False, False]
    for edge, used in zip((0, 3, 4, 5), seen, strict=True):
        valid = clips.valid
        torch.testing.assert_close(attention[:, edge][valid], used[valid], rtol=1e-3, atol=1e-3)


def test_each_edge_is_drawn_by_the_weights_that_the_head_had(cache, tmp_path):
    """STRG may look at fewer boxes than there are: its graphs are the smaller ones."""
    run = run_of(tmp_path / "strg", cache, "strg", proposals=2)
    drawing = draw_view(cache, "clip-18", run=run, what=["edges", "attention"], node=(0, 0))
    assert drawing.result.maps["front"].shape == (3, 2, 2)
    assert len(drawing.sections) == 2
    assert drawing.picture().width > 100


def test_regions_have_their_boxes_in_cells(cache):
    maps = maps_of(cache, "dyreg", anchors="grid")
    kernels, centres, radii = (maps[f"{name}.res5"] for name in ("kernels", "centres", "radii"))
    rows = torch.arange(4.0)
    expected = (radii[..., :1] - (rows - centres[..., :1]).abs()).relu()
    torch.testing.assert_close(kernels.sum(-1), expected / expected.sum(-1, keepdim=True))
    assert "centres.res5" not in maps_of(cache, "dyreg", regions="fixed")


def test_the_weights_of_a_module_inside_the_network_are_its_own(cache):
    maps = maps_of(cache, "rstg_map", attention="dot")
    assert list(maps) == ["attention.res5"]
    assert maps["attention.res5"].shape == (2, 4, NODES, NODES)
    torch.testing.assert_close(maps["attention.res5"].sum(-1), torch.ones(2, 4, NODES))


def test_a_chosen_node_may_be_one_of_the_grid(cache, tmp_path):
    run = run_of(tmp_path / "rstg", cache, "rstg")
    drawing = draw_view(cache, "clip-18", run=run, node=(0, 13), what=["attention"])
    assert "to node 13" in drawing.sections[0].note
    with pytest.raises(ValueError, match="nodes 0 to 13"):
        draw_view(cache, "clip-18", run=run, node=(0, 14))


def test_a_run_of_other_features_is_refused(cache, tmp_path):
    run = run_of(tmp_path / "pool", cache, "pool")
    other = Tiny(T=4, N=3, C=8, config={"backbone": "i3d_r50"}).write(tmp_path / "other")
    with pytest.raises(ValueError, match="not those that the run was trained on"):
        draw_view(other, "clip-18", run=run)


def test_the_command_writes_a_picture_and_says_where(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_of(tmp_path / "strg", cache, "strg")
    options = ["--cache", str(cache.path), "--run", str(run), "--height", "40", "--steps", "0-1,3"]
    done = CliRunner().invoke(vidgraph, ["show", "clip-18", *options])
    assert done.exit_code == 0, done.output
    assert done.stdout == "clip-18.png\n"
    assert "drawn on grey" in done.stderr
    with Image.open("clip-18.png") as image:
        assert np.asarray(image).std() > 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("clip-99",), "no clip 'clip-99' among its 24; the nearest are clip-9, "),
        (("clip-1", "--view", "7"), "views 0 to 1"),
        (("clip-1", "--what", "boxes,edgs"), "edges"),
        (("clip-1", "--out", "clip.gif"), ".mp4"),
        (("clip-1", "--node", "3"), "such as 3,0"),
        (("clip-1", "--steps", "9"), "expected 0 to 3"),
        (("clip-1", "--run", "nowhere"), "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(args, said, cache, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["show", *args, "--cache", str(cache.path)])
    err = capsys.readouterr().err
    assert left.value.code == 2
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def like_the_demo(tmp_path, monkeypatch):
    """A working folder with a cache and a run where `vidgraph demo` would leave them."""
    made = Tiny(T=4, N=3, C=8).write(tmp_path / "demo")
    run_of(tmp_path / "demo" / "runs" / "demo_strg-seed0", made, "strg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_notebook_s_cells_draw_pictures(like_the_demo):
    cells = [
        cell
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    known: dict = {}
    assert sum(len(cell["source"]) for cell in cells) <= 13
    for cell in cells:
        assert not cell["outputs"]  # what somebody's machine said is not committed
        *before, last = "".join(cell["source"]).splitlines()
        exec("\n".join(before), known)
        shown = eval(last, known)
    assert isinstance(shown, Image.Image)


@pytest.mark.slow
def test_the_notebook_runs_in_jupyter(like_the_demo):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(like_the_demo)}}
    ).execute()
    shown = [
        out.data for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs
    ]
    assert ["image/png" in data for data in shown] == [False, False, True, True, True]


def test_the_page_s_commands_run_as_written(tmp_path, monkeypatch):
    made = Tiny(T=5, N=3, C=8, train_views=4).write(tmp_path)
    run_of(tmp_path / "runs" / "strg-0", made, "strg")
    monkeypatch.chdir(tmp_path)
    page = DOCS.read_text(encoding="utf-8")
    (commands,) = re.findall(r"^```bash\n(.*?)^```", page, flags=re.M | re.S)
    for line in commands.splitlines():
        asked = shlex.split(line, comments=True)[1:]
        done = CliRunner().invoke(vidgraph, [*asked, "--height", "32"])
        assert done.exit_code == 0, done.output
        assert Path(done.stdout.strip()).exists()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    exec(code, {})
