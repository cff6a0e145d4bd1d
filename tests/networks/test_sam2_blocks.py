"""SAM2's blocks without anything computed twice, against sam2's own modules organ by organ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scripts.networks import sam2_backbone, sam2_blocks, sam2_memories
from scripts.networks import windows as windows_module
from scripts.networks.logits import NO_OBJECT_LOGIT, mask_to_logits
from scripts.networks.sam2_backbone import SAM2, FrozenSAM2
from scripts.networks.sam2_types import ImageFeatures, Memory
from scripts.networks.windows import Windows, windows_around
from torch import Tensor

SIZE, ORGANS = 64, 3
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
OF_SLICE = [0] * ORGANS + [1] * ORGANS  # of every organ of two slices


def lively(model: SAM2) -> SAM2:
    """Parameters that start at or near zero would make comparisons blind to them."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if any(part in key for part in ("tpos_enc", "no_mem_embed", "no_obj", "obj_ptr_tpos", "gamma", "bias")):
                parameter.normal_()
    return model


@pytest.fixture(scope="module", params=["sam2_nano", "sam2.1_hiera_tiny"])
def backbone(request) -> FrozenSAM2:
    torch.manual_seed(0)
    return lively(FrozenSAM2(request.param, SIZE))


@pytest.fixture(scope="module")
def features(backbone) -> ImageFeatures:
    return backbone.encode_image(torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))


def make_memories(backbone: SAM2, distances=(0, 1), pointers: bool = False) -> list[Memory]:
    generator = torch.Generator().manual_seed(1)
    shape = (2 * ORGANS, backbone.memory_channels, backbone.embedding_size, backbone.embedding_size)
    return [
        Memory(
            torch.randn(shape, generator=generator),
            distance,
            torch.randn(2 * ORGANS, backbone.embedding_channels, generator=generator) if pointers else None,
        )
        for distance in distances
    ]


def sam2_condition(backbone: SAM2, embedding: Tensor, memories: list[Memory]) -> Tensor:
    """sam2's memory attention without object pointers, every organ for itself."""
    model = backbone.model

    def tokens(each: Tensor) -> Tensor:
        return each.flatten(2).permute(2, 0, 1)

    positions = [
        tokens(model.memory_encoder.position_encoding(memory.features)) + model.maskmem_tpos_enc[memory.distance - 1]
        for memory in memories
    ]
    conditioned = model.memory_attention(
        curr=tokens(embedding),
        curr_pos=tokens(model.image_encoder.neck.position_encoding(embedding)),
        memory=torch.cat([tokens(memory.features) for memory in memories]),
        memory_pos=torch.cat(positions),
    )
    return conditioned.permute(1, 2, 0).reshape(embedding.shape)


def sam2_memory(backbone: SAM2, embedding: Tensor, logits: Tensor, score: Tensor) -> Tensor:
    """sam2's memories of masks at full resolution, every organ for itself."""
    memory, _ = backbone.model._encode_new_memory(
        current_vision_feats=[embedding.flatten(2).permute(2, 0, 1)],
        feat_sizes=[embedding.shape[-2:]],
        pred_masks_high_res=logits,
        object_score_logits=score,
        is_mask_from_pts=False,
    )
    return memory


def test_image_features_are_those_of_sam2(backbone):
    image = torch.rand(2, 3, SIZE, SIZE)
    expected = backbone.model.forward_image((image - backbone.pixel_mean) / backbone.pixel_std)["backbone_fpn"]
    features = backbone.encode_image(image)
    torch.testing.assert_close([*features.high_res, features.embedding], expected, **CLOSE)


@pytest.mark.parametrize("distances", [(0,), (0, 1), (0, 1, 6)])
def test_memory_attention_of_all_organs_is_sam2s_of_each(backbone, features, distances):
    memories = make_memories(backbone, distances)
    expected = sam2_condition(backbone, features.repeat_interleave(ORGANS).embedding, memories)
    torch.testing.assert_close(backbone.condition(features, memories), expected, **CLOSE)


def test_memory_attention_with_pointers_is_the_same_for_repeated_slices(backbone, features):
    memories = make_memories(backbone, (0, 2), pointers=True)
    expected = backbone.condition(features.repeat_interleave(ORGANS), memories)
    torch.testing.assert_close(backbone.condition(features, memories), expected, **CLOSE)


@pytest.mark.parametrize("size", [64, 96])
def test_memory_attention_follows_the_size_of_the_image(backbone, size):
    backbone.resize(size)
    features = backbone.encode_image(torch.rand(2, 1, size, size))
    memories = make_memories(backbone)
    expected = sam2_condition(backbone, features.repeat_interleave(ORGANS).embedding, memories)
    torch.testing.assert_close(backbone.condition(features, memories), expected, **CLOSE)
    backbone.resize(SIZE)


@pytest.mark.parametrize("token", ["best_iou", "single"])
def test_decoded_mask_is_the_one_that_sam2_would_choose(backbone, features, token):
    conditioned = backbone.condition(features, make_memories(backbone))
    all_masks = backbone.predict_all_masks(conditioned, features.repeat_interleave(ORGANS))
    ious = all_masks.iou
    chosen = torch.zeros(len(ious), dtype=torch.long) if token == "single" else ious[:, 1:].argmax(1) + 1
    rows = torch.arange(len(ious))

    decoded = backbone.decode(conditioned, features, token=token)

    torch.testing.assert_close(decoded.mask_logits[:, 0], all_masks.mask_logits[rows, chosen], **CLOSE)
    torch.testing.assert_close(decoded.iou[:, 0], ious[rows, chosen], **CLOSE)
    torch.testing.assert_close(decoded.object_score, all_masks.object_score, **CLOSE)


@pytest.mark.parametrize("empty", [NO_OBJECT_LOGIT, -10.0], ids=["absent", "given"])
def test_memories_with_absent_organs_are_sam2s_of_each(backbone, features, empty):
    logits = torch.randn(2 * ORGANS, 1, SIZE, SIZE)
    logits[[1, 3, 5]] = empty  # one organ of the first slice, two of the second
    score = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0], [-1.0]])
    expected = sam2_memory(backbone, features.repeat_interleave(ORGANS).embedding, logits, score)
    torch.testing.assert_close(backbone.encode_memory(features, logits, score), expected, **CLOSE)


def test_uniform_masks_of_several_values_are_told_apart(backbone, features):
    values = torch.tensor([-10.0, NO_OBJECT_LOGIT, 10.0, -10.0, 10.0, 10.0])
    logits = values.view(-1, 1, 1, 1).expand(-1, 1, SIZE, SIZE)
    expected = sam2_memory(backbone, features.repeat_interleave(ORGANS).embedding, logits, values[:, None])
    torch.testing.assert_close(backbone.encode_memory(features, logits), expected, **CLOSE)


@pytest.mark.parametrize(
    "absent, encoded", [([], 6), ([0, 1], 5), ([0, 1, 2, 3, 4, 5], 2)], ids=["none", "two of a slice", "all"]
)
def test_absent_organs_of_a_slice_share_one_encoding(backbone, features, absent, encoded):
    logits = torch.randn(2 * ORGANS, 1, SIZE, SIZE)
    logits[absent] = NO_OBJECT_LOGIT
    seen = []
    fuser = backbone.model.memory_encoder.fuser
    hook = fuser.layers[0].dwconv.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    backbone.encode_memory(features, logits)
    hook.remove()
    assert seen == [encoded]


def test_masks_are_encoded_a_few_at_a_time_as_all_together(backbone, features, monkeypatch):
    logits = torch.randn(2 * ORGANS, 1, SIZE, SIZE)
    logits[4] = NO_OBJECT_LOGIT
    expected = backbone.encode_memory(features, logits)
    monkeypatch.setattr(sam2_memories, "MASK_PIXELS_AT_ONCE", 2 * SIZE**2)
    seen = []
    first = backbone.model.memory_encoder.mask_downsampler.encoder[0]
    hook = first.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    found = backbone.encode_memory(features, logits)
    hook.remove()
    assert seen == [2, 2, 2]  # five of organs, and the mask of absence
    torch.testing.assert_close(found, expected, **CLOSE)


def test_masks_of_low_resolution_are_resized(backbone, features):
    logits = torch.randn(2 * ORGANS, 1, SIZE // 4, SIZE // 4)
    full = torch.nn.functional.interpolate(logits, (SIZE, SIZE), mode="bilinear")
    torch.testing.assert_close(
        backbone.encode_memory(features, logits), backbone.encode_memory(features, full), **CLOSE
    )


def chain(backbone: SAM2, image: Tensor, memories: list[Memory], logits: Tensor, own: bool) -> Tensor:
    """A scalar to which everything contributes: by the backbone's four functions, or by sam2's own modules."""
    if own:
        features = backbone.encode_image(image)
        memory = backbone.encode_memory(features, logits, torch.ones(len(logits), 1))
        conditioned = backbone.condition(features, [*memories, Memory(memory, 2)])
        return backbone.decode(conditioned, features, token="single").mask_logits.square().mean()
    pixels = (image.expand(-1, 3, -1, -1) - backbone.pixel_mean) / backbone.pixel_std
    fine, coarse, embedding = backbone.model.forward_image(pixels)["backbone_fpn"]
    repeated = ImageFeatures(embedding, (fine, coarse)).repeat_interleave(ORGANS)
    memory = sam2_memory(backbone, repeated.embedding, logits, torch.ones(len(logits), 1))
    conditioned = sam2_condition(backbone, repeated.embedding, [*memories, Memory(memory, 2)])
    return backbone.predict_all_masks(conditioned, repeated).mask_logits[:, 0].square().mean()


def test_gradients_of_every_weight_and_memory_are_those_through_sam2():
    torch.manual_seed(0)
    backbone = lively(SAM2("sam2_nano", SIZE)).eval()
    image, logits = torch.rand(2, 1, SIZE, SIZE), torch.randn(2 * ORGANS, 1, SIZE, SIZE)
    gradients = []
    for own in (True, False):
        backbone.zero_grad()
        memories = [replace(each, features=each.features.requires_grad_()) for each in make_memories(backbone)]
        chain(backbone, image, memories, logits, own).backward()
        weights = {name: each.grad for name, each in backbone.named_parameters() if each.grad is not None}
        gradients.append([weights, [memory.features.grad for memory in memories]])
    (weights, of_memories), (expected, expected_of_memories) = gradients
    # sam2 computes masks that nobody asked for, and gives their weights gradients of exactly zero
    found = {name: weights.get(name, torch.zeros_like(gradient)) for name, gradient in expected.items()}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert sum(gradient.any().item() for gradient in expected.values()) > 200
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6 * largest)
    torch.testing.assert_close(of_memories, expected_of_memories, rtol=1e-3, atol=1e-6)


def test_weights_that_have_changed_are_used():
    """Products of weights are formed in every call: an optimiser's step is seen at once."""
    torch.manual_seed(0)
    backbone = lively(SAM2("sam2_nano", SIZE)).eval()
    image, logits = torch.rand(2, 1, SIZE, SIZE), torch.randn(2 * ORGANS, 1, SIZE, SIZE)
    memories = make_memories(backbone)
    with torch.no_grad():
        before = chain(backbone, image, memories, logits, own=True)
        for parameter in backbone.parameters():
            parameter.mul_(1.01)
        after = chain(backbone, image, memories, logits, own=True)
        expected = chain(backbone, image, memories, logits, own=False)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    assert (after - before).abs() > 1e-3 * before


@pytest.mark.parametrize("pixels", [1, 2 * SIZE**2, 2**30], ids=["one", "two", "all"])
def test_slices_are_encoded_as_many_at_a_time_as_the_cache_holds(backbone, monkeypatch, pixels):
    image, seen = torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), []
    expected = [backbone.encode_image(each[None]) for each in image]
    monkeypatch.setattr(sam2_backbone, "PIXELS_AT_ONCE", pixels)
    hook = backbone.model.image_encoder.trunk.register_forward_hook(lambda *call: seen.append(len(call[1][0])))

    features = backbone.encode_image(image)

    hook.remove()
    assert seen == {1: [1, 1, 1], 2 * SIZE**2: [2, 1], 2**30: [3]}[pixels]
    # convolutions of other numbers of slices may be other ones, by the processor, which round otherwise
    alike = torch.cat([each.embedding for each in expected])
    torch.testing.assert_close(features.embedding, alike, rtol=1e-5, atol=5e-5)
    for level in range(2):
        each = torch.cat([features.high_res[level] for features in expected])
        torch.testing.assert_close(features.high_res[level], each, **CLOSE)


def blobs(rows: list[tuple[int, int, int, int]], size: int = SIZE) -> Tensor:
    """Masks ``(N, size, size)``, each one rectangle: first row, last row, first column, last column."""
    masks = torch.zeros(len(rows), size, size, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(masks, rows):
        mask[top : bottom + 1, left : right + 1] = True
    return masks


@pytest.mark.parametrize(
    "box, margin, expected",
    [
        ((40, 50, 20, 90), 0, (2, 4, 1, 6)),
        ((48, 63, 16, 31), 0, (3, 4, 1, 2)),  # whole tokens
        ((40, 50, 20, 90), 1, (1, 5, 0, 7)),
        ((0, 5, 120, 127), 2, (0, 3, 5, 8)),  # up to the edges, and no further
        ((40, 50, 20, 90), 9, (0, 8, 0, 8)),
    ],
)
def test_a_window_holds_its_mask_with_a_margin(box, margin, expected):
    windows = around(blobs([box], 128), 8, margin)
    top, bottom, left, right = expected
    assert (windows.tops, windows.lefts) == ([top], [left])
    assert (windows.height, windows.width) == (bottom - top, right - left)


def test_windows_of_several_masks_are_of_one_size_and_lie_in_the_slice():
    masks = blobs([(0, 10, 0, 10), (100, 127, 60, 70), (40, 40, 40, 40)], 128)
    windows = around(masks, 8, 1)
    assert (windows.height, windows.width) == (3, 4) and windows.slices == [0, 1, 2]
    assert windows.tops == [0, 5, 1] and windows.lefts == [0, 2, 1]
    maps = torch.arange(3 * 2 * 16 * 16.0).view(3, 2, 16, 16)
    cut = windows.cut(maps)
    assert cut.shape == (3, 2, 6, 8) and torch.equal(cut[1], maps[1, :, 10:16, 4:12])
    whole = windows.put_back(cut, -1.0)
    assert torch.equal(windows.cut_each(whole), cut) and (whole == -1).sum() == 3 * 2 * (16 * 16 - 6 * 8)
    places = windows.places(torch.device("cpu"))
    assert torch.equal(maps[:, :, ::2, ::2].flatten(2)[1, 0, places[1]], cut[1, 0, ::2, ::2].flatten())


def test_several_windows_may_be_of_one_slice():
    windows = replace(around(blobs([(0, 10, 0, 10), (100, 127, 60, 70)], 128), 8, 0), slices=[1, 1])
    maps = torch.rand(2, 3, 8, 8)
    assert torch.equal(windows.cut(maps), windows.cut_each(maps[[1, 1]]))


def test_the_window_of_an_empty_mask_is_the_whole_slice():
    masks = blobs([(0, 10, 0, 10), (0, 0, 0, 0)], 128)
    masks[1] = False
    assert around(masks, 8, 1) == Windows([0, 1], [0, 0], [0, 0], 8, 8, 8)


def test_masks_of_about_one_size_share_windows_and_others_have_smaller_ones():
    """Of 64 tokens a side, so that a window of many tokens costs more than a call of its own."""
    small, large = (0, 15, 0, 15), (0, 31 * 16, 0, 31 * 16)
    masks = blobs([small, large, (32, 63, 32, 79), small], 1024)
    groups = dict(
        (tuple(chosen), windows) for chosen, windows in windows_around(masks, [0, 0, 1, 2], tokens=64, margin=0)
    )
    assert set(groups) == {(1,), (2, 0, 3)}
    assert (groups[1,].height, groups[1,].width, groups[1,].slices) == (32, 32, [0])
    alike = groups[2, 0, 3]
    assert (alike.height, alike.width, alike.slices) == (2, 3, [1, 0, 2])
    assert alike.tops == [2, 0, 0] and alike.lefts == [2, 0, 0]


@pytest.mark.parametrize("call, groups", [(0, 9), (10**9, 1)])
def test_what_a_call_costs_says_how_many_there_are(monkeypatch, call, groups):
    monkeypatch.setattr(windows_module, "TOKENS_OF_A_CALL", call)
    masks = blobs([(0, 16 * rows - 1, 0, 16 * columns - 1) for rows in (1, 2, 3) for columns in (1, 2, 3)] * 2, 128)
    found = windows_around(masks, [0] * 18, tokens=8, margin=0)
    assert len(found) == groups
    assert sorted(index for chosen, _ in found for index in chosen) == list(range(18))


def test_large_windows_go_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(windows_module, "TOKENS_AT_ONCE", 13)
    masks = blobs([(0, 31, 0, 47), (64, 95, 0, 47), (0, 31, 80, 127), (0, 15, 0, 15), (0, 127, 0, 127)], 128)
    found = [(chosen, each.height * each.width) for chosen, each in windows_around(masks, [0] * 5, tokens=8, margin=0)]
    assert found == [([4], 64), ([0, 1], 6), ([2, 3], 6)]


def around(masks: Tensor, tokens: int, margin: int) -> Windows:
    """The windows of masks of one slice each, all of one size."""
    ((chosen, windows),) = windows_around(masks, list(range(len(masks))), tokens=tokens, margin=margin)
    order = sorted(range(len(chosen)), key=chosen.__getitem__)
    return replace(
        windows, **{key: [getattr(windows, key)[index] for index in order] for key in ("slices", "tops", "lefts")}
    )


def windowed(backbone, features, windows: Windows | None) -> tuple[Tensor, Tensor, Tensor]:
    masks = blobs([(20, 43, 18, 40)] * len(features) * ORGANS)[:, None]
    memory = backbone.encode_memory(features, masks, windows=windows)
    conditioned = backbone.condition(features, [Memory(memory)], windows)
    return memory, conditioned, backbone.decode(conditioned, features, windows=windows).mask_logits


def test_windows_of_the_whole_slice_change_nothing(backbone, features):
    count, tokens = 2 * ORGANS, SIZE // 16
    whole = Windows(OF_SLICE, [0] * count, [0] * count, tokens, tokens, tokens)
    for found, expected in zip(windowed(backbone, features, whole), windowed(backbone, features, None)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_outside_of_its_window_an_organ_is_not(backbone, features):
    windows = replace(around(blobs([(20, 43, 18, 40)] * 2 * ORGANS), SIZE // 16, 0), slices=OF_SLICE)
    memory, conditioned, logits = windowed(backbone, features, windows)
    assert memory.shape[2:] == conditioned.shape[2:] == (2, 2) and logits.shape[2:] == (SIZE // 4, SIZE // 4)
    assert (logits[..., 4:12, 4:12] > NO_OBJECT_LOGIT).all()
    assert (logits == NO_OBJECT_LOGIT).sum() == 2 * ORGANS * (16 * 16 - 8 * 8)


@pytest.mark.parametrize("box", [(5, 30, 40, 63), (0, 63, 17, 30), (33, 40, 33, 40)])
def test_what_a_mask_adds_to_its_memory_is_in_its_window_what_it_is_in_the_slice(backbone, box):
    masks = mask_to_logits(blobs([box]))[:, None]
    windows = around(masks[:, 0] > 0, SIZE // 16, 0)
    wider = windows.with_tokens_before()
    whole = sam2_memories._downsampled(backbone.model, masks)
    found = windows.cut_from(wider, sam2_memories._downsampled(backbone.model, wider.cut_each(masks)))
    torch.testing.assert_close(found, windows.cut(whole), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole, backbone.model.memory_encoder.mask_downsampler(masks.sigmoid() * 20 - 10))


def test_memory_attention_in_windows_is_that_of_their_tokens_alone(backbone, features):
    """Every weight of a token that lies in no window is taken away, once organs go their own ways."""
    model, organs = backbone.model.memory_attention, 2 * ORGANS
    windows = replace(around(blobs([(0, 40, 20, 60), (20, 60, 0, 40)] * ORGANS), SIZE // 16, 0), slices=OF_SLICE)
    places = windows.places(torch.device("cpu"))
    memories = make_memories(backbone, (0,))
    found = backbone.condition(
        features, [replace(memories[0], features=windows.cut_each(memories[0].features))], windows
    )

    outside = torch.ones(organs, (SIZE // 16) ** 2).scatter(1, places, 0).bool()
    layers, expected = list(model.layers), features.repeat_interleave(ORGANS).embedding
    attend, seen = torch.nn.functional.scaled_dot_product_attention, []

    def among_their_own(queries, keys, values, **options):
        seen.append(len(seen))
        mask = torch.zeros(organs, 1, 1, outside.shape[1]).masked_fill(outside[:, None, None], -torch.inf)
        return attend(queries, keys, values, attn_mask=None if len(seen) == 1 else mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", among_their_own)
        expected = sam2_condition(backbone, expected, memories)
    assert len(seen) == 2 * len(layers)
    torch.testing.assert_close(found, windows.cut_each(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("graded", [False, True], ids=["inference", "training"])
def test_attention_with_few_sure_weights_is_exact_and_has_no_subnormal_numbers(graded):
    """Scores a hundred apart, as trained memory attention has them: exp(-100) is no normal number here."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, 40, 8, generator=generator) * size for size in (12, 12, 1))
    scores = (queries @ keys.transpose(1, 2)).double() * 8**-0.5
    assert (scores - scores.amax(-1, keepdim=True)).min() < -100
    expected = scores.softmax(-1) @ values.double()
    inputs = [each.requires_grad_(graded) for each in (queries, keys, values)]

    found = sam2_blocks._average(*inputs)

    torch.testing.assert_close(found.detach().double(), expected, rtol=1e-4, atol=1e-5)
    if graded:
        found.square().sum().backward()
        for each in inputs:
            small = each.grad.abs()
            assert each.grad.any() and not ((small > 0) & (small < torch.finfo(torch.float32).tiny)).any()


def test_windows_of_slices_that_have_attended_to_themselves(backbone, features):
    """In whatever order, and as many of each slice as there are."""
    memory = make_memories(backbone, (0,))[0]
    of_slice = replace(around(blobs([(20, 43, 18, 40)] * 2 * ORGANS), SIZE // 16, 0), slices=OF_SLICE)
    memory = replace(memory, features=of_slice.cut_each(memory.features))
    every = backbone.condition(features, [memory], of_slice)
    order = [4, 0, 1]
    some = Windows([1, 0, 0], [1] * 3, [1] * 3, 2, 2, SIZE // 16)
    of_some = replace(memory, features=memory.features[order])

    found = backbone.condition(features, [of_some], some, backbone.attend(features))

    torch.testing.assert_close(found, every[order], **CLOSE)


def test_given_masks_have_memories_as_their_logits_have(backbone, features):
    masks = blobs([(20, 43, 18, 40), (0, 10, 3, 60)] * ORGANS)[:, None]
    masks[3] = False
    windows = replace(around(masks[:, 0], SIZE // 16, 0), slices=OF_SLICE)
    for each in (None, windows):
        found = backbone.encode_memory(features, masks, windows=each)
        assert torch.equal(found, backbone.encode_memory(features, mask_to_logits(masks), windows=each))
