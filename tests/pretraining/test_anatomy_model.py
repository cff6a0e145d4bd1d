"""Pretraining on anatomy: its losses and what they reach, and the data that a prior learns from."""

from __future__ import annotations

import pytest
import torch
from scripts.data.phantom_anatomy import ORGANS
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.logits import mask_to_logits
from scripts.networks.sam2_backbone import SAM2, FrozenSAM2
from scripts.pretraining.anatomy import write_patients
from scripts.pretraining.anatomy_model import AnatomyModel
from scripts.pretraining.patient_clips import CLASSES, AnatomyClips, PatientPool
from scripts.pretraining.pretraining_data import ClipMix, EncodedAnatomy

STAGES = [{"epochs": 1, "image_size": 64, "frames": 3, "clips": 2}]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    pool = PatientPool(write_patients(tmp_path_factory.mktemp("patients"), 1))
    return AnatomyClips(pool, STAGES, organs_per_clip=2, extra_objects=1, length=5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    prior = MemoryPrior(32, 128, organs=len(ORGANS), use_high_res=True, block_out_channels=(32, 64), attention_levels=1)
    return AnatomyModel(SAM2("sam2_nano", 64), prior)


def test_every_loss_is_finite_and_reaches_backbone_prior_and_head(model, clips):
    batch = clips.batch(0)
    model.fit_statistics([batch])
    torch.manual_seed(1)

    losses = model(**batch)
    losses["loss"].backward()

    assert {"mask", "dice", "iou", "object", "prior", "naming"} <= losses.keys()
    assert all(value.isfinite() for value in losses.values())
    for part in (model.backbone.model.image_encoder, model.prior, model.head):
        assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in part.parameters())


def test_random_shapes_know_no_organs(model, clips):
    batch = clips.batch(0)

    losses = model(batch["image"], batch["mask"])

    assert "prior" not in losses and losses["loss"].isfinite()


def test_statistics_follow_the_memories_in_training_alone(model, clips):
    batch = clips.batch(0)
    model.fit_statistics([batch])
    before = model.prior.memory_mean.clone()

    with torch.no_grad():
        model.eval()(**batch)
        unchanged = model.prior.memory_mean.clone()
        model.train()(**batch)

    assert torch.equal(unchanged, before)
    assert not torch.equal(model.prior.memory_mean, before)


def test_kinds_of_clips_take_turns(clips):
    shapes = torch.utils.data.DataLoader([{"kind": "shape"}] * 2, batch_size=None)

    drawn = ["shape" if "kind" in batch else "anatomy" for batch in ClipMix(clips, shapes, every=3)]

    assert drawn == ["anatomy", "anatomy", "shape", "anatomy", "anatomy"]


def test_encoded_pairs_are_what_the_backbone_says_of_them(clips):
    backbone = FrozenSAM2("sam2_nano", 64)
    every_organ = AnatomyClips(clips.pool, STAGES, length=5)
    encoded = EncodedAnatomy(every_organ, backbone, organs=ORGANS, batch_size=6, context_share=0.0)

    batch, again = encoded.batch(0), encoded.batch(0)

    assert batch["mask"].shape == (6, 1, 64, 64) and batch["memory"].shape == (6, 32, 4, 4)
    assert torch.equal(batch["present"], batch["mask"].flatten(1).any(1))
    assert torch.equal(batch["memory"], again["memory"])
    masks = every_organ.batch(0)["mask"][:, : len(ORGANS), 1]
    for mask, organ in zip(batch["mask"][:, 0], batch["organ"]):
        assert any(torch.equal(mask, each) for each in masks[:, organ])


def test_pairs_that_are_kept_are_encoded_once_and_drawn_in_every_epoch(clips):
    backbone = FrozenSAM2("sam2_nano", 64)
    options = {"organs": ORGANS, "batch_size": 6}
    encoded = EncodedAnatomy(AnatomyClips(clips.pool, STAGES, length=3), backbone, kept=2, **options)
    anew = EncodedAnatomy(AnatomyClips(clips.pool, STAGES, length=3), backbone, **options)
    there = torch.cat([anew.batch(index)["memory"] for index in range(2)]).half().float()

    first = list(encoded)
    encoded.anatomy = None
    encoded.set_epoch(2)
    second = list(encoded)

    assert len(first) == len(second) == 3
    assert not torch.equal(first[0]["memory"], second[0]["memory"])
    for batch in first + second:
        assert {key: (each.shape, each.dtype) for key, each in batch.items()} == {
            key: (each.shape, each.dtype) for key, each in anew.batch(0).items()
        }
        assert torch.equal(batch["present"], batch["mask"].flatten(1).any(1))
        assert all(any(torch.equal(each, other) for other in there) for each in batch["memory"])


def test_what_is_kept_does_not_depend_on_the_epoch_in_which_a_training_goes_on(clips):
    backbone = FrozenSAM2("sam2_nano", 64)
    batches = []
    for epochs in ((1, 2), (2,)):
        anatomy = AnatomyClips(clips.pool, STAGES, length=3)
        encoded = EncodedAnatomy(anatomy, backbone, organs=ORGANS, batch_size=6, kept=2)
        for epoch in epochs:
            encoded.set_epoch(epoch)
            batches.append(encoded.batch(0))

    _, there, resumed = batches
    assert all(torch.equal(there[key], resumed[key]) for key in there)


def test_other_organs_are_refused(clips):
    with pytest.raises(ValueError, match="Painted patients have the organs"):
        EncodedAnatomy(clips, FrozenSAM2("sam2_nano", 64), organs=["pancreas"], batch_size=2)


def test_clips_that_are_not_followed_are_named(model, clips):
    stage = {"epochs": 1, "image_size": 64, "frames": 1, "clips": 3, "followed": 1, "context": True}
    batch = AnatomyClips(clips.pool, [stage], organs_per_clip=2, extra_objects=1).batch(0)
    model.fit_statistics([batch])
    named = []
    model._naming_loss = lambda coarse, fine, classes: named.append(len(fine)) or fine.sum() * 0

    losses = model(**batch)

    assert batch["mask"].shape[0] == 1 and losses["loss"].isfinite()
    assert named == [3]


def test_where_nothing_is_followed_naming_is_all_that_is_learned(model, clips):
    stage = {"epochs": 1, "image_size": 64, "frames": 2, "clips": 2, "followed": 0, "context": True}
    batch = AnatomyClips(clips.pool, [stage]).batch(0)

    losses = model(**batch)
    losses["loss"].backward()

    assert set(losses) == {"loss", "naming"}
    assert any(parameter.grad is not None for parameter in model.backbone.model.image_encoder.parameters())
    assert all(parameter.grad is None for parameter in model.backbone.model.memory_encoder.parameters())


def test_own_memories_of_organs_are_of_what_the_head_names(model, clips):
    batch = clips.batch(0)
    model.named_share = 1.0
    encoded = model.encode(batch["image"])
    named = torch.full((6, len(CLASSES), 16, 16), -9.0)
    organ = batch["organ"]
    for clip, first in enumerate(
        organ[:, 0].tolist()
    ):  # the clip's first organ is named on the left, its second nowhere
        named[3 * clip : 3 * clip + 3, first, :, :8] = 9.0
        named[3 * clip : 3 * clip + 3, -1, :, 8:] = 9.0
    generated = torch.full((12, 32, 4, 4), torch.nan)

    memory = model._some_named(generated, encoded, named, organ)

    left = torch.zeros(1, 1, 64, 64)
    left[..., :32] = 1
    for row in range(12):
        expected = left if row % 2 == 0 else left * 0
        features = encoded[row // 2 : row // 2 + 1]
        assert torch.allclose(
            memory[row], model.backbone.encode_memory(features, mask_to_logits(expected))[0], atol=1e-5
        )
    model.named_share = 0.0
    assert model._some_named(generated, encoded, named, organ).isnan().all()


def test_damaged_masks_lose_pieces_gain_anothers_and_are_lost(model):
    torch.manual_seed(3)
    masks = torch.zeros(64, 1, 64, 64)
    masks[::2, :, 10:30, 10:30] = 1
    masks[1::2, :, 40:60, 40:60] = 1

    damaged = model._damaged(masks)

    assert damaged.min() >= 0 and damaged.max() <= 1
    own, others = (damaged * masks).sum((1, 2, 3)), (damaged * (1 - masks)).sum((1, 2, 3))
    assert (own < 400).sum() > 20 and (own > 0).sum() > 20 and (others > 0).sum() > 10
    assert (damaged.flatten(1).amax(1) == 0).sum() > 4
    assert not (damaged * (1 - masks) * (1 - masks.roll(1, 0))).any()


@pytest.mark.parametrize("damage", [0.0, 1.0])
def test_own_memories_are_damaged_as_often_as_asked(model, clips, monkeypatch, damage):
    asked = []
    monkeypatch.setattr(model, "_damaged", lambda masks: asked.append(len(masks)) or masks)
    model.damage = damage
    batch = clips.batch(0)
    model.fit_statistics([batch])
    torch.manual_seed(1)

    assert model(**batch)["loss"].isfinite()
    assert bool(asked) == (damage > 0)


@pytest.mark.parametrize(("far_share", "expected"), [(0.0, {1, 2}), (1.0, {1})])
def test_far_frames_see_the_first_one_alone(model, clips, monkeypatch, far_share, expected):
    model.own_share, model.far_share = 0.0, far_share
    condition, counts = model.backbone.condition, []

    def counting(features, memories=()):
        counts.append(len(memories))
        return condition(features, memories)

    monkeypatch.setattr(model.backbone, "condition", counting)
    batch = clips.batch(0)
    model.fit_statistics([batch])
    for seed in range(8):
        torch.manual_seed(seed)
        model(**batch)

    assert {count for count in counts if count} == expected
