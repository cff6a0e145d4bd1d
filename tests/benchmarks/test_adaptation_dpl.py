"""DPL's denoising: which pixels of the pseudo labels count, and what adaptation changes."""

from __future__ import annotations

import pytest
import torch

from benchmarks.adaptation.dpl import DenoisedLabels, Estimates, adapt, denoise, masked_loss, monte_carlo
from benchmarks.adaptation.source_model import FeatureUNet

SIZE = 16
ORGAN = torch.zeros(SIZE, SIZE, dtype=torch.bool)
ORGAN[4:12, 4:12] = True


def estimates(**changed) -> Estimates:
    """One slice, one organ: sure, certain, and with features that tell it from the rest."""
    values = {
        "probability": torch.where(ORGAN, 0.95, 0.05)[None, None],
        "deviation": torch.zeros(1, 1, SIZE, SIZE),
        "features": torch.stack([ORGAN.float(), 1 - ORGAN.float()])[None],
    }
    return Estimates(**(values | changed))


def network(dropout: float = 0.1) -> FeatureUNet:
    torch.manual_seed(0)
    return FeatureUNet(organs=2, channels=(4, 8), features=6, dropout=dropout).eval()


def test_sure_and_certain_pixels_all_count():
    labels = denoise(estimates())

    assert torch.equal(labels.pseudo[0, 0], ORGAN)
    assert labels.counts.all()


def test_uncertain_pixels_do_not_count():
    deviation = torch.zeros(1, 1, SIZE, SIZE)
    deviation[..., 5:7, 2:9] = 0.06

    labels = denoise(estimates(deviation=deviation))

    assert torch.equal(labels.counts, deviation < 0.05)


def test_pixels_nearer_to_the_prototype_of_the_other_class_do_not_count():
    """A part of the organ looks like the background, and a part of the background like the organ."""
    features = estimates().features.clone()
    swapped = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    swapped[5:7, 5:7] = swapped[0:2, 0:3] = True
    features[..., swapped] = features[..., swapped].flip(1)

    labels = denoise(estimates(features=features))

    assert torch.equal(labels.pseudo[0, 0], ORGAN)
    assert torch.equal(labels.counts[0, 0], ~swapped)


def test_prototypes_are_made_of_certain_pixels_alone():
    """Most of the organ has uncertain features of another kind, which would draw the prototype away."""
    uncertain = ORGAN.clone()
    uncertain[4:6, 4:12] = False
    features = torch.stack([ORGAN.float(), torch.zeros(SIZE, SIZE)])
    features[:, uncertain] = torch.tensor([[-9.0], [0.0]])

    labels = denoise(estimates(features=features[None], deviation=0.1 * uncertain[None, None].float()))

    assert torch.equal(labels.counts[0, 0], ~uncertain)


def test_an_organ_without_a_certain_pixel_has_no_foreground_that_counts():
    labels = denoise(
        estimates(probability=torch.where(ORGAN, 0.95, 0.05)[None, None], deviation=ORGAN[None, None] * 1.0)
    )

    assert torch.equal(labels.counts[0, 0], ~ORGAN)


def test_deviations_come_from_dropout():
    torch.manual_seed(0)
    images = torch.rand(3, 1, SIZE, SIZE)
    still, moving = (monte_carlo(network(rate), images, passes=3, batch=2) for rate in (0.0, 0.5))

    assert still.deviation.max() < 1e-6 < moving.deviation.mean()
    torch.testing.assert_close(still.probability, network(0.0)(images).softmax(1)[:, 1:])
    with pytest.raises(ValueError, match="at least 2"):
        monte_carlo(network(), images, passes=1)


def test_pixels_that_do_not_count_give_no_gradient():
    logits = torch.randn(1, 3, SIZE, SIZE, requires_grad=True)
    counts = torch.stack([ORGAN, ORGAN])[None]

    masked_loss(logits, DenoisedLabels(torch.stack([ORGAN, ~ORGAN])[None], counts)).backward()

    touched = logits.grad.abs().sum(1)[0] > 0
    assert torch.equal(touched, ORGAN)


def test_adaptation_changes_a_copy():
    torch.manual_seed(0)
    source = network()
    before = {key: value.clone() for key, value in source.state_dict().items()}

    # no pixel is sure of an organ yet, but all of them that are not are pseudo labels too
    adapted = adapt(source, {"a": torch.rand(4, 1, SIZE, SIZE).half()}, passes=2, max_deviation=1.0, slices_per_step=2)

    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert not torch.equal(adapted.classifier.weight, source.classifier.weight)
    assert not source.training and not adapted.training
