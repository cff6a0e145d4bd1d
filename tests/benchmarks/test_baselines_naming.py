"""The row of the head that pretraining throws away."""

import pytest
import torch
from monai.data import MetaTensor
from scripts.errors import SettingError
from scripts.networks.naming_head import NamingHead
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.pretraining.patient_clips import CLASSES

from benchmarks.baselines.naming import NamedSlices, NamingInferer

SIZE = 64


@pytest.fixture(scope="module")
def backbone() -> FrozenSAM2:
    torch.manual_seed(0)
    return FrozenSAM2("sam2_nano", SIZE)


@pytest.fixture
def pretraining(backbone, tmp_path):
    """A checkpoint whose head names everything liver."""
    head = NamingHead(backbone.embedding_channels, CLASSES)
    torch.nn.init.zeros_(head.fine.weight)
    head.fine.bias.data = torch.where(torch.arange(len(CLASSES)) == CLASSES.index("liver"), 9.0, 0.0)
    weights = {f"backbone.model.{key}": value for key, value in backbone.model.state_dict().items()}
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": weights | {f"head.{key}": value for key, value in head.state_dict().items()}}, path)
    return path


def test_what_the_head_names_is_the_label(backbone, pretraining):
    volume = MetaTensor(torch.rand(1, 1, 40, 50, 3), affine=torch.eye(4))
    output = NamingInferer(["spleen", "liver"])(volume, NamedSlices(backbone, pretraining))
    assert (output[0, 0] == 2).all()


def test_what_is_none_of_the_organs_is_background(backbone, pretraining):
    volume = MetaTensor(torch.rand(1, 1, 40, 50, 3), affine=torch.eye(4))
    output = NamingInferer(["spleen", "left kidney"])(volume, NamedSlices(backbone, pretraining))
    assert not output[0, 0].any()


def test_another_backbones_pretraining_is_refused(pretraining):
    torch.manual_seed(1)
    with pytest.raises(
        SettingError, match=r"checkpoint.pt' is the pretraining of another backbone than this sam2_nano"
    ):
        NamedSlices(FrozenSAM2("sam2_nano", SIZE), pretraining)


def test_an_organ_that_patients_lack_is_refused():
    with pytest.raises(SettingError, match="have no appendix; there are: spleen"):
        NamingInferer(["liver", "appendix"])
