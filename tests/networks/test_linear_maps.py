"""Linear maps by oneDNN: the numbers of PyTorch's own, and only where nothing is lost by it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scripts.networks import linear_maps
from scripts.networks.linear_maps import ROWS, FastLinear, linear, use_fast_linears
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def onednn(monkeypatch) -> None:
    """On every processor, also where PyTorch's own library is as fast."""
    monkeypatch.setattr(linear_maps, "_AVAILABLE", True)


@pytest.fixture
def called(monkeypatch) -> list[Tensor]:
    """The inputs that went to ``torch.nn.functional.linear``."""
    seen: list[Tensor] = []
    plain = F.linear

    def recorded(inputs: Tensor, *args: Tensor) -> Tensor:
        seen.append(inputs)
        return plain(inputs, *args)

    monkeypatch.setattr(linear_maps.F, "linear", recorded)
    return seen


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(0, 24), (1, 24), (ROWS, 24), (3, ROWS, 24), (2, 16, 16, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_result_is_that_of_pytorch(shape, bias):
    inputs, weight, shift = drawn(*shape), drawn(40, 24), drawn(40) if bias else None
    expected = F.linear(inputs.double(), weight.double(), None if shift is None else shift.double())
    with torch.no_grad():
        torch.testing.assert_close(linear(inputs, weight, shift).double(), expected, rtol=1e-5, atol=1e-5)


def test_inputs_and_weights_may_be_transposed():
    inputs, weight = drawn(2, 24, ROWS).transpose(1, 2), drawn(24, 40).T
    with torch.no_grad():
        torch.testing.assert_close(linear(inputs, weight), inputs @ weight.T, rtol=1e-5, atol=1e-5)


def test_many_rows_without_gradients_go_by_onednn(called):
    with torch.no_grad():
        linear(drawn(ROWS, 24), drawn(40, 24))
    assert not called


def test_where_onednn_is_no_faster_all_go_by_pytorch(called, monkeypatch):
    monkeypatch.setattr(linear_maps, "_AVAILABLE", False)
    with torch.no_grad():
        linear(drawn(ROWS, 24), drawn(40, 24))
    assert len(called) == 1


def test_few_rows_go_by_pytorch(called):
    with torch.no_grad():
        linear(drawn(ROWS - 1, 24), drawn(40, 24))
    assert len(called) == 1


@pytest.mark.parametrize("what", ["inputs", "weight"])
def test_gradients_flow(what):
    tensors = {"inputs": drawn(ROWS, 24), "weight": drawn(40, 24)}
    tensors[what].requires_grad_()
    linear(**tensors).square().sum().backward()
    found, tensors[what].grad = tensors[what].grad, None
    F.linear(tensors["inputs"], tensors["weight"]).square().sum().backward()
    torch.testing.assert_close(found, tensors[what].grad, rtol=1e-5, atol=1e-4)


def test_gradient_of_inputs_alone_goes_by_onednn_too(called):
    inputs, weight, shift = drawn(2, ROWS, 24).requires_grad_(), drawn(40, 24), drawn(40)
    linear(inputs.transpose(0, 1), weight, shift).square().sum().backward()
    assert not called
    expected = 2 * (inputs.detach() @ weight.T + shift) @ weight
    torch.testing.assert_close(inputs.grad, expected, rtol=1e-5, atol=1e-4)


def test_gradient_of_a_weight_goes_by_pytorch(called):
    linear(drawn(ROWS, 24).requires_grad_(), drawn(40, 24).requires_grad_()).sum().backward()
    assert len(called) == 1


def test_double_precision_stays_as_it_is(called):
    result = linear(drawn(ROWS, 24).double(), drawn(40, 24).double())
    assert result.dtype == torch.float64 and len(called) == 1


def test_autocast_is_followed():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(drawn(ROWS, 24), drawn(40, 24)).dtype == torch.bfloat16


def test_module_keeps_weights_and_their_names():
    module = nn.Sequential(nn.Linear(24, 40), nn.Sequential(nn.ReLU(), nn.Linear(40, 8)))
    before, inputs = dict(module.state_dict()), drawn(ROWS, 24)
    with torch.no_grad():
        expected = module(inputs)
        use_fast_linears(module)
        torch.testing.assert_close(module(inputs), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(module[0], FastLinear) and isinstance(module[1][1], FastLinear)
    assert all(value is before[key] or value.equal(before[key]) for key, value in module.state_dict().items())
    assert list(module.state_dict()) == list(before)
