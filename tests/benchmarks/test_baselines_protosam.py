"""ProtoSAM: what its description promises of labelled slices, of scores by prototypes, and of the prompts they give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scripts.errors import SettingError
from scripts.networks.sam2_backbone import FrozenSAM2, between_neighbours
from scripts.networks.sam2_types import ImageFeatures
from torch import Tensor

from benchmarks.baselines.protosam import LabelledSlices, ProtoSamInferer, component_prompts
from benchmarks.baselines.slicewise import encoded_slices

SIZE, ORGANS = 64, 2
CPU = torch.device("cpu")
LEVELS = {"embedding": 16, "high_res_fine": 4, "high_res_coarse": 8}  # and their strides


def label_map(*boxes: tuple[int, int, int, int, int]) -> Tensor:
    """``(64, 64)``: each box is an organ, and the rows and columns it lies in."""
    label = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    for organ, top, bottom, left, right in boxes:
        label[top:bottom, left:right] = organ
    return label


def features(labels: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Maps of slices ``(N, 64, 64)`` in which each class has a direction of its own, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    classes = F.one_hot(labels.long(), 1 + ORGANS).permute(0, 3, 1, 2).float()
    maps = {key: F.avg_pool2d(classes, stride) for key, stride in LEVELS.items()}
    return {key: 5 + 3 * each + 0.02 * torch.randn(each.shape, generator=generator) for key, each in maps.items()}


def cache_file(path: Path, labels: Tensor) -> Path:
    """What the embedding cache has of a volume."""
    present = torch.stack([(labels == organ).flatten(1).any(1) for organ in range(1, ORGANS + 1)], 1)
    torch.save({**features(labels), "label": labels, "present": present}, path)
    return path


# an organ alone, both, none
LABELLED = torch.stack([label_map((1, 8, 40, 8, 40)), label_map((1, 8, 40, 8, 32), (2, 16, 56, 40, 56)), label_map()])


@pytest.fixture
def labelled(tmp_path) -> LabelledSlices:
    return LabelledSlices([cache_file(tmp_path / "a.pt", LABELLED)], ORGANS, device=CPU)


def query(labelled: LabelledSlices, *boxes: tuple[int, int, int, int, int], seed: int = 1) -> Tensor:
    """Features ``(D, 8, 8)`` of one slice that is not among the labelled ones."""
    maps = features(label_map(*boxes)[None], seed)
    return labelled.of_slices(ImageFeatures(maps["embedding"], (maps["high_res_fine"], maps["high_res_coarse"])))[0]


# ---- which slice prototypes come from


def test_a_slice_is_compared_with_the_labelled_slice_that_looks_like_it_there(labelled):
    for index, boxes in enumerate([[(1, 8, 40, 8, 40)], [(1, 8, 40, 8, 32), (2, 16, 56, 40, 56)], []]):
        assert labelled.nearest(query(labelled, *boxes), 1).tolist() == [index]


def test_more_supports_are_had_than_asked_for_only_if_there_are(labelled):
    assert len(labelled.nearest(query(labelled), 2)) == 2
    assert len(labelled.nearest(query(labelled), 9)) == len(labelled) == 3


def test_volumes_without_organs_are_refused(tmp_path):
    path = cache_file(tmp_path / "empty.pt", LABELLED[2:])

    with pytest.raises(SettingError, match="None of the 1 labelled volumes"):
        LabelledSlices([path], ORGANS, device=CPU)


@pytest.mark.parametrize("window", [0, 9])
def test_a_cell_is_a_place_at_least_and_a_slice_at_most(tmp_path, window):
    with pytest.raises(SettingError, match=r"window must lie in 1\.\.\.8"):
        LabelledSlices([cache_file(tmp_path / "a.pt", LABELLED)], ORGANS, device=CPU, window=window)


# ---- scores


def test_an_organ_is_found_where_it_has_moved_to(labelled):
    moved = query(labelled, (1, 16, 48, 24, 56))

    score = labelled.scores(moved, torch.tensor([0]))[0]

    assert (score > 0).equal(label_map((1, 16, 48, 24, 56))[4::8, 4::8] == 1)


def test_an_organ_that_the_labelled_slice_does_not_hold_is_nowhere(labelled):
    scores = labelled.scores(query(labelled, (2, 16, 56, 40, 56)), torch.tensor([0]))

    assert torch.isneginf(scores[1]).all() and torch.isfinite(scores[0]).all()


def test_of_several_labelled_slices_each_gives_the_organs_it_holds(labelled):
    both = query(labelled, (1, 8, 40, 8, 32), (2, 16, 56, 40, 56))

    scores = labelled.scores(both, torch.tensor([0, 1]))

    truth = label_map((1, 8, 40, 8, 32), (2, 16, 56, 40, 56))[4::8, 4::8]
    assert (scores[0] > 0).equal(truth == 1) and (scores[1] > 0).equal(truth == 2)


def test_an_organ_smaller_than_a_cell_has_its_mean_as_prototype(tmp_path):
    """One place of an organ, which fills no cell of 2 x 2."""
    small = torch.stack([label_map((1, 8, 16, 8, 16))])
    labelled = LabelledSlices([cache_file(tmp_path / "small.pt", small)], ORGANS, device=CPU)

    score = labelled.scores(query(labelled, (1, 40, 48, 40, 48)), torch.tensor([0]))[0]

    assert divmod(int(score.argmax()), 8) == (5, 5)


def test_scores_are_similarities_weighted_by_their_own_softmax(tmp_path):
    """All cells but one are background, so of the organ there is its cell, and its mean, which is the same."""
    labelled = LabelledSlices([cache_file(tmp_path / "a.pt", label_map((1, 0, 16, 0, 16))[None])], ORGANS, device=CPU)
    asked = query(labelled, (1, 0, 16, 0, 16))

    score = labelled.scores(asked, torch.tensor([0]))[0, 3, 5]

    cells = F.normalize(F.avg_pool2d(labelled.features[:1].float(), 2)[0].flatten(1), dim=0)
    similar = 20 * asked[:, 3, 5] @ cells
    outside = similar[1:]
    assert score == pytest.approx(float(similar[0] - (outside.softmax(0) * outside).sum()), abs=1e-4)


def test_no_map_outweighs_another(labelled):
    """Each map of a place against itself counts a third, whatever its channels' means and scales."""
    maps = features(label_map((1, 8, 40, 8, 40))[None])
    plain = ImageFeatures(maps["embedding"], (maps["high_res_fine"], maps["high_res_coarse"]))

    directions = labelled.of_slices(plain)

    channels = 1 + ORGANS
    for level in directions.split(channels, 1):
        assert torch.allclose(level.square().sum(1), torch.tensor(1 / 3), atol=1e-5)


# ---- prompts


def test_the_prompts_are_those_of_the_most_probable_component():
    score = np.full((20, 20), -3.0)
    score[2:4, 2:4] = 9.0  # the surest, but 4 pixels
    score[8:14, 6:16] = 1.0  # 60 of 0.73
    score[14, 16] = 2.0  # connected by a corner

    component, box, (surest, centroid) = component_prompts(score)

    assert component.sum() == 61 and component[14, 16] and not component[2, 2]
    assert box.tolist() == [[6, 8], [16, 14]]
    assert surest == [16, 14]
    assert centroid == pytest.approx([(60 * 10.5 + 16) / 61, (60 * 10.5 + 14) / 61])


def test_an_empty_coarse_mask_asks_for_nothing():
    assert component_prompts(np.full((4, 4), -1.0)) is None


@pytest.fixture(scope="module")
def backbone() -> FrozenSAM2:
    torch.manual_seed(0)
    return FrozenSAM2("sam2_nano", SIZE)


@pytest.fixture(scope="module")
def volume() -> Tensor:
    """``(1, 1, 64, 64, 3)``: a bright organ, both, none, as in :data:`LABELLED`."""
    noise = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return (0.3 * LABELLED + 0.1 * noise).permute(1, 2, 0)[None, None]


@pytest.fixture(scope="module")
def of_backbone(tmp_path_factory, backbone, volume) -> LabelledSlices:
    """The volume's own slices, encoded."""
    encoded = backbone.encode_image(volume[0, 0].permute(2, 0, 1)[:, None])
    content = dict(zip(LEVELS, (encoded.embedding, *encoded.high_res)))
    path = tmp_path_factory.mktemp("cache") / "a.pt"
    present = torch.tensor([[True, False], [True, True], [False, False]])
    torch.save({**content, "label": LABELLED, "present": present}, path)
    return LabelledSlices([path], ORGANS, device=CPU)


def walked(backbone, labelled: LabelledSlices, volume: Tensor, **options) -> dict[int, Tensor]:
    inferer = ProtoSamInferer(labelled, **options)
    with torch.no_grad():
        return {index: logits[0] for (index,), logits in inferer.segment(volume, backbone)}


def test_a_labelled_volume_finds_its_own_organs(backbone, of_backbone, volume):
    coarse = walked(backbone, of_backbone, volume, supports=1, prompts="none")

    for index, label in enumerate(LABELLED):
        for organ in range(ORGANS):
            found, true = coarse[index][organ] > 0, label == organ + 1
            if true.any():
                # coarse: cells of 16 pixels, whose features see far beyond them
                assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.5
            else:
                assert not found.any()


@pytest.mark.parametrize("prompts, kinds", [("box_and_points", [2, 3, 1, 1]), ("box", [2, 3]), ("points", [1, 1])])
def test_the_decoder_is_asked_for_one_mask_an_organ_at_the_coarse_mask(
    backbone, of_backbone, volume, monkeypatch, prompts, kinds
):
    decode, asked = backbone.decode, []

    def record(conditioned, features, points, token):
        asked.append((points, token))
        return decode(conditioned, features, points=points, token=token)

    monkeypatch.setattr(backbone, "decode", record)

    masks = walked(backbone, of_backbone, volume, supports=1, prompts=prompts)

    assert [len(points) for (points, _), _ in asked] == [1, 2]  # the third slice holds none
    assert {token for _, token in asked} == {"single"}
    for (points, labels), _ in asked:
        assert labels.tolist() == [kinds] * len(points)
    coarse = walked(backbone, of_backbone, volume, supports=1, prompts="none")
    if "box" in prompts:
        rows, columns = (coarse[0][0] > 0).nonzero().T
        assert asked[0][0][0][0, :2].tolist() == [[columns.min(), rows.min()], [columns.max(), rows.max()]]
    assert {index: tuple(each.shape) for index, each in masks.items()} == {index: (2, 16, 16) for index in range(3)}
    assert (masks[2] < 0).all() and (masks[0][1] < 0).all()


def test_nothing_is_trained(backbone, of_backbone, volume):
    before = {key: value.clone() for key, value in backbone.state_dict().items()}

    walked(backbone, of_backbone, volume)

    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("options, message", [({"supports": 0}, "at least 1"), ({"prompts": "text"}, "must be one of")])
def test_settings_that_cannot_be_are_refused(of_backbone, options, message):
    with pytest.raises(SettingError, match=message):
        ProtoSamInferer(of_backbone, **options)


# ---- slices as training shows them


def test_slices_are_shown_between_their_neighbours_where_training_shows_them_so(backbone, volume, monkeypatch):
    alone = encoded_slices(volume, [2, 0], backbone).embedding
    monkeypatch.setattr(backbone, "slice_context", True)
    between = encoded_slices(volume, [2, 0], backbone).embedding

    slices = volume[0, 0].permute(2, 0, 1)[:, None]
    assert torch.allclose(alone, backbone.encode_image(slices).embedding[[2, 0]], atol=1e-5)
    assert torch.allclose(between, backbone.encode_image(between_neighbours(slices)).embedding[[2, 0]], atol=1e-5)
    assert not torch.allclose(alone, between, atol=1e-3)
