"""Several caches that are read as one."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cli.__main__ import vidgraph
from heads.config.recipe import recipe_with
from heads.data.view_dataset import ViewDataset
from heads.training.train import train
from pipeline.cache.joined import JoinedCache, open_caches, paths_of
from pipeline.cache.reader import Cache, CacheError
from tests.support.tiny_cache import Tiny

FEW = ("train",) * 3 + ("val",) * 3 + ("test",) * 3


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[Path]:
    """Two caches of the same options; the second has wider maps and a clip that failed."""
    folder = tmp_path_factory.mktemp("two")
    fields = ("pooled", "nodes", "boxes", "scores", "valid", "flip", "res5")
    first = Tiny(splits=FEW, prefix="a-", fields=fields).write(folder / "a")
    second = Tiny(splits=FEW, prefix="b-", fields=fields, side=5, failed=(1,)).write(folder / "b")
    return [first.path, second.path]


def test_rows_of_the_joined_group_are_those_of_the_caches_in_order(two):
    joined = open_caches(two)
    assert isinstance(joined, JoinedCache)
    assert joined.groups == ("train", "test")
    group, parts = joined["train"], [Cache(path)["train"] for path in two]
    assert len(group) == sum(map(len, parts))
    assert group.clips == parts[0].clips + parts[1].clips
    assert group.ok.tolist() == [*parts[0].ok, *parts[1].ok]
    for clip in ("a-2", "b-0"):
        assert {group.clips[row] for row in group.rows_of(clip)} == {clip}
    assert [clip.position for clip in joined.manifest.clips] == list(range(18))


def test_a_batch_across_caches_has_the_values_of_each_in_the_order_asked(two):
    group, parts = open_caches(two)["test"], [Cache(path)["test"] for path in two]
    own = [(1, 5), (0, 3), (1, 0), (0, 3), (0, 17)]
    starts = (0, len(parts[0]))
    batch = group.batch([starts[part] + row for part, row in own])
    assert set(batch) == set(group.fields)
    for place, (part, row) in enumerate(own):
        for name, values in parts[part].view(row).items():
            found = batch[name][place]
            inside = tuple(map(slice, values.shape))
            np.testing.assert_array_equal(found[inside], values)
            # The narrower map has zeros around it.
            assert np.count_nonzero(found) == np.count_nonzero(values)
    assert group.shape("res5")[-2:] == (5, 5)


def test_a_joined_cache_pickles_and_opens_again_from_its_paths(two):
    joined = open_caches(two)
    copy = pickle.loads(pickle.dumps(joined))
    again = open_caches(paths_of(joined))
    expected = joined["test"].batch([22, 0], ["pooled"])["pooled"]
    for other in (copy, again):
        assert other.fingerprint == joined.fingerprint
        np.testing.assert_array_equal(other["test"].batch([22, 0], ["pooled"])["pooled"], expected)


def test_one_path_gives_a_plain_cache(two):
    assert isinstance(open_caches(two[0]), Cache)
    assert isinstance(open_caches(two[:1]), Cache)


def test_clips_in_both_caches_are_refused(two, tmp_path):
    third = Tiny(splits=FEW, prefix="b-", fields=("pooled",)).write(tmp_path).path
    with pytest.raises(CacheError, match=r"clip b-0 is in .*, as are 8 more.*different clips"):
        open_caches([two[1], third])
    with pytest.raises(CacheError, match="different clips"):
        open_caches([two[0], two[0]])


def test_caches_of_other_options_are_refused_with_what_differs(two, tmp_path):
    config = {"backbone": "resnet18", "sampling": {"train_views": 3}}
    other = Tiny(splits=FEW, prefix="c-", config=config).write(tmp_path).path
    with pytest.raises(
        CacheError, match=r"--backbone digit_cnn there, --backbone resnet18 here\. Give one"
    ):
        open_caches([two[0], other])


def test_fields_of_other_sizes_are_refused(two, tmp_path):
    other = Tiny(splits=FEW, prefix="c-", C=7, fields=("pooled",)).write(tmp_path).path
    with pytest.raises(CacheError, match="differ in the size of pooled"):
        open_caches([two[0], other])["train"]


def test_a_row_that_failed_is_refused_and_left_out_of_a_dataset(two):
    joined = open_caches(two)
    row = joined["train"].rows_of("b-1")[0]
    with pytest.raises(CacheError, match=r"b-1.* failed in extraction"):
        joined["train"].batch([row])
    data = ViewDataset(two, "train", ["pooled"])
    assert data.clips == ("a-0", "a-1", "a-2", "b-0", "b-2")
    assert data.failed == ("b-1",)


def _recipe():
    table = {"source": "a test", "head": {"name": "pool"}, "train": {"epochs": 1, "batch": 4}}
    return recipe_with(table, {}, Path("pool.toml"))


def test_training_on_two_caches_equals_training_on_one_with_all_clips(tmp_path):
    """The same clips in one cache give the same weights: every view is read, in the same order."""
    labels = [f"class {k % 3}" for k in range(18)]
    half = Tiny(splits=FEW, labels=labels[:9], prefix="x")
    first = half.write(tmp_path / "first")
    second = Tiny(splits=FEW, labels=labels[9:], prefix="y").write(tmp_path / "second")

    from pipeline.cache.reader import create_cache
    from pipeline.cache.shard_writer import GroupPlan, ShardWriter
    from pipeline.manifests.manifest import write_manifest

    joined = open_caches([first.path, second.path])
    rows = []
    for clip in joined.manifest.clips:
        rows.append(
            {"clip": clip.clip, "path": "v.mp4", "split": clip.split, "label": clip.labels[0]}
        )
    manifest = write_manifest(tmp_path / "all.csv", rows)
    shards = create_cache(tmp_path / "all", first.config, manifest, 18)
    plans, names = {}, [row["clip"] for row in rows]
    fields = {
        name: (first["train"].shape(name), str(first["train"].dtype(name).name))
        for name in first["train"].fields
    }
    for group in ("train", "test"):
        plans[group] = GroupPlan(np.repeat(names, 2).tolist(), [0, 1] * 18, fields)
    with ShardWriter(shards.path(0), plans, attrs=shards.attrs(0)) as writer:
        for group in ("train", "test"):
            for row in range(36):
                writer.write(group, row, joined[group].view(row))
        writer.finish({"failures": [], "clips": 18})

    one = train(_recipe(), Cache(tmp_path / "all"), tmp_path / "one", seed=0, say=lambda _: None)
    two = train(_recipe(), joined, tmp_path / "two", seed=0, say=lambda _: None)
    assert two.metrics == one.metrics
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["caches"] == [str(first.path.resolve()), str(second.path.resolve())]
    assert record["cache"] == record["caches"][0]


def test_evaluate_finds_all_caches_of_a_run(two, tmp_path):
    train(_recipe(), open_caches(two), tmp_path / "run", seed=0, say=lambda _: None)
    (tmp_path / "run" / "predictions_test.npz").unlink()
    result = CliRunner().invoke(vidgraph, ["evaluate", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "run" / "predictions_test.npz") as file:
        assert set(file["clips"]) == {f"a-{k}" for k in (6, 7, 8)} | {f"b-{k}" for k in (6, 7, 8)}


def test_a_verb_that_takes_one_cache_refuses_a_second(two):
    caches = ["--cache", str(two[0]), "--cache", str(two[1])]
    for verb in (["graphs"], ["verify"], ["show", "a-0"]):
        result = CliRunner().invoke(vidgraph, [*verb, *caches])
        assert result.exit_code == 2
        assert "--cache was given twice" in result.output
    # --help and other errors of the command line stay as they are.
    assert "no such option" in CliRunner().invoke(vidgraph, ["graphs", "--cach"]).output.lower()


def test_a_report_names_all_caches_of_a_run_and_finds_them_where_they_are_now(tmp_path):
    from heads.reporting.report import report

    paths = []
    for prefix in "ab":
        made = Tiny(splits=FEW, prefix=f"{prefix}-").write(tmp_path / prefix)
        paths.append(made.path)
    train(_recipe(), open_caches(paths), tmp_path / "runs" / "x", seed=0, say=lambda _: None)
    report([tmp_path / "runs"], tmp_path / "out", macs=False, say=lambda _: None)
    text = " ".join((tmp_path / "out" / "report.md").read_text().replace("\\\n", " ").split())
    assert f"--cache {paths[0].resolve()} --cache {paths[1].resolve()} --name x" in text
    with open(tmp_path / "out" / "tables" / "extraction.csv") as file:
        assert "2 of 2,18," in file.read()

    moved = [path.rename(path.with_name("moved")) for path in paths]
    report([tmp_path / "runs"], tmp_path / "out", macs=False, say=lambda _: None)
    assert "not there" in (tmp_path / "out" / "report.md").read_text()
    report([tmp_path / "runs"], tmp_path / "out", macs=False, caches=moved, say=lambda _: None)
    assert "not there" not in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(ValueError, match="none of the runs was trained on this cache"):
        report([tmp_path / "runs"], tmp_path / "out", macs=False, caches=moved[:1])


def test_a_study_on_two_caches_trains_from_the_command_line(two, tmp_path):
    for name in ("pool", "roi_pool"):
        table = f'source = "a test"\n[head]\nname = "{name}"\n[train]\nepochs = 1\nbatch = 4\n'
        (tmp_path / f"{name}.toml").write_text(table)
    study = f'source = "a test"\nrecipes = ["{tmp_path}/pool.toml", "{tmp_path}/roi_pool.toml"]\n'
    (tmp_path / "study.toml").write_text(study + "seeds = [0]\n")
    caches = ["--cache", str(two[0]), "--cache", str(two[1]), "--runs", str(tmp_path / "runs")]
    result = CliRunner().invoke(vidgraph, ["ablate", str(tmp_path / "study.toml"), *caches])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "runs" / "study" / "results.json").read_text())
    assert record["caches"] == [str(path.resolve()) for path in two]
    trained = CliRunner().invoke(vidgraph, ["train", str(tmp_path / "pool.toml"), *caches])
    assert trained.exit_code == 0, trained.output
