"""FATE-SAM: what its description promises of retrieval, of memories, and of the walk through a volume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.transforms import Compose, Lambda
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.training.encoded_slices import EncodedSlices

from benchmarks.baselines.fate_sam import FateSamInferer, SupportBank
from benchmarks.baselines.true_memory import decode_true_memories

SIZE, SLICES, ORGANS = 64, 8, ["spleen", "liver"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> FrozenSAM2:
    """Random weights that find every object present; otherwise no mask would be seen."""
    torch.manual_seed(0)
    backbone = FrozenSAM2("sam2_nano", SIZE)
    torch.nn.init.constant_(backbone.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 10.0)
    return backbone


def volume(seed: int) -> dict[str, torch.Tensor]:
    """Image and label ``(1, S, S, 8)``; the first slice and the last hold no organ."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(1, SIZE, SIZE, SLICES)
    label[0, 8:30, 10:40, 1:6] = 1
    label[0, 36:60, 20:50, 3:7] = 2
    noise = torch.rand(label.shape, generator=generator)
    return {"image": (0.2 + 0.2 * label + 0.3 * noise).clamp(0, 1), "label": label}


@pytest.fixture(scope="module")
def files(tmp_path_factory, backbone) -> list[Path]:
    """The embedding cache's files of three volumes."""
    folder = tmp_path_factory.mktemp("cache")
    items = []
    for seed in range(3):
        path = folder / f"{seed}.txt"
        path.write_text(str(seed))
        items.append({"image": str(path), "label": str(path), "case": str(seed)})
    transform = Compose([Lambda(lambda item: volume(int(item["case"])))])
    return EncodedSlices(items, transform, backbone=backbone, organs=ORGANS, cache_dir=folder).files


def bank(files, *seeds: int, **options) -> SupportBank:
    return SupportBank([files[seed] for seed in seeds], CPU, **options)


def segmented(backbone, bank: SupportBank, seed: int, **options) -> list[tuple[int, torch.Tensor]]:
    """The slices in the order of the walk, each with its organ logits."""
    inferer = FateSamInferer(bank, len(ORGANS), **options)
    with torch.no_grad():
        return [(index, logits[0]) for (index,), logits in inferer.segment(volume(seed)["image"][None], backbone)]


# ---- retrieval


@pytest.mark.parametrize("retrieval", ["manhattan", "cosine"])
def test_a_support_slice_retrieves_itself(files, backbone, retrieval):
    supports = bank(files, 0, 1, 2, retrieval=retrieval)
    for seed in range(3):
        with torch.no_grad():
            features = backbone.encode_image(volume(seed)["image"][0].permute(2, 0, 1)[:, None])
        for index in range(1, 7):
            nearest = supports.nearest(features[[index]], 1)
            assert supports.places[nearest].tolist() == [[seed, index]]


def test_slices_without_an_organ_support_nothing(files):
    assert sorted(bank(files, 0).places[:, 1].tolist()) == [1, 2, 3, 4, 5, 6]


def test_more_volumes_never_take_a_nearer_support_away(files, backbone):
    with torch.no_grad():
        features = backbone.encode_image(volume(2)["image"][0].permute(2, 0, 1)[:, None])
    few, more = bank(files, 0), bank(files, 0, 1)

    assert len(more) > len(few)
    for index in range(SLICES):
        before, after = (each.distances(features[[index]]).sort()[0][:3] for each in (few, more))
        assert (after <= before).all()


def test_the_order_of_the_support_volumes_does_not_matter(files, backbone):
    one, other = (segmented(backbone, bank(files, *seeds), 2) for seeds in ((0, 1), (1, 0)))

    assert all(torch.equal(first, second) for (_, first), (_, second) in zip(one, other))


def test_a_bank_gives_what_it_has(files, backbone):
    features = backbone.encode_image(torch.rand(1, 1, SIZE, SIZE))

    assert len(bank(files, 0).nearest(features, 50)) == 6


def test_a_bank_without_organs_is_refused(tmp_path, files):
    content = torch.load(files[0], weights_only=True)
    torch.save({**content, "present": torch.zeros_like(content["present"])}, tmp_path / "empty.pt")

    with pytest.raises(ValueError, match="None of the 1 support volumes"):
        SupportBank([tmp_path / "empty.pt"], CPU)


# ---- memories


def test_the_true_mask_of_the_slice_itself_reaches_the_upper_bound(files, backbone):
    """One support, the slice itself, and no neighbour give what the true memory gives, to half precision."""
    found = dict(segmented(backbone, bank(files, 0, 1), 0, supports=1, neighbours=0))
    other = dict(segmented(backbone, bank(files, 1), 0, supports=1, neighbours=0))

    for index in range(1, 7):
        image, label = (volume(0)[key][..., index] for key in ("image", "label"))
        bound = decode_true_memories(backbone, backbone.encode_image(image[None]), label, len(ORGANS))
        error = (found[index] - bound).abs().max()
        assert error < 1e-4 < (found[index] - other[index]).abs().max()


def test_the_walk_goes_down_from_the_middle_and_then_up_with_the_nearest_memories(files, backbone, monkeypatch):
    made, seen = [], []
    encode_memory, condition = backbone.encode_memory, backbone.condition
    monkeypatch.setattr(backbone, "encode_memory", lambda *args: made.append(encode_memory(*args)) or made[-1])
    monkeypatch.setattr(backbone, "condition", lambda *args: seen.append(args[1]) or condition(*args))

    order = [index for index, _ in segmented(backbone, bank(files, 0), 1, supports=2, neighbours=2)]

    assert order == [4, 3, 2, 1, 0, 5, 6, 7]
    neighbours = [[4], [3, 4], [2, 3], [1, 2], [4, 3], [5, 4], [6, 5]]
    assert [memory.distance for memory in seen[0]] == [0, 0]
    for memories, expected in zip(seen[1:], neighbours):
        assert [memory.distance for memory in memories] == [0, 0, *range(1, 1 + len(expected))]
        for memory, index in zip(memories[2:], expected):
            assert memory.features is made[order.index(index)]


@pytest.mark.parametrize("object_pointers", [False, True])
def test_nothing_is_trained(files, backbone, object_pointers):
    before = {key: value.clone() for key, value in backbone.state_dict().items()}

    segmented(backbone, bank(files, 0), 1, object_pointers=object_pointers)

    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("options", [{"supports": 0}, {"neighbours": 7}])
def test_settings_sam2_cannot_have_are_refused(files, options):
    with pytest.raises(ValueError, match="must"):
        FateSamInferer(bank(files, 0), len(ORGANS), **options)
