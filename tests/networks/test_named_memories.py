"""Memories of named masks in place of generated ones."""

from pathlib import Path

import pytest
import torch
from scripts.data.phantom_anatomy import ORGANS as ANATOMY
from scripts.errors import SettingError
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.logits import MASK_LOGIT, mask_to_logits
from scripts.networks.naming_head import STRUCTURES, NamingHead, named_labels, naming_classes
from scripts.networks.naming_network import naming
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.pretraining.patient_clips import CLASSES as PRETRAINED
from scripts.training.starting_prior import StartingPrior

SIZE, ORGANS = 64, ["spleen", "liver"]
CLASSES = [*ORGANS, "bowel", "bone", "other"]


@pytest.fixture(scope="module")
def backbone() -> FrozenSAM2:
    torch.manual_seed(0)
    return FrozenSAM2("sam2_nano", SIZE)


def network(backbone, named: bool = True) -> DiffuSAM:
    torch.manual_seed(1)
    prior = MemoryPrior(32, 128, organs=len(ORGANS), block_out_channels=(32, 64), attention_levels=1)
    prior.fitted.fill_(True)
    names = NamingHead(backbone.embedding_channels, CLASSES) if named else None
    return DiffuSAM(backbone, prior, organs=ORGANS, names=names).eval()


@pytest.fixture(scope="module")
def features(backbone):
    return backbone.encode_image(torch.rand(3, 1, SIZE, SIZE))


def named_masks(head: NamingHead, features) -> torch.Tensor:
    """``(B, organs, S, S)``: where an organ is likelier than the other organ and all other classes together."""
    logits = head(features)[1]
    merged = torch.cat([logits[:, :2], logits[:, 2:].logsumexp(1, keepdim=True)], 1)
    merged = torch.nn.functional.interpolate(merged, (SIZE, SIZE), mode="bilinear")
    return torch.nn.functional.one_hot(merged.argmax(1), 3).permute(0, 3, 1, 2)[:, :2]


def test_memories_are_those_of_the_masks_that_the_head_names(backbone, features):
    net = network(backbone)
    torch.nn.init.normal_(net.names.fine.weight, std=30.0)  # so that there is something of every organ
    masks = named_masks(net.names, features)
    assert masks.flatten(2).any(2).all()

    made = net.synthesise(features)

    masks = masks.flatten(0, 1)[:, None].float()
    score = torch.full((len(masks), 1), MASK_LOGIT)
    expected = backbone.encode_memory(features, mask_to_logits(masks), score)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_masks_are_where_an_organ_is_likeliest(backbone, features):
    net = network(backbone)
    torch.nn.init.normal_(net.names.fine.weight, std=30.0)
    masks = net.named_masks(net.name(features))
    assert torch.equal(masks, named_masks(net.names, features).bool()) and masks.any()
    net.names.fine.bias.data[0] = -1000.0  # an organ that is likelier nowhere
    assert torch.equal(net.named_masks(net.name(features)), named_masks(net.names, features).bool())


@pytest.mark.parametrize("logits, named", [((3, 3, 0), 1), ((0, 3, 3), 2), ((2, 3, 3), 2), ((3, 2, 3), 1)])
def test_of_equals_the_first_is_named(logits, named):
    """Two organs and one other structure, which come in this order."""
    labels = named_labels(torch.tensor(logits, dtype=torch.float)[:, None, None].expand(3, 2, 2), 2, size=8)
    assert labels.shape == (8, 8) and labels.unique().tolist() == [named]


def test_slices_are_named_a_few_at_a_time_as_all_together(backbone, features, monkeypatch):
    net, seen = network(backbone), []
    expected = net.name(features)
    monkeypatch.setattr("scripts.networks.diffusam.encoded_at_once", lambda *_: 2)
    net.names.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    torch.testing.assert_close(net.name(features), expected)
    assert seen == [2, 1]


def test_an_organ_that_nothing_is_named_has_the_memory_of_absence(backbone, features):
    net = network(backbone)
    net.names.fine.bias.data[0] = -50.0

    made = net.synthesise(features)[::2]

    empty = torch.zeros(3, 1, SIZE, SIZE)
    expected = backbone.encode_memory(features, mask_to_logits(empty), torch.full((3, 1), -MASK_LOGIT))
    torch.testing.assert_close(made, expected)


def test_one_organ_has_the_same_memory_alone(backbone, features):
    net = network(backbone)
    together = net.synthesise(features).unflatten(0, (3, 2))
    torch.testing.assert_close(net.synthesise(features, organs=[1]), together[:, 1])


def test_samples_differ_where_the_head_is_unsure(backbone, features):
    net = network(backbone)
    first, again, other = (net.synthesise(features, sample) for sample in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(other, net.synthesise(features, 1))


def test_a_files_head_is_left_where_nobody_asks_for_it(backbone):
    state = network(backbone).state_dict()
    assert any(key.startswith("names.") for key in state)
    network(backbone, named=False).load_state_dict(state)


@pytest.mark.parametrize("has, asked, remedy", [(True, False, "True"), (False, True, "False")])
def test_a_head_with_an_encoder_of_its_own_is_no_head_without(backbone, has, asked, remedy):
    def network(own_encoder):
        prior = MemoryPrior(32, 128, organs=2, block_out_channels=(32, 64), attention_levels=1)
        names = naming(backbone, ["spleen", "liver"], own_encoder=own_encoder)
        return DiffuSAM(backbone, prior, organs=["spleen", "liver"], names=names)

    with pytest.raises(SettingError, match=f"Set `names_encoder` to {remedy}, or `named_memories` to False"):
        network(asked).load_state_dict(network(has).state_dict())


def test_a_file_without_a_head_is_refused_where_one_is_asked_for(backbone):
    state = network(backbone, named=False).state_dict()
    with pytest.raises(SettingError, match="no head that names organs. Set `named_memories` to False"):
        network(backbone).load_state_dict(state)


def saved(backbone, path: Path, organs: list[str]) -> DiffuSAM:
    """A trained prior's file with a head for the organs, as pretraining leaves it."""
    prior = MemoryPrior(32, 128, organs=len(organs), block_out_channels=(32, 64), attention_levels=1)
    prior.fitted.fill_(True)
    trained = DiffuSAM(backbone, prior, organs=organs, names=NamingHead(128, naming_classes(organs)))
    torch.save({"model": trained.state_dict()}, path)
    return trained


def test_training_starts_from_the_head_of_the_file(backbone, tmp_path):
    trained = saved(backbone, tmp_path / "model.pt", ["spleen", "right kidney", "liver"])
    net = network(backbone)
    net.names = NamingHead(128, naming_classes(ORGANS))

    StartingPrior(net, tmp_path / "model.pt", statistics=[])()

    # of each structure what is known of it, in whichever order the two have it
    for name in ("spleen", "liver", "right kidney", "bowel", "other"):
        own, others = (each.names.classes.index(name) for each in (net, trained))
        for layer in ("fine", "coarse"):
            row, expected = (getattr(each.names, layer).weight[i] for each, i in ((net, own), (trained, others)))
            assert torch.equal(row, expected)
    assert torch.equal(net.names.mix.weight, trained.names.mix.weight)


def test_an_organ_that_the_head_does_not_know_starts_anew(backbone, tmp_path):
    trained = saved(backbone, tmp_path / "model.pt", ["spleen", "liver"])
    head = NamingHead(128, naming_classes(["spleen", "prostate"]))
    fresh = head.fine.weight.clone()

    head.take_over(trained.names.state_dict(), trained.names.classes)

    assert head.classes[:3] == ["spleen", "prostate", "right kidney"] and len(head.classes) == 21
    assert torch.equal(head.fine.weight[1], fresh[1])
    assert torch.equal(head.fine.weight[0], trained.names.fine.weight[0])


def test_a_head_is_taken_over_where_the_prior_knows_none_of_the_organs(backbone, tmp_path):
    trained = saved(backbone, tmp_path / "model.pt", ["right kidney", "left kidney"])
    net = network(backbone)
    net.names = NamingHead(128, naming_classes(ORGANS))
    fitted = []
    net.prior.fit_statistics = fitted.append

    StartingPrior(net, tmp_path / "model.pt", statistics=[])()

    assert fitted and torch.equal(net.names.mix.weight, trained.names.mix.weight)


def test_what_pretraining_names_is_what_a_head_of_its_organs_names():
    assert naming_classes(ANATOMY) == list(STRUCTURES) == list(PRETRAINED)


def test_training_from_a_file_without_a_head_is_refused(backbone, tmp_path):
    torch.save({"model": network(backbone, named=False).state_dict()}, tmp_path / "model.pt")
    with pytest.raises(SettingError, match="named_memories goes on from the head .* has no head that names organs"):
        StartingPrior(network(backbone), tmp_path / "model.pt", statistics=[])()
