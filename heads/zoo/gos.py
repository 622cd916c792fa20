"""GOS: Li et al., Adaptive Interaction Modeling via Graph Operations Search, CVPR 2020.

    V = LeakyReLU(R res5 + r), nodes x = mean RoIAlign of V at every box, y = V's cells
    heads/papers/gos/operation_inputs.py
    s_0 = x,  s_j = sum_(i<j) sum_o w^ij_o o(s_i)        [B,T,N,C]    eq. (1), (10); operations o:
              heads/papers/gos/operations.py
    w^ij = softmax_o(alpha^ij)                           [B,E,O]      search: all operations, mixed;
    E = S (S+1) / 2 edges
    w^ij = 1[alpha^ij_o = max]                                        discrete, eq. (11): only the
    chosen ones are computed
    alpha = A g + a                                      [B,E,O]      eq. (12), g the mean of the
    map: a structure per video
    L = L_ce + 0.1 var_o(sum_ij alpha^ij_o)                           eq. (13),
    `losses["diversity"]`
    logits = K [ mean over valid nodes of (s_1, .., s_S) ] + k        [B,K]

Edges are ordered (0,1), (0,2), (1,2), (0,3), (1,3), (2,3), `head.edges`. `maps["structure"]`
[B,cells,E] is the heaviest operation of each edge, a number in `head.space`; `maps["weights"]`
[B,cells,E,O] the softmax; `maps["node_attention"]` [B,cells,E,T,N] what node_att, in that
operation, gives each node (NaN where it has none). heads/papers/gos/affinity.py has the table of
what `variant` decides.

Parameters of the released variant at 2048 -> 256, 3 supernodes, 174 classes, with whole matrices U,
as the paper counts: six edges of 740 350, reducer 524 544, alpha 7 710, classifier 178 350,
together 5 152 704; with the backbone's 32.1 M they are the paper's 37.3 M. The full temporal
kernels of the paper variant make the head 7 508 142. The paper's 138.4 GMACs count the n x n
differences of diff_prop as 10.1 G; linear layers and convolutions of the released variant are 0.76
G here, 128.3 in all.

Differs from the paper:
- padded boxes are masked everywhere;
- one mini-batch trains everything unless the training loop alternates: `head.structure` is what
  Adam steps on every second mini-batch, the rest is SGD's;
- the released evaluation, which crashes, and its boxes mirrored in y are not reproduced;
- the mean over nodes is taken before the supernodes are concatenated, which is the same.

Not stated in the paper, and chosen: between two cells, s_0 = LeakyReLU(linear layer of (s_1, ..,
s_S)); the variance is the unbiased one; `structures="shared_test"` averages alpha over the training
views with a decay of 0.99.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.checkpoints import load_checkpoint
from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import masked_mean
from heads.interface.variants import at_least, one_of, resolve
from heads.papers.gos.affinity import FURTHER, VARIANTS, OperationChoices, OperationSizes, linear
from heads.papers.gos.operation_inputs import NodeStem, OperationInputs
from heads.papers.gos.operations import SPACES, new_operation, node_weights

STRUCTURES = ("adaptive", "shared", "shared_test")
DECAY = 0.99  # of the mean structure that "shared_test" evaluates with


def edges_of(supernodes: int) -> tuple[tuple[int, int], ...]:
    """(i, j) of every superedge, i < j, grouped by where they end."""
    return tuple((i, j) for j in range(1, supernodes + 1) for i in range(j))


class Cell(nn.Module):
    """`supernodes` states after s_0, every superedge with its own operations of `space`."""

    def __init__(
        self,
        space: Sequence[str],
        supernodes: int,
        sizes: OperationSizes,
        choices: OperationChoices,
    ):
        super().__init__()
        self.space, self.supernodes = tuple(space), supernodes
        self.edges = nn.ModuleList(
            nn.ModuleDict({name: new_operation(name, sizes, choices) for name in space})
            for _ in edges_of(supernodes)
        )

    def forward(
        self, x: Tensor, scene: OperationInputs, weights: Tensor, discrete: bool
    ) -> list[Tensor]:
        """x [B,T,N,C], weights [B,E,O] -> s_1 .. s_S, each [B,T,N,C]; `discrete`: each edge's
        heaviest operation alone.
        """
        states = [x] + [torch.zeros_like(x)] * self.supernodes
        for (i, j), operations, w in zip(
            edges_of(self.supernodes), self.edges, weights.unbind(1), strict=True
        ):
            part = self._chosen if discrete else self._mixed
            states[j] = states[j] + part(operations, states[i], scene, w)
        return states[1:]

    def node_attention(
        self, states: list[Tensor], scene: OperationInputs, weights: Tensor
    ) -> Tensor:
        """[B,E,T,N] from all states s_0 .. s_S: the weights of node_att in each edge's heaviest
        operation, NaN without.
        """
        found = []
        for (i, _), operations, w in zip(
            edges_of(self.supernodes), self.edges, weights.unbind(1), strict=True
        ):
            choice, seen = w.argmax(-1), torch.full_like(states[i][..., 0], math.nan)
            for o in choice.unique().tolist():
                rows = (choice == o).nonzero()[:, 0]
                attended = node_weights(
                    operations[self.space[o]], states[i][rows], scene.take(rows)
                )
                if attended is not None:
                    seen[rows] = attended.to(seen.dtype)
            found.append(seen)
        return torch.stack(found, 1)

    def _mixed(
        self, operations: nn.ModuleDict, x: Tensor, scene: OperationInputs, w: Tensor
    ) -> Tensor:
        """sum_o w_o o(x), eq. (10): w [B,O]; `none` adds nothing."""
        total = torch.zeros_like(x)
        for o, name in enumerate(self.space):
            if name != "none":
                total = total + w[:, o, None, None, None] * operations[name](x, scene)
        return total

    def _chosen(
        self, operations: nn.ModuleDict, x: Tensor, scene: OperationInputs, w: Tensor
    ) -> Tensor:
        """o*(x) of every view, o* its heaviest operation, eq. (11); views that chose alike are
        computed together.
        """
        choice = w.argmax(-1)
        total = torch.zeros_like(x)
        for o in choice.unique().tolist():
            rows = (choice == o).nonzero()[:, 0]
            operation = operations[self.space[o]]
            if len(rows) == len(x):
                return operation(x, scene)
            if self.space[o] != "none":
                total = total.index_add(
                    0, rows, operation(x[rows], scene.take(rows)).to(total.dtype)
                )
        return total


class Structure(nn.Module):
    """alpha [B,cells,E,O] (eq. 12) from g [B,inputs]; weights start at 0: the same structure for
    every view at first.

    `form`: "adaptive"; "shared", one learned structure for all videos; "shared_test", adaptive in
    training and its mean in evaluation.
    """

    def __init__(self, inputs: int, shape: tuple[int, int, int], form: str):
        super().__init__()
        self.form = form
        self.register_buffer(
            "shape", torch.tensor(shape)
        )  # saved: cells, edges and operations of a run's structure
        self.sizes = shape
        outputs = math.prod(shape)
        if form == "shared":
            self.alpha = nn.Parameter(torch.empty(outputs).uniform_(-(inputs**-0.5), inputs**-0.5))
        else:
            self.alpha = nn.Linear(
                inputs, outputs
            )  # its bias stays torch's U(-1/sqrt(inputs), 1/sqrt(inputs))
            nn.init.zeros_(self.alpha.weight)
        if form == "shared_test":
            self.register_buffer("mean", self.alpha.bias.detach().clone())

    def forward(self, g: Tensor) -> Tensor:
        if self.form == "shared":
            alpha = self.alpha.expand(len(g), -1)
        else:
            alpha = self.alpha(g).float() if g.dtype != torch.float64 else self.alpha(g)
        if self.form == "shared_test":
            if self.training and self.alpha.bias.requires_grad:
                self.mean.lerp_(alpha.detach().mean(0).to(self.mean.dtype), 1 - DECAY)
            else:
                alpha = self.mean.expand_as(alpha)
        return alpha.unflatten(1, self.sizes)


def diversity_of(alpha: Tensor) -> Tensor:
    """L_var, eq. (13): values [B,cells,E,O], summed over the edges; their variance over the
    operations, mean over the views.
    """
    return alpha.sum((1, 2)).var(-1).mean()


class GOS(nn.Module):
    """The searched head; see the top of this file."""

    def __init__(
        self,
        stem: NodeStem,
        cells: Sequence[Cell],
        structure: Structure,
        width: int,
        num_classes: int,
        options: dict[str, str],
        mode: str,
        diversity: float,
        dropout: float,
    ):
        super().__init__()
        joined = cells[0].supernodes * width
        self.stem, self.cells, self.structure = stem, nn.ModuleList(cells), structure
        self.joins = nn.ModuleList(linear(joined, width) for _ in cells[1:])
        self.drop = nn.Dropout(dropout)
        self.with_global = options["classifier"] == "nodes_global"
        self.fc = linear(joined + width * self.with_global, num_classes)
        self.alpha_input, self.diversity_on = options["alpha_input"], options["diversity_on"]
        self.discrete, self.diversity = mode == "discrete", diversity
        self.searching = any(p.requires_grad for p in structure.parameters())
        self.space, self.edges = cells[0].space, edges_of(cells[0].supernodes)
        self.needs, self.uses = stem.needs, stem.uses

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Clips with `needs` -> logits [B,K]; losses: diversity, while alpha is learned; maps:
        structure, weights, node_attention."""
        x, scene, mean, g = self.stem(clips)
        alpha = self.structure(g if self.alpha_input == "backbone" else mean)
        weights, states, attention = alpha.softmax(-1), [x], []
        for k, cell in enumerate(self.cells):
            if k:
                x = F.leaky_relu(self.joins[k - 1](torch.cat(states, -1)), 0.01).to(x.dtype)
            states = cell(x, scene, weights[:, k], self.discrete)
            if want_maps:
                attention.append(cell.node_attention([x, *states], scene, weights[:, k]).detach())
        pooled = [masked_mean(s, scene.valid) for s in states] + (
            [mean] if self.with_global else []
        )
        logits = self.fc(self.drop(torch.cat(pooled, 1)))
        losses = {}
        if self.searching:
            losses["diversity"] = self.diversity * diversity_of(
                alpha if self.diversity_on == "raw" else weights
            )
        maps = {}
        if want_maps:
            maps = {
                "structure": alpha.argmax(-1),
                "weights": weights.detach(),
                "node_attention": torch.stack(attention, 1),
            }
        return HeadOutput(logits, losses, maps, {"structure": alpha.argmax(-1)})


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    supernodes: int = 3,
    cells: int = 1,
    space: str = "fixed",
    structures: str = "adaptive",
    mode: str = "search",
    transfer: str = "",
    neighbours: str = "live",
    diversity: float = 0.1,
    dropout: float = 0.0,
    skip_dropout: float = 0.5,
    cut: str = "res5",
    width: int = 256,
    roi_size: int = 7,
    top: int = 10,
    taps: int = 7,
    scale: float = 5.0,
    normalise: bool = True,
    affinity: str = "",
    kernel: str = "",
    padding: str = "",
    nearest: str = "",
    attention: str = "",
    background: str = "",
    roi: str = "",
    classifier: str = "",
    alpha_input: str = "",
    diversity_on: str = "",
) -> GOS:
    """GOS for views of `dims`.

    `variant`: "paper" or "released"; it decides every option that is "": `affinity`, `kernel`,
    `padding`, `nearest`, `attention`, `background`, `roi`, `classifier`, `alpha_input`,
    `diversity_on` (table in heads/papers/gos/affinity.py). `supernodes` of a cell after s_0,
    `cells` stacked. `space`: "fixed" (none, skip and the three combinations) or "original" (none,
    skip and the five operations). `structures`: "adaptive", a structure per video; "shared", one
    for all; "shared_test", adaptive in training, their mean in evaluation. `mode`: "search" mixes
    all operations; "discrete" computes the chosen ones, and alpha is fixed. `transfer`: the
    checkpoint of another GOS run, whose structure weights are taken and fixed (with alpha_input
    "reduced" they also depend on the reduction, which is not taken). `neighbours`: "live", from the
    current features, or "cached", from stage two's `nearest` and `similar` (approximate).
    `diversity`: factor of L_var. `cut`: the map; `width`: C; `roi_size`: bins per side; `taps` of
    temp_conv. Not stated in the paper: `dropout` before the classifier (the release has none),
    `skip_dropout` of the operation skip, `top`, M of node_att, `scale`, the factor 5 before each
    softmax, `normalise`, whether affinities see x/|x|.
    """
    options = resolve(
        "gos",
        VARIANTS,
        variant,
        {
            "affinity": affinity,
            "kernel": kernel,
            "padding": padding,
            "nearest": nearest,
            "attention": attention,
            "background": background,
            "roi": roi,
            "classifier": classifier,
            "alpha_input": alpha_input,
            "diversity_on": diversity_on,
        },
        FURTHER,
    )
    one_of("gos", "space", space, SPACES)
    one_of("gos", "structures", structures, STRUCTURES)
    one_of("gos", "mode", mode, ("search", "discrete"))
    at_least("gos", 1, supernodes=supernodes, cells=cells, width=width, roi_size=roi_size)
    dims.require("gos", cut, "boxes", "valid")
    operation = {
        name: options[name]
        for name in ("affinity", "kernel", "padding", "nearest", "attention", "background")
    }
    choices = OperationChoices(
        "gos",
        neighbours=neighbours,
        scale=scale,
        normalise=normalise,
        top=top,
        taps=taps,
        skip_dropout=skip_dropout,
        **operation,
    )
    channels, height, breadth = dims.maps[cut]
    sizes = OperationSizes(width, dims.T, dims.N, height * breadth)
    made = [Cell(SPACES[space], supernodes, sizes, choices) for _ in range(cells)]
    reads = tuple(
        sorted(
            {name for operations in made[0].edges for o in operations.values() for name in o.reads}
        )
    )
    stem = NodeStem(dims, cut, width, options["roi"], roi_size, "map", reads)
    inputs = channels if options["alpha_input"] == "backbone" else width
    structure = Structure(
        inputs, (cells, len(edges_of(supernodes)), len(SPACES[space])), structures
    )
    if transfer:
        load_structure(structure, Path(transfer))
    structure.requires_grad_(mode == "search" and not transfer)
    return GOS(stem, made, structure, width, num_classes, options, mode, diversity, dropout)


def load_structure(structure: Structure, path: Path) -> None:
    """Takes the structure weights of the run whose checkpoint is `path`; ValueError unless they
    have the same form and size.
    """
    state = load_checkpoint(path)["state"]
    found = {
        key.removeprefix("structure."): tensor
        for key, tensor in state.items()
        if key.startswith("structure.")
    }
    mine = structure.state_dict()
    if "shape" not in found:
        raise ValueError(
            f"{path}: holds no structure to transfer; expected the checkpoint of a run of head gos"
        )
    if (there := found["shape"].tolist()) != (here := mine["shape"].tolist()):
        raise ValueError(
            f"{path}: its structure has {there[0]} cells, {there[1]} edges, {there[2]} "
            f"operations, expected "
            f"{here[0]}, {here[1]}, {here[2]}; pass the supernodes, cells and space that it was "
            f"searched with"
        )
    if {key: t.shape for key, t in found.items()} != {key: t.shape for key, t in mine.items()}:
        raise ValueError(
            f"{path}: its structure depends on other features "
            f"({', '.join(f'{k} {list(t.shape)}' for k, t in found.items())}), "
            f"expected {', '.join(f'{k} {list(t.shape)}' for k, t in mine.items())}; pass its "
            f"structures and alpha_input"
        )
    structure.load_state_dict(found)
