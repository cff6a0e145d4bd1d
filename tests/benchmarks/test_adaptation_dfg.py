"""DFG's phases: aggregation of features, boxes given to SAM2, pseudo labels made of its masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scripts.networks.sam2_backbone import FrozenSAM2

from benchmarks.adaptation import dfg
from benchmarks.adaptation.box_search import SearchSettings
from benchmarks.adaptation.source_model import FeatureUNet

SIZE = 64


@pytest.fixture
def network() -> FeatureUNet:
    torch.manual_seed(0)
    return FeatureUNet(organs=2, channels=(4, 8), features=6).eval()


@pytest.fixture(scope="module")
def backbone() -> FrozenSAM2:
    torch.manual_seed(0)
    return FrozenSAM2("sam2_nano", SIZE)


def test_aggregation_costs_nothing_where_pixels_lie_on_all_prototypes():
    prototypes = 50 * torch.eye(3)
    features = torch.eye(3).T.view(1, 3, 1, 3)

    assert dfg.aggregation_loss(prototypes, features).item() == pytest.approx(0, abs=1e-6)


def test_a_prototype_that_no_pixel_is_like_costs_its_share():
    """Pixels on the first of three orthogonal prototypes: the other two are at cosine distance 1 of every pixel."""
    features = torch.eye(3)[:, :1].expand(3, 8).reshape(1, 3, 2, 4)

    loss = dfg.aggregation_loss(50 * torch.eye(3), features)

    assert loss.item() == pytest.approx((0 + 2 / 3) / 2, abs=1e-6)


def test_aggregation_brings_features_to_an_unchanged_classifier(network):
    images = torch.rand(4, 1, SIZE, SIZE).half()
    before = {key: value.clone() for key, value in network.state_dict().items()}

    aggregated = dfg.aggregate(network, images, steps=12, slices_per_step=4, learning_rate=1e-2)

    assert torch.equal(aggregated.prototypes, network.prototypes)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with torch.no_grad():
        losses = [
            dfg.aggregation_loss(each.prototypes, each.features(images.float())) for each in (network, aggregated)
        ]
    assert losses[1] < losses[0]


def test_boxes_are_given_to_sam2_in_pixels_of_its_input(backbone, monkeypatch):
    given = []
    decode = backbone.decode

    def record(conditioned, features, points, token):
        given.append((points, token, features.embedding))
        return decode(conditioned, features, points=points, token=token)

    monkeypatch.setattr(backbone, "decode", record)
    encoded = backbone.encode_image(torch.rand(2, 1, SIZE, SIZE))

    masks = dfg.segment_boxes(backbone, encoded, [((1, 3), (2, 4, 10, 12)), ((0, 1), (0, 1, 5, 6))], size=SIZE // 2)

    (points, labels), token, embedding = given[0]
    assert points.tolist() == [[[4, 8], [20, 24]], [[0, 2], [10, 12]]]
    assert labels.tolist() == [[2, 3], [2, 3]] and token == "single"
    assert torch.equal(embedding, encoded.embedding[[1, 0]])
    assert [mask.shape for mask in masks] == [(SIZE // 2, SIZE // 2)] * 2


def test_masks_that_were_found_take_the_place_of_predictions(network, backbone, monkeypatch):
    """Organ 2 keeps its prediction in the first slice and has a mask in the second; organ 1's lies over both."""
    found = np.zeros((SIZE, SIZE), bool)
    found[8:20, 8:20] = True
    second = np.zeros((SIZE, SIZE), bool)
    second[16:40, 16:40] = True
    masks = {(0, 1): found, (0, 2): None, (1, 1): found, (1, 2): second}
    monkeypatch.setattr(dfg, "_search_slices", lambda *args: masks)
    logits = torch.zeros(2, 3, SIZE, SIZE)
    logits[:, 2, 16:40, 16:40] = logits[:, 1, 50:60, 50:60] = logits[0, 2, 62, 62] = 9.0
    monkeypatch.setattr(network, "classify", lambda features: logits)
    expected = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    expected[16:40, 16:40] = 2
    expected[8:20, 8:20] = 1

    labels, count = dfg.search_boxes(network, backbone, torch.rand(2, 1, SIZE, SIZE))

    assert count == 3
    assert torch.equal(labels, expected.expand(2, 1, SIZE, SIZE))


def test_adaptation_changes_a_copy_and_searches_with_the_backbone(network, backbone, capsys):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    # an untrained model is sure of nothing, and random masks may change a lot
    settings = SearchSettings(sure=0, min_sure_area=1, min_area=0, changes=(1e6, 1e6), steps=2)
    steps = {"aggregation_steps": 1, "retraining_steps": 2, "retraining_rate": 1e-2}
    torch.manual_seed(0)

    adapted = dfg.adapt(network, backbone, {"a": torch.rand(2, 1, SIZE, SIZE).half()}, **steps, settings=settings)

    assert "masks found in 2 slices" in capsys.readouterr().out
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not torch.equal(adapted.classifier.weight, network.classifier.weight)
