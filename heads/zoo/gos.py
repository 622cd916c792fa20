"""GOS: Li et al., Adaptive Interaction Modeling via Graph Operations Search, CVPR 2020.

    s_0 = x,  s_j = sum_(i<j) sum_o w^ij_o o(s_i)             [B,T,N,C]   eq. (1), (10)
    search:   w^ij = softmax_o(alpha^ij)                      [B,E,O]     all operations, mixed
    discrete: w^ij = 1[alpha^ij_o = max]                      [B,E,O]     eq. (11)
    alpha = A g + a                                           [B,E,O]     eq. (12)
    L = L_ce + 0.1 var_o(sum_ij alpha^ij_o)                               eq. (13)
    logits = K [ mean over valid nodes of (s_1, .., s_S) ] + k            [B,K]

Nodes x and what the operations o read come from the stem in heads/papers/gos/operation_inputs.py.
The operations are in heads/papers/gos/operations.py, the cell is in heads/papers/gos/cell.py. There
are E = S (S+1) / 2 edges; g is the mean of the map, so that every video has a structure of its own.
The second term of L is `losses["diversity"]`; its variance has the factor 1 / (|O| - 1).

In discrete mode only the chosen operations are computed. On a GPU all operations are computed and
the chosen ones selected, unless all views have one structure: to learn which views chose which
operation, the process would have to wait for the GPU. In both cases, weights of operations that no
view of a mini-batch chose do not change.

`head.force(structure)` makes a head use one structure for all views. With the one that most
training videos chose, this is Table 1's row "non-adaptive (only testing)", by its footnote. With
that of another video, it is Figure 5.

Edges are ordered (0,1), (0,2), (1,2), (0,3), (1,3), (2,3), `head.edges`. The maps are
- "structure" [B,cells,E], the operation of each edge, a number in `head.space`: the heaviest one,
  or that of the forced structure;
- "weights" [B,cells,E,O], the softmax;
- "node_attention" [B,cells,E,T,N], what node_att in that operation gives each node, NaN where the
  operation has no node_att.

heads/papers/gos/affinity.py has the table of what `variant` decides.

Parameters of the released variant at 2048 -> 256, 3 supernodes, 174 classes:

    six edges of 740 350, with whole matrices U as the paper counts   4 442 100
    reducer                                                             524 544
    alpha                                                                 7 710
    classifier                                                          178 350
    together                                                          5 152 704

With the backbone's 32.1 M they are the paper's 37.3 M (supplement, Table 2). The full temporal
kernels of the paper variant make the head 7 508 142; with kernel="depthwise" it has 4 766 382. The
paper's 138.4 GMACs count the n x n differences of diff_prop as 10.1 G. Linear layers and
convolutions of the released variant are 0.76 G here, 128.3 in all.

Differs from the paper:
- padded boxes are masked everywhere;
- one mini-batch trains everything unless the training loop alternates: `head.structure` is what
  Adam steps on every second mini-batch, the rest is SGD's;
- the released evaluation, which crashes, and its boxes mirrored in y are not reproduced;
- the mean over nodes is taken before the supernodes are concatenated, which is the same.

Not stated in the paper, and chosen:
- between two cells, s_0 = LeakyReLU(linear layer of (s_1, .., s_S));
- the structure of most training videos is that of most views in the last epoch of training.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.changes import Change
from heads.interface.checkpoints import load_checkpoint
from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import masked_mean
from heads.interface.variants import at_least, one_of, resolve
from heads.papers.gos.affinity import (
    FURTHER,
    OPERATION_OPTIONS,
    PAPER_CHANGE,
    VARIANTS,
    OperationSizes,
    linear,
    operation_choices,
    paper_change_affects,
)
from heads.papers.gos.cell import (
    COMMON,
    STRUCTURES,
    Cell,
    Structure,
    diversity_of,
    edges_of,
    one_hot,
)
from heads.papers.gos.operation_inputs import NodeStem, OperationInputs
from heads.papers.gos.operations import SPACES

CHANGES = (
    Change(2, PAPER_CHANGE, paper_change_affects),
    Change(
        3,
        "structures='shared_test' evaluated with the mean of alpha, and now evaluates with the "
        "structure that most training views chose",
        lambda o: o["structures"] == "shared_test",
    ),
)


class GOS(nn.Module):
    """The searched head; see the top of this file.

    Args:
        stem: makes the nodes and what the operations read.
        cells: the cells, one after another.
        structure: makes alpha, for each cell or for one that all share.
        width: C.
        num_classes: K.
        options: `classifier`, `alpha_input` and `diversity_on`.
        mode: "search" or "discrete".
        diversity: the factor of L_var.
        dropout: before the classifier.
    """

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
        self.forced: Tensor | None = None
        self._forced: list[list[int]] | None = None  # its numbers, which no device has

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the fields of `needs`.
            want_maps: whether to return the maps "structure", "weights" and "node_attention".

        Returns:
            logits [B,K]; the loss "diversity" while alpha is learned; "structure" is stored.
        """
        x, inputs, mean, g = self.stem(clips)
        alpha = self.structure(g if self.alpha_input == "backbone" else mean)
        alpha = alpha.expand(-1, len(self.cells), -1, -1)
        weights = alpha.softmax(-1)
        # The weights that are computed with: those of one structure, where one is forced.
        used, discrete = weights, self.discrete
        forced = self.one_structure()
        if forced is not None:
            used, discrete = one_hot(forced, len(alpha), len(self.space), alpha), True

        known = self._known() if discrete else None
        states, attention = self._cells(x, inputs, used, known, discrete, want_maps)
        pooled = [masked_mean(state, inputs.valid) for state in states]
        if self.with_global:
            pooled.append(mean)
        logits = self.fc(self.drop(torch.cat(pooled, 1)))

        # A fixed structure gets no gradient from its loss.
        losses = {}
        if self.searching:
            diversity = diversity_of(alpha if self.diversity_on == "raw" else weights)
            losses["diversity"] = self.diversity * diversity
        chosen = used.argmax(-1)
        maps = {}
        if want_maps:
            maps = {
                "structure": chosen,
                "weights": weights.detach(),
                "node_attention": torch.stack(attention, 1),
            }
        return HeadOutput(logits, losses, maps, {"structure": chosen})

    def _cells(
        self,
        x: Tensor,
        inputs: OperationInputs,
        weights: Tensor,
        known: list[list[int]] | None,
        discrete: bool,
        attend: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the last cell's states, and every cell's node attention if `attend`."""
        states, attention = [x], []
        for k, cell in enumerate(self.cells):
            if k > 0:
                joined = self.joins[k - 1](torch.cat(states, -1))
                # Autocast returns half precision, which is too coarse for comparing nodes.
                x = F.leaky_relu(joined, 0.01).to(x.dtype)
            # Tied cells have one structure.
            same = None if known is None else known[min(k, len(known) - 1)]
            states = cell(x, inputs, weights[:, k], discrete, same)
            if attend:
                part = cell.node_attention([x, *states], inputs, weights[:, k])
                attention.append(part.detach())
        return states, attention

    def one_structure(self) -> Tensor | None:
        """The structure [cells,E] that all views are computed with now; None if each has its own.

        It is the forced one, or with structures="shared_test" the common one in an evaluation of
        discrete structures.
        """
        if self.forced is not None:
            return self.forced
        if self.training or not self.discrete:
            return None
        common = self.structure.evaluated_with
        return None if common is None else common.expand(len(self.cells), -1)

    def _known(self) -> list[list[int]] | None:
        """The operations of all views by cell and edge; None if each view chooses its own."""
        return self.structure.of_all_views if self.forced is None else self._forced

    def force(self, structure: Tensor | None) -> None:
        """Compute all views with one discrete structure, whatever they would choose.

        Args:
            structure: numbers in `space` [cells,E]; None lets each view choose again.

        Raises:
            ValueError: a structure of other cells or edges, or an unknown operation.
        """
        if structure is not None:
            shape = (len(self.cells), len(self.edges))
            if tuple(structure.shape) != shape:
                raise ValueError(
                    f"expected a structure of {shape[0]} cells and {shape[1]} edges, got "
                    f"{' and '.join(map(str, structure.shape))}"
                )
            if int(structure.min()) < 0 or int(structure.max()) >= len(self.space):
                raise ValueError(
                    f"expected operations 0 to {len(self.space) - 1}, got {structure.tolist()}"
                )
            self._forced = structure.tolist()
            structure = structure.to(self.fc.weight.device)
        self.forced = structure

    @property
    def common(self) -> Tensor | None:
        """The structure [cells,E] that most views chose in the last training epoch, if known."""
        common = self.structure.get_buffer(COMMON)
        if bool((common < 0).any()):
            return None
        return common.expand(len(self.cells), -1)

    @property
    def forms(self) -> dict[str, nn.Module]:
        """Other forms of this head that are validated beside it: the discrete one of a mixture."""
        return {} if self.discrete else {"discrete": DiscreteForm(self)}


class DiscreteForm(nn.Module):
    """A head in search mode that computes each view's discrete structure alone.

    Args:
        head: its weights and its mode of training are shared.
    """

    def __init__(self, head: GOS):
        super().__init__()
        self.head, self.needs, self.uses = head, head.needs, head.uses

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch as `GOS` does in mode "discrete"."""
        self.head.discrete = True
        try:
            return self.head(clips, want_maps)
        finally:
            self.head.discrete = False


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    supernodes: int = 3,
    cells: int = 1,
    tied: bool = False,
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
    scale: float = 0.0,
    normalise: bool = True,
    similarity: str = "",
    affinity: str = "",
    kernel: str = "",
    padding: str = "",
    nearest: str = "",
    attention: str = "",
    offset: str = "",
    background: str = "",
    roi: str = "",
    classifier: str = "",
    alpha_input: str = "",
    diversity_on: str = "",
) -> GOS:
    """Build GOS: Li et al., CVPR 2020, sec. 3.

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released"; it decides every option that is "".
        supernodes: S, states of a cell after s_0.
        cells: how many cells are stacked.
        tied: all cells have the structure of one, with operations of their own: a searched cell is
            stacked (supplement, Table 8).
        space: "fixed" (none, skip and the three combinations) or "original" (none, skip and the
            five operations).
        structures: "adaptive", a structure per video; "shared", one for all; "shared_test",
            adaptive in training, and in evaluation the one of most training views (Table 1).
        mode: "search" mixes all operations; "discrete" computes the chosen ones and fixes alpha.
        transfer: the checkpoint of another GOS run, whose structure weights are taken and fixed
            (supplement, Table 6). With alpha_input "reduced" they also depend on the reduction,
            which is not taken.
        neighbours: "live", from the current features, or "cached": stage two's `nearest` and
            `similar`, which is approximate.
        diversity: the factor of L_var, eq. (13).
        dropout: before the classifier; the release has none. Not stated in the paper.
        skip_dropout: of the operation skip. The paper has a dropout there, and no probability.
        cut: the map [B,T,C,h,w].
        width: C of the nodes.
        roi_size: bins per side of RoIAlign.
        top: M of node_att. Not stated in the paper.
        taps: the length of temp_conv's kernel in steps.
        scale: the factor before a softmax of affinities; 0 is 1 with similarity "inner" (paper) and
            5 with "cosine" (release).
        normalise: False lets similarity "cosine" see x in place of x/|x|.
        similarity, affinity, kernel, padding, nearest, attention, offset, background, roi,
            classifier, alpha_input, diversity_on: see the table in heads/papers/gos/affinity.py; ""
            is the variant's.

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: a value that an option cannot have, or a checkpoint that does not fit.
        MissingFields: the cache lacks the map or the boxes.
    """
    given = {
        "similarity": similarity,
        "affinity": affinity,
        "kernel": kernel,
        "padding": padding,
        "nearest": nearest,
        "attention": attention,
        "offset": offset,
        "background": background,
        "roi": roi,
        "classifier": classifier,
        "alpha_input": alpha_input,
        "diversity_on": diversity_on,
    }
    options = resolve("gos", VARIANTS, variant, given, FURTHER)
    one_of("gos", "space", space, SPACES)
    one_of("gos", "structures", structures, STRUCTURES)
    one_of("gos", "mode", mode, ("search", "discrete"))
    at_least("gos", 1, supernodes=supernodes, cells=cells, width=width, roi_size=roi_size)
    dims.require("gos", cut, "boxes", "valid")

    choices = operation_choices(
        "gos",
        {name: options[name] for name in OPERATION_OPTIONS},
        scale,
        normalise,
        neighbours=neighbours,
        top=top,
        taps=taps,
        skip_dropout=skip_dropout,
    )
    channels, h, w = dims.maps[cut]
    sizes = OperationSizes(width, dims.T, dims.N, h * w)
    built = [Cell(SPACES[space], supernodes, sizes, choices) for _ in range(cells)]
    stem = NodeStem(dims, cut, width, options["roi"], roi_size, "map", built[0].reads)

    inputs = channels if options["alpha_input"] == "backbone" else width
    shape = (1 if tied else cells, len(built[0].edges), len(SPACES[space]))
    structure = Structure(inputs, shape, structures)
    if transfer:
        load_structure(structure, Path(transfer))
    # A structure that is given, or no longer searched, stays as it is.
    structure.requires_grad_(mode == "search" and not transfer)
    return GOS(stem, built, structure, width, num_classes, options, mode, diversity, dropout)


def load_structure(structure: Structure, path: Path) -> None:
    """Take the structure weights of another run.

    Args:
        structure: receives the weights.
        path: the checkpoint of a run of head gos.

    Raises:
        ValueError: the checkpoint holds no structure, or one of another form or size.
    """
    prefix = "structure."
    found = {}
    for key, tensor in load_checkpoint(path)["state"].items():
        if key.startswith(prefix):
            found[key.removeprefix(prefix)] = tensor
    expected = structure.state_dict()

    if "shape" not in found:
        raise ValueError(
            f"{path}: holds no structure to transfer; expected the checkpoint of a run of head gos"
        )
    cells, edges, operations = found["shape"].tolist()
    sizes = expected["shape"].tolist()
    if [cells, edges, operations] != sizes:
        raise ValueError(
            f"{path}: its structure has {cells} cells, {edges} edges, {operations} operations, "
            f"expected {sizes[0]}, {sizes[1]}, {sizes[2]}; pass the supernodes, cells and space "
            "that it was searched with"
        )
    # Runs of earlier versions counted no structures.
    found.setdefault(COMMON, expected[COMMON])
    # load_state_dict would name tensors, not the options that made them.
    if _shapes(found) != _shapes(expected):
        raise ValueError(
            f"{path}: its structure depends on other features ({_shapes(found)}), expected "
            f"{_shapes(expected)}; pass its structures and alpha_input"
        )
    structure.load_state_dict(found)


def _shapes(state: dict[str, Tensor]) -> str:
    """Write the shapes of the tensors that are learned."""
    shapes = []
    for key, tensor in sorted(state.items()):
        if key != COMMON:
            shapes.append(f"{key} {list(tensor.shape)}")
    return ", ".join(shapes)
