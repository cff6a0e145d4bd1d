"""Synthetic clips: shapes and ranges, determinism, and the curriculum of stages."""

from __future__ import annotations

import pytest
import torch
from scripts.pretraining.synthetic_clips import SyntheticClips

STAGES = [
    {"epochs": 2, "image_size": 64, "frames": 1, "clips": 2},
    {"epochs": 1, "image_size": 96, "frames": 3, "clips": 1},
]


def clips(epoch: int = 1, **changes) -> SyntheticClips:
    dataset = SyntheticClips(**{"stages": STAGES, "objects": 3, "length": 4, "seed": 0, **changes})
    dataset.set_epoch(epoch)
    return dataset


@pytest.mark.parametrize("epoch, count, frames, size", [(1, 2, 1, 64), (3, 1, 3, 96)])
def test_shapes_are_those_of_the_stage(epoch, count, frames, size):
    batch = clips(epoch)[0]

    assert batch["image"].shape == (count, frames, 1, size, size)
    assert batch["mask"].shape == (count, 3, frames, size, size)
    assert (batch["image"].dtype, batch["mask"].dtype) == (torch.float32, torch.bool)


@pytest.mark.parametrize("epoch", [1, 3])
def test_intensities_lie_between_0_and_1(epoch):
    image = torch.cat([clips(epoch)[index]["image"] for index in range(4)])

    assert torch.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize("epoch", [1, 3])
def test_every_object_is_seen_in_some_frame(epoch):
    masks = torch.cat([clips(epoch)[index]["mask"] for index in range(4)])

    assert masks.flatten(2).any(2).all()


def test_objects_leave_their_surroundings_to_see():
    masks = torch.cat([clips()[index]["mask"] for index in range(4)])

    assert masks.float().mean((2, 3, 4)).max() < 0.5  # components over 45% are not followed; then dilated


def test_the_same_seed_epoch_and_index_give_the_same_clips():
    torch.manual_seed(1)
    first = clips(epoch=2)[3]
    torch.manual_seed(2)
    dataset = clips(epoch=2)
    dataset[0]

    second = dataset[3]

    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("change", [{"epoch": 2}, {"seed": 1}])
def test_another_epoch_or_seed_gives_other_clips(change):
    assert not torch.equal(clips(**change)[0]["image"], clips()[0]["image"])


def test_another_index_gives_other_clips():
    dataset = clips()

    assert not torch.equal(dataset[0]["image"], dataset[1]["image"])


@pytest.mark.parametrize("epoch, stage", [(1, 0), (2, 0), (3, 1), (9, 1)])
def test_stages_follow_one_another_and_the_last_one_stays(epoch, stage):
    assert clips(epoch).stage() == STAGES[stage]


def test_epochs_and_length():
    dataset = clips()

    assert (dataset.epochs, len(dataset)) == (3, 4)


@pytest.mark.parametrize("stages", [[], [{"epochs": 1}], [{**STAGES[0], "size": 64}]])
def test_an_incomplete_stage_is_refused(stages):
    with pytest.raises(ValueError, match="Each stage needs"):
        SyntheticClips(stages)


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_out_of_the_epoch_is_refused(index):
    with pytest.raises(IndexError):
        clips()[index]
