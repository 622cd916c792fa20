"""Training from frames: which weights move, stopping and continuing, several processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import heads.finetuning.finetune
from heads.config.recipe import recipe_from
from heads.finetuning.data_parallel import ProcessGroup, join_processes
from heads.finetuning.end_to_end import train_frames
from heads.finetuning.frame_training import FrameRunOptions, new_network, part_of_clips
from heads.finetuning.joint_network import joint_dims
from heads.interface.clips import Clips
from heads.interface.votes import Votes
from heads.runs import run_files as runs
from pipeline.backbones import NonLocal, build_backbone
from tests.support.tiny_backbone import lively, relative

CLASSES = ("a", "b", "c")
LENGTH, SIDE = 4, 32


class Videos:
    """A source in memory: noise whose brightness tells the label.

    `gone`: clips that cannot be decoded; `stop_at`: training mini-batches before it raises.
    """

    def __init__(self, clips: int = 10, gone: tuple[str, ...] = (), stop_at: int | None = None):
        self.parts, self.gone, self.left = {}, gone, stop_at
        for split, count in (("train", clips), ("val", 4), ("test", 4)):
            targets = np.arange(count) % len(CLASSES)
            self.parts[split] = part_of_clips(
                split, [f"{split}{k}" for k in range(count)], targets, 2 if split == "test" else 1
            )

    def batches(self, split, batches, epoch):
        part = self.parts[split]
        for rows in batches:
            if split == "train" and self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            at = [k for k, row in enumerate(rows) if part.group.clips[row] not in self.gone]
            if not at:
                yield []
                continue
            frames = torch.stack([self._frames(split, int(rows[k])) for k in at])
            yield [(Clips(frames=frames), np.array(at))]

    def _frames(self, split, row):
        rng = np.random.default_rng([len(split), row])
        bright = 60 * (row // self.parts[split].group.per_clip % len(CLASSES))
        return torch.from_numpy(
            rng.integers(bright, bright + 60, (LENGTH, SIDE, SIDE, 3)).astype(np.uint8)
        )


def recipe(head="pool", options=None, frames=None, **training):
    training = {"epochs": 2, "batch": 4, "lr": 0.05, **training}
    phase = {
        "name": "joint",
        "reads": "frames",
        "frames": frames or {"train_from": "stem", "frozen_bn": False},
        "train": training,
    }
    return recipe_from(
        {
            "name": "tiny",
            "source": "a test",
            "head": {"name": head, **(options or {"dropout": 0.5})},
            "phases": [phase],
        }
    )


def network(recipe_, name="tsm_r18", **options):
    torch.manual_seed(5)
    backbone = lively(build_backbone(name, **{"width": 8, **options}))
    phase = recipe_.phases[0]
    dims = joint_dims(backbone, LENGTH, SIDE)
    return new_network(recipe_.of(phase), backbone, dims, len(CLASSES), 0, phase.frames)


def run(recipe_, folder, source=None, options=None, net=None, **more):
    options = replace(options or FrameRunOptions(), tensorboard=False)
    net = net or network(recipe_)
    more = {"say": lambda line: None, **more}
    return train_frames(recipe_, folder, net, source or Videos(), CLASSES, options, **more)


def weights(folder, name="last"):
    saved = runs.load_checkpoint(folder / f"{name}.pt")
    return {
        f"{part}.{key}": tensor
        for part in ("state", "backbone")
        for key, tensor in saved[part].items()
    }


def same(one, other):
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


# --- what is trained


def test_a_network_learns_from_frames(tmp_path):
    asked = recipe(
        epochs=6, optimiser="adam", lr=0.003, frames={"train_from": "res4", "frozen_bn": False}
    )
    result = run(asked, tmp_path, Videos(clips=12))
    assert result.metrics["test"]["top1"] >= 0.75
    assert result.metrics["test"]["loss"] < 0.6
    assert result.split == "test"


@pytest.mark.parametrize("start", ["none", "stem", "res3", "res4.1"])
def test_what_lies_before_train_from_keeps_weights_and_statistics(start, tmp_path):
    asked = recipe(epochs=1, frames={"train_from": start, "frozen_bn": False})
    net = network(asked)
    before = {name: tensor.clone() for name, tensor in net.backbone.state_dict().items()}
    run(asked, tmp_path, net=net)
    moved = {
        name for name, tensor in net.backbone.state_dict().items() if not tensor.equal(before[name])
    }
    order = [unit for _, unit in net.backbone.units()]
    first = {"none": len(order), "stem": 0}.get(start)
    if first is None:
        first = next(
            k
            for k, (names, _) in enumerate(net.backbone.units())
            if any(n.split(".")[0] == start[:4] for n in names)
        )
        first += int(start.partition(".")[2] or 0)
    names = {
        id(p): name for name, p in [*net.backbone.named_parameters(), *net.backbone.named_buffers()]
    }
    expected = {
        names[id(p)] for unit in order[first:] for p in (*unit.parameters(), *unit.buffers())
    }
    assert moved == expected
    assert start == "none" or moved


def test_frozen_batch_norms_keep_statistics_and_affine_weights(tmp_path):
    asked = recipe(epochs=1, frames={"train_from": "stem", "frozen_bn": True})
    net = network(asked)
    norms = [m for m in net.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [
        {name: tensor.clone() for name, tensor in norm.state_dict().items()} for norm in norms
    ]
    run(asked, tmp_path, net=net)
    assert len(norms) > 10
    for norm, old in zip(norms, before, strict=True):
        assert same(norm.state_dict(), old)


def non_local_network(recipe_, gamma):
    """A backbone with non-local blocks, whose norms have the scale `gamma`."""
    torch.manual_seed(5)
    backbone = lively(build_backbone("i3d_r50_nl", width=4))
    for module in backbone.modules():
        if isinstance(module, NonLocal):
            nn.init.constant_(module.bn.weight, gamma)
    phase = recipe_.phases[0]
    dims = joint_dims(backbone, LENGTH, SIDE)
    return new_network(recipe_.of(phase), backbone, dims, len(CLASSES), 0, phase.frames)


def test_fresh_non_local_blocks_learn_although_norms_are_frozen(tmp_path):
    asked = recipe(epochs=2, lr=1e-4, frames={"train_from": "stem", "frozen_bn": True})
    net = non_local_network(asked, gamma=0.0)
    before = {name: tensor.clone() for name, tensor in net.backbone.state_dict().items()}
    run(asked, tmp_path, net=net)

    blocks = [name for name, one in net.backbone.named_modules() if isinstance(one, NonLocal)]
    assert len(blocks) == 5
    after = net.backbone.state_dict()
    for name, tensor in before.items():
        in_block = any(name.startswith(f"{block}.") for block in blocks)
        if in_block and name.endswith(("bn.weight", "out.weight", "g.weight")):
            assert not after[name].equal(tensor), name
        # Other norms, and all statistics, stay.
        if "running" in name or (".bn" in name and not in_block):
            assert after[name].equal(tensor), name


def test_trained_non_local_blocks_keep_their_frozen_norms():
    asked = recipe(frames={"train_from": "stem", "frozen_bn": True})
    net = non_local_network(asked, gamma=0.5)
    assert net.trained_norms == ()
    for name, parameter in net.backbone.named_parameters():
        if ".non_local.bn." in name:
            assert not parameter.requires_grad, name


def test_a_run_whose_fresh_blocks_were_frozen_is_not_continued(tmp_path):
    asked = recipe(epochs=2, lr=1e-4, frames={"train_from": "stem", "frozen_bn": True})
    with pytest.raises(KeyboardInterrupt):
        # 10 clips in mini-batches of 4: it stops in the second epoch.
        run(asked, tmp_path, Videos(stop_at=4), net=non_local_network(asked, gamma=0.0))
    saved = runs.load_checkpoint(tmp_path / "last.pt")
    # As an earlier version wrote it.
    del saved["frames"]["trained_norms"]
    runs.save_checkpoint(tmp_path / "last.pt", saved)
    with pytest.raises(ValueError, match=r"holds another run .*trained_norms"):
        run(asked, tmp_path, net=non_local_network(asked, gamma=0.0))


def test_rates_of_the_backbone_and_of_the_classifier_are_their_own(tmp_path):
    """By the names that a recipe uses for a head alone: a factor of 0 holds still what it is
    for.
    """
    groups = {"last_lr": 0.0, "last_bias_lr": 1.0}
    asked = recipe(
        epochs=1,
        frames={"train_from": "stem", "frozen_bn": True, "backbone_lr": 0.0},
        groups=groups,
    )
    start = weights_of(network(asked))
    run(asked, tmp_path)
    assert {
        name for name, tensor in weights(tmp_path).items() if not tensor.equal(start[name])
    } == {"state.fc.bias"}


def test_a_head_that_continues_a_map_and_the_part_below_are_the_whole_network(tmp_path):
    """With a module that is the identity at first the logits are those of the plain backbone;
    weights below its cut move.
    """
    options = {
        "backbone": "tsm_r18",
        "backbone_options": {"width": 8},
        "at": "res3.0",
        "width": 4,
        "dropout": 0.0,
    }
    asked = recipe("rstg_map", options, epochs=1)
    net = network(asked).eval()
    frames = next(iter(Videos().batches("test", [np.arange(3)], 0)))[0][0]
    with torch.no_grad():
        plain = net.backbone(net.backbone.prepare(frames.frames)).mean((2, 3, 4))
        assert relative(net(frames).logits, net.head.fc(plain)) < 1e-5
    old = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    run(asked, tmp_path, net=net)
    moved = {name for name, tensor in net.state_dict().items() if not tensor.equal(old[name])}
    assert {
        name.split(".")[0] for name, p in net.backbone.named_parameters() if p.requires_grad
    } == {"stem", "res2", "res3"}
    assert {
        "backbone.stem.conv1.weight",
        "backbone.res3.0.conv1.weight",
        "head.network.res3.1.conv1.weight",
    } <= moved
    assert any(name.startswith("head.network.res5") for name in moved)
    kept = runs.load_checkpoint(tmp_path / "last.pt")
    assert kept["backbone"]["res5.1.conv2.weight"].equal(
        kept["state"]["network.res5.1.conv2.weight"]
    )


def test_activations_that_are_computed_twice_change_nothing(tmp_path):
    """Weights and batch norms' statistics, which must not count a mini-batch twice."""
    for name, checkpointing in (("kept", False), ("twice", True)):
        run(recipe(), tmp_path / name, options=FrameRunOptions(checkpointing=checkpointing))
    assert same(weights(tmp_path / "kept"), weights(tmp_path / "twice"))


def test_a_clip_that_cannot_be_had_is_left_out_and_said(tmp_path):
    lines = []
    result = run(recipe(), tmp_path, Videos(gone=("train3", "test1")), say=lines.append)
    assert sum("train3 cannot be read" in line for line in lines) == 1
    assert (
        result.excluded["train"]["undecoded"],
        result.excluded["test"]["undecoded"],
        result.undecoded,
    ) == (1, 1, 2)
    assert list(np.load(tmp_path / "predictions_test.npz")["clips"]) == ["test0", "test2", "test3"]


def test_a_phase_counts_only_the_clips_that_it_could_not_have_itself(tmp_path):
    """The videos that were broken in the phase before were mended; within a phase they count,
    however often it is stopped.
    """
    whole = recipe()
    whole = replace(
        whole,
        phases=(
            replace(whole.phases[0], name="backbone"),
            replace(whole.phases[0], start="previous"),
        ),
    )
    first = run(whole, tmp_path, Videos(gone=("train3", "test1")), phase="backbone")
    with pytest.raises(KeyboardInterrupt):
        run(whole, tmp_path, Videos(gone=("train4",), stop_at=4), phase="joint")
    second = run(whole, tmp_path, Videos(), phase="joint")
    assert (first.undecoded, second.undecoded) == (2, 1)
    assert second.excluded["train"]["undecoded"] == 1


def test_a_phase_of_other_options_than_its_run_is_told_where_to_start_from(tmp_path):
    whole = recipe()
    whole = replace(
        whole,
        phases=(
            replace(whole.phases[0], name="backbone"),
            replace(whole.phases[0], start="previous"),
        ),
    )
    run(whole, tmp_path, phase="backbone")
    other = replace(
        whole, phases=(whole.phases[0], replace(recipe(lr=0.1).phases[0], start="previous"))
    )
    with pytest.raises(
        ValueError,
        match=r"lr is 0.05 there, 0.1 here\): choose another folder \(--name\) with --start ",
    ) as error:
        run(other, tmp_path, phase="joint")
    # It would be refused, since the phase starts from what is there.
    assert "--no-resume" not in str(error.value)


def deciding(recipe_):
    """A network whose head also says which class it decided for, under `stored`.

    Every training view votes for (0,).
    """
    net = network(recipe_)
    plain, net.head.votes = net.head.forward, Votes()

    def forward(clips, want_maps=False):
        out = plain(clips, want_maps)
        if net.head.training:
            net.head.votes.cast(torch.zeros(len(out.logits), 1, dtype=torch.long))
        return replace(out, stored={"structure": out.logits.argmax(-1)[:, None, None]})

    net.head.forward = forward
    return net


def test_what_a_head_decided_for_each_view_is_stored_as_from_a_cache(tmp_path):
    run(recipe(), tmp_path, Videos(gone=("test1",)), net=deciding(recipe()))
    found = np.load(tmp_path / "predictions_test.npz")
    assert found["structure"].shape == (6, 1, 1)
    np.testing.assert_array_equal(found["structure"][:, 0, 0], found["logits"].argmax(-1))


# --- stopping and continuing


@pytest.mark.parametrize("stop_at", [1, 4, 5])
def test_a_run_that_was_killed_and_resumed_gives_the_weights_of_one_that_was_not(stop_at, tmp_path):
    """Inside an epoch too: three mini-batches an epoch, a checkpoint after every second one;
    dropout, momentum, batch norms.
    """
    options = FrameRunOptions(checkpoint_every=2)
    run(recipe(), tmp_path / "whole", options=options)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), tmp_path / "killed", Videos(stop_at=stop_at), options)
    lines = []
    run(recipe(), tmp_path / "killed", options=options, say=lines.append)
    assert stop_at == 1 or "continued after epoch" in lines[0]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    whole, killed = (
        (tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "killed")
    )
    for one, other in zip(map(json.loads, whole), map(json.loads, killed), strict=True):
        assert [one[key] for key in ("epoch", "loss", "lr", "val")] == [
            other[key] for key in ("epoch", "loss", "lr", "val")
        ]


def test_a_finished_run_is_read_back(tmp_path):
    first = run(recipe(), tmp_path)
    again = run(recipe(), tmp_path, Videos(stop_at=0))
    assert again == first
    with pytest.raises(ValueError, match="holds another run"):
        run(recipe(lr=0.1), tmp_path)


def test_starting_a_phase_over_never_removes_what_it_starts_from(tmp_path):
    whole = recipe()
    first = replace(whole.phases[0], name="backbone")
    whole = replace(whole, phases=(first, replace(whole.phases[0], start="previous")))
    for phase in ("backbone", "joint"):
        run(whole, tmp_path, phase=phase)
    for again in (FrameRunOptions(resume=False), FrameRunOptions(resume=True)):
        (tmp_path / "last.pt").unlink(missing_ok=again.resume)
        (tmp_path / "metrics.json").unlink(missing_ok=True)
        with pytest.raises(
            ValueError, match="starting over would delete it, and phase joint needs it"
        ):
            run(whole, tmp_path, options=again, phase="joint")
        assert (tmp_path / "backbone.pt").exists()


# --- several processes

WORKER = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from tests.heads.finetuning.test_finetune import train_in_two
print("ready", flush=True)
train_in_two(Path(sys.argv[1]))
"""
FIXED = {"options": {"dropout": 0.0}, "frames": {"train_from": "stem", "frozen_bn": True}}


def train_in_two(folder):
    """One of two processes; the last mini-batch of an epoch has one clip, so that one of them has
    none.
    """
    with join_processes(torch.device("cpu")) as (processes, _):
        source = Videos(clips=9, gone=("test1", "train8"))
        net = deciding(recipe(**FIXED))
        result = run(
            recipe(**FIXED),
            folder,
            source,
            FrameRunOptions(accumulate=2),
            net,
            processes=processes,
        )
        # Every process knows the votes of all: 2 epochs of 8 clips.
        assert net.head.votes.state() == [[[0], 16]]
        return result


def test_two_processes_train_as_one_does_on_the_same_mini_batches(tmp_path, monkeypatch):
    tests = Path(__file__).parent
    # Port 0: the system picks a free one.
    store = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    # As torchrun does: the store exists already.
    shared["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    command = [sys.executable, "-c", WORKER, str(tmp_path / "two"), str(tests), str(tests.parent)]
    other = subprocess.Popen(
        command,
        env={**os.environ, **shared, "RANK": "1", "LOCAL_RANK": "1"},
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"ready\n"
    for name, value in {**shared, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    result = train_in_two(tmp_path / "two")
    assert other.wait(300) == 0
    alone = run(
        recipe(**FIXED),
        tmp_path / "one",
        Videos(clips=9, gone=("test1", "train8")),
        net=deciding(recipe(**FIXED)),
    )
    one, two, start = (
        weights(tmp_path / "one"),
        weights(tmp_path / "two"),
        weights_of(network(recipe(**FIXED))),
    )
    moved = [key for key in one if not one[key].equal(start[key])]
    assert len(moved) > 20
    for key in moved:
        assert relative(two[key] - start[key], one[key] - start[key]) < 1e-3
    assert result.metrics["test"] == pytest.approx(alone.metrics["test"], rel=1e-4)
    assert result.excluded == alone.excluded
    assert (result.excluded["train"]["undecoded"], result.excluded["test"]["undecoded"]) == (1, 1)
    one, two = (
        np.load(tmp_path / name / "predictions_test.npz")["structure"] for name in ("one", "two")
    )
    np.testing.assert_array_equal(two, one)


def weights_of(net):
    head, backbone = net.split(net.state_dict())
    return {f"state.{k}": t for k, t in head.items()} | {
        f"backbone.{k}": t for k, t in backbone.items()
    }


def test_a_frame_phase_that_does_not_fit_the_backbone_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"train_from 'res7' \(--train-from\): expected one of none, stem, .* such as res2\.0",
    ):
        network(recipe(frames={"train_from": "res7"}))
    options = {
        "backbone": "tsm_r18",
        "backbone_options": {"width": 8, "shift": 4},
        "at": "res3.0",
        "width": 4,
    }
    with pytest.raises(ValueError, match=r"the head continues tsm_r18 .*'shift': 4"):
        network(recipe("rstg_map", options))


@pytest.mark.parametrize(("environment", "local"), [({"LOCAL_WORLD_SIZE": "4"}, 4), ({}, 8)])
def test_a_process_knows_how_many_there_are_on_its_own_machine(monkeypatch, environment, local):
    """Eight on two machines, as torchrun says; whoever does not say it is taken to have them all
    here.
    """
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 5)
    with join_processes(torch.device("cpu")) as (processes, _):
        assert (processes.rank, processes.size, processes.local_size) == (5, 8, local)


@pytest.mark.parametrize(
    ("device", "asked", "processes", "workers"),
    [
        # 32 cores for four processes: 8 each, one of which feeds the GPU.
        ("cuda", None, ProcessGroup(5, 8, 4), 7),
        ("cuda", None, ProcessGroup(), 31),
        ("cuda", None, ProcessGroup(0, 64, 64), 1),
        ("cpu", None, ProcessGroup(0, 2, 2), 1),
        ("cuda", 3, ProcessGroup(5, 8, 4), 3),
    ],
)
def test_the_processes_of_a_machine_divide_its_cores_among_their_decoders(
    monkeypatch, device, asked, processes, workers
):
    monkeypatch.setattr(heads.finetuning.finetune, "cores_here", lambda: 32)
    monkeypatch.setattr(
        heads.finetuning.finetune, "VideoViews", lambda *given, **more: more["workers"]
    )
    source_options = SimpleNamespace(workers=asked, fresh=False, time_limit=1.0)
    sampling = SimpleNamespace(frames=8, source_fps=None)
    opened = {
        "decoder": "decord",
        "allow_truncated": False,
        "pixel_aspect": "displayed",
        "frame_pattern": "",
    }
    config = SimpleNamespace(**opened, cut="", sampling=sampling)
    backbone = SimpleNamespace(steps=lambda frames, cut: 4, last="res5")
    setup = SimpleNamespace(device=torch.device(device), source_options=source_options)
    setup.config, setup.backbone = config, backbone
    setup.parts = setup.clips = setup.root = setup.cache = setup.source = None
    assert heads.finetuning.finetune._Setup.video_views(setup, processes, print) == workers
