"""The walk through a volume: its order, each slice's neighbours, the memories of their masks, and its memory use."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from monai.transforms import Resize
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.logits import NO_OBJECT_LOGIT, resize_logits
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.networks.sam2_types import Decoded, ImageFeatures
from scripts.segmentation.label_maps import merged_labels, mixed_on_cpu
from scripts.segmentation.propagation import VolumetricInferer
from scripts.segmentation.uncertainty import UncertaintyInferer
from torch import nn

SIZE, TOKENS, CHANNELS, MEMORY_CHANNELS = 64, 4, 128, 32
ORGANS = ("spleen", "liver")
STEP = 1 / 16  # slice k of a traced volume has the intensity k / 16, exact in floating point
OWN = -1  # stands for a synthesised memory where the trace names a memory's slice


@pytest.fixture(scope="module")
def network():
    """Without the object gate, which random weights may close everywhere."""
    torch.manual_seed(0)
    backbone = FrozenSAM2("sam2_nano", SIZE)
    options = {"condition_channels": 16, "block_out_channels": (16, 32), "attention_levels": 1}
    prior = MemoryPrior(MEMORY_CHANNELS, CHANNELS, organs=len(ORGANS), **options)
    prior.fitted.fill_(True)
    return DiffuSAM(backbone, prior, organs=ORGANS, object_gate=False).eval()


def make_volume(slices: int = 5) -> torch.Tensor:
    return torch.rand(1, 1, SIZE, SIZE, slices, generator=torch.Generator().manual_seed(0))


@dataclass
class Trace:
    """What a walk did: slices in the order of encoding and decoding, and each slice's memories."""

    encoded: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)  # number of slices in each call of encode_image
    decoded: list[int] = field(default_factory=list)
    memories: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # (distance, slice it is of)


def slice_of(values: torch.Tensor) -> list[int]:
    """The slice that each item of a batch carries, once for all organs."""
    every = [round(value.mean().item() / STEP) for value in values]
    assert every[:: len(ORGANS)] == every[1 :: len(ORGANS)], "both organs of a slice belong together"
    return every[:: len(ORGANS)]


def run_traced(network, monkeypatch, slices: int, **options) -> tuple[Trace, torch.Tensor]:
    """Walks through a volume with a backbone whose features, memories and logits carry the slice's number alone."""
    trace, backbone = Trace(), network.backbone

    def encode_image(image):
        embedding = image[:, :, :TOKENS, :TOKENS]
        trace.encoded += [round(value.mean().item() / STEP) for value in embedding]
        trace.batches.append(len(image))
        return ImageFeatures(embedding, (embedding, embedding))

    def condition(features, memories, windows=None):
        features = features.repeat_interleave(len(ORGANS))
        per_memory = [slice_of(memory.features) for memory in memories]
        for row, index in enumerate(slice_of(features.embedding)):
            trace.decoded.append(index)
            trace.memories[index] = [(memory.distance, of[row]) for memory, of in zip(memories, per_memory)]
        return features.embedding

    def decode(conditioned, features, windows=None):
        ones = torch.ones(len(conditioned), 1)
        carried = conditioned.mean((1, 2, 3), keepdim=True)
        return Decoded(carried.expand(-1, 1, 4 * TOKENS, 4 * TOKENS), ones, ones, ones)

    def synthesise(features, **_):
        return torch.full_like(features.embedding, OWN * STEP).repeat_interleave(len(ORGANS), 0)

    monkeypatch.setattr(backbone, "encode_image", encode_image)
    monkeypatch.setattr(backbone, "condition", condition)
    monkeypatch.setattr(backbone, "decode", decode)
    monkeypatch.setattr(
        backbone, "encode_memory", lambda features, *_: features.repeat_interleave(len(ORGANS)).embedding
    )
    monkeypatch.setattr(network, "synthesise", synthesise)
    volume = (torch.arange(slices) * STEP).expand(1, 1, SIZE, SIZE, slices)
    return trace, logits_of(volume, network, **options)


def logits_of(volume: torch.Tensor, network, **options) -> torch.Tensor:
    return VolumetricInferer(output="logits", **options)(volume, network)


def assert_same_walk(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to voxels where two organs tie: rounding gives them to either, which the neighbours' memories hold, faintly.

    A wrong neighbour changes a whole slice.
    """
    differing = ~torch.isclose(logits, expected, rtol=1e-3, atol=1e-4)
    assert differing.float().mean() < 0.02
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


# -------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize("options", [{"no_3d": True}, {"neighbours": 2}], ids=str)
@pytest.mark.parametrize(
    "output, channels, dtype",
    [("labels", 1, torch.uint8), ("labels_and_organs", 2, torch.uint8), ("logits", 1 + len(ORGANS), torch.float32)],
)
def test_output_has_the_size_of_the_volume(network, options, output, channels, dtype):
    volume = torch.rand(1, 1, 50, 70, 3)
    result = VolumetricInferer(output=output, **options)(volume, network)
    assert result.shape == (1, channels, 50, 70, 3) and result.dtype == dtype


def test_labels_are_the_best_organ_and_bits_every_organ(network):
    volume = make_volume(3)
    logits = logits_of(volume, network)
    both = VolumetricInferer(output="labels_and_organs")(volume, network)
    assert torch.equal(both[:, 0], logits.argmax(1).to(torch.uint8))
    assert torch.equal(both[:, 1], ((logits[:, 1] > 0) + 2 * (logits[:, 2] > 0)).to(torch.uint8))
    assert torch.equal(VolumetricInferer()(volume, network), both[:, :1])


def test_more_than_eight_organs_have_bits_of_their_own(network):
    """Every organ is positive everywhere, the last one the most."""
    inferer = VolumetricInferer(output="labels_and_organs")
    output = inferer._empty_output(torch.zeros(8, 8, 2), organs=12)
    inferer._write(output, [0, 1], torch.arange(1.0, 13.0).view(1, 12, 1, 1).expand(2, 12, 4, 4))
    assert (output[0, 0] == 12).all() and (output[0, 1] == 2**12 - 1).all()


def test_no_3d_is_the_network_slice_by_slice(network):
    volume = make_volume()
    output = logits_of(volume, network, no_3d=True, batch_size=2)
    with torch.no_grad():
        expected = torch.stack([network(volume[..., index]) for index in range(volume.shape[-1])], dim=-1)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(50, 70), (100, 128)], ids=str)
def test_slices_are_resized_as_in_training(network, monkeypatch, size):
    """The training's `Resized` sees the whole volume, the inferer a few slices at a time."""
    volume = torch.rand(1, *size, 5)
    expected = Resize((SIZE, SIZE, -1), mode="trilinear", anti_aliasing=True)(volume)
    seen, encode_image = [], network.backbone.encode_image
    monkeypatch.setattr(network.backbone, "encode_image", lambda image: seen.append(image) or encode_image(image))

    VolumetricInferer(no_3d=True, batch_size=2)(volume[None], network)

    torch.testing.assert_close(torch.cat(seen)[:, 0].permute(1, 2, 0), expected[0], rtol=1e-5, atol=1e-6)


def test_no_neighbours_is_no_3d(network):
    volume = make_volume()
    assert torch.equal(logits_of(volume, network, neighbours=0), logits_of(volume, network, neighbours=3, no_3d=True))


def test_middle_slice_is_decoded_from_its_own_memory_alone(network):
    walked, alone = (logits_of(make_volume(), network, no_3d=no_3d) for no_3d in (False, True))
    torch.testing.assert_close(walked[..., 2], alone[..., 2], rtol=1e-3, atol=1e-4)


def test_neighbours_change_the_other_slices(network):
    walked, alone = (logits_of(make_volume(), network, no_3d=no_3d) for no_3d in (False, True))
    difference = (walked - alone).abs().amax((0, 1, 2, 3))
    assert (difference[[0, 1, 3, 4]] > 1e-3).all()


def test_result_does_not_depend_on_batch_size(network):
    outputs = [logits_of(make_volume(6), network, neighbours=2, batch_size=batch_size) for batch_size in (1, 3, 8)]
    assert_same_walk(outputs[1], outputs[0])
    assert_same_walk(outputs[2], outputs[0])


@pytest.mark.parametrize("flip", [False, True])
def test_walk_is_the_same_in_both_directions(network, flip):
    """With a middle slice, turning the volume around turns the result around."""
    volume = make_volume(3)
    turned = logits_of(volume.flip(-1), network).flip(-1)
    assert_same_walk(turned, logits_of(volume, network))


@pytest.mark.parametrize("shape", [(2, 1, SIZE, SIZE, 3), (1, 3, SIZE, SIZE, 3), (1, 1, SIZE, SIZE)], ids=str)
def test_other_shapes_are_refused(network, shape):
    with pytest.raises(ValueError, match=r"\(1, 1, H, W, slices\), got"):
        VolumetricInferer()(torch.zeros(shape), network)


@pytest.mark.parametrize(
    "inferer", [VolumetricInferer, partial(UncertaintyInferer, samples=2)], ids=["plain", "samples"]
)
def test_mixed_precision_holds_on_a_cpu(network, monkeypatch, inferer):
    """Where MONAI's evaluators have none; what organs are compared by stays in single precision."""
    seen, encode = set(), network.backbone.encode_image

    def encode_image(image):
        features = encode(image)
        seen.add((torch.is_autocast_enabled("cpu"), features.high_res[0].dtype))
        return features

    monkeypatch.setattr(network.backbone, "encode_image", encode_image)
    plain = inferer(output="logits")(make_volume(), network)
    assert seen == {(False, torch.float32)}
    seen.clear()
    mixed = inferer(output="logits", amp=True)(make_volume(), network)
    assert seen == {(True, torch.bfloat16)}
    assert mixed.dtype == torch.float32 and not torch.equal(mixed, plain)
    organs = slice(1, 1 + len(ORGANS))
    both = torch.stack([mixed[:, organs].flatten(), plain[:, organs].flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.9
    assert len(mixed[:, organs].unique()) > len(mixed[:, organs].bfloat16().unique())  # enlarged in single precision


def test_a_network_elsewhere_is_left_to_its_evaluator():
    with mixed_on_cpu(nn.Linear(1, 1, device="meta"), amp=True):
        assert not torch.is_autocast_enabled("cpu")


def test_unknown_output_is_refused():
    with pytest.raises(ValueError, match="labels, labels_and_organs, logits, got 'masks'"):
        VolumetricInferer(output="masks")


@pytest.mark.parametrize("no_3d", [False, True])
def test_untrained_prior_is_refused(network, monkeypatch, no_3d):
    monkeypatch.setitem(network.prior._buffers, "fitted", torch.tensor(False))
    with pytest.raises(RuntimeError, match="untrained: load a trained one .`prior_file`."):
        VolumetricInferer(no_3d=no_3d)(make_volume(1), network)


# ------------------------------------------------------------------------- source-free adaptation


def test_adapting_to_a_volume_changes_nothing_of_the_network(network):
    before = {key: value.clone() for key, value in network.prior.state_dict().items()}
    backbone = network.backbone.fingerprint()

    VolumetricInferer()(make_volume(), network)

    assert all(torch.equal(value, before[key]) for key, value in network.prior.state_dict().items())
    assert network.backbone.fingerprint() == backbone


# ----------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("neighbours", [-1, 7])
def test_neighbours_without_temporal_encoding(neighbours):
    with pytest.raises(ValueError, match=f"0...6, got {neighbours}"):
        VolumetricInferer(neighbours=neighbours)


# ------------------------------------------------------------------------------------------ the walk


@pytest.mark.parametrize(
    "slices, order", [(1, [0]), (2, [1, 0]), (5, [2, 1, 3, 0, 4]), (6, [3, 2, 4, 1, 5, 0])], ids=str
)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_walk_goes_from_the_middle_outward_over_every_slice_once(network, monkeypatch, slices, order, batch_size):
    trace, _ = run_traced(network, monkeypatch, slices, batch_size=batch_size)
    assert trace.decoded == order
    assert trace.encoded == order


@pytest.mark.parametrize("options", [{"no_3d": True}, {"neighbours": 1}, {"neighbours": 6}], ids=str)
@pytest.mark.parametrize("slices", [1, 2, 5, 6])
def test_every_slice_lands_in_its_place(network, monkeypatch, slices, options):
    """The traced network's organ logits are the slice's number."""
    _, output = run_traced(network, monkeypatch, slices, batch_size=2, **options)
    assert torch.equal(output[0, 1:, 5, 7], (torch.arange(slices) * STEP).expand(len(ORGANS), slices))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("neighbours", [1, 2, 6])
@pytest.mark.parametrize("slices", [1, 2, 5, 6, 15])
def test_neighbours_are_the_nearest_slices_towards_the_middle(network, monkeypatch, slices, neighbours, batch_size):
    trace, _ = run_traced(network, monkeypatch, slices, neighbours=neighbours, batch_size=batch_size)
    middle = slices // 2
    for index in range(slices):
        towards = 1 if index < middle else -1
        nearest = range(1, 1 + min(neighbours, abs(index - middle)))
        assert trace.memories[index] == [(0, OWN)] + [(distance, index + towards * distance) for distance in nearest]


def test_independent_slices_see_their_own_memory_alone(network, monkeypatch):
    trace, _ = run_traced(network, monkeypatch, 5, no_3d=True)
    assert trace.memories == {index: [(0, OWN)] for index in range(5)}


@pytest.mark.parametrize("no_3d", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_feature_maps_alive_at_once_do_not_grow_with_the_volume(network, monkeypatch, batch_size, no_3d):
    """Both directions advance together, so a batch may hold one slice more than asked for."""
    trace, _ = run_traced(network, monkeypatch, 15, batch_size=batch_size, no_3d=no_3d)
    assert sum(trace.batches) == 15 and max(trace.batches) <= batch_size + 1


# -------------------------------------------------------------------------------- which masks are encoded


@pytest.fixture
def encoded(network, monkeypatch):
    """Masks handed to the memory encoder, ``(slices, organs, S, S)`` a call, of a decoder whose organs overlap."""
    masks, backbone = [], network.backbone
    decode, encode_memory = backbone.decode, backbone.encode_memory
    generator = torch.Generator().manual_seed(0)

    def decode_overlapping(conditioned, features, windows=None):
        decoded = decode(conditioned, features)
        logits = torch.randn(decoded.mask_logits.shape, generator=generator) + 0.5
        return Decoded(logits, decoded.object_score, decoded.iou, decoded.pointer)

    def encode_and_keep(features, logits, score=None):
        masks.append((logits.reshape(-1, len(ORGANS), SIZE, SIZE), score.reshape(-1, len(ORGANS))))
        return encode_memory(features, logits, score)

    monkeypatch.setattr(backbone, "decode", decode_overlapping)
    monkeypatch.setattr(backbone, "encode_memory", encode_and_keep)
    return masks


def test_merged_masks_belong_to_one_organ_at_most(network, encoded):
    VolumetricInferer()(make_volume(3), network)
    assert encoded and all((logits > 0).sum(1).max() == 1 for logits, _ in encoded)


def test_merged_masks_are_the_label_map_of_the_output(network, encoded):
    labels = VolumetricInferer()(make_volume(1), network)[:, 0, ..., 0]
    logits, _ = encoded[0]
    assert torch.equal(logits > 0, torch.stack([labels == organ for organ in (1, 2)], 1))


def test_walk_over_a_volume_without_organs(network, monkeypatch):
    monkeypatch.setattr(
        network, "organ_logits", lambda *args: DiffuSAM.organ_logits(network, *args).fill_(NO_OBJECT_LOGIT)
    )
    assert not VolumetricInferer()(make_volume(3), network).any()


def test_object_score_of_an_encoded_mask_says_whether_it_is_empty(network, encoded, monkeypatch):
    def logits_without_spleen(*args):
        logits = DiffuSAM.organ_logits(network, *args)
        logits[:, 0] = -5
        return logits

    monkeypatch.setattr(network, "organ_logits", logits_without_spleen)
    VolumetricInferer()(make_volume(1), network)
    assert encoded[0][1].tolist() == [[-1, 1]]


# ---- progress


@pytest.mark.parametrize("options", [{}, {"no_3d": True}], ids=str)
def test_progress_counts_every_slice_once(network, options):
    reported = []
    inferer = VolumetricInferer(batch_size=2, on_slices=lambda done, total: reported.append((done, total)), **options)

    inferer(make_volume(5), network)

    done, totals = zip(*reported)
    assert set(totals) == {5}
    assert list(done) == sorted(set(done))  # always forward
    assert done[-1] == 5


def test_the_progress_callback_may_be_set_later(network):
    reported = []
    inferer = VolumetricInferer()
    inferer.on_slices = lambda done, total: reported.append((done, total))

    inferer(make_volume(5), network)

    assert reported == [(done, 5) for done in (1, 3, 5)]


# ---- label maps


def test_merged_labels_are_the_highest_positive_logit_and_bits_every_positive_one():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 8, 8, generator=generator) - 0.5
    logits[3] = -logits[3].abs()  # an organ that is nowhere

    labels, bits = merged_labels(logits, (20, 14), torch.int32)

    full = resize_logits(logits[None], (20, 14))
    expected = torch.cat([torch.zeros(1, 1, 20, 14), full], 1).argmax(1)[0]
    assert torch.equal(labels, expected.int())
    assert torch.equal(bits, ((full[0] > 0) * 2 ** torch.arange(9).view(-1, 1, 1)).sum(0).int())


@pytest.mark.parametrize("dtype, kept", [(torch.uint8, 8), (torch.int32, 32), (torch.int64, 64)])
def test_merged_labels_of_more_organs_than_a_number_has_bits(dtype, kept):
    """TotalSegmentator names 117."""
    logits = torch.full((117, 1, 117), -1.0)
    logits[range(117), 0, range(117)] = 1.0

    labels, bits = merged_labels(logits, (1, 117), dtype)

    assert labels[0].tolist() == list(range(1, 118))
    assert [value % 2**kept for value in bits[0].tolist()] == [2**organ for organ in range(kept)] + [0] * (117 - kept)


def test_merged_labels_of_a_slice_without_organs_are_background():
    labels, bits = merged_labels(torch.full((2, 4, 4), NO_OBJECT_LOGIT), (5, 6))
    assert labels.shape == bits.shape == (5, 6) and not labels.any() and not bits.any()


# ---- organs that have ended


def walk_over(network, monkeypatch, extents, slices: int = 13, named=None, **options):
    """Walks through a volume whose organs are where ``extents`` says, for each organ a set of slices; a head names them
    where ``named`` says, if anything.

    Returns the label map's organs ``{organ: slices}``, those that were looked for likewise, and the slices encoded.
    """
    looked_for, encoded = {organ: set() for organ in range(len(ORGANS))}, []

    def encode_image(image):
        embedding = image[:, :, :TOKENS, :TOKENS].expand(-1, CHANNELS, -1, -1)
        encoded.extend(round(value.mean().item() / STEP) for value in embedding)
        return ImageFeatures(embedding, (embedding, embedding))

    def synthesise(features, sample=0, organs=None, masks=None):
        numbers = torch.tensor(range(len(ORGANS)) if organs is None else organs).repeat(len(features)).float()
        return numbers.view(-1, 1, 1, 1).expand(-1, MEMORY_CHANNELS, TOKENS, TOKENS)

    def decode(self, network, features, own, adjacent, windows=None):
        numbers = own[:, 0, 0, 0].view(len(features), -1).int().tolist()
        logits = torch.full((len(features), len(numbers[0]), 4 * TOKENS, 4 * TOKENS), -1.0)
        for row, organs in enumerate(numbers):
            index = round(features.embedding[row].mean().item() / STEP)
            for column, organ in enumerate(organs):
                looked_for[organ].add(index)
                if index in extents[organ]:
                    logits[row, column, :, organ * 8 : organ * 8 + 8] = 1.0  # side by side
        return logits

    def named_masks(embedding, sample):
        masks = torch.zeros(len(embedding), len(ORGANS), SIZE, SIZE, dtype=torch.bool)
        for row, each in enumerate(embedding):
            for organ in named:
                masks[row, organ] = round(each.mean().item() / STEP) in named[organ]
        return masks

    if named is not None:
        monkeypatch.setattr(network, "name", lambda features: features.embedding)
        monkeypatch.setattr(network, "named_masks", named_masks)
    monkeypatch.setattr(network.backbone, "encode_image", encode_image)
    monkeypatch.setattr(network, "synthesise", synthesise)
    monkeypatch.setattr(VolumetricInferer, "_decode", decode)
    volume = (torch.arange(slices) * STEP).expand(1, 1, SIZE, SIZE, slices)
    labels = VolumetricInferer(**options)(volume, network)[0, 0]
    found = {organ: set((labels == organ + 1).any(0).any(0).nonzero()[:, 0].tolist()) for organ in looked_for}
    return found, looked_for, sorted(encoded)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_organ_is_over_after_so_many_slices_without_it(network, monkeypatch, batch_size):
    extents = {0: {5, 6, 7}, 1: set(range(13))}
    found, looked_for, _ = walk_over(network, monkeypatch, extents, ended_after=2, batch_size=batch_size)
    assert found == extents
    assert looked_for == {0: set(range(3, 10)), 1: set(range(13))}


def test_organ_may_be_missing_from_fewer_slices(network, monkeypatch):
    extents = {0: {2, 3, 5, 6, 8, 9}, 1: set(range(13))}
    assert walk_over(network, monkeypatch, extents, ended_after=2)[0] == extents


def test_organ_that_was_not_seen_yet_is_looked_for_to_the_end(network, monkeypatch):
    extents = {0: {0, 1}, 1: {12}}
    found, looked_for, encoded = walk_over(network, monkeypatch, extents, ended_after=2)
    assert found == extents and encoded == list(range(13))
    assert looked_for == {0: set(range(13)), 1: set(range(13))}


def test_organ_that_ends_on_one_side_is_looked_for_on_the_other(network, monkeypatch):
    extents = {0: {5, 6}, 1: {5, 6, 9, 10}}
    found, looked_for, _ = walk_over(network, monkeypatch, extents, ended_after=4)
    assert found == extents
    assert looked_for[1] == set(range(1, 13))


def test_slices_in_which_nothing_is_looked_for_are_not_encoded(network, monkeypatch):
    extents = {0: {6}, 1: {5, 6, 7}}
    found, _, encoded = walk_over(network, monkeypatch, extents, ended_after=2, batch_size=1)
    assert found == extents and encoded == list(range(3, 10))


def test_every_organ_is_looked_for_in_every_slice_unless_asked_otherwise(network, monkeypatch):
    extents = {0: {6}, 1: {6}}
    _, looked_for, encoded = walk_over(network, monkeypatch, extents)
    assert looked_for == {0: set(range(13)), 1: set(range(13))} and encoded == list(range(13))


def test_an_option_that_ends_nothing_changes_nothing(network):
    volume = make_volume(7)
    assert torch.equal(logits_of(volume, network), logits_of(volume, network, ended_after=7))


def test_ended_after_must_not_be_negative():
    with pytest.raises(ValueError, match="ended_after must be 0 or more slices, got -1"):
        VolumetricInferer(ended_after=-1)


# ---- organs that no memory shows


@pytest.mark.parametrize("batch_size", [1, 8])
def test_organ_is_decoded_where_it_is_named_or_was_found_beside(network, monkeypatch, batch_size):
    extents = {0: {5, 6, 7}, 1: set(range(13))}
    named = {0: {5, 6}, 1: set(range(13))}
    found, looked_for, encoded = walk_over(network, monkeypatch, extents, named=named, batch_size=batch_size)
    assert found == extents and encoded == list(range(13))
    assert looked_for == {0: {4, 5, 6, 7, 8}, 1: set(range(13))}


def test_organ_that_is_named_later_is_decoded_from_there_on(network, monkeypatch):
    extents = {0: {1, 2}, 1: set()}
    found, looked_for, _ = walk_over(network, monkeypatch, extents, named={0: {2}, 1: {11}})
    assert found == extents
    assert looked_for == {0: {0, 1, 2}, 1: {11}}


def test_organ_is_decoded_beside_as_many_slices_as_are_remembered(network, monkeypatch):
    _, looked_for, _ = walk_over(network, monkeypatch, {0: {6}, 1: {6}}, named={0: {6}, 1: {6}}, neighbours=3)
    assert looked_for == {0: set(range(3, 10)), 1: set(range(3, 10))}


def test_every_organ_is_decoded_where_none_is_skipped(network, monkeypatch):
    _, looked_for, _ = walk_over(network, monkeypatch, {0: {6}, 1: {6}}, named={0: {6}, 1: {6}}, skip_absent=False)
    assert looked_for == {0: set(range(13)), 1: set(range(13))}
