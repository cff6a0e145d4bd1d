"""What the head names, read together with the slices on both sides, as the walk goes on."""

from __future__ import annotations

import pytest
import torch
from scripts.errors import RefusedError
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.logits import NO_OBJECT_LOGIT, resize_logits
from scripts.networks.naming_head import grouped
from scripts.networks.naming_network import naming
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import Memory
from scripts.networks.windows import windows_around
from scripts.segmentation.propagation import VolumetricInferer
from scripts.segmentation.uncertainty import UncertaintyInferer
from scripts.segmentation.walked_slices import BLOCK, SmoothedNames, VolumeSlices

SIZE, ORGANS = 64, ("spleen", "liver")


@pytest.fixture(scope="module", params=[False, True], ids=["its head", "an encoder of its own"])
def named(request):
    """A network whose memories are those of named masks; the head is random, and finds something of every organ."""
    torch.manual_seed(0)
    backbone = FrozenSAM2("sam2_nano", SIZE)
    prior = MemoryPrior(
        32, 128, organs=len(ORGANS), condition_channels=16, block_out_channels=(16, 32), attention_levels=1
    )
    prior.fitted.fill_(True)
    names = naming(backbone, ORGANS, own_encoder=request.param)
    torch.nn.init.normal_(names.fine.weight, std=30.0)
    return DiffuSAM(backbone, prior, organs=ORGANS, object_gate=False, names=names).eval()


def make_volume(slices: int) -> torch.Tensor:
    return torch.rand(1, 1, SIZE, SIZE, slices, generator=torch.Generator().manual_seed(0))


def slices_of(volume: torch.Tensor, network: DiffuSAM) -> VolumeSlices:
    return VolumeSlices(volume[0, 0], network, batch_size=8)


def named_at_once(volume: torch.Tensor, network: DiffuSAM, weight: float) -> torch.Tensor:
    """All slices ``(slices, organs + 1, s, s)`` by one convolution along them; the ends are their own neighbours."""
    source = slices_of(volume, network)
    own = grouped(network.name(source.features(list(range(source.count)))), len(ORGANS)).log_softmax(1)
    along = own.flatten(1).T[:, None]  # each pixel of each class a row
    kernel = torch.tensor([[[weight, 1.0, weight]]]) / (1 + 2 * weight)
    padded = torch.nn.functional.pad(along, (1, 1), mode="replicate")
    return torch.nn.functional.conv1d(padded, kernel)[:, 0].T.reshape(own.shape)


@torch.no_grad()
@pytest.mark.parametrize("slices, batches", [(7, [[3], [2, 4], [1, 5], [0, 6]]), (1, [[0]]), (4, [[2, 1, 3], [0]])])
def test_names_are_the_mean_over_three_slices_and_no_slice_is_encoded_twice(named, slices, batches):
    source, encoded = slices_of(make_volume(slices), named), []
    source.on_features = lambda slices, indices, features: encoded.extend(indices)
    names = SmoothedNames(source, 0.5)

    expected = named_at_once(make_volume(slices), named, 0.5)

    for batch in batches:
        features, smoothed = names.of(batch)
        assert len(features) == len(batch)
        torch.testing.assert_close(smoothed, expected[batch], rtol=1e-4, atol=1e-3)
    assert sorted(encoded) == list(range(slices))


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"neighbours": 0, "window_margin": 1}, {"neighbours": 1}, {"no_3d": True}], ids=str
)
@pytest.mark.parametrize("part", ["names.fine.bias", "backbone.model.sam_mask_decoder.mask_tokens.weight"])
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_no_background(named, options, part, spoilt):
    """As where half precision is too narrow: a comparison with them is false, which would find nothing in silence."""
    spoils = named.get_parameter(part)
    before = spoils.clone()
    spoils.fill_(spoilt)
    try:
        for inferer in (VolumetricInferer(**options), UncertaintyInferer(2, **options)):
            with pytest.raises(RefusedError, match="numbers that are none.*--amp False"):
                inferer(make_volume(3), named)
    finally:
        spoils.copy_(before)


@torch.no_grad()
def test_features_belong_to_their_slices(named):
    source = slices_of(make_volume(5), named)
    expected = source.features(list(range(5)))
    names = SmoothedNames(source, 1.0)

    for batch in ([2], [3, 1], [4, 0]):
        torch.testing.assert_close(names.of(batch)[0].embedding, expected[batch].embedding, rtol=1e-4, atol=1e-4)


def test_a_slice_that_alone_is_named_otherwise_is_named_as_its_neighbours(named, monkeypatch):
    seen = []

    def name(self, features):  # the liver in every slice but the one in the middle, by a little
        liver = torch.tensor(
            [1.0 if round(value.item() * 8) != 2 else -0.2 for value in features.embedding.mean((1, 2, 3))]
        )
        return torch.stack([torch.full_like(liver, -9), liver, torch.zeros_like(liver)], 1)[..., None, None]

    def synthesise(self, features, masks, organs=None):
        seen.append(masks[:, 1].flatten(1).all(1).tolist())
        return torch.zeros(len(features), 2, 32, SIZE // 16, SIZE // 16)

    encode = named.backbone.encode_image
    monkeypatch.setattr(
        named.backbone,
        "encode_image",
        lambda image: encode(image).__class__(
            image.mean((1, 2, 3), keepdim=True).expand_as(encode(image).embedding), encode(image).high_res
        ),
    )
    monkeypatch.setattr(VolumeSlices, "name", name)
    monkeypatch.setattr(VolumeSlices, "synthesise", synthesise)
    volume = (torch.arange(5) / 8).expand(1, 1, SIZE, SIZE, 5)

    VolumetricInferer(batch_size=8)(volume, named)
    VolumetricInferer(batch_size=8, names_smoothing=0.01)(volume, named)

    assert seen == [[True] * 5, [False, True, True, True, True]]  # in the order of the walk, from the middle on


@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_head_needs_no_prior(named, neighbours):
    volume = make_volume(2)
    expected = VolumetricInferer(neighbours)(volume, named)
    named.prior.fitted.fill_(False)
    result = VolumetricInferer(neighbours)(volume, named)
    named.prior.fitted.fill_(True)
    assert torch.equal(result, expected)


@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_the_result_does_not_depend_on_the_batches(named, batch_size, neighbours):
    volume = make_volume(6)
    expected = VolumetricInferer(neighbours, output="logits", batch_size=8)(volume, named)

    result = VolumetricInferer(neighbours, output="logits", batch_size=batch_size)(volume, named)

    assert (result > 0).any()
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-2)


def test_slices_by_themselves_are_named_by_themselves(named):
    volume = make_volume(4)
    single = VolumetricInferer(no_3d=True)(volume, named)

    assert torch.equal(VolumetricInferer(no_3d=True, names_smoothing=9)(volume, named), single)
    walked = [VolumetricInferer(names_smoothing=weight)(volume, named) for weight in (0, 0.5)]
    assert not torch.equal(*walked)


@torch.no_grad()
def test_without_neighbours_slices_share_what_is_named_in_them_and_nothing_else(named):
    volume, encoded = make_volume(5), []
    inferer = VolumetricInferer(
        0,
        output="logits",
        batch_size=2,
        skip_absent=False,
        on_features=lambda _, indices, features: encoded.extend(indices),
    )

    logits = inferer(volume, named)[0, 1:]

    assert sorted(encoded) == list(range(5))
    source = slices_of(volume, named)
    features, names = SmoothedNames(source, inferer.names_smoothing).of(list(range(5)))
    memories = source.synthesise(features, source.masks(names)).flatten(0, 1)
    decoded = named.backbone.decode(named.backbone.condition(features, [Memory(memories)]), features)
    expected = resize_logits(named.organ_logits(decoded, 5), SIZE).permute(1, 2, 3, 0)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-2)
    alone = VolumetricInferer(0, output="logits", names_smoothing=0)(volume, named)
    assert torch.equal(alone, VolumetricInferer(no_3d=True, output="logits")(volume, named))
    assert not torch.equal(alone[0, 1:], logits)


@pytest.fixture
def spots(named, monkeypatch):
    """Each organ is named in a square of 13 pixels, about where the head gives it most, instead of all over a slice."""

    def named_masks(logits, sample=0):
        masks = torch.zeros(len(logits), len(ORGANS), SIZE, SIZE, dtype=torch.bool)
        for row, column in torch.cartesian_prod(torch.arange(len(logits)), torch.arange(len(ORGANS))).tolist():
            place = int(logits[row, column].argmax())
            y, x = 4 * (place // logits.shape[-1]), 4 * (place % logits.shape[-1])
            masks[row, column, max(0, y - 6) : y + 7, max(0, x - 6) : x + 7] = True
        return masks

    monkeypatch.setattr(named, "named_masks", named_masks)
    return named_masks


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_windows_do_not_depend_on_the_batches(named, spots, batch_size):
    volume = make_volume(BLOCK + 3)
    expected = VolumetricInferer(0, output="logits", window_margin=0)(volume, named)

    result = VolumetricInferer(0, output="logits", window_margin=0, batch_size=batch_size)(volume, named)

    assert (result == NO_OBJECT_LOGIT).any() and (result > NO_OBJECT_LOGIT).any()
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-2)


def test_windows_as_large_as_the_slice_change_nothing(named, spots):
    volume = make_volume(5)
    whole, windows = (VolumetricInferer(0, output="logits", window_margin=each)(volume, named) for each in (None, 99))
    torch.testing.assert_close(windows, whole, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("margin", [10**30, 3])
def test_a_margin_may_be_any_whole_number(named, spots, margin):
    volume = make_volume(2)
    results = [VolumetricInferer(0, window_margin=each)(volume, named) for each in (margin, min(margin, 99))]
    assert torch.equal(*results)


def test_what_is_named_nowhere_is_looked_for_in_the_whole_slice_where_it_is_to_be(named, monkeypatch):
    monkeypatch.setattr(
        named, "named_masks", lambda logits, sample=0: torch.zeros(len(logits), len(ORGANS), SIZE, SIZE).bool()
    )
    volume, options = make_volume(3), {"output": "logits", "skip_absent": False}
    whole, windows = (VolumetricInferer(0, window_margin=each, **options)(volume, named)[0, 1:] for each in (None, 0))
    assert (whole > NO_OBJECT_LOGIT).any()
    torch.testing.assert_close(windows, whole, rtol=1e-3, atol=1e-2)


@torch.no_grad()
def test_an_organ_is_nowhere_but_in_the_window_of_its_name(named, spots):
    volume, tokens = make_volume(6), named.backbone.embedding_size
    _, names = SmoothedNames(slices_of(volume, named), 0.5).of(list(range(6)))
    masks = spots(names)
    logits = VolumetricInferer(0, output="logits", window_margin=0)(volume, named)[0, 1:]
    for organ in range(len(ORGANS)):
        inside = torch.zeros(SIZE, SIZE, 6, dtype=torch.bool)
        for chosen, windows in windows_around(masks.flatten(0, 1), [0] * 12, tokens=tokens, margin=0):
            ones = windows.put_back(torch.ones(len(chosen), 1, windows.height, windows.width), 0.0)
            for index, window in zip(chosen, resize_logits(ones, SIZE)[:, 0] > 0):
                inside[..., index // 2] |= window if index % 2 == organ else False
        found = logits[organ] > NO_OBJECT_LOGIT
        assert found.flatten(0, 1).any(0).all() and not (found & ~inside).any()


@pytest.mark.parametrize("options, same", [({"neighbours": 1}, True), ({"no_3d": True}, False)])
def test_with_neighbours_there_are_no_windows(named, spots, options, same):
    volume = make_volume(5)
    results = [VolumetricInferer(output="logits", window_margin=each, **options)(volume, named) for each in (None, 0)]
    assert torch.equal(*results) == same


def test_a_margin_is_a_number_of_tokens_or_none():
    with pytest.raises(ValueError, match="window_margin must be 0 or more image tokens, or None, got -1"):
        VolumetricInferer(window_margin=-1)


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_weight_is_a_number_from_0_on(weight):
    with pytest.raises(ValueError, match="names_smoothing must be a number from 0 on"):
        VolumetricInferer(names_smoothing=weight)
