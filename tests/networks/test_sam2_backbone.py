"""SAM2 through its four functions: shapes, checkpoints, errors, agreement with the sam2 package's tracking code."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import sam2
import scripts
import torch
from hydra import initialize
from hydra.core.global_hydra import GlobalHydra
from scripts.networks.logits import NO_OBJECT_LOGIT, mask_to_logits, resize_logits
from scripts.networks.sam2_backbone import SAM2, FrozenSAM2
from scripts.networks.sam2_releases import BACKBONES, SAM2_YAML
from scripts.networks.sam2_types import ImageFeatures, Memory
from scripts.networks.windows import windows_around
from torch import nn

from tests.helpers import started

SIZE, TOKENS, CHANNELS, MEMORY_CHANNELS = 64, 4, 128, 32
FRAME = 20  # index of the slice being segmented, in comparisons with SAM2's tracking
FRAMES = 40  # of that video; from 16 on, SAM2 scales the distance of a pointer by a constant


def lively(model: SAM2) -> SAM2:
    """Parameters that start at or near zero would make comparisons blind to them."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if any(part in key for part in ("tpos_enc", "no_mem_embed", "no_obj", "obj_ptr_tpos", "fuser")):
                parameter.normal_()
    return model


def make_features(batch: int, model: SAM2, seed: int = 0) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return model.encode_image(torch.rand(batch, 1, model.image_size, model.image_size, generator=generator))


def make_memories(batch: int, model: SAM2, distances: list[int], pointers: bool = False) -> list[Memory]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, model.memory_channels, model.embedding_size, model.embedding_size)
    return [
        Memory(
            torch.randn(shape, generator=generator),
            distance,
            torch.randn(batch, model.embedding_channels, generator=generator) if pointers else None,
        )
        for distance in distances
    ]


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    return lively(FrozenSAM2("sam2_nano", SIZE))


@pytest.fixture(scope="module")
def released():
    """The first release's architecture, which gives object pointers no temporal encoding."""
    torch.manual_seed(0)
    return lively(FrozenSAM2("sam2_hiera_tiny", SIZE))


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return FrozenSAM2("sam2.1_hiera_tiny", 512)


@pytest.fixture(scope="module")
def features(nano):
    return make_features(2, nano)


@pytest.fixture
def save(tmp_path):
    def write(content) -> Path:
        path = tmp_path / "backbone.pt"
        torch.save(content, path)
        return path

    return write


# -------------------------------------------------------------------------------------------- shapes


def test_tiny_at_512_has_the_shapes_of_the_paper(tiny):
    features = make_features(1, tiny)
    with torch.no_grad():
        memory = tiny.encode_memory(features, torch.ones(1, 1, 512, 512))
        decoded = tiny.decode(tiny.condition(features, [Memory(memory)]), features)

    assert features.embedding.shape == (1, 256, 32, 32)
    assert [level.shape for level in features.high_res] == [(1, 32, 128, 128), (1, 64, 64, 64)]
    assert memory.shape == (1, 64, 32, 32)
    assert decoded.mask_logits.shape == (1, 1, 128, 128)


def test_tiny_has_the_471_entries_of_the_official_checkpoint(tiny):
    assert len(tiny.model.state_dict()) == 471


def test_tiny_has_the_38_96_million_parameters_of_the_official_model(tiny):
    assert sum(parameter.numel() for parameter in tiny.parameters()) == pytest.approx(38.96e6, abs=5e3)


def test_nano_shapes(nano, features):
    memory = nano.encode_memory(features, torch.ones(2, 1, SIZE, SIZE))
    decoded = nano.decode(nano.condition(features, [Memory(memory)]), features)

    assert features.embedding.shape == (2, CHANNELS, TOKENS, TOKENS)
    assert [level.shape for level in features.high_res] == [(2, CHANNELS // 8, 16, 16), (2, CHANNELS // 4, 8, 8)]
    assert memory.shape == (2, MEMORY_CHANNELS, TOKENS, TOKENS)
    assert decoded.mask_logits.shape == (2, 1, 16, 16)
    assert decoded.object_score.shape == decoded.iou.shape == (2, 1)
    assert decoded.pointer.shape == (2, CHANNELS)


def test_nano_announces_its_sizes(nano):
    sizes = (nano.embedding_size, nano.embedding_channels, nano.memory_channels, nano.max_distance)
    assert sizes == (TOKENS, CHANNELS, MEMORY_CHANNELS, 6)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "sam2_nano"])
def test_every_backbone_has_a_yaml_in_the_sam2_package(name):
    assert (Path(sam2.__path__[0]) / SAM2_YAML[name]).is_file()


def test_one_channel_is_repeated_to_three(nano):
    image = torch.rand(1, 1, SIZE, SIZE)
    gray, colour = nano.encode_image(image), nano.encode_image(image.repeat(1, 3, 1, 1))
    assert torch.equal(gray.embedding, colour.embedding)


def test_features_repeat_every_slice_in_a_row(features):
    repeated = features.repeat_interleave(3)
    assert torch.equal(repeated.embedding, features[[0, 0, 0, 1, 1, 1]].embedding)
    assert torch.equal(repeated.high_res[1], features.high_res[1][[0, 0, 0, 1, 1, 1]])


def test_resize_gives_the_model_built_at_that_size(nano, save):
    resized = FrozenSAM2("sam2_nano", SIZE, checkpoint=save({"model": nano.model.state_dict()}))
    resized.resize(96)
    built = FrozenSAM2("sam2_nano", 96, checkpoint=save({"model": nano.model.state_dict()}))
    features, memories = make_features(1, built), make_memories(1, built, [0])

    conditioned = resized.condition(make_features(1, resized), memories)

    torch.testing.assert_close(conditioned, built.condition(features, memories))
    torch.testing.assert_close(
        resized.decode(conditioned, features).mask_logits, built.decode(conditioned, features).mask_logits
    )
    assert (resized.image_size, resized.embedding_size) == (96, 6)


def test_resize_keeps_the_weights(nano, save):
    model = FrozenSAM2("sam2_nano", SIZE, checkpoint=save({"model": nano.model.state_dict()}))
    model.resize(96)
    assert model.fingerprint() == nano.fingerprint()


# ----------------------------------------------------------------------------------------- arguments


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'sam3'.*sam2.1_hiera_tiny.*sam2_nano"):
        FrozenSAM2("sam3")


@pytest.mark.parametrize("size", [0, -32, 16, 100, 64.0])
def test_image_size_must_be_a_multiple_of_32_from_64_on(size):
    with pytest.raises(ValueError, match=f"multiple of 32 pixels, 64 or more, got {size}"):
        FrozenSAM2("sam2_nano", size)


def test_resize_refuses_the_same_sizes(nano):
    with pytest.raises(ValueError, match="multiple of 32 pixels, 64 or more, got 100"):
        nano.resize(100)


def test_unknown_decoder_token():
    with pytest.raises(ValueError, match="'best_iou' or 'single', got 'best'"):
        FrozenSAM2("sam2_nano", SIZE, decoder_token="best")


@pytest.mark.parametrize("shape", [(1, 2, SIZE, SIZE), (1, 1, SIZE, 32), (1, SIZE, SIZE)])
def test_encode_image_names_the_shape_it_expects(nano, shape):
    with pytest.raises(ValueError, match=r"\(B, 1 or 3, 64, 64\), got"):
        nano.encode_image(torch.zeros(shape))


@pytest.mark.parametrize("distance", [-1, 7])
def test_distance_without_temporal_encoding(nano, features, distance):
    with pytest.raises(ValueError, match=f"0...6, got {distance}"):
        nano.condition(features, make_memories(2, nano, [distance]))


# --------------------------------------------------------------------------------------- checkpoints


def test_missing_checkpoint_names_the_path_and_the_demo(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt.*large_files.*sam2_nano"):
        FrozenSAM2("sam2_nano", SIZE, checkpoint=tmp_path / "nowhere.pt")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04" + b"0" * 99],
    ids=["empty", "text", "html", "git-lfs pointer", "truncated"],
)
def test_corrupt_checkpoint_names_the_path_and_the_remedy(nano, tmp_path, content):
    path = tmp_path / "corrupt.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="corrupt.pt.*Fetch it again"):
        nano.load_checkpoint(path)


def test_wrong_sha256_names_both_sums(nano, save):
    path = save({"model": nano.model.state_dict()})
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 {found}, expected {'0' * 64}"):
        nano.load_checkpoint(path, "0" * 64)


def test_right_sha256_in_capitals_is_accepted(nano, save):
    path = save({"model": nano.model.state_dict()})
    nano.load_checkpoint(path, hashlib.sha256(path.read_bytes()).hexdigest().upper())


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"model": 3}], ids=["other key", "list", "number"])
def test_file_that_is_no_sam2_checkpoint(nano, save, content):
    with pytest.raises(ValueError, match="backbone.pt.*dictionary with the key 'model'"):
        nano.load_checkpoint(save(content))


def test_weights_that_are_not_finite_are_refused(nano, save):
    state = dict(nano.model.state_dict())
    state["no_mem_embed"] = torch.full_like(state["no_mem_embed"], torch.nan)
    with pytest.raises(ValueError, match=r"backbone.pt': 1 of its tensors hold NaN or infinite.*'no_mem_embed'"):
        nano.load_checkpoint(save({"model": state}))


def test_a_bit_that_has_changed_is_found(nano, save):
    path = save({"model": nano.model.state_dict()})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="backbone.pt' is no SAM2 checkpoint, or damaged .*not as it was written"):
        nano.load_checkpoint(path)


def test_missing_unexpected_and_reshaped_entries_are_named(nano, save):
    state = dict(nano.model.state_dict())
    del state["no_mem_embed"]
    state["surplus"] = torch.zeros(1)
    state["maskmem_tpos_enc"] = torch.zeros(3)
    with pytest.raises(ValueError) as error:
        nano.load_checkpoint(save({"model": state}))
    for part in ("no_mem_embed", "surplus", "maskmem_tpos_enc", "sam2_nano", "backbone.pt"):
        assert part in str(error.value)


def test_checkpoint_that_does_not_fit_leaves_the_weights_alone(nano, save):
    before = nano.fingerprint()
    with pytest.raises(ValueError, match="does not fit"):
        nano.load_checkpoint(save({"model": {"surplus": torch.zeros(1)}}))
    assert nano.fingerprint() == before


def test_half_precision_checkpoint_is_widened(nano, save):
    half = {key: value.half() for key, value in nano.model.state_dict().items()}
    loaded = FrozenSAM2("sam2_nano", SIZE, checkpoint=save({"model": half})).model.state_dict()
    assert loaded.keys() == half.keys()
    assert all(value.dtype == torch.float32 and torch.equal(value, half[key].float()) for key, value in loaded.items())


def test_fingerprint_is_the_same_for_the_half_precision_copy(nano, save):
    half = {key: value.half() for key, value in nano.model.state_dict().items()}
    assert FrozenSAM2("sam2_nano", SIZE, checkpoint=save({"model": half})).fingerprint() == nano.fingerprint()


def test_fingerprint_tells_one_changed_weight(nano, save):
    state = {key: value.clone() for key, value in nano.model.state_dict().items()}
    state["no_mem_embed"].flatten()[5] += 1
    assert FrozenSAM2("sam2_nano", SIZE, checkpoint=save({"model": state})).fingerprint() != nano.fingerprint()


# ------------------------------------------------------------------------------------------ freezing


def test_frozen_model_stays_in_evaluation_mode_when_its_parent_trains(nano):
    parent = nn.ModuleList([nano])
    parent.train()
    assert parent.training and not any(module.training for module in nano.modules())


def test_frozen_model_asks_for_no_gradient(nano):
    assert not any(parameter.requires_grad for parameter in nano.parameters())


def test_plain_model_is_trainable():
    model = SAM2("sam2_nano", SIZE).train()
    assert model.model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_gradient_reaches_the_memory_through_attention_and_decoder(nano, features):
    memory = make_memories(2, nano, [0])[0].features.requires_grad_()
    nano.decode(nano.condition(features, [Memory(memory)]), features).mask_logits.square().sum().backward()
    assert torch.isfinite(memory.grad).all() and (memory.grad.flatten(1).abs().amax(1) > 0).all()


# --------------------------------------------------------------------------------------------- Hydra


def test_hydra_stays_uninitialised():
    """In a process of its own: importing sam2 a second time would initialise nothing."""
    code = (
        "from hydra.core.global_hydra import GlobalHydra as hydra\n"
        "from scripts.networks.sam2_backbone import SAM2\n"
        "assert not hydra.instance().is_initialized(), 'import'\n"
        "SAM2('sam2_nano', 64)\n"
        "assert not hydra.instance().is_initialized(), 'build'\n"
    )
    root = Path(scripts.__file__).parents[1]
    done = started.python(["-c", code], root)
    assert done.returncode == 0, done.stderr


def test_hydra_stays_initialised_as_it_was():
    GlobalHydra.instance().clear()
    with initialize(config_path=None, version_base=None):
        before = GlobalHydra.instance().hydra
        SAM2("sam2_nano", SIZE)
        assert GlobalHydra.instance().hydra is before


# ---------------------------------------------------------------------------------- the same as SAM2


def sam2_condition(model: SAM2, features: ImageFeatures, cond: dict, others: dict) -> torch.Tensor:
    """SAM2's tracking code for frame FRAME, given {frame: Memory} of conditioning and of other frames."""

    def outputs(memories):
        return {
            frame: {
                "maskmem_features": memory.features,
                "maskmem_pos_enc": [model.model.memory_encoder.position_encoding(memory.features)],
                "obj_ptr": memory.pointer,
            }
            for frame, memory in memories.items()
        }

    position = model.model.image_encoder.neck.position_encoding(features.embedding)
    return model.model._prepare_memory_conditioned_features(
        frame_idx=FRAME,
        is_init_cond_frame=not cond,
        current_vision_feats=[features.embedding.flatten(2).permute(2, 0, 1)],
        current_vision_pos_embeds=[position.flatten(2).permute(2, 0, 1)],
        feat_sizes=[features.embedding.shape[-2:]],
        output_dict={"cond_frame_outputs": outputs(cond), "non_cond_frame_outputs": outputs(others)},
        num_frames=FRAMES,
    )


def test_condition_on_nothing_is_sam2s_first_frame(nano, features):
    torch.testing.assert_close(nano.condition(features), sam2_condition(nano, features, {}, {}))


@pytest.mark.parametrize("distances", [[0], [0, 1], [0, 1, 2], [0, 2, 6]])
def test_condition_on_memories_is_sam2s(nano, features, distances, monkeypatch):
    monkeypatch.setattr(nano.model, "use_obj_ptrs_in_encoder", False)
    memories = make_memories(2, nano, distances)
    others = {FRAME - memory.distance: memory for memory in memories[1:]}

    expected = sam2_condition(nano, features, {FRAME: memories[0]}, others)

    torch.testing.assert_close(nano.condition(features, memories), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["nano", "released"])
def test_condition_on_memories_with_pointers_is_sam2s(backbone, request):
    model = request.getfixturevalue(backbone)
    features = make_features(2, model)
    memories = make_memories(2, model, [0, 1, 2], pointers=True)
    others = {FRAME - memory.distance: memory for memory in memories[1:]}

    expected = sam2_condition(model, features, {FRAME: memories[0]}, others)

    torch.testing.assert_close(model.condition(features, memories), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["nano", "released"])
def test_condition_with_pointers_of_neighbours_alone_is_sam2s(backbone, request):
    """The walk's case: a synthesised memory has no pointer. SAM2 drops pointers of conditioning frames to come."""
    model = request.getfixturevalue(backbone)
    features = make_features(2, model)
    own, *neighbours = make_memories(2, model, [0, 1, 2], pointers=True)
    others = {FRAME - memory.distance: memory for memory in neighbours}

    expected = sam2_condition(model, features, {FRAME + 1: own}, others)

    conditioned = model.condition(features, [replace(own, pointer=None), *neighbours])
    torch.testing.assert_close(conditioned, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pointers", [False, True])
def test_order_of_memories_does_not_matter(nano, features, pointers):
    memories = make_memories(2, nano, [0, 1, 2], pointers)
    torch.testing.assert_close(
        nano.condition(features, memories), nano.condition(features, memories[::-1]), rtol=1e-4, atol=1e-5
    )


def test_distance_of_a_memory_matters(nano, features):
    near, far = (nano.condition(features, make_memories(2, nano, [0, distance])) for distance in (1, 2))
    assert (near - far).abs().max() > 1e-3


def test_distance_of_a_pointer_matters(nano, features, monkeypatch):
    """With the temporal encoding of memories taken away, which depends on the distance too."""
    tpos = nn.Parameter(torch.zeros_like(nano.model.maskmem_tpos_enc), requires_grad=False)
    monkeypatch.setitem(nano.model._parameters, "maskmem_tpos_enc", tpos)
    memory = make_memories(2, nano, [1], pointers=True)[0]
    near, far = (nano.condition(features, [replace(memory, distance=distance)]) for distance in (1, 6))
    assert (near - far).abs().max() > 1e-4


@pytest.fixture(params=[10.0, -10.0], ids=["present", "absent"])
def decided(nano, request):
    """The nano backbone with a mask decoder that is sure of its object score, and that score's sign."""
    last = nano.model.sam_mask_decoder.pred_obj_score_head.layers[-1]
    weight, bias = last.weight.clone(), last.bias.clone()
    last.weight.zero_()
    last.bias.fill_(request.param)
    yield nano, request.param > 0
    last.weight.copy_(weight)
    last.bias.copy_(bias)


@pytest.mark.parametrize("token", ["best_iou", "single"])
def test_decoding_without_prompts_is_sam2s(decided, features, token):
    model, present = decided
    conditioned = model.condition(features, make_memories(2, model, [0]))

    _, _, ious, low_res, _, pointer, score = model.model._forward_sam_heads(
        conditioned, high_res_features=list(features.high_res), multimask_output=token == "best_iou"
    )
    decoded = model.decode(conditioned, features, token=token)

    torch.testing.assert_close(decoded.gated(), low_res)
    torch.testing.assert_close(decoded.pointer, pointer)
    torch.testing.assert_close(decoded.iou, ious.amax(1, keepdim=True))
    torch.testing.assert_close(decoded.object_score, score)
    assert (decoded.mask_logits != NO_OBJECT_LOGIT).all() and (low_res != NO_OBJECT_LOGIT).all() == present


def test_decoding_with_points_is_sam2s(decided, features):
    model, _ = decided
    conditioned = model.condition(features)
    points = (torch.tensor([[[10.0, 20.0]], [[40.0, 30.0]]]), torch.ones(2, 1, dtype=torch.int32))

    low_res = model.model._forward_sam_heads(
        conditioned,
        point_inputs={"point_coords": points[0], "point_labels": points[1]},
        high_res_features=list(features.high_res),
        multimask_output=True,
    )[3]

    torch.testing.assert_close(model.decode(conditioned, features, points=points).gated(), low_res)


def test_decoding_with_a_mask_prompt_is_sam2s(decided, features):
    model, _ = decided
    conditioned = model.condition(features)
    mask = torch.randn(2, 1, SIZE, SIZE)

    low_res = model.model._forward_sam_heads(
        conditioned, mask_inputs=mask, high_res_features=list(features.high_res), multimask_output=True
    )[3]

    torch.testing.assert_close(model.decode(conditioned, features, mask_prompt=mask).gated(), low_res)


@pytest.mark.parametrize("token", ["best_iou", "single"])
def test_decoding_with_the_embeddings_of_prompts_is_decoding_with_the_prompts(nano, features, token):
    conditioned = nano.condition(features)
    points = (torch.tensor([[[10.0, 20.0]], [[40.0, 30.0]]]), torch.ones(2, 1, dtype=torch.int32))
    mask = torch.randn(2, 1, TOKENS * 4, TOKENS * 4)
    sparse, dense = nano.model.sam_prompt_encoder(points=points, boxes=None, masks=mask)

    decoded = nano.decode_embeddings(conditioned, features, sparse=sparse, dense=dense, token=token)

    expected = nano.decode(conditioned, features, points=points, mask_prompt=mask, token=token)
    for name in ("mask_logits", "object_score", "iou", "pointer"):
        torch.testing.assert_close(getattr(decoded, name), getattr(expected, name))


def test_gradients_reach_prompt_embeddings_through_the_decoder(nano, features):
    sparse = torch.randn(2, 3, CHANNELS, requires_grad=True)
    dense = torch.randn(2, CHANNELS, TOKENS, TOKENS, requires_grad=True)

    nano.decode_embeddings(nano.condition(features), features, sparse=sparse, dense=dense).mask_logits.sum().backward()

    assert sparse.grad.flatten(2).any(2).all() and dense.grad.any()


@pytest.mark.parametrize("backbone", ["nano", "released"])
def test_memory_of_a_mask_is_sam2s(backbone, request):
    model = request.getfixturevalue(backbone)
    features = make_features(2, model)
    logits = mask_to_logits(torch.rand(2, 1, SIZE, SIZE) > 0.5)
    score = torch.tensor([[10.0], [-10.0]])

    expected, _ = model.model._encode_new_memory(
        current_vision_feats=[features.embedding.flatten(2).permute(2, 0, 1)],
        feat_sizes=[features.embedding.shape[-2:]],
        pred_masks_high_res=logits,
        object_score_logits=score,
        is_mask_from_pts=False,
    )

    scale = expected.abs().max()
    found = model.encode_memory(features, logits, score)
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-6)


def test_object_score_of_a_memory_follows_the_mask_unless_given(nano, features):
    logits = torch.full((2, 1, SIZE, SIZE), -10.0)
    logits[0, 0, 3, 5] = 10.0
    given = nano.encode_memory(features, logits, torch.tensor([[1.0], [-1.0]]))
    assert torch.equal(nano.encode_memory(features, logits), given)


def test_absent_object_shifts_the_memory_by_sam2s_embedding(nano, features):
    logits = torch.zeros(2, 1, SIZE, SIZE)
    present, absent = (nano.encode_memory(features, logits, torch.full((2, 1), sign)) for sign in (1.0, -1.0))
    shift = nano.model.no_obj_embed_spatial.view(1, MEMORY_CHANNELS, 1, 1).expand_as(present)
    torch.testing.assert_close(absent - present, shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.endswith("tiny")])
@pytest.mark.parametrize("margin", [None, 1], ids=["whole slices", "windows"])
def test_every_release_goes_from_a_mask_to_a_mask(name, margin):
    """SAM 2.0 lacks parts that 2.1 has; the larger ones of each release have the same parts as its smallest."""
    torch.manual_seed(0)
    model = FrozenSAM2(name, SIZE)
    features, mask = make_features(2, model), torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    mask[0, 0, 8:24, 8:24] = True  # and nothing in the other slice
    windows = None
    if margin is not None:
        ((_, windows),) = windows_around(mask[:, 0], range(2), tokens=model.embedding_size, margin=margin)

    with torch.no_grad():
        memory = Memory(model.encode_memory(features, mask, windows=windows))
        decoded = model.decode(model.condition(features, [memory], windows), features, windows=windows)

    assert decoded.mask_logits.shape == (2, 1, SIZE // 4, SIZE // 4) and decoded.mask_logits.isfinite().all()


# -------------------------------------------------------------------------------------------- logits


def test_mask_to_logits_spans_minus_ten_to_ten():
    assert mask_to_logits(torch.tensor([0, 1])).tolist() == [-10.0, 10.0]
    assert mask_to_logits(torch.tensor([0.25, 0.5])).tolist() == [-5.0, 0.0]


def test_gated_replaces_masks_of_absent_objects_alone(nano, features):
    decoded = nano.decode(nano.condition(features), features)
    decoded = replace(decoded, object_score=torch.tensor([[0.0], [0.1]]))
    gated = decoded.gated()
    assert (gated[0] == NO_OBJECT_LOGIT).all() and torch.equal(gated[1], decoded.mask_logits[1])


def test_a_score_that_is_not_a_number_hides_no_mask(nano, features):
    decoded = nano.decode(nano.condition(features), features)

    assert torch.equal(replace(decoded, object_score=torch.full((2, 1), torch.nan)).gated(), decoded.mask_logits)


def test_building_takes_no_gpu_whether_there_is_one_or_not(monkeypatch):
    """sam2's constructors would put tables on the first one, which may be another process's, or full."""
    tables = set()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    model = FrozenSAM2("sam2_nano", 64).model  # on a machine without one that would end in an error

    assert torch.cuda.is_available()
    for module in model.modules():
        if hasattr(module, "freqs_cis"):
            tables.add(module.freqs_cis.device.type)
        assert not getattr(module, "cache", None)
    assert tables == {"cpu"}


def test_resizing_to_the_same_size_changes_nothing():
    logits = torch.randn(1, 2, 8, 8)
    assert resize_logits(logits, 8) is logits


def test_resizing_keeps_a_constant():
    assert torch.equal(resize_logits(torch.full((1, 1, 4, 4), 3.0), (8, 6)), torch.full((1, 1, 8, 6), 3.0))
