"""The memory prior: the walk through noise levels, sampling with a perfect denoiser, statistics and training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from scripts.networks.diffusion_prior import MemoryPrior
from scripts.networks.sam2_types import ImageFeatures

MEMORY_CHANNELS, CHANNELS, ORGANS, TOKENS = 8, 16, 2, 4
DIVISORS = [1, 2, 5, 10, 50]  # numbers of steps that divide 1000, and some that do not
OTHERS = [3, 7, 30]


def make_scheduler(**changes) -> DDIMScheduler:
    options = {"clip_sample": False, "prediction_type": "sample", "timestep_spacing": "trailing"}
    return DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **(options | changes))


def make_prior(**changes) -> MemoryPrior:
    torch.manual_seed(0)
    options = {"block_out_channels": (16, 32, 32), "attention_levels": 1, "layers_per_block": 1}
    prior = MemoryPrior(MEMORY_CHANNELS, CHANNELS, organs=ORGANS, condition_channels=16, **(options | changes)).eval()
    prior.memory_mean.normal_()
    prior.memory_std.uniform_(0.5, 2)
    prior.fitted.fill_(True)
    return prior


def make_features(batch: int = 2, tokens: int = TOKENS) -> ImageFeatures:
    generator = torch.Generator().manual_seed(1)
    return ImageFeatures(
        torch.randn(batch, CHANNELS, tokens, tokens, generator=generator),
        (
            torch.randn(batch, CHANNELS // 8, 4 * tokens, 4 * tokens, generator=generator),
            torch.randn(batch, CHANNELS // 4, 2 * tokens, 2 * tokens, generator=generator),
        ),
    )


def make_memory(batch: int = 2, tokens: int = TOKENS, seed: int = 2) -> torch.Tensor:
    return 3 * torch.randn(batch, MEMORY_CHANNELS, tokens, tokens, generator=torch.Generator().manual_seed(seed))


def noise_in(noised: torch.Tensor, clean: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """The noise of ``noised = sqrt(alpha) clean + sqrt(1 - alpha) noise``."""
    return (noised - alpha.sqrt() * clean) / (1 - alpha).sqrt()


def make_perfect(prior: MemoryPrior, memory: torch.Tensor, monkeypatch) -> list[tuple[int, torch.Tensor]]:
    """Lets the prior know the truth. Returns the list in which (time step, noised memory) of each call is kept."""
    clean, calls = prior.standardise(memory), []

    def predict(noised, timestep, condition, organ):
        time = int(timestep.flatten()[0])
        calls.append((time, noised))
        if prior.scheduler.config.prediction_type == "sample":
            return clean
        return noise_in(noised, clean, prior.scheduler.alphas_cumprod[time])

    monkeypatch.setattr(prior, "predict", predict)
    return calls


@pytest.fixture(scope="module")
def prior():
    return make_prior()


ORGAN = torch.tensor([0, 1])


# ---------------------------------------------------------------------------------------------- time


def test_two_steps_walk_from_pure_noise_over_the_middle(prior):
    assert prior.time_pairs(2) == [(999, 499), (499, -1)]


@pytest.mark.parametrize("steps", [*DIVISORS, *OTHERS, 61, 1000])
def test_time_pairs_lead_from_pure_noise_to_the_clean_memory(prior, steps):
    pairs = prior.time_pairs(steps)
    times = [start for start, _ in pairs] + [pairs[-1][1]]
    assert len(pairs) == steps
    assert (times[0], times[-1]) == (999, -1)
    assert all(start > end for start, end in pairs)
    assert [end for _, end in pairs[:-1]] == [start for start, _ in pairs[1:]]


@pytest.mark.parametrize("steps", [*DIVISORS, *OTHERS])
def test_times_are_those_that_diffusers_lists(prior, steps):
    """Also where steps do not divide T, and times are rounded: 999, 666, 332."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    assert [time for time, _ in prior.time_pairs(steps)] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, None])
def test_steps_out_of_range(prior, steps):
    with pytest.raises(ValueError, match=f"1...1000, got {steps}"):
        prior.time_pairs(steps)
    with pytest.raises(ValueError, match=f"1...1000, got {steps}"):
        prior.sample(make_features(), ORGAN, steps)


# ------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [*DIVISORS, *OTHERS])
def test_perfect_memory_prediction_samples_the_truth(prior, monkeypatch, steps, eta):
    memory = make_memory()
    make_perfect(prior, memory, monkeypatch)
    sample = prior.sample(make_features(), ORGAN, steps, eta, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample, memory, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [*DIVISORS, *OTHERS])
def test_perfect_noise_prediction_samples_the_truth(monkeypatch, steps, eta):
    prior, memory = make_prior(scheduler=make_scheduler(prediction_type="epsilon")), make_memory()
    make_perfect(prior, memory, monkeypatch)
    sample = prior.sample(make_features(), ORGAN, steps, eta, torch.Generator().manual_seed(0))
    # at t = 999 the noise is 1 / 0.0064 times as loud as the memory, and rounding grows with it
    torch.testing.assert_close(sample, memory, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [*DIVISORS, *OTHERS])
def test_every_step_starts_at_the_noise_level_that_the_unet_is_told(prior, monkeypatch, steps):
    memory, noise = make_memory(), make_memory(seed=3) / 3
    calls = make_perfect(prior, memory, monkeypatch)
    alphas, clean = prior.scheduler.alphas_cumprod, prior.standardise(memory)

    prior.sample(make_features(), ORGAN, steps, noise=noise)

    constant = noise_in(noise, clean, alphas[999])  # without new noise (eta = 0), the first step's stays
    assert [time for time, _ in calls] == [start for start, _ in prior.time_pairs(steps)]
    for time, noised in calls:
        expected = alphas[time].sqrt() * clean + (1 - alphas[time]).sqrt() * constant
        torch.testing.assert_close(noised, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
@pytest.mark.parametrize("steps", DIVISORS)
def test_a_step_is_that_of_diffusers_where_steps_divide_the_times(steps, prediction_type, eta):
    prior = make_prior(scheduler=make_scheduler(prediction_type=prediction_type))
    scheduler = make_scheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(steps)
    predicted, sample, fresh = (make_memory(seed=seed) / 3 for seed in (2, 3, 4))

    for time, next_time in prior.time_pairs(steps):
        _, following = prior._step(predicted, sample, time=time, next_time=next_time, eta=eta, fresh=fresh)
        expected = scheduler.step(predicted, time, sample, eta=eta, variance_noise=fresh).prev_sample
        torch.testing.assert_close(following, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_same_seed_same_sample(prior, eta):
    first, second = (prior.sample(make_features(), ORGAN, 2, eta, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


def test_other_seed_other_sample(prior):
    first, second = (
        prior.sample(make_features(), ORGAN, 2, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)
    )
    assert (first - second).abs().max() > 1e-3


def test_given_noise_replaces_the_generator(prior):
    noise = make_memory()
    first, second = (
        prior.sample(make_features(), ORGAN, 2, generator=torch.Generator().manual_seed(seed), noise=noise)
        for seed in (5, 6)
    )
    assert torch.equal(first, second)


def test_organ_label_changes_the_sample(prior):
    noise = make_memory(1).repeat(2, 1, 1, 1)
    sample = prior.sample(make_features(1)[[0, 0]], ORGAN, 1, noise=noise)
    assert (sample[0] - sample[1]).abs().max() > 1e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_organs_of_a_slice_share_its_features(prior, eta):
    features, organ = make_features(), torch.tensor([0, 1, 0, 1])
    shared, repeated = (
        prior.sample(each, organ, 2, eta, torch.Generator().manual_seed(5))
        for each in (features, features.repeat_interleave(2))
    )
    torch.testing.assert_close(shared, repeated)


@pytest.mark.parametrize("use_high_res", [False, True])
def test_odd_number_of_tokens_is_padded_for_the_unet(use_high_res):
    prior = make_prior(use_high_res=use_high_res)
    assert prior.sample(make_features(tokens=5), ORGAN).shape == (2, MEMORY_CHANNELS, 5, 5)


def test_what_is_padded_is_cut_off_where_it_was_added(monkeypatch):
    """Of six tokens, which a UNet of three levels sees as eight: here one that returns what it was given."""
    prior, noised = make_prior(), make_memory(tokens=6)
    monkeypatch.setattr(
        prior.unet, "forward", lambda given, *_, **__: SimpleNamespace(sample=given[:, :MEMORY_CHANNELS])
    )
    predicted = prior.predict(noised, torch.tensor(9), prior.project(make_features(tokens=6)), ORGAN)
    assert torch.equal(predicted, noised)


def test_new_prior_is_marked_as_not_fitted():
    assert not MemoryPrior(MEMORY_CHANNELS, CHANNELS, organs=1, block_out_channels=(16, 32), attention_levels=1).fitted


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_sample": True},
        {"thresholding": True},
        {"timestep_spacing": "leading"},
        {"timestep_spacing": "linspace"},
        {"prediction_type": "v_prediction"},
    ],
    ids=str,
)
def test_unsuitable_scheduler(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        make_prior(scheduler=make_scheduler(**changes))


def test_default_scheduler_is_a_constant_beta_and_clean_memory_prediction(prior):
    torch.testing.assert_close(prior.scheduler.alphas_cumprod, 0.99 ** torch.arange(1.0, 1001), rtol=1e-3, atol=0)
    assert prior.scheduler.config.prediction_type == "sample"


# ---------------------------------------------------------------------------------------- statistics


def test_destandardise_undoes_standardise(prior):
    memory = make_memory()
    torch.testing.assert_close(prior.destandardise(prior.standardise(memory)), memory, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def fitted():
    """A prior fitted to three batches of different sizes, and the batches put together."""
    generator = torch.Generator().manual_seed(4)
    scale = torch.linspace(0.1, 9, CHANNELS).view(1, -1, 1, 1)
    batches = [
        (
            torch.randn(size, MEMORY_CHANNELS, 3, 3, generator=generator) * scale[:, :MEMORY_CHANNELS] + 5,
            torch.randn(size, CHANNELS, 3, 3, generator=generator) * scale - 2,
        )
        for size in (1, 4, 2)
    ]
    prior = make_prior()
    prior.fitted.fill_(False)
    prior.fit_statistics(iter(batches))
    return prior, *(torch.cat(values) for values in zip(*batches))


def test_fitted_memories_have_zero_mean_and_unit_variance(fitted):
    prior, memories, _ = fitted
    standardised = prior.standardise(memories)
    torch.testing.assert_close(standardised.mean((0, 2, 3)), torch.zeros(MEMORY_CHANNELS), rtol=0, atol=1e-4)
    variance = standardised.var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, torch.ones(MEMORY_CHANNELS), rtol=0, atol=1e-4)


def test_fitted_embeddings_have_their_own_statistics(fitted):
    prior, _, embeddings = fitted
    torch.testing.assert_close(prior.embedding_mean, embeddings.mean((0, 2, 3), keepdim=True))
    torch.testing.assert_close(prior.embedding_std, embeddings.std((0, 2, 3), keepdim=True, correction=0))


def test_fitting_is_marked(fitted):
    assert fitted[0].fitted


def test_constant_channel_does_not_divide_by_zero():
    prior = make_prior()
    memory = torch.full((2, MEMORY_CHANNELS, 2, 2), 3.0)
    prior.fit_statistics([(memory, torch.ones(2, CHANNELS, 2, 2))])
    assert torch.equal(prior.standardise(memory), torch.zeros_like(memory))


def test_fitting_to_nothing(prior):
    with pytest.raises(ValueError, match="at least one batch"):
        prior.fit_statistics([])


# ------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_perfect_prediction_has_no_error_and_returns_the_memory(monkeypatch, prediction_type):
    prior, memory = make_prior(scheduler=make_scheduler(prediction_type=prediction_type)), make_memory()
    make_perfect(prior, memory, monkeypatch)
    error, denoised = prior(memory, make_features(), ORGAN, torch.tensor([300, 300]))
    torch.testing.assert_close(error, torch.zeros(2), rtol=0, atol=1e-8)
    torch.testing.assert_close(denoised, memory, rtol=1e-4, atol=1e-4)


def test_error_is_the_mean_square_over_each_standardised_memory(prior, monkeypatch):
    memory = make_memory()
    offset = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)
    monkeypatch.setattr(prior, "predict", lambda *_: prior.standardise(memory) + offset)
    error, _ = prior(memory, make_features(), ORGAN)
    torch.testing.assert_close(error, torch.tensor([4.0, 9.0]))


@pytest.mark.parametrize("use_high_res", [False, True])
def test_gradient_reaches_every_parameter(use_high_res):
    prior = make_prior(use_high_res=use_high_res)
    error, _ = prior(make_memory(), make_features(), ORGAN)
    error.mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in prior.parameters())
    assert prior.condition.weight.grad.abs().max() > 0


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_denoised_memory_keeps_its_gradient(prediction_type):
    prior = make_prior(scheduler=make_scheduler(prediction_type=prediction_type))
    _, denoised = prior(make_memory(), make_features(), ORGAN)
    denoised.sum().backward()
    assert prior.condition.weight.grad.abs().max() > 0
