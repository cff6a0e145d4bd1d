"""What shows slices to a backbone with ``slice_context`` shows each between its neighbours, as training does."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from scripts.networks.sam2_backbone import FrozenSAM2, between_neighbours

from benchmarks.adaptation import dfg
from benchmarks.adaptation.source_model import FeatureUNet
from benchmarks.baselines.linear_probe import LinearProbe, ProbeInferer
from benchmarks.baselines.prompted import PromptedInferer, PromptedSAM2
from benchmarks.baselines.propagated import PropagatedInferer
from benchmarks.baselines.true_memory import TrueMemoryInferer
from tests.helpers.networks import CHANNELS, SIZE, make_backbone

ROWS = {
    "true_memory": lambda backbone: (TrueMemoryInferer(1), backbone, True),
    "prompted": lambda backbone: (PromptedInferer(1, "box"), PromptedSAM2(backbone), True),
    "propagated": lambda backbone: (PropagatedInferer(1), backbone, True),
    "linear_probe": lambda backbone: (ProbeInferer(LinearProbe(CHANNELS, 1), 1, batch_size=2), backbone, False),
}


@pytest.fixture
def volume() -> tuple[MetaTensor, MetaTensor]:
    """Five slices and an organ in all of them."""
    image = torch.rand(1, 1, SIZE, SIZE, 5, generator=torch.Generator().manual_seed(0))
    label = torch.zeros_like(image)
    label[:, :, 20:40, 20:40] = 1
    return MetaTensor(image, torch.eye(4)), MetaTensor(label, torch.eye(4))


def spied(context: bool, monkeypatch) -> tuple[FrozenSAM2, list[torch.Tensor]]:
    backbone, seen = make_backbone(slice_context=context), []
    encode = backbone.encode_image
    monkeypatch.setattr(backbone, "encode_image", lambda image: seen.append(image) or encode(image))
    return backbone, seen


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("row", ROWS)
def test_a_row_shows_slices_as_training_does(volume, monkeypatch, row, context):
    image, label = volume
    backbone, seen = spied(context, monkeypatch)
    inferer, network, with_truth = ROWS[row](backbone)

    inferer(image, network, *([label] if with_truth else []))

    slices = image.as_tensor()[0].permute(3, 0, 1, 2)
    torch.testing.assert_close(torch.cat(seen), between_neighbours(slices) if context else slices)


@pytest.mark.parametrize("context", [True, False])
def test_the_search_of_boxes_does_so_over_its_batches(volume, monkeypatch, context):
    backbone, seen = spied(context, monkeypatch)
    monkeypatch.setattr(dfg, "_search_slices", lambda *_: {})
    monkeypatch.setattr(dfg, "_merged", lambda row, *_: row.argmax(0).byte())
    slices = volume[0].as_tensor()[0].permute(3, 0, 1, 2)

    dfg.search_boxes(FeatureUNet(1, (4, 8), features=6).eval(), backbone, slices, batch=2)

    torch.testing.assert_close(torch.cat(seen), between_neighbours(slices) if context else slices)
    torch.testing.assert_close(backbone.shown(slices), torch.cat(seen))
