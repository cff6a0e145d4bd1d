"""The embedding cache: what an item holds, what a cache file depends on, interruption, and sampling."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged, RandGaussianNoised, Resized, ScaleIntensityRanged
from scripts.networks.logits import mask_to_logits
from scripts.networks.sam2_backbone import SAM2, FrozenSAM2, between_neighbours
from scripts.training.encoded_slices import EncodedSlices
from torch.utils.data import DataLoader

ORGANS = ["spleen", "liver"]
KEYS = ["image", "label"]
SIZE, TOKENS, SLICES = 64, 4, 6
SPLEEN_SLICES, LIVER_SLICES = range(0, 4), range(3, 5)


def transforms(a_max: float = 200) -> Compose:
    return Compose(
        [
            LoadImaged(KEYS, ensure_channel_first=True),
            ScaleIntensityRanged("image", a_min=0, a_max=a_max, b_min=0, b_max=1, clip=True),
            Resized(KEYS, (SIZE, SIZE, -1), mode=("trilinear", "nearest-exact")),
        ]
    )


def noise(std: float = 0.05) -> Compose:
    return Compose([RandGaussianNoised("image", prob=1.0, std=std)])


def random_backbone(seed: int = 0) -> FrozenSAM2:
    torch.manual_seed(seed)
    return FrozenSAM2("sam2_nano", image_size=SIZE)


@pytest.fixture(scope="module")
def backbone():
    return random_backbone()


def write_label(path, shift: int = 0) -> None:
    label = np.zeros((40, 36, SLICES), np.uint8)
    label[8 + shift : 20 + shift, 6:20, SPLEEN_SLICES.start : SPLEEN_SLICES.stop] = 1
    label[22:36, 14:30, LIVER_SLICES.start : LIVER_SLICES.stop] = 2
    nib.save(nib.Nifti1Image(label, np.diag([2.0, 2.0, 5.0, 1.0])), path)


def write_case(folder, case: str) -> dict[str, str]:
    item = {"image": str(folder / f"{case}.nii.gz"), "label": str(folder / f"{case}_label.nii.gz"), "case": case}
    image = np.random.default_rng(list(case.encode())).uniform(0, 200, (40, 36, SLICES)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([2.0, 2.0, 5.0, 1.0])), item["image"])
    write_label(item["label"])
    return item


@pytest.fixture
def data(tmp_path):
    return [write_case(tmp_path, case) for case in ("a", "b")]


@pytest.fixture
def make(tmp_path, data, backbone):
    """Builds the data set of case a, with new transforms, unless told otherwise."""

    def build(**changes) -> EncodedSlices:
        arguments = {
            "data": data[:1],
            "transform": transforms(),
            "backbone": backbone,
            "organs": ORGANS,
            "cache_dir": tmp_path / "cache",
        }
        return EncodedSlices(**{**arguments, **changes})

    return build


@pytest.fixture
def encoded_slices(monkeypatch):
    """The number of slices in every call of the image encoder."""
    counts = []
    encode_image = SAM2.encode_image

    def spy(self, image):
        counts.append(len(image))
        return encode_image(self, image)

    monkeypatch.setattr(SAM2, "encode_image", spy)
    return counts


def test_every_slice_of_every_variant_meets_every_organ(make, data):
    dataset = make(data=data, augmentation=noise(), variants=2)

    assert len(dataset) == 2 * (1 + 2) * SLICES * len(ORGANS)


def test_items_have_the_declared_shapes_and_types(make, backbone):
    item = make()[0]

    channels, memory = backbone.embedding_channels, backbone.memory_channels
    assert {key: (tuple(value.shape), value.dtype) for key, value in item.items() if torch.is_tensor(value)} == {
        "embedding": ((channels, TOKENS, TOKENS), torch.float16),
        "high_res_fine": ((channels // 8, 4 * TOKENS, 4 * TOKENS), torch.float16),
        "high_res_coarse": ((channels // 4, 2 * TOKENS, 2 * TOKENS), torch.float16),
        "memory": ((memory, TOKENS, TOKENS), torch.float16),
        "mask": ((1, SIZE, SIZE), torch.bool),
    }
    assert (type(item["organ"]), type(item["present"])) == (int, bool)


def test_presence_is_that_of_the_mask(make):
    items = list(map(make().__getitem__, range(SLICES * len(ORGANS))))

    assert [item["present"] for item in items] == [item["mask"].any().item() for item in items]
    assert sum(item["present"] for item in items) == len(SPLEEN_SLICES) + len(LIVER_SLICES)


@pytest.mark.parametrize("position, organ", [(0, 0), (3, 1), (5, 0)])
def test_memory_is_that_of_the_true_mask(make, data, backbone, position, organ):
    volume = transforms()(data[0])
    features = backbone.encode_image(volume["image"][None, ..., position].as_tensor())
    mask = (volume["label"][None, ..., position].as_tensor() == organ + 1).float()
    expected = backbone.encode_memory(features, mask_to_logits(mask))

    item = make()[position * len(ORGANS) + organ]

    assert torch.equal(item["mask"], mask[0].bool())
    torch.testing.assert_close(item["embedding"].float(), features.embedding[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(item["memory"].float(), expected[0], rtol=2e-3, atol=2e-3)


def test_batches_of_the_encoder_do_not_show(make, tmp_path):
    whole = make(batch_size=8)[7]

    split = make(batch_size=4, cache_dir=tmp_path / "other")[7]

    torch.testing.assert_close(split["memory"], whole["memory"], rtol=2e-3, atol=2e-3)


def test_the_first_construction_encodes_each_slice_once(make, data, encoded_slices):
    make(data=data, augmentation=noise(), variants=1)

    assert sum(encoded_slices) == 2 * 2 * SLICES


def test_a_second_construction_encodes_nothing(make, encoded_slices):
    first = make(augmentation=noise(), variants=1)
    encoded_slices.clear()

    second = make(augmentation=noise(), variants=1)

    assert encoded_slices == []
    assert second.files == first.files


def flip_a_bit(path, other):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put_nan(path, other):
    content = torch.load(path, weights_only=True)
    content["embedding"][0, 0, 0, 0] = torch.nan
    torch.save(content, path)


@pytest.mark.parametrize("spoil", [flip_a_bit, put_nan, lambda path, other: shutil.copy(other, path)])
def test_a_file_that_is_not_as_it_was_written_or_of_another_case_is_made_again(make, data, encoded_slices, spoil):
    path, other = make(data=data).files
    whole = path.read_bytes()
    spoil(path, other)
    encoded_slices.clear()

    make(data=data)

    assert sum(encoded_slices) == SLICES
    assert path.read_bytes() == whole


def test_files_of_earlier_versions_do_not_say_what_they_are_of(make, encoded_slices):
    (path,) = make().files
    torch.save({key: value for key, value in torch.load(path).items() if key != "of"}, path)
    encoded_slices.clear()

    make()

    assert encoded_slices == []


def test_transforms_that_have_been_used_still_find_their_cache(make, encoded_slices):
    arguments = {"transform": transforms(), "augmentation": noise(), "variants": 1}
    make(**arguments)
    encoded_slices.clear()

    make(**arguments)

    assert encoded_slices == []


def test_a_variant_is_augmented_and_reproducible(make, tmp_path):
    dataset = make(augmentation=noise(), variants=1)

    again = make(augmentation=noise(), variants=1, cache_dir=tmp_path / "other")

    pairs = SLICES * len(ORGANS)
    assert not torch.equal(dataset[0]["embedding"], dataset[pairs]["embedding"])
    assert torch.equal(dataset[pairs]["embedding"], again[pairs]["embedding"])


def names(dataset: EncodedSlices) -> tuple[str, str]:
    """Of the unaugmented and of the augmented variant."""
    unaugmented, augmented = (path.name for path in dataset.files)
    return unaugmented, augmented


@pytest.fixture
def reference(make):
    return names(make(augmentation=noise(), variants=1))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda: {"transform": transforms(a_max=150)}, id="transform"),
        pytest.param(lambda: {"backbone": random_backbone(seed=1)}, id="weights"),
        pytest.param(lambda: {"organs": ["spleen", "kidney"]}, id="organs"),
    ],
)
def test_what_changes_the_content_changes_both_names(make, reference, change):
    changed = names(make(augmentation=noise(), variants=1, **change()))

    assert changed[0] != reference[0]
    assert changed[1] != reference[1]


def test_another_label_changes_both_names(make, data, reference):
    write_label(data[0]["label"], shift=2)

    changed = names(make(augmentation=noise(), variants=1))

    assert changed[0] != reference[0]
    assert changed[1] != reference[1]


@pytest.mark.parametrize("change", [{"augmentation": noise(0.1)}, {"seed": 1}], ids=["augmentation", "seed"])
def test_the_augmentation_changes_the_name_of_the_augmented_variant_alone(make, reference, change):
    changed = names(make(**{"augmentation": noise(), "variants": 1, **change}))

    assert changed[0] == reference[0]
    assert changed[1] != reference[1]


def test_an_interruption_loses_only_the_volume_in_work(make, data, tmp_path, monkeypatch, encoded_slices):
    encode = EncodedSlices.encode

    def killed_at_b(self, volume, case="", on_slices=None):
        if case == "b":
            raise KeyboardInterrupt
        return encode(self, volume, case)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EncodedSlices, "encode", killed_at_b)
        make(data=data)
    (left,) = (tmp_path / "cache").iterdir()
    content = torch.load(left, weights_only=True)
    encoded_slices.clear()

    dataset = make(data=data)

    assert content["memory"].shape[:2] == (SLICES, len(ORGANS))
    assert sum(encoded_slices) == SLICES  # those of b
    assert len(dataset) == 2 * SLICES * len(ORGANS)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".pt"}


DRAWS = 4000
TOLERANCE = 4 * (0.25 / DRAWS) ** 0.5  # four standard deviations of a share, at its widest


@pytest.fixture(params=["few pairs", "more than PyTorch draws from"])
def pairs(request, monkeypatch):
    if request.param != "few pairs":
        monkeypatch.setattr("scripts.training.encoded_slices._MOST_DRAWN_FROM", 1)
        monkeypatch.setattr(torch, "multinomial", None)


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("absent_share", [0.0, 0.25, 0.6])
def test_the_sampler_draws_absent_organs_by_their_share(make, absent_share):
    dataset = make(absent_share=absent_share)
    torch.manual_seed(0)

    drawn = torch.tensor(list(dataset.sampler(DRAWS)))

    assert (~dataset.present[drawn]).float().mean().item() == pytest.approx(absent_share, abs=TOLERANCE)


@pytest.mark.usefixtures("pairs")
def test_the_sampler_draws_organs_equally_often(make):
    dataset = make()  # with the spleen in twice as many slices as the liver
    torch.manual_seed(0)

    drawn = torch.tensor(list(dataset.sampler(DRAWS)))

    assert (dataset.pairs[drawn, 2] == 0).float().mean().item() == pytest.approx(0.5, abs=TOLERANCE)


def test_statistics_are_of_present_organs(make):
    dataset = make()

    batches = list(dataset.statistics_batches(batch_size=4))

    assert [len(memory) for memory, _ in batches] == [4, 2]
    assert all(memory.dtype == embedding.dtype == torch.float32 for memory, embedding in batches)


def test_worker_processes_load_what_the_main_process_does(make):
    dataset = make()

    batches = list(DataLoader(dataset, batch_size=4, num_workers=2))

    for key in ("memory", "mask", "organ", "present"):
        together = torch.cat([batch[key] for batch in batches])
        alone = torch.stack([torch.as_tensor(dataset[index][key]) for index in range(len(dataset))])
        assert torch.equal(together, alone)


def test_a_copy_for_a_worker_leaves_the_backbone_behind(make):
    state = make().__getstate__()

    assert state["backbone"] is None
    assert not any(isinstance(value, torch.nn.Module) for value in state.values())


def test_a_volume_of_another_size_is_refused_with_its_case(make):
    small = Compose([LoadImaged(KEYS, ensure_channel_first=True), Resized(KEYS, (32, 32, -1))])

    with pytest.raises(ValueError, match=r"Case 'a': expected .* \(1, 64, 64, slices\).*got \(1, 32, 32, 6\)"):
        make(transform=small)


def test_variants_without_an_augmentation_are_refused(make):
    with pytest.raises(ValueError, match="3 augmented variants are asked for, but `augmentation` is None"):
        make(variants=3)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_an_absent_share_outside_its_range_is_refused(make, share):
    with pytest.raises(ValueError, match=r"absent_share must lie in \[0, 1\)"):
        make(absent_share=share)


def test_all_memories_of_a_slice_are_those_of_its_items(make):
    plain, every = make(), make(all_memories=True)

    memories = every[0]["memory"]

    assert torch.equal(memories, torch.stack([plain[organ]["memory"] for organ in range(len(ORGANS))]))
    assert plain.pairs[: len(ORGANS), 2].tolist() == [0, 1]  # the first items are of one slice
    for ours, usual in zip(every.statistics_batches(), plain.statistics_batches(), strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, usual))


def test_items_have_the_labels_of_their_slice_where_they_are_asked_for(make):
    for index, item in enumerate(dataset := make(labels=True)):
        assert item["label"].shape == (SIZE, SIZE) and item["label"].dtype == torch.uint8
        assert torch.equal(item["label"] == item["organ"] + 1, item["mask"][0])
        assert ("label" in make()[index]) is False
    assert len(dataset) == SLICES * len(ORGANS)


@pytest.mark.parametrize("context", [False, True])
def test_items_have_the_slice_as_the_backbone_sees_it_where_it_is_asked_for(make, data, backbone, context, monkeypatch):
    monkeypatch.setattr(backbone, "slice_context", context)
    dataset = make(images=True)
    volume = transforms()(dict(data[0]))["image"].permute(3, 0, 1, 2)
    shown = between_neighbours(volume) if context else volume

    for index in (0, 2 * len(ORGANS), (SLICES - 1) * len(ORGANS)):
        image, position = dataset[index]["image"], int(dataset.pairs[index, 1])
        assert image.dtype == torch.float16 and image.shape == (3 if context else 1, SIZE, SIZE)
        torch.testing.assert_close(image.float(), torch.as_tensor(shown[position]), atol=1e-3, rtol=0)
    assert {file.name for file in dataset.files}.isdisjoint(file.name for file in make().files)
