"""docs/encoders.md: the walk from a folder of videos to an attentive probe, as it is written."""

import json

import pytest

from tests.test_docs import blocks, vidgraph  # noqa: F401 (a fixture)


def test_the_walk_runs_as_written(vidgraph, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("transformers", reason="pip install 'vidgraph[transformers]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    exec(compile(blocks("encoders.md", "python")[0], "encoders.md", "exec"), {})
    walk = blocks("encoders.md", "")[0].replace("\\\n", " ")
    for line in walk.splitlines():
        words = line.split()
        assert words[0] == "vidgraph"
        vidgraph(*words[1:])

    record = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert record["config"]["backbone"].startswith("hf:sha256=")
    assert len(record["config"]["weights"]) == 64
    assert (tmp_path / "runs" / "attentive-seed0" / "last.pt").is_file()
    members = list((tmp_path / "runs").glob("attentive_grid/*"))
    assert len([path for path in members if path.is_dir()]) >= 20
