"""The pretended GPU of tests/support does what CUDA does, as torch documents it, and refuses what
CUDA refuses.
"""

import copy
import inspect
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heads.data.device_lane import DeviceLane
from heads.interface import masked_layers
from tests.support import cuda_autocast
from tests.support.cuda_sites import call_sites
from tests.support.fake_cuda import CudaTensor, fake_cuda


def changed_by_it() -> tuple:
    """What the pretended device replaces in torch, as it is now."""
    tensor = {
        name: vars(torch.Tensor).get(name)
        for name in ("to", "cpu", "cuda", "new_zeros", "pin_memory", "uniform_")
    }
    made = (
        torch.zeros,
        torch.tensor,
        torch.rand_like,
        torch.load,
        torch.save,
        torch.Generator,
        nn.Module._apply,
    )
    return (
        tensor,
        made,
        torch.cuda.is_available,
        torch.cuda.manual_seed,
        torch.accelerator.device_count,
        torch._VF.lstm,
    )


@pytest.fixture(autouse=True)
def device():
    before = changed_by_it()
    with fake_cuda() as device:
        yield device
    assert changed_by_it() == before
    with torch.autocast("cpu", torch.bfloat16):
        assert type(torch.ones(2, 2) @ torch.ones(2, 2)) is torch.Tensor


def on_gpu(*shape, **options) -> torch.Tensor:
    return torch.rand(*shape, device="cuda", **options)


def test_the_machine_seems_to_have_one_gpu():
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() == 1
    assert torch.cuda.current_device() == 0
    assert torch.cuda.get_device_name()
    assert torch.cuda.mem_get_info()[0] > 0
    assert torch.cuda.get_device_properties(0).total_memory > 0
    with pytest.raises(RuntimeError, match="ordinal"):
        torch.zeros(1, device="cuda:1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, device="cuda"),
        lambda: torch.arange(3, device=torch.device("cuda", 0)),
        lambda: torch.tensor([1.0], device="cuda"),
        lambda: torch.as_tensor([1.0], device="cuda"),
        lambda: torch.as_tensor(np.ones(2), device="cuda"),
        lambda: torch.full((2,), 3.0, device="cuda"),
        lambda: torch.randn(2, device="cuda"),
        lambda: torch.eye(2, device="cuda"),
        lambda: torch.ones(2).to("cuda"),
        lambda: torch.ones(2).to(device="cuda", dtype=torch.float16),
        lambda: torch.ones(2).to(torch.ones(1, device="cuda")),
        lambda: torch.ones(2).type_as(torch.ones(1, device="cuda")),
        lambda: torch.ones(2).cuda(),
        lambda: torch.zeros_like(torch.ones(2), device="cuda"),
        lambda: torch.ones(2).new_zeros(3, device="cuda"),
        lambda: on_gpu(2).new_tensor([1.0]),
        lambda: torch.zeros_like(on_gpu(2)),
        lambda: on_gpu(2).new_zeros(3),
        lambda: on_gpu(2)[0],
        lambda: on_gpu(2) + 1,
        lambda: on_gpu(2).double(),
    ],
)
def test_what_is_made_on_the_gpu_says_so(make):
    made = make()
    assert str(made.device) == "cuda:0"
    assert made.is_cuda
    assert not made.is_cpu
    assert made.get_device() == 0


def test_what_comes_back_is_an_ordinary_tensor():
    for back in (
        on_gpu(2).cpu(),
        on_gpu(2).to("cpu"),
        on_gpu(2).to(torch.ones(1)),
        torch.zeros_like(on_gpu(2), device="cpu"),
    ):
        assert type(back) is torch.Tensor
        assert back.device.type == "cpu"
        back.numpy()


def test_a_copy_shares_no_memory_and_none_is_made_on_the_same_device():
    host = torch.zeros(2)
    there = host.to("cuda")
    host.fill_(1)
    assert there.tolist() == [0, 0]
    assert there.to("cuda") is there
    assert there.cuda() is there
    assert host.cpu() is host
    there.cpu().fill_(5)
    assert there.tolist() == [0, 0]


def test_values_are_read_and_arrays_are_refused():
    there = torch.tensor([1.5], device="cuda")
    assert there.item() == 1.5
    assert there.tolist() == [1.5]
    assert bool(there > 1)
    assert float(there) == 1.5
    for array in (there.numpy, lambda: np.asarray(there), lambda: np.concatenate([there, there])):
        with pytest.raises(TypeError, match=r"Tensor\.cpu\(\)"):
            array()


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: b + a,
        lambda a, b: a @ b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: torch.stack([a, b]),
        lambda a, b: torch.where(b > 0, a, a),
        lambda a, b: a.add_(b),
        lambda a, b: b.add_(a),
        lambda a, b: F.linear(a, b),
        lambda a, b: F.cross_entropy(a, torch.zeros(2, dtype=torch.long)),
        lambda a, b: a.index_select(0, torch.tensor([0])),
        lambda a, b: a.gather(1, torch.zeros(2, 2, dtype=torch.long)),
        lambda a, b: a.masked_fill(b > 0, 0),
        lambda a, b: F.conv1d(a[None], b[None]),
        lambda a, b: F.mse_loss(a, b),
        lambda a, b: b[torch.zeros(1, dtype=torch.long, device="cuda")],
        lambda a, b: a.index_put((torch.tensor([0]),), torch.ones(2)),
        lambda a, b: torch.stack([a.sum(), b.sum()]),
        lambda a, b: b.sum().add_(a.sum()),
    ],
)
def test_two_devices_do_not_mix(mix):
    with pytest.raises(RuntimeError, match=r"same device|cpu"):
        mix(on_gpu(2, 2), torch.rand(2, 2))


def test_numbers_and_indices_of_the_cpu_mix():
    there = torch.arange(4.0, device="cuda")
    assert (there + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]
    assert (torch.tensor(2.0) * there).tolist() == [0, 2, 4, 6]
    assert torch.where(there > 1, there, torch.tensor(9.0)).tolist() == [9, 9, 2, 3]
    assert there[torch.tensor([3, 0])].tolist() == [3, 0]
    assert there[torch.tensor([True, False, False, True])].tolist() == [0, 3]
    assert there[[1, 2]].tolist() == [1, 2]
    there[torch.tensor([0])] = 7
    assert there.masked_fill(there > 5, torch.tensor(0.0)).tolist() == [0, 1, 2, 3]
    host = torch.zeros(4)
    host[1:] = there[1:]  # a copy
    there[1:] = host[1:] + 1
    assert there.tolist() == [7, 2, 3, 4]


def test_a_module_moves_and_its_weights_stay_the_same_objects():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2))
    network(torch.rand(2, 3, 5, 5))
    weight, optimiser = network[0].weight, torch.optim.SGD(network.parameters(), 0.1)
    assert network.to("cuda") is network
    assert network[0].weight is weight
    assert {str(t.device) for t in network.state_dict().values()} == {"cuda:0"}
    assert all(isinstance(p, nn.Parameter) for p in network.parameters())
    network(on_gpu(2, 3, 5, 5)).sum().backward()
    before = weight.detach().clone()
    optimiser.step()
    assert not before.equal(weight)
    with pytest.raises(RuntimeError, match="same device"):
        network(torch.rand(2, 3, 5, 5))
    assert network.cpu()[0].weight.device.type == "cpu"


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_training_gives_the_weights_of_the_cpu(name):
    weights = []
    for place in ("cpu", "cuda"):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv1d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 3)
        )
        x, y = torch.rand(4, 8, 6), torch.tensor([0, 1, 2, 0])
        network, x, y = network.to(place), x.to(place), y.to(place)
        optimiser = getattr(torch.optim, name)(network.parameters(), 0.01)
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(network(x), y).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        weights.append(torch.cat([p.detach().cpu().flatten() for p in network.parameters()]))
    assert torch.allclose(*weights, atol=1e-6)


def test_an_lstm_and_attention_learn_as_on_the_cpu():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(8, 8, batch_first=True), torch.rand(2, 5, 8, requires_grad=True)
    F.scaled_dot_product_attention(*[lstm(x)[0]] * 3).sum().backward()
    want, weight = x.grad.clone(), lstm.weight_hh_l0.grad.clone()
    lstm.zero_grad()
    y = x.detach().to("cuda").requires_grad_()
    F.scaled_dot_product_attention(*[lstm.to("cuda")(y)[0]] * 3).sum().backward()
    assert y.grad.is_cuda
    assert torch.allclose(y.grad.cpu(), want, atol=1e-6)
    assert torch.allclose(lstm.weight_hh_l0.grad.cpu(), weight, atol=1e-5)


def test_what_cuda_lacks_is_refused():
    whole = torch.ones(2, 2, dtype=torch.long, device="cuda")
    with pytest.raises(RuntimeError, match="not implemented"):
        whole @ whole
    lstm = nn.LSTM(4, 4).to("cuda").eval()
    with pytest.raises(RuntimeError, match="training mode"):
        lstm(on_gpu(3, 2, 4))[0].sum().backward()


def test_gradients_flow_between_the_devices():
    x = torch.ones(3, requires_grad=True)
    (x.to("cuda") * 2).cpu().sum().backward()
    assert x.grad.tolist() == [2, 2, 2]
    y = torch.ones(3, device="cuda", requires_grad=True)
    (y.cpu() * 3).to("cuda").sum().backward()
    assert y.grad.is_cuda
    assert y.grad.tolist() == [3, 3, 3]


def test_autocast_casts_by_the_lists_of_cuda():
    a, b = on_gpu(4, 4), on_gpu(4, 4)
    with torch.autocast("cuda", torch.float16):
        assert (a @ b).dtype == torch.float16
        assert F.linear(a, b).dtype == torch.float16
        assert F.conv1d(a[None], on_gpu(4, 4, 1)).dtype == torch.float16
        assert (a @ b).softmax(1).dtype == torch.float32
        assert F.layer_norm(a.half(), (4,)).dtype == torch.float32
        assert torch.addcmul(a, a.half(), b.half()).dtype == torch.float32
        assert (a + b).dtype == torch.float32
        assert (a.half() + b.half()).dtype == torch.float16
        assert (a.double() @ b.double()).dtype == torch.float64
        with torch.autocast("cuda", enabled=False):
            assert (a @ b).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ b).dtype == torch.float32
    assert (a @ b).dtype == torch.float32


def test_every_operator_that_autocast_knows_on_cuda_is_in_a_list():
    known = {
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_all_op_names()
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA")
        and name.startswith("aten::")
    }
    lists = {
        *cuda_autocast.LOWER,
        *cuda_autocast.FLOAT32,
        *cuda_autocast.WIDEST,
        *cuda_autocast.OTHER,
    }
    assert known <= lists


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_learns_under_autocast_with_a_scaler(dtype):
    network = nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    network(torch.rand(2, 3, 4, 4, 4))
    network.to("cuda", memory_format=torch.channels_last_3d)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    before = network[0].weight.detach().clone()
    for _ in range(3):
        with torch.autocast("cuda", dtype):
            loss = F.cross_entropy(
                network(on_gpu(2, 3, 4, 4, 4)).float(), torch.tensor([0, 1], device="cuda")
            )
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
    assert not before.equal(network[0].weight)
    assert network[0].weight.grad.dtype == torch.float32
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_checkpoints_remember_the_device():
    network = nn.Linear(2, 2).to("cuda")
    file = io.BytesIO()
    torch.save({"there": network.state_dict(), "here": torch.ones(1), "plain": 3}, file)

    def load(**how):
        file.seek(0)
        return torch.load(file, weights_only=True, **how)

    assert load()["there"]["weight"].is_cuda
    assert not load()["here"].is_cuda
    assert not load(map_location="cpu")["there"]["weight"].is_cuda
    assert load(map_location="cuda")["here"].is_cuda
    assert load(map_location="cpu")["there"]["weight"].equal(network.weight.detach().cpu())
    network.load_state_dict(load(map_location="cpu")["there"])
    assert network.weight.is_cuda
    assert copy.deepcopy(network).weight.is_cuda


def test_the_gpu_has_random_numbers_of_its_own():
    torch.manual_seed(3)
    here = torch.rand(4)
    torch.manual_seed(3)
    on_gpu(4)
    F.dropout(on_gpu(4))
    assert torch.rand(4).equal(here)
    torch.cuda.manual_seed(5)
    first = on_gpu(4).cpu()
    state = torch.cuda.get_rng_state()
    second = F.dropout(torch.ones(4, device="cuda")).cpu()
    torch.cuda.set_rng_state(state)
    assert F.dropout(torch.ones(4, device="cuda")).cpu().equal(second)
    torch.manual_seed(5)  # seeds the GPU too
    assert on_gpu(4).cpu().equal(first)


def test_a_generator_belongs_to_a_device():
    mine = torch.Generator("cuda").manual_seed(1)
    assert mine.device.type == "cuda"
    first = torch.rand(3, device="cuda", generator=mine).cpu()
    assert on_gpu(3).uniform_(generator=mine.manual_seed(1)).cpu().equal(first)
    for wrong in (
        lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
        lambda: on_gpu(3).normal_(generator=torch.Generator()),
        lambda: torch.rand(3).normal_(generator=mine),
    ):
        with pytest.raises(RuntimeError, match="generator"):
            wrong()


def test_a_pinned_source_is_left_alone_until_the_device_was_waited_for():
    source = torch.zeros(4).pin_memory()
    assert source.is_pinned()
    assert not torch.zeros(4).is_pinned()
    there = source.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    source.fill_(1)  # late enough
    assert there.tolist() == [0] * 4
    source.to("cuda", non_blocking=True)
    source.fill_(2)
    with pytest.raises(RuntimeError, match="overwritten"):
        torch.cuda.synchronize()
    pageable = torch.zeros(4)
    pageable.to("cuda", non_blocking=True)
    pageable.fill_(1)  # CUDA has copied it before it returned
    torch.cuda.synchronize()


def test_what_goes_to_the_host_without_waiting_is_there_once_the_device_was_waited_for():
    there = torch.arange(3.0, device="cuda")
    back = there.to("cpu", non_blocking=True)
    assert back.tolist() != [0, 1, 2]
    torch.cuda.synchronize()
    assert back.tolist() == [0, 1, 2]


def test_a_copy_into_memory_that_is_not_pinned_is_waited_for():
    """CUDA's runtime returns from it once it is done, whatever `non_blocking` says."""
    host = torch.zeros(3)
    host.copy_(torch.ones(3, device="cuda"), non_blocking=True)
    assert host.tolist() == [1, 1, 1]


def test_memory_is_no_longer_pinned_once_its_tensors_are_gone(device):
    one = torch.zeros(4).pin_memory()
    part, array = one[1:], one.numpy()
    del one
    assert part.is_pinned()
    assert torch.from_numpy(array).is_pinned()
    address = part.untyped_storage().data_ptr()
    del part, array
    assert device.pinned[address].expired()


def test_other_threads_have_the_same_device():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(torch.ones(2).to("cuda") + torch.zeros(2, device="cuda"))
    )
    thread.start()
    thread.join()
    assert found[0].is_cuda


def test_torchvisions_operators_run():
    from torchvision.ops import nms, roi_align

    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [5, 5, 8, 8]], device="cuda")
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7], device="cuda"), 0.5).tolist() == [0, 2]
    assert roi_align(on_gpu(1, 2, 8, 8), [boxes], 2).is_cuda
    with pytest.raises(RuntimeError, match="same device"):
        nms(boxes, torch.rand(3), 0.5)


def test_observers_see_launches_copies_and_waits(device):
    seen = []
    device.observers.append(seen.append)
    x = torch.ones(4).to("cuda")
    y = (x * 2).view(2, 2)
    y.sum().item()
    y.cpu()
    x[x > 0]
    kinds = [(operation.name, operation.kind, operation.waits) for operation in seen]
    assert kinds == [
        ("_to_copy", "h2d", True),
        ("mul", "launch", False),
        ("view", "view", False),
        ("sum", "launch", False),
        ("_local_scalar_dense", "d2h", True),
        ("_to_copy", "d2h", True),
        ("gt", "launch", False),
        ("index", "launch", True),
    ]
    assert seen[0].bytes == 16


# --- call sites


def line_of(text: str, function) -> str:
    """Where `text` stands in a function, as a site names it."""
    lines, first = inspect.getsourcelines(function)
    number = next(first + k for k, line in enumerate(lines) if text in line)
    name = Path(inspect.getsourcefile(function)).relative_to(Path(__file__).parents[1])
    return f"{name.as_posix()}:{number} in {function.__name__}"


def test_a_wait_is_counted_at_the_line_that_waits(device):
    x = on_gpu(3)
    with call_sites(device) as sites:
        for _ in range(2):
            x.sum().item()  # waits
        x * 2
    here = line_of(".item()  # waits", test_a_wait_is_counted_at_the_line_that_waits)
    assert sites.waits == {f"{here}: _local_scalar_dense": 2}
    torch.cuda.synchronize()
    assert sites.waits.total() == 2


def test_a_site_is_the_innermost_line_of_the_product_not_of_torch_or_of_a_test(device):
    x, mask = on_gpu(2, 3, requires_grad=True), torch.ones(2, 3, dtype=torch.bool, device="cuda")
    with call_sites(device) as sites:
        masked_layers.masked_softmax(x, mask)
    assert sites.launches
    assert all(
        site.startswith("heads/interface/masked_layers.py:") and site.endswith(" in masked_softmax")
        for site in sites.launches
    )


def test_gradients_are_counted_at_the_line_that_asks_for_them(device):
    loss = (on_gpu(2, 3, requires_grad=True) ** 2).sum()
    with call_sites(device) as sites:
        loss.backward()  # here
    here = "test_gradients_are_counted_at_the_line_that_asks_for_them"
    assert list(sites.launches) == [line_of(".backward()  # here", globals()[here])]


def test_copies_are_counted_by_direction_and_by_the_hosts_memory(device):
    lane, there = DeviceLane("cuda"), on_gpu(4)
    with call_sites(device) as sites:
        lane.put(np.zeros(5, np.float32))
        lane.fetch(there)
        torch.zeros(3).to("cuda")
        there.cpu()
    counts = {key.split(": ", 1)[1]: 0 for key in sites.copies}
    for key, count in sites.copies.items():
        counts[key.split(": ", 1)[1]] += count
    assert counts == {"h2d pinned": 1, "d2h pinned": 1, "h2d pageable": 1, "d2h pageable": 1}
    put = f"{line_of('pin_memory()', DeviceLane.put)}: h2d pinned"
    assert sites.bytes[put] == 20
    assert {key.split(": ")[0] for key in sites.waits} == {
        line_of("torch.zeros(3).to", test_copies_are_counted_by_direction_and_by_the_hosts_memory),
        line_of("there.cpu()", test_copies_are_counted_by_direction_and_by_the_hosts_memory),
    }


def test_each_thread_counts_its_own_lines(device):
    def elsewhere() -> None:
        on_gpu(2).tolist()

    with call_sites(device) as sites:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert list(sites.waits) == [f"{line_of('.tolist()', elsewhere)}: _to_copy"]


def test_nothing_is_counted_outside(device):
    with call_sites(device) as sites:
        pass
    on_gpu(2).tolist()
    assert not sites.waits
    assert not sites.launches


def test_inference_mode_and_views_share_memory():
    with torch.inference_mode():
        x = torch.zeros(2, 3, device="cuda")
        x[0].add_(1)
        x.mT[2].mul_(5)
        assert x.tolist() == [[1, 1, 5], [0, 0, 0]]
    assert isinstance(x, CudaTensor)


# --- streams


def test_a_kernel_may_not_read_what_another_stream_may_still_be_writing():
    with fake_cuda():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            x = torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        with pytest.raises(RuntimeError, match="another stream may still be writing"):
            x + 1
        torch.cuda.current_stream().wait_event(side.record_event())
        assert (x + 1).cpu().tolist() == [2, 2, 2]


def test_an_event_orders_only_what_came_before_it():
    with fake_cuda():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            x = torch.zeros(3, device="cuda")
            event = side.record_event()
            x += 1
        torch.cuda.current_stream().wait_event(event)
        with pytest.raises(RuntimeError, match="another stream may still be writing"):
            x + 1
        torch.cuda.current_stream().wait_stream(side)
        assert (x + 1).cpu().tolist() == [2, 2, 2]


def test_a_copy_to_the_host_is_there_once_its_own_event_was_waited_for():
    with fake_cuda():
        x, side = torch.ones(3, device="cuda"), torch.cuda.Stream()
        early = torch.cuda.current_stream().record_event()
        side.wait_stream(torch.cuda.current_stream())
        host = torch.empty(3, pin_memory=True)
        with torch.cuda.stream(side):
            host.copy_(x, non_blocking=True)
        late = side.record_event()
        early.synchronize()
        assert host.tolist() != [1, 1, 1]
        assert not late.query()
        late.synchronize()
        assert host.tolist() == [1, 1, 1]
        assert late.query()
