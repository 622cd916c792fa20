"""Build optimisers for a head: parameter groups with factors, and a second optimiser in turn."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heads.config.training_options import ParameterGroups, Training
from heads.interface.joint_norm import JointNorm

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, JointNorm)
OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class Optimisers:
    """The optimiser of a recipe, and its alternating second one if it has one.

    Each group of `first` carries `scale`, the factor of its learning rate.

    Args:
        head: its parameters that require gradients are trained.
        training: the recipe's table `train`.

    Attributes:
        first: the optimiser of `training`.
        second: the optimiser of `training.alternate`, or None.

    Raises:
        ValueError: `training` names parameters that the head does not have, or the head has
            nothing to train.
    """

    def __init__(self, head: nn.Module, training: Training):
        alternate = training.alternate
        first: list[tuple[str, Tensor]] = []
        alternating: list[Tensor] = []
        for name, parameter in head.named_parameters():
            if not parameter.requires_grad:
                continue
            if alternate.parameters and _within(name, alternate.parameters):
                alternating.append(parameter)
            else:
                first.append((name, parameter))
        _require(head, "train.alternate.parameters", alternate.parameters, bool(alternating))

        groups = _groups(head, first, training)
        if not groups:
            raise ValueError(f"head {type(head).__name__} has no parameter to train")
        self.first = _new(
            training.optimiser, groups, training.lr, training.momentum, training.nesterov
        )

        self.second = None
        if alternating:
            group = {"params": alternating, "weight_decay": alternate.weight_decay}
            self.second = _new(
                alternate.optimiser, [group], alternate.lr, alternate.momentum, nesterov=False
            )

    @property
    def both(self) -> tuple[torch.optim.Optimizer, ...]:
        """The first optimiser, and the second if there is one."""
        return (self.first,) if self.second is None else (self.first, self.second)

    def for_batch(self, number: int) -> torch.optim.Optimizer:
        """Return the optimiser of a mini-batch; they take turns within an epoch.

        Args:
            number: the mini-batch's number in its epoch, from 0.
        """
        return self.both[number % len(self.both)]

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the first optimiser; each group gets `lr` times its scale."""
        for group in self.first.param_groups:
            group["lr"] = lr * group["scale"]


def state_of(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's state for a checkpoint, the same whether it is fused or not."""
    state = optimiser.state_dict()
    groups = [{**group, "fused": None} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def load_into(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load what `state_of` returned, on this device or another one.

    Args:
        optimiser: stays fused, or not, as it is.
        state: of an optimiser of the same parameters.
    """
    fused = optimiser.param_groups[0]["fused"]
    groups = [{**group, "fused": fused} for group in state["param_groups"]]
    # Torch moves Adam's counts to where a fused optimiser needs them.
    optimiser.load_state_dict({**state, "param_groups": groups})
    _fill_momentum(optimiser)


def _fill_momentum(optimiser: torch.optim.Optimizer) -> None:
    """Start the momentum of a fused SGD at 0.

    Torch's fused SGD cannot start the momentum of one weight later than that of another, and
    starts from memory that nobody wrote where fp16's scaler skips the first step. From 0 the first
    step is the same.
    """
    if not isinstance(optimiser, torch.optim.SGD):
        return
    for group in optimiser.param_groups:
        if not (group["fused"] and group["momentum"]):
            continue
        for weight in group["params"]:
            state = optimiser.state[weight]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(weight)


def parameters_of(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Return all parameters of an optimiser."""
    parameters = []
    for group in optimiser.param_groups:
        parameters += group["params"]
    return parameters


class WeightAverage:
    """An exponential moving average of a head's weights.

    Buffers, such as the statistics of norms, are copied and not averaged.

    Args:
        head: the head whose weights are averaged.
        decay: the weight of the average at each update; the head gets 1 - decay.
    """

    def __init__(self, head: nn.Module, decay: float):
        self.head, self.decay = head, decay
        self.state = _copy_of(head)

    @torch.no_grad()
    def update(self) -> None:
        """Add the head's present weights to the average.

        It waits for no device. Buffers are copied when somebody asks for the average: some heads
        compute them then (see `heads.interface.votes`).
        """
        weights = self._learned()
        averages = [self.state[name] for name in weights]
        torch._foreach_lerp_(averages, list(weights.values()), 1 - self.decay)

    def _learned(self) -> dict[str, Tensor]:
        """Return the weights that are averaged, by name."""
        learned = {}
        for name, weight in self.head.named_parameters():
            if weight.is_floating_point():
                learned[name] = weight.detach()
        return learned

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Return the average, with the head's present buffers; not copied."""
        learned = self._learned()
        for name, tensor in self.head.state_dict().items():
            if name not in learned:
                self.state[name].copy_(tensor)
        return self.state

    def swap(self) -> None:
        """Exchange the head's weights with the average; a second call undoes it."""
        average = self.weights()
        # Copies, because load_state_dict overwrites the head's own tensors.
        weights = _copy_of(self.head)
        self.head.load_state_dict(average)
        self.state = weights


def _copy_of(head: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


def _groups(head: nn.Module, named: Iterable[tuple[str, Tensor]], training: Training) -> list[dict]:
    """Return one optimiser group per pair of factors, in the order of the parameters."""
    options, norms = training.groups, _norm_parameters(head)
    names = [name for name, _ in head.named_parameters()]
    if _scales_last(options):
        found = any(_within(name, options.last) for name in names)
        _require(head, "train.groups.last", options.last, found)
    if options.first:
        found = any(_within(name, options.first) for name in names)
        _require(head, "train.groups.first", options.first, found)

    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in named:
        scale, decay = _factors(name, name in norms, options)
        if (scale, decay) not in groups:
            weight_decay = training.weight_decay * decay
            groups[scale, decay] = {"params": [], "weight_decay": weight_decay, "scale": scale}
        groups[scale, decay]["params"].append(parameter)
    return list(groups.values())


def _factors(name: str, is_norm: bool, options: ParameterGroups) -> tuple[float, float]:
    """Return the factors of a parameter's learning rate and weight decay."""
    # An LSTM names its biases "bias_ih_l0" and so on.
    is_bias = name.rpartition(".")[2].startswith("bias")
    if is_bias:
        scale, decay = options.bias_lr, options.bias_decay
        if is_norm and options.norm_bias_lr is not None:
            scale = options.norm_bias_lr
    elif is_norm:
        scale, decay = options.norm_lr, options.norm_decay
    else:
        scale, decay = 1.0, 1.0

    if _scales_last(options) and _within(name, options.last):
        scale = options.last_bias_lr if is_bias else options.last_lr
    if options.first and _within(name, options.first):
        scale *= options.first_lr
    return scale, decay


def _scales_last(options: ParameterGroups) -> bool:
    """Return whether the last layer has a learning rate of its own."""
    return (options.last_lr, options.last_bias_lr) != (1, 1)


def _norm_parameters(head: nn.Module) -> set[str]:
    """Return the names of the parameters that norms hold directly."""
    names = set()
    for prefix, module in head.named_modules():
        if isinstance(module, NORMS):
            for name, _ in module.named_parameters(recurse=False):
                names.add(f"{prefix}.{name}".lstrip("."))
    return names


def _new(
    name: str, groups: list[dict], lr: float, momentum: float, nesterov: bool
) -> torch.optim.Optimizer:
    # One kernel for all weights. On a CPU it would round otherwise than torch's default.
    fused = True if groups[0]["params"][0].device.type == "cuda" else None
    # Adam and AdamW have no momentum in this sense.
    if name != "sgd":
        return OPTIMISERS[name](groups, lr, fused=fused)
    optimiser = torch.optim.SGD(groups, lr, momentum, nesterov=nesterov, fused=fused)
    _fill_momentum(optimiser)
    return optimiser


def _within(name: str, prefix: str) -> bool:
    """Return whether a parameter is in the module `prefix`, or is the parameter `prefix`."""
    # The dot keeps "fc" from meaning "fc2" as well.
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def _require(head: nn.Module, key: str, name: str, found: bool) -> None:
    """Raise ValueError if a recipe's key names parameters that the head does not have."""
    if name and not found:
        modules = ", ".join(child for child, _ in head.named_children())
        raise ValueError(
            f"{key}: no trained parameter of {type(head).__name__} starts with {name!r}; its "
            f"modules: {modules}"
        )
