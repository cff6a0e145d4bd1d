"""The orientation head: what its slices say together, and which backbone it is for."""

from __future__ import annotations

import pytest
import torch
from scripts.errors import UnusableFileError
from scripts.networks.orientation import (
    HEIGHT_UNIT,
    MIRRORED,
    OUTPUTS,
    OrientationHead,
    gather_evidence,
    load_head,
    save_head,
    to_mirror,
)

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


def of_mirrored(found: torch.Tensor, left_right: float | None = None) -> torch.Tensor:
    """Of the mirrored slices: what the slices themselves have, the sides exchanged, or a value."""
    mirrored = found[to_mirror(found)].clone()
    mirrored[:, 0] = -mirrored[:, 0] if left_right is None else left_right
    return mirrored


def gather(found: torch.Tensor, where: torch.Tensor):
    return gather_evidence(found, where, of_mirrored(found))


def test_evidence_is_the_mean_over_slices_with_organs():
    mixed = torch.cat([outputs(6, left_right=-2.0), outputs(6, abdomen=-5.0, left_right=5.0)])
    mixed[:6, 1], mixed[6:, 1] = -2.0, 5.0

    found = gather(mixed, heights())

    share = torch.tensor([4.0, -5.0]).sigmoid()
    assert found.front_back == pytest.approx(float((share @ torch.tensor([-2.0, 5.0])) / share.sum()), abs=1e-4)
    assert found.left_right == pytest.approx(-2.0)  # of the mirrored, which all hold organs
    assert (found.slices, found.extent) == (6, 60.0)
    assert found.abdomen == pytest.approx(4.0)  # of its best stretch


def test_what_is_taken_amiss_in_both_sides_is_no_evidence():
    """A head that always finds a scan exchanged says nothing; one that finds the mirrored one less so, does."""
    found = outputs(left_right=3.0)
    assert gather_evidence(found, heights(), of_mirrored(found, 3.0)).left_right == pytest.approx(0.0)
    assert gather_evidence(found, heights(), of_mirrored(found, 1.0)).left_right == pytest.approx(1.0)


def test_slices_with_organs_are_mirrored_evenly():
    found = outputs(40, abdomen=-4.0)
    found[10:30, 3] = 4.0
    chosen = to_mirror(found).tolist()
    assert len(chosen) == MIRRORED and chosen == sorted(set(chosen))
    assert 10 <= chosen[0] <= 12 and 27 <= chosen[-1] <= 29
    assert to_mirror(found[10:13]).tolist() == [0, 1, 2]  # all there are
    assert len(to_mirror(outputs(2, abdomen=-4.0))) == 2  # where none holds any


@pytest.mark.parametrize("rising", [1.0, 0.5, -1.0])
def test_heights_that_fall_are_evidence_of_upside_down(rising):
    found = gather(outputs(rising=rising), heights())

    deviation = float(heights().std(correction=0))  # all slices weigh alike
    assert found.upside_down == pytest.approx(-rising * deviation, rel=1e-4)


def test_slices_may_come_from_above():
    noise = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    noise[:, 0] = 0  # others may be mirrored
    found = outputs() + noise
    assert gather(found.flip(0), heights().flip(0)) == pytest.approx(gather(found, heights()), abs=1e-4)


@pytest.mark.parametrize("side", ["left_right", "front_back"])
def test_one_sure_slice_does_not_outvote_the_others(side):
    one = outputs()
    one[3, OUTPUTS.index(side)] = 1000.0
    assert getattr(gather(one, heights()), side) < 0


def test_a_single_slice_says_nothing_of_up_and_down():
    found = gather(outputs(1), heights(1))
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
