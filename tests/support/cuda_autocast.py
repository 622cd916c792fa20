"""torch.autocast("cuda") for the pretended device of fake_cuda.py.

torch's own kernels ask a tensor in C++ whether it is on a GPU, and a pretended one says no there.
So the operators that autocast changes on CUDA get Python kernels under the same dispatch key, which
cast by torch's documented lists: to the lower precision, to float32, or to the widest of the
arguments. tests/test_fake_cuda.py holds the lists against torch's registry.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils._pytree import tree_map_only


def _names(text: str) -> list[str]:
    return text.split()


LOWER = _names(
    """
    _convolution _convolution.deprecated conv1d conv2d conv3d conv_tbc conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum
    mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot
    _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    _scaled_dot_product_flash_attention scaled_dot_product_attention
    """
)

FLOAT32 = _names(
    """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan
    pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm
    group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss
    cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
    huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss
    triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm
    logsumexp upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d
    _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
    _upsample_bicubic2d_aa prod prod.dim_int softmax.int log_softmax.int cumprod cumsum
    linalg_vector_norm linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList
    norm.Scalar norm.ScalarOpt_dim
    """
)

WIDEST = _names(
    """
    addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
    """
)

# Chosen by torch inside of other operators, for real CUDA tensors alone; or a refusal, as on CUDA.
OTHER = _names(
    "cudnn_convolution cudnn_convolution_transpose _cudnn_rnn linalg_matrix_sqrth "
    "binary_cross_entropy"
)

Cast = Callable[[torch.Tensor], torch.Tensor]


class Autocast:
    """The kernels while a pretended device is there. A weight is cast once per region, as torch
    does.
    """

    def __init__(self, pretended: type[torch.Tensor]):
        self.pretended = pretended
        self.cast: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextmanager
    def registered(self) -> Iterator[None]:
        """Within it `torch.autocast("cuda")` casts pretended tensors."""
        library = torch.library.Library("aten", "IMPL")
        rules = ((LOWER, self._lower), (FLOAT32, self._float32), (WIDEST, self._widest))
        for names, rule in rules:
            for name in names:
                if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCUDA"):
                    library.impl(name, _kernel(name, rule), "AutocastCUDA", allow_override=True)
        try:
            yield
        finally:
            library._destroy()

    def clear(self) -> None:
        """Forgets the weights that were cast: the outermost region has ended."""
        self.cast.clear()

    def _lower(self, args: tuple, kwargs: dict) -> Cast:
        dtype = torch.get_autocast_dtype("cuda")

        def cast(x: torch.Tensor) -> torch.Tensor:
            if not self._floating(x) or x.dtype == dtype:
                return x
            if not (
                x.is_leaf
                and x.requires_grad
                and x.dtype == torch.float32
                and torch.is_autocast_cache_enabled()
            ):
                return x.to(dtype)
            if id(x) not in self.cast:
                # The weight is kept too, so that no other tensor gets its id.
                self.cast[id(x)] = (x, x.to(dtype))
            return self.cast[id(x)][1]

        return cast

    def _float32(self, args: tuple, kwargs: dict) -> Cast:
        return lambda x: x.float() if self._floating(x) else x

    def _widest(self, args: tuple, kwargs: dict) -> Cast:
        found: list[torch.dtype] = []
        tree_map_only(
            torch.Tensor,
            lambda x: found.append(x.dtype) if self._floating(x) else None,
            (args, kwargs),
        )
        wide = torch.float32 if torch.float32 in found else torch.get_autocast_dtype("cuda")
        return lambda x: x.to(wide) if self._floating(x) else x

    def _floating(self, x: torch.Tensor) -> bool:
        return isinstance(x, self.pretended) and x.is_floating_point() and x.dtype != torch.float64


def _kernel(name: str, rule: Callable[[tuple, dict], Cast]) -> Callable:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(*args, **kwargs):
        # Nothing inside of an operator is cast again.
        with torch._C._ExcludeDispatchKeyGuard(
            torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
        ):
            cast = rule(args, kwargs)
            args, kwargs = tree_map_only(torch.Tensor, cast, (args, kwargs))
            return operator(*args, **kwargs)

    return kernel
