"""The separation's recipe: what it mixes, what it judges, how it is measured, that it resumes to the bit."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import soundfile
import torch
from borders import check_borders
from training_utils import assert_same_checkpoints, context, started

from melreformer_hf.data.mixtures import leveled
from melreformer_hf.metrics import si_sdr
from melreformer_hf.models.band_split_separator.modeling_band_split_separator import BandSplitSeparatorModel
from melreformer_hf.models.frame_transformer.modeling_frame_transformer import FrameTransformerModel
from melreformer_hf.models.frame_transformer.separation_frame_transformer import normalized_magnitudes
from melreformer_hf.training.config import TrainingConfig
from melreformer_hf.training.loop import train
from melreformer_hf.training.losses.separation import distortion_ratio, spectral_share
from melreformer_hf.training.main import train_words
from melreformer_hf.training.recipes.separation import SeparationRecipe
from melreformer_hf.training.recipes.separation_options import SeparationOptions

RATE = 22050
TINY = {
    "n_fft": 64,
    "hop_length": 32,
    "num_bands": 4,
    "hidden_size": 8,
    "intermediate_size": 8,
    "band_intermediate_size": 8,
    "num_hidden_layers": 1,
}
V4 = {"num_audio_channels": 1, "sampling_rate": RATE}
SHORT = {"crop_seconds": 0.2, "validation_crops": 2, "validation_seconds": 0.4, "speeds": (1.0, 1.0)}


def _write(root, name: str, kind: str) -> str:
    """A folder with metadata: steady hums for a voice, noise in bursts for a band; stereo where `kind` says so."""
    folder = root / name
    folder.mkdir()
    with open(folder / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "split"])
        for seed, split in enumerate(["train", "train", "validation", "test"]):
            random, time = np.random.default_rng(seed), np.arange(2 * RATE) / RATE
            if kind == "voice":
                sound = sum(np.sin(2 * np.pi * (200 + 50 * seed) * k * time) / k for k in range(1, 6)) * 0.1
            else:
                sound = 0.1 * random.standard_normal(time.size) * (np.sin(2 * np.pi * 3 * time) > 0)
            soundfile.write(folder / f"{seed}.wav", sound, RATE, subtype="PCM_16")
            rows.writerow([f"{seed}.wav", split])
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("separation")
    return _write(root, "voices", "voice"), _write(root, "band", "noise")


@pytest.fixture(scope="module")
def datasets(folders, tmp_path_factory) -> tuple[str, str]:
    from melreformer_hf.data.building import BuildConfig, build_dataset

    root = tmp_path_factory.mktemp("built")
    for folder, name in zip(folders, ("voices", "band"), strict=True):
        build_dataset(folder, root / name, BuildConfig(workers=1), progress=False)
    return str(root / "voices"), str(root / "band")


def config(datasets, folder="unused", model=TINY, options=None, **changes) -> TrainingConfig:
    settings = {
        "max_steps": 2,
        "batch_size": 2,
        "num_workers": 0,
        "progress_bar": False,
        "cpu": True,
        "ema_decay": 0.5,
    }
    options = {**SHORT, "accompaniment": datasets[1], **(options or {})}
    return TrainingConfig(
        dataset=datasets[0], output_dir=str(folder), model=model, options=options, **{**settings, **changes}
    )


def ready(datasets, model=TINY, **options) -> SeparationRecipe:
    torch.manual_seed(0)
    recipe = SeparationRecipe(config(datasets, model=model, options=options))
    started(recipe)
    return recipe


def batch(recipe: SeparationRecipe, rows: int = 2) -> dict[str, torch.Tensor]:
    items = [recipe.prepare(recipe.stream(0, 1).item(index), torch.Generator()) for index in range(rows)]
    return {"sources": torch.stack([item["sources"] for item in items])}


def losses(recipe: SeparationRecipe) -> dict[str, torch.Tensor]:
    (phase,) = recipe.phases(batch(recipe), context())
    assert phase.module == "model"
    return phase.scalars


def test_items_are_voices_over_accompaniments(datasets):
    recipe = ready(datasets, mute=0.0, gains_db=(0.0, 0.0), equalizer_db=0.0)
    voice, band = recipe.prepare(recipe.stream(0, 1).item(3), torch.Generator())["sources"][:, 0]
    assert voice.shape == (round(0.2 * RATE),)
    for source in (voice, band):
        assert 20 * math.log10(source.square().mean().sqrt()) == pytest.approx(-22.0, abs=0.7)
    flatness = [
        part.abs().log().mean().exp() / part.abs().mean() for part in torch.fft.rfft(torch.stack([voice, band]))
    ]
    assert flatness[0] < 0.2 < flatness[1], "the hum comes first, the noise second"


def test_the_options_shape_the_mixtures(datasets):
    muted = ready(datasets, mute=1.0).stream(0, 1)
    silent = torch.stack([muted.item(index)["sources"].abs().amax((1,)) == 0 for index in range(20)])
    assert (silent.sum(1) == 1).all() and silent[:, 0].any() and silent[:, 1].any()
    loud = ready(datasets, gains_db=(6.0, 6.0), mute=0.0, level_db=-30.0, equalizer_db=0.0).stream(0, 1).item(0)
    assert 20 * math.log10(loud["sources"][0].square().mean().sqrt()) == pytest.approx(-24.0, abs=0.7)
    layered = ready(datasets, accompaniment_layers=2).stream(0, 1)
    assert "sources" in layered.item(0)["second"], "the accompaniment is a mixture itself"
    fast = ready(datasets, speeds=(2.0, 2.0), mute=0.0, equalizer_db=0.0).stream(0, 1).item(0)["sources"][0]
    slow = ready(datasets, speeds=(1.0, 1.0), mute=0.0, equalizer_db=0.0).stream(0, 1).item(0)["sources"][0]
    peaks = [torch.fft.rfft(sound * torch.hann_window(sound.numel())).abs().argmax() for sound in (fast, slow)]
    assert fast.shape == slow.shape and peaks[0] / peaks[1] == pytest.approx(2.0, abs=0.1) or peaks[0] > peaks[1]


def test_waveform_losses_are_weighted_as_told(datasets):
    recipe = ready(datasets, ratio_weight=3.0, stft_weight=5.0)
    found, sources = losses(recipe), batch(recipe)["sources"]
    mixture = sources.sum(1)
    made = recipe.modules["model"](mixture).vocals
    error = (made - sources[:, 0])[:, 0]
    ratios = [distortion_ratio(error, sources[:, i, 0], mixture[:, 0]).mean() for i in (0, 1)]
    share = spectral_share(error, mixture[:, 0])
    torch.testing.assert_close(found["vocals_ratio_db"], ratios[0])
    torch.testing.assert_close(found["instrumental_ratio_db"], ratios[1])
    torch.testing.assert_close(found["loss"], 3 * sum(ratios) / 20 + 5 * share)
    assert "stft" not in losses(ready(datasets, stft_weight=0.0))
    assert "vocals_ratio_db" not in losses(ready(datasets, ratio_weight=0.0))


def test_losses_stay_finite_and_ordered():
    noise = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(noise)
    for target in (noise, zeros):
        values = [distortion_ratio(scale * noise, target, noise) for scale in (0.0, 0.1, 1.0)]
        assert all(value.isfinite().all() for value in values)
        assert (values[0] < values[1]).all() and (values[1] < values[2]).all()
    assert distortion_ratio(zeros, noise, noise).min() > -31 and distortion_ratio(noise, zeros, noise).max() < 31
    torch.testing.assert_close(spectral_share(0.5 * noise, noise), torch.tensor(0.5), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(spectral_share(50 * noise, 100 * noise), torch.tensor(0.5), rtol=1e-3, atol=1e-3)
    quiet = zeros.clone().requires_grad_()
    spectral_share(quiet, zeros).backward()
    assert quiet.grad.isfinite().all()


def test_the_frame_transformer_learns_magnitudes_that_a_mask_can_reach(datasets):
    recipe = ready(datasets, model=V4, architecture="frame_transformer")
    model = recipe.modules["model"].eval()
    assert isinstance(model, FrameTransformerModel)
    found, sources = losses(recipe), batch(recipe)["sources"]
    assert set(found) == {"loss"}
    mixture, transform = sources.sum(1), recipe.model_config.transform
    heard, _, loudest = normalized_magnitudes(mixture, transform)
    wanted, _, own = normalized_magnitudes(sources[:, 1], transform)
    wanted = torch.minimum(wanted * own / loudest, heard)
    expected = (heard * model(heard).mask - wanted).abs().mean()
    torch.testing.assert_close(found["loss"], expected)
    assert (wanted <= heard).all() and heard.amax((1, 2, 3)).allclose(torch.ones(2))


@pytest.mark.parametrize("architecture", ["band_split", "frame_transformer"])
def test_validation_measures_held_out_mixtures(datasets, architecture):
    recipe = ready(datasets, model=TINY if architecture == "band_split" else V4, architecture=architecture)
    model = recipe.modules["model"].eval()
    found = recipe.validate(model)
    voices, band = (recipe.recordings("validation", dataset) for dataset in datasets)
    pairs = zip(voices.fixed_crops(8820, 6)[:2], band.fixed_crops(8820, 6)[:2], strict=True)
    sources = [torch.stack([leveled(crop["waveform"], -22.0)[None] for crop in pair]) for pair in pairs]
    made = [model.separate(pair.sum(0)) for pair in sources]
    expected = torch.stack([si_sdr(a.vocals[0], b[0, 0]) for a, b in zip(made, sources, strict=True)]).mean().item()
    assert found.metrics["si_sdr"] == pytest.approx(expected, abs=1e-3)
    base = torch.stack([si_sdr(pair.sum(0)[0], pair[0, 0]) for pair in sources]).mean().item()
    assert found.metrics["mixture_si_sdr"] == pytest.approx(base, abs=1e-3)
    assert found.metrics["si_sdr_gain"] == pytest.approx(expected - base, abs=1e-3)
    assert {"sdr", "instrumental_si_sdr", "instrumental_sdr"} <= set(found.metrics)
    assert (
        found.counts == {"mixtures": 2} and found.sampling_rate == RATE and set(found.audio) == {"mixture", "vocals"}
    )
    assert recipe.greater_is_better and recipe.best_metric == "si_sdr"


def test_a_training_from_two_folders_builds_trains_and_loads(folders, tmp_path):
    words = [*"--batch_size 4 --num_workers 0 --progress_bar false --cpu true --warmup_steps 2".split()]
    words += [*"--learning_rate 0.01 --log_every_steps 5 --save_every_minutes none".split()]
    words += ["--dataset", folders[0], "--options.accompaniment", folders[1], "--options.crop_seconds", "0.2"]
    words += [*"--options.validation_crops 2 --options.validation_seconds 0.4 --options.speeds [1.0,1.0]".split()]
    for name, value in TINY.items():
        words += [f"--model.{name}", str(value)]
    output = tmp_path / "whole"
    metrics = train_words("separation", [*words, "--output_dir", str(output), "--max_steps", "4"])
    assert set(metrics) >= {"si_sdr", "mixture_si_sdr"}
    built = sorted(path.name.split("-")[0] for path in (tmp_path / "datasets").iterdir())
    assert built == ["band", "voices"], "both folders became datasets"
    model = BandSplitSeparatorModel.from_pretrained(output)
    assert model.config.num_bands == 4 and "separation" in (output / "README.md").read_text()


def test_a_killed_training_goes_on_to_the_bit(datasets, tmp_path):
    options = {"speeds": (0.8, 1.25), "equalizer_db": 6.0, "accompaniment_layers": 2}
    settings = {"max_steps": 6, "save_every_steps": 3, "log_every_steps": 1, "options": options}
    whole, half = (config(datasets, tmp_path / name, **settings) for name in ("whole", "half"))
    expected = train(SeparationRecipe(whole), whole)

    class Killed(SeparationRecipe):
        def after_step(self, kept, where):
            if where.step == 4:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(Killed(half), half)
    again = config(datasets, tmp_path / "half", **settings, resume="latest")
    assert train(SeparationRecipe(again), again) == expected
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "half", 6)


def test_training_brings_the_loss_down(datasets, tmp_path):
    recipe = SeparationRecipe(
        config(datasets, tmp_path, max_steps=30, learning_rate=1e-2, warmup_steps=2, options={"mute": 0.0})
    )
    recipe.prepare_validation()
    before = recipe.validate(recipe.trainables()["model"].module.eval()).metrics["si_sdr"]
    after = train(recipe, recipe.config)["si_sdr"]
    assert after > before + 1.0


def test_weights_of_another_contract_are_refused(datasets):
    recipe = ready(datasets)
    recipe.check_start(recipe.modules["model"])
    for name, value in (("sampling_rate", 16000), ("n_fft", 128), ("hop_length", 16), ("num_audio_channels", 2)):
        other = ready(datasets, model={**TINY, name: value}).modules["model"]
        with pytest.raises(ValueError, match=f"{name} must be the same: init_from has {value}"):
            recipe.check_start(other)


def test_wrong_options_and_unfit_recordings_are_refused(datasets):
    inside = {
        "accompaniment_layers": (1, 2),
        "mute": (0.0, 1.0),
        "equalizer_db": (0.0,),
        "crop_seconds": (0.01,),
        "validation_crops": (1,),
        "ratio_weight": (0.0,),
        "stft_weight": (0.0,),
    }
    outside = {
        "accompaniment_layers": (0, 3),
        "mute": (-0.1, 1.1),
        "equalizer_db": (-0.1,),
        "crop_seconds": (0.0,),
        "validation_crops": (0,),
        "validation_seconds": (0.0,),
        "ratio_weight": (-0.1, {"ratio_weight": 0.0, "stft_weight": 0.0}),
        "stft_weight": (-0.1,),
        "gains_db": ((1.0, 0.0),),
        "speeds": ((1.1, 1.0), (0.0, 1.0)),
        "architecture": ("unet",),
        "accompaniment": ("",),
        "validation_split": ("test",),
    }
    check_borders(lambda **fields: SeparationOptions(**{"accompaniment": "band", **fields}), inside, outside)
    with pytest.raises(ValueError, match="options.crop_seconds must fit the recordings, got 30"):
        ready(datasets, crop_seconds=30.0).stream(0, 1)
    with pytest.raises(ValueError, match="options.validation_seconds must fit the recordings, got 30"):
        ready(datasets, validation_seconds=30.0).prepare_validation()
