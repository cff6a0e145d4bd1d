"""Pretraining of the embedded backbone: losses of clips, prompts, the initial memory attention, the exported file."""

from __future__ import annotations

import pytest
import torch
from sam2.modeling.position_encoding import apply_rotary_enc
from scripts.networks.sam2_backbone import SAM2, FrozenSAM2
from scripts.pretraining.backbone import ClipModel, export_backbone, localise_memory_attention, random_prompts
from scripts.pretraining.synthetic_clips import SyntheticClips

SIZE = 64


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return SAM2("sam2_nano", image_size=SIZE)


def clips(frames: int, size: int = SIZE) -> dict[str, torch.Tensor]:
    stage = {"epochs": 1, "image_size": size, "frames": frames, "clips": 1}
    return SyntheticClips([stage], objects=2, length=1)[0]


@pytest.mark.parametrize("frames", [1, 3])
def test_losses_are_finite_scalars(backbone, frames):
    losses = ClipModel(backbone)(**clips(frames))

    expected = {"loss", "mask", "dice", "iou", "object", *(f"dice_frame_{frame}" for frame in range(frames))}
    assert set(losses) == expected
    assert all(value.shape == () and torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("frames", [1, 3])
def test_gradients_are_finite_and_reach_the_image_encoder(backbone, frames):
    ClipModel(backbone)(**clips(frames))["loss"].backward()

    gradients = {name: value.grad for name, value in backbone.model.named_parameters() if value.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    for block in ("image_encoder", "sam_mask_decoder"):
        assert any(gradient.any() for name, gradient in gradients.items() if name.startswith(block))


def test_later_frames_train_memory_attention_and_encoder(backbone):
    torch.manual_seed(0)

    ClipModel(backbone)(**clips(frames=3))["loss"].backward()

    for block in ("memory_attention", "memory_encoder"):
        assert any(value.grad is not None and value.grad.any() for value in getattr(backbone.model, block).parameters())


def test_the_loss_is_the_weighted_sum_of_its_parts(backbone):
    model = ClipModel(backbone, mask_weight=2.0, dice_weight=3.0, iou_weight=0.5, object_weight=0.25)

    losses = model(**clips(frames=1))

    expected = 2 * losses["mask"] + 3 * losses["dice"] + 0.5 * losses["iou"] + 0.25 * losses["object"]
    assert losses["loss"].item() == pytest.approx(expected.item())


def test_clips_of_another_size_resize_the_backbone(backbone):
    losses = ClipModel(backbone)(**clips(frames=1, size=96))

    assert backbone.image_size == 96
    assert torch.isfinite(losses["loss"])


def test_a_single_clip_can_be_learnt(backbone):
    torch.manual_seed(0)
    model, batch = ClipModel(backbone), clips(frames=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []

    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())

    assert sum(history[-5:]) < 0.8 * sum(history[:5])


def rectangles(count: int) -> torch.Tensor:
    """Masks ``(count, 1, SIZE, SIZE)`` of random rectangles at least 8 pixels wide and high."""
    start = torch.randint(0, SIZE - 24, (count, 2))
    stop = start + torch.randint(8, 24, (count, 2))
    places = torch.arange(SIZE)
    inside = [(places >= start[:, axis, None]) & (places < stop[:, axis, None]) for axis in (0, 1)]
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None].float()


@pytest.fixture
def prompted():
    """300 rectangles and their prompts: masks, points, labels."""
    torch.manual_seed(0)
    masks = rectangles(300)
    return masks, *random_prompts(masks)


def test_every_kind_of_prompt_is_drawn(prompted):
    _, _, labels = prompted

    assert {tuple(row) for row in labels.tolist()} == {(1, -1), (1, 1), (2, 3)}


def test_clicks_lie_in_their_objects(prompted):
    masks, points, labels = prompted

    item, click = (labels == 1).nonzero().T
    x, y = points[item, click].long().T

    assert masks[item, 0, y, x].all()


def test_boxes_lie_near_the_bounds_of_their_objects(prompted):
    masks, points, labels = prompted
    boxed = labels[:, 0] == 2
    bounds = []
    for mask in masks[boxed]:
        y, x = mask[0].nonzero().T
        bounds.append([[x.min(), y.min()], [x.max(), y.max()]])

    distance = (points[boxed] - torch.tensor(bounds)).abs()

    assert distance.max() < 5 * 0.01 * SIZE  # five of their standard deviations
    assert distance.max() > 0


def test_absent_objects_are_clicked_as_outside():
    torch.manual_seed(0)

    points, labels = random_prompts(torch.zeros(50, 1, SIZE, SIZE))

    assert not labels.any()
    assert torch.isfinite(points).all()


def test_localised_attention_looks_at_its_own_place_first(backbone):
    localise_memory_attention(backbone)
    tokens = backbone.embedding_size**2

    for layer in backbone.model.memory_attention.layers:
        attention = layer.cross_attn_image
        query = attention.q_proj(torch.zeros(1, 1, tokens, attention.q_proj.in_features))
        key = attention.k_proj(torch.zeros(1, 1, tokens, attention.k_proj.in_features))
        rotations = attention.compute_cis(end_x=backbone.embedding_size, end_y=backbone.embedding_size)
        query, key = apply_rotary_enc(query, key, freqs_cis=rotations)
        logits = (query @ key.transpose(-1, -2))[0, 0]

        assert torch.equal(logits.argmax(1), torch.arange(tokens))
        # the term of n frequencies on either axis, of strength squared each, at no offset
        assert logits.diagonal().mean().item() == pytest.approx(2 * 9 * 3.5**2, rel=0.02)


def test_localising_changes_biases_alone(backbone):
    before = {key: value.clone() for key, value in backbone.state_dict().items()}

    localise_memory_attention(backbone)

    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    layers = range(len(backbone.model.memory_attention.layers))
    assert changed == {
        f"model.memory_attention.layers.{layer}.cross_attn_image.{projection}_proj.bias"
        for layer in layers
        for projection in "qk"
    }


def test_an_exported_backbone_loads_strictly_and_is_the_same(backbone, tmp_path):
    export_backbone(backbone, tmp_path / "sam2_nano.pt")

    loaded = FrozenSAM2("sam2_nano", image_size=SIZE, checkpoint=tmp_path / "sam2_nano.pt")

    assert loaded.fingerprint() == backbone.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["sam2_nano.pt"]


def test_an_exported_backbone_is_in_half_precision(backbone, tmp_path):
    export_backbone(backbone, tmp_path / "sam2_nano.pt")

    state = torch.load(tmp_path / "sam2_nano.pt", weights_only=True)["model"]

    assert {value.dtype for value in state.values()} == {torch.float16}
