"""A head's parameters -> optimisers: groups with factors of their own, and a second optimiser that
takes turns.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from heads.config.training_options import ParameterGroups, Training
from heads.interface.joint_norm import JointNorm

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, JointNorm)


class Optimisers:
    """The optimiser of `training`, and the one of `training.alternate`, for the parameters of
    `head` that want gradients.

    Every group of the first carries `scale`, the factor of the learning rate. ValueError for a name
    in `training` that no parameter starts with.
    """

    def __init__(self, head: nn.Module, training: Training):
        named = [(name, p) for name, p in head.named_parameters() if p.requires_grad]
        other = training.alternate
        theirs = [p for name, p in named if other.parameters and _within(name, other.parameters)]
        _require(head, "train.alternate.parameters", other.parameters, bool(theirs))
        kept = {id(p) for p in theirs}
        groups = _groups(head, [(name, p) for name, p in named if id(p) not in kept], training)
        if not groups:
            raise ValueError(f"head {type(head).__name__} has no parameter to train")
        self.first = _new(
            training.optimiser, groups, training.lr, training.momentum, training.nesterov
        )
        self.second = None
        if theirs:
            group = [{"params": theirs, "weight_decay": other.weight_decay}]
            self.second = _new(other.optimiser, group, other.lr, other.momentum, False)

    @property
    def both(self) -> tuple[torch.optim.Optimizer, ...]:
        """One optimiser, or two."""
        return (self.first,) if self.second is None else (self.first, self.second)

    def turn(self, batch: int) -> torch.optim.Optimizer:
        """Whose mini-batch number `batch` (from 0) of an epoch is."""
        return self.both[batch % len(self.both)]

    def set_lr(self, lr: float) -> None:
        """The learning rate of the first optimiser; each group's is a multiple of it."""
        for group in self.first.param_groups:
            group["lr"] = lr * group["scale"]


def parameters_of(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters of an optimiser."""
    return [p for group in optimiser.param_groups for p in group["params"]]


class WeightAverage:
    """A moving average of the weights of `head`, `decay` per update; what is no parameter
    (statistics of norms) is copied.
    """

    def __init__(self, head: nn.Module, decay: float):
        self.head, self.decay = head, decay
        self.state = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """One more state of the head."""
        learned = {name for name, _ in self.head.named_parameters()}
        for name, tensor in self.head.state_dict().items():
            if name in learned and tensor.is_floating_point():
                self.state[name].lerp_(tensor, 1 - self.decay)
            else:
                self.state[name].copy_(tensor)

    def swap(self) -> None:
        """Puts the average into the head and keeps the head's weights in its place; a second call
        undoes it.
        """
        mine = {name: tensor.detach().clone() for name, tensor in self.head.state_dict().items()}
        self.head.load_state_dict(self.state)
        self.state = mine


def _groups(head: nn.Module, named: Iterable[tuple[str, Tensor]], training: Training) -> list[dict]:
    """Optimiser groups, one for each pair of factors that occurs, in the order of the
    parameters.
    """
    how, norms = training.groups, _norm_scales(head)
    for key, name, wanted in (
        ("last", how.last, (how.last_lr, how.last_bias_lr) != (1, 1)),
        ("first", how.first, bool(how.first)),
    ):
        there = any(_within(parameter, name) for parameter, _ in head.named_parameters())
        _require(head, f"train.groups.{key}", name if wanted else "", there)
    found: dict[tuple[float, float], dict] = {}
    for name, parameter in named:
        scale, decay = _factors(name, name in norms, how)
        group = {"params": [], "weight_decay": training.weight_decay * decay, "scale": scale}
        found.setdefault((scale, decay), group)["params"].append(parameter)
    return list(found.values())


def _factors(name: str, is_norm: bool, how: ParameterGroups) -> tuple[float, float]:
    """The factors of the learning rate and the weight decay of the parameter `name`."""
    is_bias = name.rpartition(".")[2].startswith("bias")  # "bias_ih_l0" of an LSTM as well
    scale, decay = (
        (how.bias_lr, how.bias_decay)
        if is_bias
        else (how.norm_lr, how.norm_decay)
        if is_norm
        else (1.0, 1.0)
    )
    if _within(name, how.last) and (how.last_lr, how.last_bias_lr) != (1, 1):
        scale = how.last_bias_lr if is_bias else how.last_lr
    if how.first and _within(name, how.first):
        scale *= how.first_lr
    return scale, decay


def _norm_scales(head: nn.Module) -> set[str]:
    """The names of the parameters that norms own directly."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in head.named_modules()
        if isinstance(module, NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }


def _new(
    name: str, groups: list[dict], lr: float, momentum: float, nesterov: bool
) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum, nesterov=nesterov)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, lr)


def _within(name: str, prefix: str) -> bool:
    """Whether a parameter belongs to the module, or is the parameter, called `prefix`."""
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def _require(head: nn.Module, key: str, name: str, there: bool) -> None:
    if name and not there:
        modules = ", ".join(child for child, _ in head.named_children())
        raise ValueError(
            f"{key}: no trained parameter of {type(head).__name__} starts with {name!r}; its "
            f"parts: {modules}"
        )
