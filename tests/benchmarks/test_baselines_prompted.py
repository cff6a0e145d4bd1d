"""Prompts drawn from true masks, and where they reach SAM2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Resized
from scripts.networks.sam2_backbone import FrozenSAM2

from benchmarks.baselines.prompted import PromptedInferer, PromptedSAM2
from benchmarks.baselines.prompts import prompt_points
from benchmarks.baselines.slicewise import network_slices

SIZE = 64
MASK = np.zeros((12, 20), bool)
MASK[2:7, 9:18] = True  # its middle is row 4, and any column 11 to 15 is as far inside


def test_points_are_drawn_inside_each_once():
    points, labels = prompt_points(MASK, "points", 45, np.random.default_rng(0))

    assert len({tuple(point) for point in points}) == 45 == MASK.sum()
    assert all(MASK[y, x] for x, y in points)
    assert labels == [1] * 45


def test_a_small_mask_gives_the_points_it_has():
    assert prompt_points(np.eye(1, dtype=bool), "points", 3) == ([[0, 0]], [1])


def test_points_depend_on_the_seed_alone():
    drawn = [prompt_points(MASK, "points", 5, np.random.default_rng(seed)) for seed in (0, 0, 1)]

    assert drawn[0] == drawn[1] != drawn[2]


def test_a_click_lies_deepest_and_a_box_on_the_outline():
    ((x, y),), _ = prompt_points(MASK, "click")

    assert y == 4 and 11 <= x <= 15
    assert prompt_points(MASK, "box") == ([[9, 2], [17, 6]], [2, 3])


@pytest.mark.parametrize(
    "mask, prompt, message", [(MASK, "scribble", "points, click, box"), (MASK & False, "box", "empty")]
)
def test_what_cannot_be_drawn_is_refused(mask, prompt, message):
    with pytest.raises(ValueError, match=message):
        prompt_points(mask, prompt)


# ---- in a volume


def test_slices_reach_a_network_as_they_do_in_training():
    image = torch.rand(1, 12, 20, 4)
    resized = Resized("image", (8, 8, -1), mode="trilinear", anti_aliasing=True)({"image": image})["image"]

    assert torch.allclose(
        network_slices(image[None], range(4), 8, torch.device("cpu")), resized.permute(3, 0, 1, 2), atol=1e-5
    )


@pytest.fixture
def spied(monkeypatch):
    """A backbone, and the points and labels that its decoder is asked with."""
    torch.manual_seed(0)
    backbone, asked = FrozenSAM2("sam2_nano", SIZE), []
    decode = backbone.decode

    def spy(conditioned, features, points, token):
        asked.append((points[0], points[1], token))
        return decode(conditioned, features, points=points, token=token)

    monkeypatch.setattr(backbone, "decode", spy)
    return backbone, asked


def volume() -> tuple[MetaTensor, MetaTensor]:
    """An image and a label ``(1, 1, 12, 20, 4)``: organ 1 in slices 1 and 2, organ 2 in slice 2."""
    label = torch.zeros(1, 1, 12, 20, 4)
    label[0, 0, ..., 1] = label[0, 0, ..., 2] = torch.as_tensor(MASK)
    label[0, 0, 8:11, 1:4, 2] = 2
    return MetaTensor(torch.rand(label.shape), torch.eye(4)), MetaTensor(label, torch.eye(4))


@pytest.mark.parametrize("points", [1, 4])
def test_points_reach_sam2_on_their_organ(spied, points):
    """In pixels of the network's input, which is of another size and shape than the slice."""
    backbone, asked = spied
    image, label = volume()

    PromptedInferer(2, points=points)(image, PromptedSAM2(backbone), label)

    assert [each[0].shape for each in asked] == [(1, points, 2), (2, points, 2)]  # no slice without an organ
    for organ, coordinates in enumerate(asked[1][0], start=1):
        y, x = ((coordinates[:, [1, 0]] + 0.5) * torch.tensor([12 / SIZE, 20 / SIZE]) - 0.5).round().long().T
        assert (label[0, 0, y, x, 2] == organ).all()


@pytest.mark.parametrize(
    "prompt, points, token", [("points", 1, "best_iou"), ("points", 3, "single"), ("box", 1, "single")]
)
def test_the_best_of_three_masks_is_taken_for_one_point_alone(spied, prompt, points, token):
    backbone, asked = spied
    image, label = volume()

    PromptedInferer(2, prompt, points=points)(image, PromptedSAM2(backbone), label)

    assert {each[2] for each in asked} == {token}


class Claims(torch.nn.Module):
    """Every organ's mask is the whole slice, the second with the higher logit."""

    def decode(self, inputs, index, points, labels):
        return torch.arange(1.0, 1 + len(points)).view(-1, 1, 1).expand(-1, 3, 3)


def test_organs_are_merged_by_the_highest_logit_and_kept_apart_beside():
    image, label = volume()

    merged, bits = PromptedInferer(2)(image, Claims(), label)[0]

    assert [set(merged[..., index].unique().tolist()) for index in range(4)] == [{0}, {1}, {2}, {0}]
    assert [set(bits[..., index].unique().tolist()) for index in range(4)] == [{0}, {1}, {3}, {0}]
