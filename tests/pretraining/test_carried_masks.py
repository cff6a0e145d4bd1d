"""Pairs of slices far from each other, and what memory attention learns from them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from scripts.errors import SettingError
from scripts.networks.logits import mask_to_logits
from scripts.networks.sam2_backbone import SAM2
from scripts.networks.sam2_types import ImageFeatures, Memory
from scripts.pretraining.anatomy import write_patients
from scripts.pretraining.carried_masks import CarryingModel, EncodedClips, RecogniseTissues, _regression
from scripts.pretraining.patient_clips import CLASSES, AnatomyClips, PatientPool

STAGE = {"epochs": 1, "image_size": 64, "frames": 5, "clips": 2, "context": True}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    pool = PatientPool(write_patients(tmp_path_factory.mktemp("patients"), 1))
    torch.manual_seed(0)
    anatomy = AnatomyClips(pool, [STAGE], extra_objects=1)
    return EncodedClips(anatomy, SAM2("sam2_nano", 64), batches=2, rows=16, length=3)


@pytest.fixture
def model(clips):
    return CarryingModel(clips.backbone)


def test_rows_are_of_one_object_which_the_source_holds(clips):
    batch = clips.batch(0)

    assert batch["embedding"].shape == (5, 16, 128, 4, 4) and batch["mask"].shape == (5, 16, 1, 64, 64)
    assert batch["classes"].shape == (5, 16, 4, 4)
    target, source, *_ = batch["mask"].flatten(2).any(2)
    assert source.all() and not target.all()
    assert (batch["embedding"][0] != batch["embedding"][1]).flatten(1).any(1).all()
    assert all((batch["embedding"][0] != passed).flatten(1).any(1).all() for passed in batch["embedding"][2:])


def test_clips_of_one_slice_are_refused(clips):
    with pytest.raises(SettingError, match="`frames` must be 2 or more, got 1"):
        EncodedClips(AnatomyClips(clips.anatomy.pool, [{**STAGE, "frames": 1}]), clips.backbone)


def test_rows_follow_seed_epoch_and_index(clips):
    first, other = clips.batch(0), clips.batch(1)
    clips.set_epoch(2)
    later = clips.batch(0)
    clips.set_epoch(1)

    assert len(list(clips)) == len(clips) == 3 and len(clips.encoded) == 2
    assert all(torch.equal(first[name], value) for name, value in clips.batch(0).items())
    assert not torch.equal(first["embedding"], other["embedding"])
    assert not torch.equal(first["embedding"], later["embedding"])


def test_features_and_classes_are_those_of_the_slice(clips):
    drawn = clips.anatomy.batch(0)
    encoded = clips.backbone.encode_image(drawn["image"][:, 1])
    held = clips.encoded[0]

    assert torch.allclose(held["embedding"][:, 1].float(), encoded.embedding, rtol=2e-3, atol=2e-3)
    assert torch.allclose(held["high_res_fine"][:, 1].float(), encoded.high_res[0], rtol=2e-3, atol=2e-3)
    assert torch.equal(held["classes"], drawn["classes"][..., 8::16, 8::16])


def test_all_but_the_image_encoder_learns(clips, model):
    for seed in range(4):
        torch.manual_seed(seed)
        losses = model(**clips.batch(seed))
        losses["loss"].backward()
        assert all(value.isfinite() for value in losses.values())

    sam2 = model.backbone.model
    assert all(weight.grad is None for weight in sam2.image_encoder.parameters())
    assert sam2.sam_mask_decoder.conv_s0.weight.grad is None
    for part in (sam2.memory_encoder, sam2.memory_attention, sam2.sam_mask_decoder, model.tissues, model.place):
        assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in part.parameters())


@pytest.mark.parametrize(
    ("shares", "memories"),
    [((1.0, 0.0, [0]), {0}), ((0.0, 0.0, [0]), {1}), ((0.0, 1.0, [0]), {2}), ((0.0, 1.0, [3]), {1, 5})],
    ids=["a prompt", "another slice", "its own beside", "three decoded before"],
)
def test_what_a_slice_is_given(clips, model, monkeypatch, shares, memories):
    model.prompt_share, model.own_share, model.passed = shares
    condition, given = model.backbone.condition, []

    def counting(features, several=()):
        given.append(len(several))
        return condition(features, several)

    monkeypatch.setattr(model.backbone, "condition", counting)
    losses = model(**clips.batch(0))

    assert set(given) == memories
    assert ("tissue" in losses) == (shares[0] == 0)


def test_classes_are_told_by_regression_however_rare():
    torch.manual_seed(0)
    classes = torch.randint(0, 3, (4000,))
    classes[100:] = 2  # the others are rare
    tokens = torch.randn(4000, 5) * 0.1
    tokens[torch.arange(4000), classes] += 1

    weight, bias = _regression(tokens, classes)

    found = (tokens @ weight.T + bias).argmax(1)
    assert weight.shape == (len(CLASSES), 5) and (found == classes).float().mean() > 0.99


def test_attention_grows_where_tissues_agree(clips, monkeypatch):
    """The tokens of a memory that hold the tissue of the token that asks are attended to more than before."""
    torch.manual_seed(2)
    backbone = SAM2("sam2_nano", 64)
    batch = clips.batch(0)
    # features that say plainly what tissue each token is, and memories that keep them
    kinds = F.one_hot(batch["classes"], len(CLASSES)).permute(0, 1, 4, 2, 3).float()
    plain = torch.cat([20 * kinds, torch.zeros(5, 16, 128 - len(CLASSES), 4, 4)], 2)
    monkeypatch.setattr(clips, "batch", lambda index: {**batch, "embedding": plain})
    monkeypatch.setattr(backbone, "encode_memory", lambda features, logits: 5 * features.embedding[:, :32])
    attention = backbone.model.memory_attention.layers[-1].cross_attn_image

    def agreement() -> float:
        asked = {}
        hooks = [
            each.register_forward_hook(lambda module, _, output: asked.__setitem__(module, output))
            for each in (attention.q_proj, attention.k_proj)
        ]
        slices = [
            ImageFeatures(plain[place], (batch["high_res_fine"][place], batch["high_res_coarse"][place]))
            for place in range(2)
        ]
        with torch.no_grad():
            backbone.condition(slices[0], [Memory(backbone.encode_memory(slices[1], mask_to_logits(batch["mask"][1])))])
        for hook in hooks:
            hook.remove()
        logits = asked[attention.q_proj] @ asked[attention.k_proj].mT / attention.internal_dim**0.5
        asking, held = (classes.flatten(1) for classes in batch["classes"][:2])
        same = (asking[:, :, None] == held[:, None]) & (asking < 14)[:, :, None]  # of the organs and larger structures
        return (logits[same].mean() - logits[~same].mean()).item()

    grown = []
    before = copy.deepcopy(attention.state_dict())
    for strength in (0.0, 4.0, 8.0):
        attention.load_state_dict(before)
        RecogniseTissues(CarryingModel(backbone), clips, strength=strength, batches=1)()
        grown.append(agreement())

    assert grown[0] + 0.3 < grown[1] < grown[2] - 0.3
