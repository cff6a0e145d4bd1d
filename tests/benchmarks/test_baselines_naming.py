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

SIZE, ORGANS = 64, ["spleen", "liver"]


@pytest.fixture(scope="module")
def backbone() -> FrozenSAM2:
    torch.manual_seed(0)
    return FrozenSAM2("sam2_nano", SIZE, slice_context=True)


def network(backbone, own_encoder: bool = False, named: bool = True) -> DiffuSAM:
    prior = MemoryPrior(32, 128, organs=2, block_out_channels=(32, 64), attention_levels=1)
    names = naming(backbone, ORGANS, own_encoder=own_encoder) if named else None
    return DiffuSAM(backbone, prior, organs=ORGANS, names=names)


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


def test_a_file_without_a_head_is_refused(backbone, tmp_path):
    torch.save({"model": network(backbone, named=False).state_dict()}, tmp_path / "model.pt")
    with pytest.raises(SettingError, match="no head that names organs"):
        with_names(network(backbone), tmp_path / "model.pt")
