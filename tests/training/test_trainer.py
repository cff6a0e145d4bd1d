"""Training of the memory prior on one fixed batch: what it learns, what it leaves alone, and reproducibility."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from scripts.errors import RefusedError, SettingError
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.logits import mask_to_logits
from scripts.networks.naming_head import NamingHead, naming_classes
from scripts.networks.naming_network import naming
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.training import trainer as trainer_module
from scripts.training.losses import DiffuSAMLoss
from scripts.training.random_contrasts import RandContrasts
from scripts.training.trainer import DiffuSAMTrainer

SIZE = 64
ORGANS = ["spleen", "liver"]


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return FrozenSAM2("sam2_nano", image_size=SIZE)


@pytest.fixture(scope="module")
def batch(backbone):
    """Four pairs as the embedding cache gives them, the last one without its organ."""
    generator = torch.Generator().manual_seed(0)
    features = backbone.encode_image(torch.rand(4, 1, SIZE, SIZE, generator=generator))
    mask = torch.zeros(4, 1, SIZE, SIZE, dtype=torch.bool)
    mask[0, :, 10:40, 8:30] = mask[1, :, 20:50, 30:60] = mask[2, :, 5:25, 20:44] = True
    return {
        "embedding": features.embedding.half(),
        "high_res_fine": features.high_res[0].half(),
        "high_res_coarse": features.high_res[1].half(),
        "memory": backbone.encode_memory(features, mask_to_logits(mask)).half(),
        "mask": mask,
        "organ": torch.tensor([0, 1, 0, 1]),
        "present": torch.tensor([True, True, True, False]),
    }


def new_network(backbone, batch) -> DiffuSAM:
    torch.manual_seed(0)
    prior = MemoryPrior(
        backbone.memory_channels,
        backbone.embedding_channels,
        organs=len(ORGANS),
        block_out_channels=(32, 64),
        attention_levels=1,
    )
    prior.fit_statistics([(batch["memory"].float(), batch["embedding"].float())])
    return DiffuSAM(backbone, prior, organs=ORGANS)


def train(
    network: DiffuSAM, batch, iterations: int, seed: int = 0, iterations_asked: int | None = None, loss=None, **options
) -> list[dict[str, float]]:
    """Trains on the same batch again and again; returns the losses of each iteration."""
    history = []
    trainer = DiffuSAMTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch] * iterations,
        network=network,
        optimizer=torch.optim.Adam(network.trained_parameters(), lr=1e-3),
        loss_function=loss or DiffuSAMLoss(),
        iterations=iterations_asked,
        **options,
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: history.append({key: value.item() for key, value in engine.state.output[0].items()}),
    )
    torch.manual_seed(seed)
    trainer.run()
    return history


def test_one_batch_is_learnt(backbone, batch):
    history = train(new_network(backbone, batch), batch, iterations=30)

    for key in ("loss", "prior_loss"):
        losses = [output[key] for output in history]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_output_is_every_loss_and_their_weighted_sum(backbone, batch):
    (output,) = train(new_network(backbone, batch), batch, iterations=1)

    assert set(output) == {"loss", "prior_loss", "seg_loss"}
    assert output["loss"] == pytest.approx(output["prior_loss"] + output["seg_loss"])


def test_training_changes_the_prior_and_nothing_of_the_backbone(backbone, batch):
    network = new_network(backbone, batch)
    frozen = {key: value.clone() for key, value in backbone.state_dict().items()}
    prior = {key: value.clone() for key, value in network.prior.named_parameters()}

    train(network, batch, iterations=2)

    assert all(torch.equal(value, frozen[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert not any(torch.equal(value, prior[key]) for key, value in network.prior.named_parameters())


@pytest.mark.parametrize(("weight", "learns"), [(1.0, True), (0.0, False)])
def test_a_head_that_names_organs_is_trained_beside_the_prior(backbone, batch, weight, learns):
    network = new_network(backbone, batch)
    network.names = NamingHead(backbone.embedding_channels, naming_classes(ORGANS))
    before = {key: value.clone() for key, value in network.names.state_dict().items()}
    batch = {**batch, "label": (batch["mask"][:, 0] * (batch["organ"] + 1)[:, None, None]).to(torch.uint8)}

    history = train(network, batch, iterations=15, loss=DiffuSAMLoss(lambda_names=weight))

    changed = {key for key, value in network.names.state_dict().items() if not torch.equal(value, before[key])}
    if learns:
        assert history[-1]["names_loss"] < 0.8 * history[0]["names_loss"]
        assert changed >= {"fine.weight", "mix.weight", "embedding.weight", "eighth.weight", "quarter.weight"}
        total = history[0]["prior_loss"] + history[0]["seg_loss"] + history[0]["names_loss"]
        assert history[0]["loss"] == pytest.approx(total)
    else:
        assert not changed and "names_loss" not in history[0]


def test_a_head_may_be_trained_alone(backbone, batch, monkeypatch):
    network = new_network(backbone, batch)
    network.names = NamingHead(backbone.embedding_channels, naming_classes(ORGANS))
    before = {key: value.clone() for key, value in network.state_dict().items() if key != "_extra_state"}
    batch = {**batch, "label": (batch["mask"][:, 0] * (batch["organ"] + 1)[:, None, None]).to(torch.uint8)}
    monkeypatch.setattr(network.prior, "forward", lambda *args: pytest.fail("the prior is asked, which is not trained"))
    monkeypatch.setattr(backbone, "condition", lambda *args: pytest.fail("something is decoded"))

    history = train(network, batch, iterations=15, loss=DiffuSAMLoss(0.0, 0.0))

    assert set(history[0]) == {"loss", "names_loss"}
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    changed = {key for key, value in before.items() if not torch.equal(value, network.state_dict()[key])}
    assert changed and all(key.startswith("names.") for key in changed)


@pytest.mark.parametrize("head, weights", [(False, (0.0, 0.0)), (True, (0.0, 0.0, 0.0))])
def test_what_trains_nothing_is_refused(backbone, batch, head, weights):
    network = new_network(backbone, batch)
    if head:
        network.names = NamingHead(backbone.embedding_channels, naming_classes(ORGANS))
    loss = DiffuSAMLoss(*weights[:2], lambda_names=weights[-1])
    with pytest.raises(ValueError, match="Nothing would be trained: .* Set --lambda_prior 1 --lambda_seg 1"):
        train(network, batch, iterations=1, loss=loss)


def test_a_head_with_an_encoder_of_its_own_sees_random_contrasts(backbone, batch):
    def first_losses(**options):
        network = new_network(backbone, batch)
        network.names = naming(backbone, ORGANS, own_encoder=True)
        image = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        label = (batch["mask"][:, 0] * (batch["organ"] + 1)[:, None, None]).to(torch.uint8)
        return train(network, {**batch, "image": image, "label": label}, iterations=1, **options)[0]

    plain, none, all_of_them = (
        first_losses(**options)
        for options in ({}, *({"random_contrasts": RandContrasts(share, len(ORGANS))} for share in (0.0, 1.0)))
    )

    assert plain == none
    assert all_of_them["names_loss"] != plain["names_loss"]
    assert all_of_them["prior_loss"] == plain["prior_loss"]  # the prior learns from slices as they are


def test_random_contrasts_that_nothing_sees_are_refused(backbone, batch):
    network = new_network(backbone, batch)
    network.names = NamingHead(backbone.embedding_channels, naming_classes(ORGANS))
    with pytest.raises(SettingError, match="random_contrasts is 0.5, but nothing that is trained sees slices"):
        train(network, batch, iterations=1, random_contrasts=RandContrasts(0.5, len(ORGANS)))


def test_the_segmentation_loss_reaches_the_prior(backbone, batch):
    network = new_network(backbone, batch)
    trainer = DiffuSAMTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.SGD(network.prior.parameters(), lr=0.0),
        loss_function=DiffuSAMLoss(lambda_prior=0.0),
    )

    trainer.run()

    assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.prior.parameters())


def test_the_same_seed_gives_the_same_losses(backbone, batch):
    first, second = (train(new_network(backbone, batch), batch, iterations=3, seed=5) for _ in range(2))

    assert first == second


def test_another_seed_gives_other_losses(backbone, batch):
    first, second = (train(new_network(backbone, batch), batch, iterations=1, seed=seed) for seed in (5, 6))

    assert first != second


@pytest.fixture
def clipped(monkeypatch):
    """The norms that gradients were clipped to."""
    norms = []

    def spy(parameters, max_norm):
        norms.append(max_norm)

    monkeypatch.setattr(trainer_module, "clip_grad_norm_", spy)
    return norms


@pytest.mark.parametrize("max_grad_norm, expected", [(0.5, [0.5, 0.5]), (None, [])])
def test_gradients_are_clipped_as_told(backbone, batch, clipped, max_grad_norm, expected):
    train(new_network(backbone, batch), batch, iterations=2, max_grad_norm=max_grad_norm)

    assert clipped == expected


def test_clipping_bounds_the_gradients_of_the_prior_and_of_the_head_each(backbone, batch):
    network = new_network(backbone, batch)
    network.names = NamingHead(backbone.embedding_channels, naming_classes(ORGANS))
    batch = {**batch, "label": (batch["mask"][:, 0] * (batch["organ"] + 1)[:, None, None]).to(torch.uint8)}

    train(network, batch, iterations=1, max_grad_norm=1e-3)

    for part in (network.prior, network.names):
        squares = [parameter.grad.square().sum() for parameter in part.parameters() if parameter.grad is not None]
        assert torch.stack(squares).sum().sqrt().item() == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("timesteps, expected", [(None, range(1000)), ([999, 499], {999, 499}), ([7], {7})], ids=str)
def test_times_are_drawn_from_those_given(backbone, batch, monkeypatch, timesteps, expected):
    network, drawn = new_network(backbone, batch), []
    predict = network.prior.predict

    def spy(noised, timestep, condition, organ):
        drawn.extend(timestep.tolist())
        return predict(noised, timestep, condition, organ)

    monkeypatch.setattr(network.prior, "predict", spy)
    train(network, batch, iterations=5, timesteps=timesteps)

    assert len(drawn) == 20 and set(drawn) <= set(expected)
    assert len(set(drawn)) >= min(len(expected), 10)


# ---- when it ends


@pytest.mark.parametrize("iterations", [1, 3])
def test_training_ends_after_as_many_iterations_as_asked(backbone, batch, iterations):
    assert len(train(new_network(backbone, batch), batch, iterations=5, iterations_asked=iterations)) == iterations


def test_no_iteration_is_no_training(backbone, batch):
    with pytest.raises(SettingError, match="iterations must be 1 or more, got 0"):
        train(new_network(backbone, batch), batch, iterations=5, iterations_asked=0)


def test_the_first_loss_that_is_not_finite_ends_training_and_names_iteration_and_cases(backbone, batch):
    network = new_network(backbone, batch)
    spoilt = {**batch, "memory": batch["memory"] * float("inf"), "case": ["b", "a", "b", "a"]}
    trainer = DiffuSAMTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch, spoilt, batch],
        network=network,
        optimizer=torch.optim.Adam(network.prior.parameters(), lr=1e-3),
        loss_function=DiffuSAMLoss(),
    )

    with pytest.raises(RefusedError, match=r"not finite in iteration 2 \(.*\). It saw slices of a, b") as info:
        trainer.run()

    assert "--learning_rate" in str(info.value)
    assert all(torch.isfinite(each).all() for each in network.prior.parameters())
