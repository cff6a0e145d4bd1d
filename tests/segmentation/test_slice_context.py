"""Slices shown between their neighbours: the same in training and in the walk, and a prior knows which it was
trained on.
"""

from __future__ import annotations

import pytest
import torch
from monai.transforms import Compose, LoadImaged
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.sam2_backbone import FrozenSAM2, between_neighbours
from scripts.segmentation.propagation import VolumetricInferer
from scripts.training.encoded_slices import EncodedSlices

from tests.conftest import save_volume

SIZE = 64


def network(slice_context: bool) -> DiffuSAM:
    torch.manual_seed(0)
    backbone = FrozenSAM2("sam2_nano", SIZE, slice_context=slice_context)
    prior = MemoryPrior(32, 128, organs=2, block_out_channels=(32, 64), attention_levels=1)
    prior.fitted.fill_(True)
    return DiffuSAM(backbone, prior, organs=["spleen", "liver"])


@pytest.fixture(scope="module")
def volume():
    return torch.rand(1, SIZE, SIZE, 4, generator=torch.Generator().manual_seed(0))


def test_each_slice_has_its_neighbours_beside_it_and_an_end_itself():
    image = torch.arange(4.0).view(1, 4, 1, 1, 1)

    assert between_neighbours(image)[0, :, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


@pytest.mark.parametrize("indices", [[0], [3, 1], [0, 1, 2, 3]])
def test_the_walk_shows_what_training_shows(volume, indices):
    shown = network(slice_context=True)
    every = shown.backbone.encode_image(between_neighbours(volume.permute(3, 0, 1, 2)))

    source = VolumetricInferer()._source(volume[None], shown)

    torch.testing.assert_close(source.features(indices).embedding, every[indices].embedding)


def test_training_encodes_slices_between_their_neighbours(volume, tmp_path):
    files = {key: str(save_volume(tmp_path / f"{key}.nii.gz", volume[0].numpy())) for key in ("image", "label")}
    transform = Compose([LoadImaged(["image", "label"], ensure_channel_first=True)])
    shown, alone = network(slice_context=True), network(slice_context=False)

    encoded = [
        EncodedSlices(
            [{**files, "case": "a"}],
            transform,
            backbone=each.backbone,
            organs=each.organs,
            cache_dir=tmp_path,
            batch_size=3,
        )
        for each in (shown, alone)
    ]

    expected = shown.backbone.encode_image(between_neighbours(volume.permute(3, 0, 1, 2))).embedding
    assert encoded[0].files != encoded[1].files  # neither is taken for the other's cache
    for position in range(4):
        item, other = (each[position * len(shown.organs)]["embedding"] for each in encoded)
        torch.testing.assert_close(item.float(), expected[position], atol=2e-3, rtol=2e-3)
        assert not torch.allclose(item, other, atol=1e-2)


def test_a_prior_trained_on_the_other_is_refused():
    state = network(slice_context=True).state_dict()

    with pytest.raises(ValueError, match="trained with slice_context True, but the configuration sets False"):
        network(slice_context=False).load_state_dict(state)
