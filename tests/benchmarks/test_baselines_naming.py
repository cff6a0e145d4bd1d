"""The row of a head that names organs by itself."""

import pytest
import torch
from monai.data import MetaTensor
from scripts.errors import SettingError
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.naming_network import naming
from scripts.networks.sam2_backbone import FrozenSAM2

from benchmarks.baselines.naming import NamingInferer, with_names
from benchmarks.baselines.slicewise import smoothed_along
from benchmarks.baselines.supervised import NetworkInferer

SIZE, ORGANS = 64, ["spleen", "liver"]


@pytest.fixture(scope="module")
def backbone() -> FrozenSAM2:
    torch.manual_seed(0)
    return FrozenSAM2("sam2_nano", SIZE, slice_context=True)


def network(backbone, own_encoder: bool = False, named: bool = True, organs: list[str] = ORGANS) -> DiffuSAM:
    prior = MemoryPrior(32, 128, organs=len(organs), block_out_channels=(32, 64), attention_levels=1)
    names = naming(backbone, organs, own_encoder=own_encoder) if named else None
    return DiffuSAM(backbone, prior, organs=organs, names=names)


@pytest.mark.parametrize("own_encoder", [False, True])
@pytest.mark.parametrize(("name", "value"), [("liver", 2), ("spleen", 1), ("bowel", 0)])
def test_what_the_head_names_is_the_label(backbone, tmp_path, own_encoder, name, value):
    trained = network(backbone, own_encoder)
    torch.nn.init.zeros_(trained.names.fine.weight)
    trained.names.fine.bias.data = torch.tensor([9.0 * (each == name) for each in trained.names.classes])
    torch.save({"model": trained.state_dict()}, tmp_path / "model.pt")
    volume = MetaTensor(torch.rand(1, 1, 40, 50, 3), affine=torch.eye(4))

    output = NamingInferer(ORGANS)(volume, with_names(network(backbone, own_encoder), tmp_path / "model.pt"))

    assert (output[0, 0] == value).all()


@pytest.mark.parametrize("own_encoder", [False, True])
def test_other_organs_may_be_asked_for_than_the_file_is_of(backbone, tmp_path, own_encoder):
    trained = network(backbone, own_encoder)
    torch.nn.init.zeros_(trained.names.fine.weight)
    trained.names.fine.bias.data = torch.tensor([9.0 * (each == "aorta") for each in trained.names.classes])
    torch.save({"model": trained.state_dict()}, tmp_path / "model.pt")
    volume = MetaTensor(torch.rand(1, 1, 40, 50, 3), affine=torch.eye(4))
    organs = ["liver", "stomach", "aorta"]

    asked = with_names(network(backbone, own_encoder, organs=organs), tmp_path / "model.pt")

    assert (NamingInferer(organs)(volume, asked)[0, 0] == 3).all()
    with pytest.raises(SettingError, match="names spleen, liver, .*not femur. Leave that out"):
        with_names(network(backbone, own_encoder, organs=["liver", "femur"]), tmp_path / "model.pt")


def test_a_file_without_a_head_is_refused(backbone, tmp_path):
    torch.save({"model": network(backbone, named=False).state_dict()}, tmp_path / "model.pt")
    with pytest.raises(SettingError, match="no head that names organs"):
        with_names(network(backbone), tmp_path / "model.pt")


def test_slices_are_smoothed_along_the_volume_whatever_they_came_in():
    logits = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    parts = [([0, 1], logits[:2]), ([2], logits[2:3]), ([3, 4], logits[3:])]

    ((indices, smoothed),) = smoothed_along(iter(parts), 0.5)

    own = logits.log_softmax(1)
    assert indices == [0, 1, 2, 3, 4]
    torch.testing.assert_close(smoothed[2], own[2] / 2 + own[1] / 4 + own[3] / 4)
    torch.testing.assert_close(smoothed[0], own[0] * 3 / 4 + own[1] / 4)  # an end is its own neighbour
    assert list(smoothed_along(iter(parts), 0)) == parts


@pytest.mark.parametrize("row", ["naming", "unet"])
def test_a_row_may_be_smoothed_along_the_slices(backbone, monkeypatch, row):
    def named(inferer, inputs, network):  # liver, but for the slice in the middle, where nothing is a little likelier
        liver = torch.tensor([2.0, -1.0, 2.0])[:, None, None, None].expand(-1, -1, 8, 8)
        nothing, spleen = torch.zeros_like(liver), torch.full_like(liver, -9)
        yield [0, 1, 2], torch.cat([spleen, liver, nothing] if row == "naming" else [nothing, spleen, liver], 1)

    kind, arguments = (NamingInferer, [ORGANS]) if row == "naming" else (NetworkInferer, [SIZE, len(ORGANS)])
    monkeypatch.setattr(kind, "_named", named)
    volume = MetaTensor(torch.rand(1, 1, 40, 50, 3), affine=torch.eye(4))

    by_itself, together = (kind(*arguments, smoothing=weight)(volume, backbone)[0, 0] for weight in (0, 0.5))

    assert by_itself[0, 0].tolist() == [2, 0, 2] and together[0, 0].tolist() == [2, 2, 2]
