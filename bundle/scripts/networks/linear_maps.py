"""Linear maps on a CPU, by the library that is fastest there.

PyTorch multiplies matrices of single precision by MKL, which keeps the wider half of AVX-512 to Intel's own processors;
its convolutions go by oneDNN, which does not, and twice as fast on the others. PyTorch has oneDNN's linear map too, for
what it compiles: here it is called directly, wherever no gradient is asked for. Results are the same up to the order in
which sums are rounded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 128  # below which calling oneDNN takes longer than it saves


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``.

    Args:
        inputs: ``(..., C)``.
        weight: ``(C', C)``.
        bias: ``(C',)``.

    Returns:
        ``(..., C')``.
    """
    if inputs.numel() >= ROWS * inputs.shape[-1] and _by_onednn(inputs, weight, bias):
        # of transposed inputs, which oneDNN takes as well, it would make slow work
        return torch.ops.mkldnn._linear_pointwise(inputs.contiguous(), weight, bias, "none", [], "")
    return F.linear(inputs, weight, bias)


def _by_onednn(*tensors: Tensor | None) -> bool:
    there = [tensor for tensor in tensors if tensor is not None]
    return (
        _AVAILABLE
        and torch.backends.mkldnn.enabled
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in there)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in there))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


# what lies in no public part of PyTorch may be elsewhere in the next one: then everything is as fast as before
_AVAILABLE = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


class FastLinear(nn.Linear):
    """``torch.nn.Linear`` by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def use_fast_linears(module: nn.Module) -> None:
    """Makes every ``torch.nn.Linear`` in a module that a library has built a :class:`FastLinear`, weights untouched."""
    for each in module.modules():
        if type(each) is nn.Linear:
            each.__class__ = FastLinear
