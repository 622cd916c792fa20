"""The line about what held an extraction back."""

import pytest

from pipeline.stages.bottleneck import Work, describe_work, pace_of


def shard(views=100, wall=10.0, backbone=1.0, proposals=0.0, decode=1.0, write=1.0, workers=1):
    seconds = {
        "wall": wall,
        "backbone": backbone,
        "proposals": proposals,
        "decode": decode,
        "write": write,
    }
    return {"views": views, "seconds": seconds, "workers": workers}


def work_of(records) -> Work:
    work = Work()
    for statistics in records:
        work.add(statistics)
    return work


def test_it_gives_the_rates_and_the_idle_shares():
    line = describe_work(
        work_of([shard(backbone=7.0, proposals=2.0, decode=16.0, workers=2, write=2.0)]), 12.5
    )
    # 100 views in 12.5 s; in 9 s of the networks; 16 of 25 s of the decoders; 2 of 12.5 s.
    assert line.startswith(
        "8.0 views/s; the networks alone 11.1 (72 %); decoders idle 36 %; writer idle 84 %: "
    )


@pytest.mark.parametrize("processes", [1, 2, 7])
@pytest.mark.parametrize("seconds", [10.0, 12.5, 40.0])
def test_the_share_is_how_near_the_one_rate_is_to_the_other(processes, seconds):
    pace = pace_of(work_of([shard(backbone=8.0)] * processes), seconds)
    assert pace.networks == pytest.approx(pace.rate / pace.alone)
    # 100 views in 8 s of the networks of one process, and 10 s of each process were spent on them.
    assert pace.alone == pytest.approx(100 / 8 * max(1, processes * 10 / seconds))
    assert pace.rate == pytest.approx(100 * processes / seconds)


def test_a_run_that_mostly_starts_is_not_called_as_fast_as_its_networks():
    line = describe_work(work_of([shard(backbone=10.0)]), 40.0)
    assert line.startswith("2.5 views/s; the networks alone 10.0 (25 %)")
    assert "start-up" in line


@pytest.mark.parametrize(
    ("busy", "words"),
    [
        ({"backbone": 9.5}, "the networks set the pace"),
        ({"decode": 9.5}, "more decoders"),
        ({"write": 9.5}, "a faster disk"),
        ({}, "short shards"),
    ],
)
def test_it_names_what_was_busy(busy, words):
    assert words in describe_work(work_of([shard(**busy)]), 10.0)


def test_two_processes_are_twice_as_fast_as_their_networks_one_after_the_other():
    line = describe_work(work_of([shard(backbone=10.0), shard(backbone=10.0)]), 10.0)
    assert line.startswith("20.0 views/s; the networks alone 20.0 (100 %)")


def test_views_that_were_copied_do_not_count():
    work = Work()
    work.add({**shard(views=100), "taken_over": 60})
    assert work.views == 40


def test_nothing_is_said_where_nothing_was_computed():
    assert describe_work(Work(), 3.0) == ""
