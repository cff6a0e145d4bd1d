"""AutoMedSAM: its class prompt encoder and loss, inference slice by slice, and the bundle's commands."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from scripts.automedsam.losses import AutoMedSAMLoss, UncertaintyWeights
from scripts.automedsam.network import AutoMedSAM, AutoMedSAMTrainer, SliceInferer
from scripts.errors import user_error
from scripts.networks.sam2_backbone import FrozenSAM2

from tests.helpers.networks import CHANNELS, make_automedsam, make_backbone, make_diffusam, make_encoder
from tests.helpers.workflows import BUNDLE, ORGANS, SETTINGS, SIZE, new_workflow, run, train, write_overlay

OVERLAY = BUNDLE / "configs" / "automedsam.json"
COMMANDS = ("training", "evaluating", "inferring")


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def backbone():
    return make_backbone(decoder_token="single")


@pytest.fixture(scope="module")
def network(backbone):
    """Without the object gate, which random weights may close everywhere."""
    return make_automedsam(backbone, object_gate=False)


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


# ---- the class prompt encoder (Figure 3)


@pytest.mark.parametrize("height, width", [(4, 4), (5, 7)], ids=["even", "odd"])
def test_sparse_prompts_are_tokens_and_dense_prompts_lie_on_the_embedding(height, width):
    sparse, dense = make_encoder(sparse_tokens=3)(uniform(2, CHANNELS, height, width), torch.tensor([0, 1]))

    assert sparse.shape == (2, 3, CHANNELS)
    assert dense.shape == (2, CHANNELS, height, width)


def test_two_sparse_tokens_are_the_means_of_the_upper_and_the_lower_half(encoder):
    branch = []
    hook = encoder.sparse_branch.register_forward_hook(lambda module, inputs, output: branch.append(output))
    sparse, _ = encoder(uniform(1, CHANNELS, 4, 4), torch.tensor([0]))
    hook.remove()

    (features,) = branch
    torch.testing.assert_close(sparse[0, 0], features[0, :, :2].mean((1, 2)))
    torch.testing.assert_close(sparse[0, 1], features[0, :, 2:].mean((1, 2)))


def test_the_unet_sees_the_standardised_embedding_after_every_step_of_noise():
    encoder = make_encoder()
    encoder.embedding_mean.fill_(3.0)
    encoder.embedding_std.fill_(2.0)
    noise = torch.randn(1, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(1))
    seen = []
    encoder.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))

    encoder(3.0 + 2.0 * torch.ones(1, CHANNELS, 4, 4), torch.tensor([0]), noise)

    kept = math.prod(1 - beta for beta in np.linspace(1e-4, 0.01, 100))  # of the signal's variance
    torch.testing.assert_close(seen[0], kept**0.5 + (1 - kept) ** 0.5 * noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prompts", [0, 1], ids=["sparse", "dense"])
def test_organs_have_their_own_prompts(encoder, prompts):
    embedding, noise = uniform(1, CHANNELS, 4, 4).repeat(2, 1, 1, 1), torch.zeros(2, CHANNELS, 4, 4)

    first, second = encoder(embedding, torch.tensor([0, 1]), noise)[prompts]

    assert (first - second).abs().max() > 1e-3


def test_branches_have_weights_of_their_own(encoder):
    dense, sparse = (set(map(id, branch.parameters())) for branch in (encoder.dense_branch, encoder.sparse_branch))

    assert dense and sparse and not dense & sparse


def test_statistics_are_those_of_all_embeddings():
    encoder = make_encoder(channels=2)
    encoder.fitted.fill_(False)
    # channel 0 is 0 or 2, twice as often 0; channel 1 is always 5
    zeros, twos = (torch.tensor([value, 5.0]).view(1, 2, 1, 1).expand(-1, -1, 4, 4) for value in (0.0, 2.0))

    encoder.fit_statistics([(torch.empty(0), torch.cat([zeros, zeros])), (torch.empty(0), twos)])

    assert encoder.embedding_mean.flatten().tolist() == pytest.approx([2 / 3, 5])
    assert encoder.embedding_std.flatten().tolist() == pytest.approx([8**0.5 / 3, 1e-4])
    assert encoder.fitted


def test_statistics_of_nothing(encoder):
    with pytest.raises(ValueError, match="at least one batch"):
        encoder.fit_statistics([])


# ---- the loss


def test_uncertainties_start_at_one():
    weights = UncertaintyWeights(("a", "b"))

    total = weights({"a": torch.tensor(1.0), "b": torch.tensor(3.0)})

    assert total.item() == pytest.approx((1 + 3) / 2 + 2 * math.log(2))


@pytest.mark.parametrize("loss, weight", [(1.0, 0.5), (1 / 3, 1.0), (6.4, 0.125)])
def test_uncertainties_are_learnt_from_the_loss(loss, weight):
    """With w = 1 / sigma^2, the derivative vanishes where w (1 + w) = 2 / L; the weight is w / 2."""
    weights = UncertaintyWeights(("a",))
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.05)

    for _ in range(200):
        optimizer.zero_grad()
        weights({"a": torch.tensor(loss)}).backward()
        optimizer.step()

    assert weights.weights()["a"].item() == pytest.approx(weight, rel=0.02)


@pytest.mark.parametrize("loss", [0.0, 1e4])
def test_weights_stay_positive_for_extreme_losses(loss):
    weights = UncertaintyWeights(("a",))
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.1)

    for _ in range(100):
        optimizer.zero_grad()
        weights({"a": torch.tensor(loss)}).backward()
        optimizer.step()

    assert 0 < weights.weights()["a"].item() < math.inf


def half_mask(batch: int = 1) -> torch.Tensor:
    mask = torch.zeros(batch, 1, 8, 8)
    mask[..., :4] = 1
    return mask


def test_losses_of_an_undecided_mask():
    """All probabilities are 1/2: Dice is 1 - 2 (32 / 2) / (64 / 2 + 32), the others are per pixel."""
    losses = AutoMedSAMLoss(pixel="mse")(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1), half_mask())

    assert losses["pixel_loss"].item() == pytest.approx(0.25)
    assert losses["region_loss"].item() == pytest.approx(0.5, abs=1e-4)
    assert losses["distribution_loss"].item() == pytest.approx(math.log(2))
    weighted = (0.25 + 0.5 + math.log(2)) / 2 + 3 * math.log(2) + 0.1 * math.log(2)
    assert losses["loss"].item() == pytest.approx(weighted, abs=1e-4)


def test_the_focal_pixel_loss_is_cross_entropy_of_hard_pixels():
    losses = AutoMedSAMLoss(pixel="focal")(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1), half_mask())

    assert losses["pixel_loss"].item() == pytest.approx(math.log(2) / 4)  # (1 - p)^2 = 1/4


@pytest.mark.parametrize("name", ["pixel_loss", "region_loss", "distribution_loss"])
def test_masks_do_not_count_where_the_organ_is_absent(name):
    loss, logits = AutoMedSAMLoss(), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = half_mask(2)
    mask[1] = 0

    assert loss(logits, torch.zeros(2, 1), mask)[name] == loss(logits[:1], torch.zeros(1, 1), mask[:1])[name]


def test_the_object_score_learns_where_the_organ_is_absent():
    loss, mask = AutoMedSAMLoss(), torch.zeros(1, 1, 8, 8)

    right, wrong = (loss(torch.zeros(1, 1, 8, 8), torch.tensor([[score]]), mask)["loss"] for score in (-3.0, 3.0))

    assert (wrong - right).item() == pytest.approx(0.1 * 3.0, abs=1e-4)  # softplus(3) - softplus(-3) = 3


def test_unknown_pixel_loss():
    with pytest.raises(ValueError, match="focal, mse, got 'huber'"):
        AutoMedSAMLoss(pixel="huber")


# ---- one iteration of training


@pytest.fixture(scope="module")
def batch(backbone):
    """Three pairs as the embedding cache gives them, the last one without its organ."""
    features = backbone.encode_image(uniform(3, 1, SIZE, SIZE))
    mask = torch.zeros(3, 1, SIZE, SIZE, dtype=torch.bool)
    mask[0, :, 10:40, 8:30] = mask[1, :, 20:50, 30:60] = True
    return {
        "embedding": features.embedding.half(),
        "high_res_fine": features.high_res[0].half(),
        "high_res_coarse": features.high_res[1].half(),
        "mask": mask,
        "organ": torch.tensor([0, 1, 0]),
    }


def fit(network: AutoMedSAM, batch, iterations: int) -> tuple[AutoMedSAMLoss, list[dict[str, float]]]:
    """Trains on the same batch again and again; the loss function, and what it gave in each iteration."""
    loss, history = AutoMedSAMLoss(), []
    trainer = AutoMedSAMTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch] * iterations,
        network=network,
        optimizer=torch.optim.Adam([*network.prior.parameters(), *loss.parameters()], lr=2e-3),
        loss_function=loss,
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: history.append({key: value.item() for key, value in engine.state.output[0].items()}),
    )
    torch.manual_seed(0)
    trainer.run()
    return loss, history


def test_gradients_reach_every_weight_of_the_encoder_and_none_of_sam2(backbone, batch):
    network = make_automedsam(backbone)

    fit(network, batch, iterations=1)

    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.prior.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_every_uncertainty_is_learnt(backbone, batch):
    loss, _ = fit(make_automedsam(backbone), batch, iterations=1)

    assert (loss.uncertainty.log_variance != 0).all()


def test_one_batch_is_learnt(backbone, batch):
    _, history = fit(make_automedsam(backbone), batch, iterations=30)

    losses = [output["distribution_loss"] for output in history]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


# ---- slice by slice through a volume


def forward_slices(network: AutoMedSAM, volume: torch.Tensor) -> torch.Tensor:
    """Logits ``(slices, 1 + organs, S, S)`` of a volume's slices, through the network's own ``forward``."""
    with torch.no_grad():
        return network(volume[0, 0].permute(2, 0, 1)[:, None])


def test_the_logits_are_the_networks(network):
    volume = uniform(1, 1, SIZE, SIZE, 3)

    logits = SliceInferer(batch_size=2, output="logits")(volume, network)

    torch.testing.assert_close(logits[0], forward_slices(network, volume).permute(1, 2, 3, 0), rtol=1e-3, atol=1e-4)


def test_labels_and_bits_of_the_organs_are_those_of_the_logits(network):
    volume = uniform(1, 1, SIZE, SIZE, 2)

    labels, organs = SliceInferer(output="labels_and_organs")(volume, network)[0]

    logits = SliceInferer(output="logits")(volume, network)[0]
    assert torch.equal(labels, logits.argmax(0))
    assert torch.equal(organs, (logits[1] > 0) + 2 * (logits[2] > 0))


def test_a_slice_does_not_depend_on_its_neighbours(network):
    volume = uniform(1, 1, SIZE, SIZE, 5)
    inferer = SliceInferer(batch_size=1, output="logits")

    alone = inferer(volume[..., 2:3], network)

    assert torch.equal(inferer(volume, network)[..., 2:3], alone)


def test_a_volume_of_another_size_comes_back_on_its_own_grid(network):
    assert SliceInferer()(uniform(1, 1, 32, 48, 2), network).shape == (1, 1, 32, 48, 2)


def test_options_about_memories_mean_nothing(network):
    volume = uniform(1, 1, SIZE, SIZE, 2)
    options = {"neighbours": 2, "no_3d": False}

    assert torch.equal(SliceInferer(**options)(volume, network), SliceInferer()(volume, network))


def test_an_untrained_network_is_refused(backbone):
    network = make_automedsam(backbone)
    network.prior.fitted.fill_(False)

    with pytest.raises(RuntimeError, match="untrained.*`prior_file`"):
        SliceInferer()(torch.zeros(1, 1, SIZE, SIZE, 1), network)


# ---- the bundle's commands with configs/automedsam.json


def write_user_overlay(folder: Path, dataset: Path, backbone_file: Path, **settings) -> Path:
    """A user's overlay and AutoMedSAM's in one file, for helpers that take one."""
    path = write_overlay(folder, dataset, backbone_file, **settings)
    path.write_text(json.dumps({**json.loads(path.read_text()), **json.loads(OVERLAY.read_text())}))
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write_dataset) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def project(tmp_path_factory, dataset, backbone_file) -> Path:
    """A user's folder after training, evaluating and inferring."""
    overlay = write_overlay(tmp_path_factory.mktemp("project"), dataset, backbone_file)
    for command in COMMANDS:
        run(command, overlay, OVERLAY)
    return overlay.parent


@pytest.mark.parametrize("command", COMMANDS)
def test_workflows_have_the_properties_of_a_monai_bundle(project, command):
    workflow = new_workflow(command, project / "overlay.json", OVERLAY)
    workflow.initialize()

    assert workflow.check_properties() == []


def test_training_writes_the_encoder_a_checkpoint_and_the_losses(project):
    folder = project / "automedsam"
    state = torch.load(folder / "model.pt", weights_only=True)["model"]

    assert state["_extra_state"]["network"] == "AutoMedSAM"
    assert "prior.sparse_branch.out.2.weight" in state and state["prior.fitted"]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["loss"]["uncertainty.log_variance"].shape == (3,)
    assert list(folder.glob("events.out.tfevents.*"))


def test_everything_but_the_cache_lies_apart_from_diffusams(project):
    """Both networks train from the same encoded slices, and neither takes up the other's checkpoint. Where the results
    of inference go, the user says.
    """
    assert {path.name for path in project.iterdir()} == {"automedsam", "cache", "inference", "overlay.json"}


def test_evaluation_measures_every_organ_of_every_case(project):
    metrics = json.loads((project / "automedsam" / "evaluation" / "metrics.json").read_text())

    assert metrics["cases"] == ["c", "d"] and metrics["organs"] == ORGANS
    assert np.isfinite(metrics["dice"]["values"]).all()
    assert (metrics["about"]["network"], metrics["about"]["neighbours"]) == ("AutoMedSAM", 0)


def test_inference_segments_what_evaluation_does(project):
    for case in ("c", "d"):
        inferred, evaluated = (
            np.asarray(nib.load(project / name).dataobj)
            for name in (f"inference/image_{case}_seg.nii.gz", f"automedsam/evaluation/{case}_seg.nii.gz")
        )
        assert evaluated.any()
        np.testing.assert_array_equal(inferred, evaluated)


def test_results_of_either_network_are_told_apart(project):
    (made_with,) = json.loads((project / "inference" / "results.json").read_text())["configurations"].values()

    assert set(made_with["settings"]["inferer"]) == {"SliceInferer"}
    (prior,) = made_with["settings"]["network"]["AutoMedSAM"]["prior"].values()
    assert prior["scheduler"]["DDPMScheduler"]["num_train_timesteps"] == 100


@pytest.mark.parametrize("case", ["c", "d"])
def test_label_maps_lie_on_the_files_grid(project, dataset, case):
    labels, image = (
        nib.load(project / "automedsam" / "evaluation" / f"{case}_seg.nii.gz"),
        nib.load(dataset / f"image_{case}.nii.gz"),
    )

    assert labels.shape == image.shape
    np.testing.assert_allclose(labels.affine, image.affine, atol=1e-5)
    assert set(np.unique(np.asarray(labels.dataobj))) <= set(range(1 + len(ORGANS)))


def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path, dataset, backbone_file):
    """The uncertainties go on too: without them, the losses after the pause would differ."""
    whole, resumed = (write_user_overlay(tmp_path / name, dataset, backbone_file) for name in ("whole", "resumed"))

    expected = train(whole)
    losses = train(resumed, kill_at=3)[:2] + train(resumed)  # the checkpoint is that of iteration 2

    assert losses == expected and len(expected) == SETTINGS["iterations"]
    first, second = (
        torch.load(path.parent / "automedsam/model.pt", weights_only=True)["model"] for path in (whole, resumed)
    )
    assert all(torch.equal(value, second[key]) for key, value in first.items() if key != "_extra_state")


def test_evaluating_with_a_prior_of_diffusam_names_the_remedy(tmp_path, dataset, backbone_file):
    overlay = write_overlay(tmp_path, dataset, backbone_file)
    backbone = FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file)
    (tmp_path / "automedsam").mkdir()
    torch.save({"model": make_diffusam(backbone, ORGANS).state_dict()}, tmp_path / "automedsam" / "model.pt")

    with pytest.raises(RuntimeError) as caught:  # MONAI's, about the expression it was evaluating
        run("evaluating", overlay, OVERLAY)

    message = str(user_error(caught.value))  # what the command line shows of it
    assert "holds a prior of DiffuSAM" in message and "'configs/automedsam.json'" in message
