"""Idea models behind one protocol; lengths that are whole numbers; steps that do not spoil the music."""

from __future__ import annotations

import pytest
import torch
from pipeline_utils_for_tests import MEL, seeded, tiny_adversarial_idea, tiny_parts, tiny_pipeline

from melreformer_hf.audio.mel import MelConfig
from melreformer_hf.models.idea_unet.unet_idea import make_scheduler, set_spaced_timesteps
from melreformer_hf.nn.ideas import IdeaSample, log2_of_lengths
from melreformer_hf.pipelines.ideas import IdeaModel
from melreformer_hf.pipelines.loading import BUNDLED
from melreformer_hf.pipelines.pipeline_mel_reformer import MelReformerPipeline

needs_checkpoint = pytest.mark.skipif(
    not (BUNDLED / "piano-tiny").is_dir(), reason="no checkpoint is bundled in this tree"
)


def pipeline(**parts) -> MelReformerPipeline:
    pipe = MelReformerPipeline(**{**tiny_parts(), **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def adversarial():
    return pipeline(idea=tiny_adversarial_idea(), scheduler=None)


def test_stylegan2_draws_ideas(adversarial, tmp_path):
    output = adversarial(1.0, 2, generator=seeded())
    assert output.audios.shape == (2, 1, 86 * 256) and output.audios.isfinite().all()
    alone = adversarial(1.0, generator=seeded())
    torch.testing.assert_close(alone.audios, output.audios[:1], rtol=0, atol=1e-4)
    drawn = adversarial(generator=seeded(), output_type="mel")
    assert 64 <= drawn.num_frames[0] <= 128
    adversarial.save_pretrained(tmp_path)
    loaded = MelReformerPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.scheduler is None
    torch.testing.assert_close(loaded(1.0, generator=seeded()).audios, alone.audios, rtol=0, atol=1e-4)


def test_settings_of_one_model_are_refused_by_the_other(adversarial):
    soft = adversarial(1.0, truncation_psi=0.0, generator=seeded(1), output_type="idea").ideas
    assert not torch.equal(soft, adversarial(1.0, generator=seeded(1), output_type="idea").ideas)
    with pytest.raises(ValueError, match="num_inference_steps is no setting of IdeaStyleGan2Model.*got 7"):
        adversarial(1.0, num_inference_steps=7)
    with pytest.raises(ValueError, match="truncation_psi is no setting of IdeaUNetModel"):
        tiny_pipeline()(1.0, truncation_psi=0.5)
    with pytest.raises(ValueError, match="callback_on_step_end: IdeaStyleGan2Model has no steps"):
        adversarial(1.0, callback_on_step_end=lambda pipe, step, timestep, tensors: tensors)
    with pytest.raises(ValueError, match="IdeaStyleGan2Model takes no scheduler"):
        pipeline(idea=tiny_adversarial_idea())
    with pytest.raises(ValueError, match="IdeaUNetModel denoises and needs a scheduler"):
        pipeline(scheduler=None)


def test_an_idea_model_of_your_own():
    class Still:
        """The same idea always, as long as it is told."""

        class config:
            num_columns = 32

        mel_config = MelConfig.from_dict(MEL)

        def sample(self, batch_size, generator, num_frames, *, device, module):
            lengths = torch.full((batch_size,), 50) if num_frames is None else num_frames
            return IdeaSample(torch.full((batch_size, 16, 32), -3.0, device=device), lengths)

    assert isinstance(Still(), IdeaModel) and isinstance(tiny_parts()["idea"], IdeaModel)
    pipe = tiny_pipeline()
    pipe.idea, pipe.scheduler = Still(), None
    output = pipe(num_waveforms_per_prompt=2)
    assert output.num_frames.tolist() == [50, 50]
    torch.testing.assert_close(output.audios[0], output.audios[1])


def test_latents_are_the_noise_that_would_be_drawn(adversarial):
    unet = tiny_parts()["idea"]
    calls = []
    unet.register_forward_pre_hook(lambda module, args: calls.append(args[0].clone()))
    pipe = pipeline(idea=unet)
    plain = pipe(1.0, num_inference_steps=2, generator=seeded(), output_type="latent").audios
    noise = calls[0]
    again = pipe(1.0, num_inference_steps=2, generator=seeded(9), latents=noise, output_type="latent").audios
    assert torch.equal(plain, again)
    with pytest.raises(
        ValueError, match=r"latents must be floating point of shape \(1, 1, 16, 32\), got \(1, 16, 32\)"
    ):
        pipe(1.0, latents=noise[0])
    styles = torch.randn(1, 16, generator=seeded(3))
    first, second = (adversarial(1.0, latents=styles, generator=seeded(0), output_type="idea").ideas for _ in "ab")
    assert torch.equal(first, second)


def test_lengths_have_two_names_and_come_first():
    pipe = tiny_pipeline()
    few = {"num_inference_steps": 1, "output_type": "idea"}
    frames = [pipe(1.3, **few).num_frames, pipe(audio_end_in_s=1.3, **few).num_frames]
    frames.append(pipe(audio_length_in_s=1.3, audio_end_in_s=1.3, **few).num_frames)
    assert all(number.tolist() == [112] for number in frames)
    with pytest.raises(ValueError, match="audio_end_in_s is another name of audio_length_in_s.*2.0 and 1.3"):
        pipe(1.3, audio_end_in_s=2.0, **few)
    with pytest.raises(ValueError, match="audio_end_in_s must be a number of seconds"):
        pipe(audio_end_in_s=-1.0, **few)
    with pytest.raises(TypeError):
        pipe(1.3, 1, 20)


def test_no_frame_is_lost_in_hours(adversarial):
    for seconds in (8040.0, 8040.02, 12345.678, 21600.0):
        frames = round(seconds * 22050 / 256)
        for pipe, settings in ((tiny_pipeline(), {"num_inference_steps": 1}), (adversarial, {})):
            drawn = pipe.sample_idea(seconds, generator=seeded(), **settings)
            assert drawn.num_frames.tolist() == [frames] and drawn.num_frames.dtype == torch.int64
    # The number that models are told is a float32, which could not have kept the frame.
    lengths = torch.arange(1_000_000, 1_000_400)
    assert (log2_of_lengths(lengths).exp2().round().long() != lengths).any()


def test_more_steps_do_not_spend_more_time_near_pure_noise():
    def steps(count: int, leap: int | None = 972) -> list[int]:
        scheduler = make_scheduler("dpm")
        set_spaced_timesteps(scheduler, count, 1.2, leap_timestep=leap)
        return scheduler.timesteps.tolist()

    assert steps(20) == steps(20, None) and steps(10) == steps(10, None)
    for count in (21, 60, 500):
        chosen = steps(count)
        assert chosen[:2] == [999, 972] and len(set(chosen)) == count and chosen == sorted(chosen, reverse=True)
    gaps = -torch.tensor(steps(100)[1:]).diff()
    assert 5 <= gaps.min() and gaps.max() <= 13  # spread over all of the rest
    with pytest.raises(ValueError, match="num_inference_steps must be at most 974"):
        steps(990)


@needs_checkpoint
def test_more_steps_do_not_make_silence():
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    pipe.set_progress_bar_config(disable=True)
    floor = pipe.mel_config.floor_value
    seeds = (0, 3, 5)  # these became silent at 100 steps when the noisiest steps were as many as the others

    def level(steps: int) -> tuple[float, float]:
        drawn = pipe.sample_idea(20.0, 3, num_inference_steps=steps, generator=[seeded(seed) for seed in seeds])
        loudness = 10 * (2 * drawn.ideas).exp().mean((1, 2)).log10()
        return (drawn.ideas <= floor + 1e-3).float().mean().item(), loudness.min().item()

    few, many = level(20), level(60)
    assert many[0] < 0.08 and abs(many[1] - few[1]) < 6.0, (few, many)


@needs_checkpoint
def test_bundled_checkpoint_gives_the_samples_that_it_gave():
    """Values of the weights that come with this release: 3 s, 20 steps, seed 0."""
    pipe = MelReformerPipeline.from_pretrained("piano-tiny")
    pipe.set_progress_bar_config(disable=True)
    own = pipe(3.0, generator=seeded())  # four steps
    assert own.mels.mean().item() == pytest.approx(-6.5089912, abs=1e-4)
    assert own.audios.square().mean().sqrt().item() == pytest.approx(0.0106894774, abs=2e-6)
    output = pipe(3.0, num_inference_steps=20, generator=seeded())
    audio = output.audios[0, 0]
    assert audio.shape == (66048,)
    assert audio.square().mean().sqrt().item() == pytest.approx(0.0071031386, abs=2e-6)
    assert audio.abs().max().item() == pytest.approx(0.0510427803, abs=1e-5)
    samples = [0.00155601, -0.00089034, -0.01216044, 0.00039471, -0.00769945, -0.00328979, -0.01024230, -0.00445666]
    torch.testing.assert_close(audio[10000:50000:5000], torch.tensor(samples), rtol=0, atol=1e-5)
    ideas = [[-7.831688, -7.129242, -6.416172, -6.969738], [-7.516119, -5.897439, -5.885429, -6.228712]]
    torch.testing.assert_close(output.ideas[0, ::64, ::64], torch.tensor(ideas), rtol=0, atol=1e-4)
    assert output.mels.mean().item() == pytest.approx(-7.0584226, abs=1e-4)
