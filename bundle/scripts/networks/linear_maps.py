"""Linear maps on a CPU, by the library that is fastest there.

PyTorch multiplies matrices of single precision by MKL, which keeps the wider half of AVX-512 to Intel's own processors;
its convolutions go by oneDNN, which does not, and twice as fast on the others. PyTorch has oneDNN's linear map too, for
what it compiles: here it is called directly, wherever no weight asks for a gradient: the gradient of the inputs, which
training needs through the frozen SAM2, is a linear map as well. Results are the same up to the order in which sums are
rounded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        wanted = torch.is_grad_enabled() and inputs.requires_grad
        return _FrozenLinear.apply(inputs, weight, bias) if wanted else _onednn(inputs, weight, bias)
    return F.linear(inputs, weight, bias)


class _FrozenLinear(torch.autograd.Function):
    """A linear map of weights that do not change."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _onednn(gradient, weight.T.contiguous()), None, None


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # of transposed inputs, which oneDNN takes as well, it would make slow work
    return torch.ops.mkldnn._linear_pointwise(inputs.contiguous(), weight, bias, "none", [], "")


def _by_onednn(*tensors: Tensor | None) -> bool:
    there = [tensor for tensor in tensors if tensor is not None]
    return (
        _AVAILABLE
        and torch.backends.mkldnn.enabled
        and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in there)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in there[1:]))
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
