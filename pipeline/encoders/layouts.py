"""From what a block of a library's model returns to a map [B,C,T,h,w], and back.

Tokens      [b,n,C]: class and register tokens first, then those of the patches
Images      [b,C,h,w] or [b,h,w,C]: one map per frame
Volumes     [B,C,T,h,w] or [B,T,h,w,C]: one map per clip

b is B for a model that reads clips, and B·F for one that reads frames. Which layout it is follows
from the number of axes. Where the patches of tokens lie follows from their number.
"""

from dataclasses import dataclass

from torch import Tensor, cat

Size = tuple[int, int, int]  # (F, H, W): frames, and pixels of a frame

# How often tokens may have been merged since the patches were cut: 2, 4, ... in each direction.
_MERGED = (1, 2, 4, 8, 16, 32, 64)
# More class and register tokens than any model has.
_MOST_PREFIX = 64


@dataclass(frozen=True)
class Layout:
    """How a model orders its output.

    Attributes:
        per_frame: it reads frames [b,3,H,W] and not clips.
        patch: (frames, height, width) of its first convolution's stride: of a patch.
        channels_last: its maps end with the channels.
        space_first: the tokens of one place follow one another, and not those of one step.
        prefix: P, class and register tokens before those of the patches.
    """

    per_frame: bool
    patch: Size
    channels_last: bool = False
    space_first: bool = False
    prefix: int = 0

    def to_map(self, x: Tensor, size: Size) -> Tensor:
        """Turn a block's output into a map.

        Args:
            x: tokens, images or volumes.
            size: of the clips that went in.

        Returns:
            [B,C,T,h,w].

        Raises:
            ValueError: the number of tokens belongs to no grid of patches.
        """
        if x.dim() == 3:
            steps, h, w = self.token_grid(x.shape[1] - self.prefix, size)
            patches = x[:, self.prefix :].transpose(1, 2)  # [b,C,n]
            if self.space_first:
                fmap = patches.unflatten(2, (h, w, steps)).movedim(-1, 2)
            else:
                fmap = patches.unflatten(2, (steps, h, w))
            # A model of frames has one step per frame: [B·F,C,1,h,w] -> [B,C,F,h,w].
            return _frames_to_steps(fmap[:, :, 0], size) if self.per_frame else fmap
        if self.channels_last:
            x = x.movedim(-1, 1)
        return _frames_to_steps(x, size) if x.dim() == 4 else x

    def from_map(self, fmap: Tensor, like: Tensor) -> Tensor:
        """Turn a map into what a block would have returned.

        Args:
            fmap: [B,C,T,h,w].
            like: such an output of the block: its axes count, and its class and register tokens
                are taken over.

        Returns:
            A tensor of the axes of `like`.
        """
        if self.per_frame:
            images = fmap.transpose(1, 2).flatten(0, 1)  # [B·F,C,h,w]
            fmap = images.unsqueeze(2) if like.dim() == 3 else images
        if like.dim() == 3:
            ordered = fmap.movedim(2, -1) if self.space_first else fmap
            patches = ordered.flatten(2).transpose(1, 2)  # [b,n,C]
            return cat([like[:, : self.prefix], patches], 1) if self.prefix else patches
        return fmap.movedim(1, -1) if self.channels_last else fmap

    def prefix_of(self, x: Tensor, size: Size) -> Tensor:
        """Return the class and register tokens of a block's output.

        Args:
            x: tokens [b,P+n,C].
            size: of the clips that went in.

        Returns:
            [B,S,P,C]; S is F for a model of frames and 1 for one of clips.
        """
        tokens = x[:, : self.prefix]
        return tokens.unflatten(0, (-1, size[0] if self.per_frame else 1))

    def token_grid(self, tokens: int, size: Size) -> Size:
        """Work out (T, h, w) of the patches of a clip, or (1, h, w) of a frame.

        Args:
            tokens: n, how many patches there are.
            size: of the clip.

        Raises:
            ValueError: no merging of the patches gives so many.
        """
        for grid in self._grids(size):
            if grid[0] * grid[1] * grid[2] == tokens:
                return grid
        F, H, W = size
        raise ValueError(
            f"{tokens} tokens belong to no grid of {F} frames of {H}x{W} pixels with patches of "
            f"{'x'.join(map(str, self.patch))}"
        )

    def count_prefix(self, tokens: int, size: Size) -> int:
        """Return P, for a first block with so many tokens in all."""
        for T, h, w in self._grids(size):
            extra = tokens - T * h * w
            if 0 <= extra <= _MOST_PREFIX:
                return extra
        return 0

    def _grids(self, size: Size) -> list[Size]:
        """The grids that patches of a clip, or of a frame, can have, the finest first."""
        F, H, W = size
        T = 1 if self.per_frame else max(1, F // self.patch[0])
        _, ph, pw = self.patch
        found = []
        for by in _MERGED:
            # Some models pad what is not divisible, others cut it off.
            found.append((T, max(1, H // ph // by), max(1, W // pw // by)))
            found.append((T, -(-H // (ph * by)), -(-W // (pw * by))))
        return found


def _frames_to_steps(images: Tensor, size: Size) -> Tensor:
    """[B·F,C,h,w] -> [B,C,F,h,w]."""
    return images.unflatten(0, (-1, size[0])).transpose(1, 2)
