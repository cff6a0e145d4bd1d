"""The orientation head: what its slices say together, and which backbone it is for."""

from __future__ import annotations

import pytest
import torch
from scripts.errors import UnusableFileError
from scripts.networks.orientation import HEIGHT_UNIT, OrientationHead, gather_evidence, load_head, save_head

from tests.helpers.networks import make_backbone

LIMITS = {"limits": {"abdomen": 0.0, "extent": 40.0}}


def outputs(count: int = 12, abdomen: float = 4.0, left_right: float = -2.0, rising: float = 1.0) -> torch.Tensor:
    """Of slices 10 mm apart whose seeming heights rise by ``rising`` mm a mm."""
    seen = rising * 10 * torch.arange(count) / HEIGHT_UNIT
    return torch.stack(
        [torch.full((count,), left_right), torch.full((count,), -3.0), seen, torch.full((count,), abdomen)], 1
    )


def heights(count: int = 12) -> torch.Tensor:
    return 10.0 * torch.arange(count)


def test_evidence_is_the_mean_over_slices_with_organs():
    mixed = torch.cat([outputs(6, left_right=-2.0), outputs(6, abdomen=-5.0, left_right=5.0)])

    found = gather_evidence(mixed, heights())

    share = torch.tensor([4.0, -5.0]).sigmoid()
    assert found.left_right == pytest.approx(float((share @ torch.tensor([-2.0, 5.0])) / share.sum()), abs=1e-4)
    assert (found.slices, found.extent) == (6, 60.0)
    assert found.abdomen == pytest.approx(4.0)  # of its best stretch


@pytest.mark.parametrize("rising", [1.0, 0.5, -1.0])
def test_heights_that_fall_are_evidence_of_upside_down(rising):
    found = gather_evidence(outputs(rising=rising), heights())

    deviation = float(heights().std(correction=0))  # all slices weigh alike
    assert found.upside_down == pytest.approx(-rising * deviation, rel=1e-4)


def test_the_order_in_which_slices_come_does_not_matter():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))

    shuffled = gather_evidence((outputs() + noise)[order], heights()[order])

    assert shuffled == pytest.approx(gather_evidence(outputs() + noise, heights()))


def test_one_sure_slice_does_not_outvote_the_others():
    one = outputs()
    one[3, 0] = 1000.0
    assert gather_evidence(one, heights()).left_right < 0


def test_a_single_slice_says_nothing_of_up_and_down():
    found = gather_evidence(outputs(1), heights(1))
    assert (found.upside_down, found.extent) == (0.0, 0.0)


def test_a_written_head_says_the_same_for_its_backbone_and_no_other(tmp_path):
    backbone, head = make_backbone(), OrientationHead(128)
    pooled = torch.randn(3, 128, 4, 4, generator=torch.Generator().manual_seed(0))
    head.fit_statistics(pooled)
    save_head(head, tmp_path / "head.pt", backbone=backbone, about=LIMITS)

    loaded, about = load_head(tmp_path / "head.pt", backbone)

    assert torch.allclose(loaded(pooled), head.eval()(pooled), atol=0.02)  # half precision
    assert about["limits"] == LIMITS["limits"]
    backbone.model.no_mem_embed.data += 1
    assert load_head(tmp_path / "head.pt", backbone) is None


def test_what_is_no_head_is_named(tmp_path):
    torch.save({"model": {}}, tmp_path / "model.pt")
    with pytest.raises(UnusableFileError, match="is no orientation head: it lacks .*pretrain_orientation"):
        load_head(tmp_path / "model.pt", make_backbone())


def test_a_head_with_nan_is_refused(tmp_path):
    backbone, head = make_backbone(), OrientationHead(128)
    head.layers[2].weight.data[0, 0] = torch.nan
    save_head(head, tmp_path / "head.pt", backbone=backbone, about=LIMITS)
    with pytest.raises(UnusableFileError, match="NaN"):
        load_head(tmp_path / "head.pt", backbone)
