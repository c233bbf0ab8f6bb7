"""Losses in closed form."""

import pytest
import torch
from diffusers import DDIMScheduler

from diffstyler.backbones.prediction import PREDICTIONS
from diffstyler.fit.losses import CleanLoss, MinSNRLoss, Noised, NoiseLoss
from diffstyler.types import NoiseLevel

TIMESTEPS = torch.tensor([10, 300, 600, 990])
PREDICTION_TYPES = ["epsilon", "v_prediction"]


def scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction_type,
    )


def noised(prediction_type: str) -> Noised:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4, 3, 5, 6, generator=generator)
    alphas = scheduler(prediction_type).alphas_cumprod[TIMESTEPS].view(-1, 1, 1, 1)
    return Noised(clean, noise, level_of(alphas), PREDICTIONS[prediction_type])


def level_of(alphas: torch.Tensor) -> NoiseLevel:
    return NoiseLevel(alphas.sqrt(), (1 - alphas).sqrt())


def at(snr: float, prediction_type: str = "epsilon") -> Noised:
    """One row with noise of one in every place, at a signal-to-noise ratio."""
    shape = (1, 1, 2, 2)
    return Noised(
        torch.zeros(shape),
        torch.ones(shape),
        level_of(torch.tensor(snr / (1 + snr)).view(1, 1, 1, 1)),
        PREDICTIONS[prediction_type],
    )


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_latents_and_targets_are_the_schedulers(prediction_type):
    rows, theirs = noised(prediction_type), scheduler(prediction_type)
    torch.testing.assert_close(rows.latents, theirs.add_noise(rows.clean, rows.noise, TIMESTEPS))
    velocity = theirs.get_velocity(rows.clean, rows.noise, TIMESTEPS)
    torch.testing.assert_close(rows.target, rows.noise if prediction_type == "epsilon" else velocity)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_predicted_clean_is_the_schedulers(prediction_type):
    rows, theirs = noised(prediction_type), scheduler(prediction_type)
    theirs.set_timesteps(1000)
    output = torch.randn(rows.clean.shape, generator=torch.Generator().manual_seed(1))
    for row, timestep in enumerate(TIMESTEPS.tolist()):
        expected = theirs.step(output[row], timestep, rows.latents[row]).pred_original_sample
        torch.testing.assert_close(
            rows.prediction.clean(output, rows.latents, rows.level)[row], expected, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("loss", [NoiseLoss(), CleanLoss(), MinSNRLoss()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_perfect_output_costs_nothing(loss, prediction_type):
    rows = noised(prediction_type)
    value = loss(rows.target, rows)
    assert value.shape == (4,)
    torch.testing.assert_close(value, torch.zeros(4), atol=1e-8, rtol=0)
    assert (loss(rows.target + 0.1, rows) > 1e-6).all()


def test_noise_loss_is_the_mean_square():
    rows = at(snr=1.0)
    torch.testing.assert_close(NoiseLoss()(rows.target + 3, rows), torch.tensor([9.0]))


def test_clean_loss_is_the_noise_loss_with_a_bounded_weight():
    rows = noised("epsilon")
    output = rows.target + torch.randn(rows.clean.shape, generator=torch.Generator().manual_seed(1))
    weight = (rows.level.sigma / rows.level.signal).square().flatten()
    assert weight.min() < 20 < weight.max()
    expected = NoiseLoss()(output, rows) * weight.clamp(max=20)
    torch.testing.assert_close(CleanLoss(max_weight=20)(output, rows), expected, atol=1e-4, rtol=1e-4)


def test_clean_loss_of_v_is_weighted_by_the_noise_share():
    rows = noised("v_prediction")
    expected = NoiseLoss()(rows.target + 1, rows) * rows.level.sigma.square().flatten()
    torch.testing.assert_close(CleanLoss()(rows.target + 1, rows), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("snr", "prediction_type", "weight"),
    [
        (1.0, "epsilon", 1.0),
        (10.0, "epsilon", 0.5),
        (100.0, "epsilon", 0.05),
        (1.0, "v_prediction", 0.5),
        (9.0, "v_prediction", 0.5),
        (0.25, "v_prediction", 0.2),
    ],
)
def test_min_snr_weights(snr, prediction_type, weight):
    rows = at(snr, prediction_type)
    torch.testing.assert_close(MinSNRLoss(gamma=5.0)(rows.target + 1, rows), torch.tensor([weight]))


@pytest.mark.parametrize(("loss", "setting"), [(CleanLoss, "max_weight"), (MinSNRLoss, "gamma")])
def test_wrong_settings_are_refused(loss, setting):
    with pytest.raises(ValueError, match=f"{setting}: expected more than 0, got 0"):
        loss(**{setting: 0})


@pytest.mark.parametrize("loss", [NoiseLoss(), CleanLoss(), MinSNRLoss()])
def test_masked_loss_counts_the_masked_cells_alone(loss):
    clean, noise, output = torch.randn(3, 2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    level = level_of(torch.tensor([0.3, 0.8]).view(2, 1, 1, 1))
    mask = torch.ones(2, 1, 6, 6)
    mask[0, :, :, 2:] = 0
    whole = loss(output, Noised(clean, noise, level, PREDICTIONS["epsilon"]))
    masked = loss(output, Noised(clean, noise, level, PREDICTIONS["epsilon"], mask))
    part = loss(output[..., :2], Noised(clean[..., :2], noise[..., :2], level, PREDICTIONS["epsilon"]))
    assert masked[1] == whole[1]
    torch.testing.assert_close(masked[0], part[0])
    nothing = loss(output, Noised(clean, noise, level, PREDICTIONS["epsilon"], 0 * mask))
    assert torch.equal(nothing, torch.zeros(2))
