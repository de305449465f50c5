"""Broken and hostile checkpoints of every original program are refused by name, whatever the family."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from golden_utils import DEFAULT_FOLDER, Fixture
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file

import melreformer_hf
from melreformer_hf._registration import CONVERTIBLE
from melreformer_hf.models.rq_transformer.weights_rq_transformer import codebooks_from_original
from melreformer_hf.models.soundstream.multires_soundstream import MultiresConv1d
from melreformer_hf.models.soundstream.weights_energy import energy_from_original
from melreformer_hf.models.soundstream.weights_quantizers import quantizer_from_original
from melreformer_hf.training.discriminators.melgan import MelGanDiscriminator
from melreformer_hf.training.discriminators.patch import PatchDiscriminator
from melreformer_hf.training.discriminators.soundstream import PooledWaveformDiscriminator, TwoSidedStftDiscriminator
from melreformer_hf.training.discriminators.stft import MultiScaleStftDiscriminator
from melreformer_hf.training.discriminators.stylegan2 import StyleGan2Discriminator
from melreformer_hf.training.discriminators.waveform import MultiPeriodDiscriminator, MultiScaleDiscriminator

REFUSED = (ValueError, StrictDataclassError)


@functools.cache
def stored(folder: str) -> Fixture:
    """A fixture that comes with the tests, whatever set the golden tests are run on."""
    return Fixture(DEFAULT_FOLDER / folder)


@dataclasses.dataclass
class Original:
    """An original's module in the golden fixtures, and what loads it here."""

    folder: str
    prefix: str
    arguments: Callable[[dict], dict]
    load: Callable
    beside: str = "\0"  # what a checkpoint holds beside the module, and is not read

    def read(self) -> tuple[dict[str, torch.Tensor], dict]:
        golden = stored(self.folder)
        return golden.weights(self.prefix), self.arguments(golden.config)


def model(name: str, *where: object, extra: Callable[[Fixture], dict] | None = None, beside: str = "\0") -> Original:
    def load(source: object, values: dict) -> object:
        more = {} if extra is None else extra(stored(where[0]))
        return getattr(melreformer_hf, name).from_original(source, values, **more)

    return Original(*where, load, beside)


def quantizer(origin: str, *where: object) -> Original:
    return Original(*where, lambda *given: quantizer_from_original(origin, *given))


def rq_codebooks(golden: Fixture) -> dict:
    return {"codebooks": codebooks_from_original(golden.weights("rq."))}


def stylegan(config: dict) -> dict:
    return {**config["args"], "channels": config["channels"]}


def melgan_judge(config: dict) -> dict:
    return {**config["discriminator_args"], "max_channels": config["discriminator_channel_cap"]}


def scales(config: dict) -> dict:
    return {key[4:]: value for key, value in config["args"].items() if key.startswith("msd_")}


def patch(config: dict) -> dict:
    return {key: value for key, value in config["vq_args"].items() if key.startswith("disc_")}


def som(config: dict) -> dict:
    return config["cases"]["hard2d"]


CODEC, GPT, ENERGY = "13_lumenpallidium_vqvae", "06_melspec_gpt_vqvae", "10_energy_transformer"
MODELS = {
    "mel_reformer": model("MelReformerModel", "01_melreformer", "", lambda c: c["args"]),
    "hifi_vocoder": model("HifiVocoderModel", "03_hifigan", "v1.", lambda c: c["args"]["v1"]),
    "melgan_vocoder": model("MelGanVocoderModel", "04_melgan", "generator.", lambda c: c["generator_args"]),
    "frame_transformer": model("FrameTransformerModel", "05_frame_transformer_v4", "net.", lambda c: c["args"]),
    "mel_vqvae": model("MelVqvaeModel", GPT, "vq.", lambda c: c["vq_args"], beside="discriminator."),
    "class_gpt": model("ClassGptModel", GPT, "gpt.", lambda c: c["gpt_args"]),
    "gpt_vae": model("GptVaeModel", GPT, "vae.", lambda c: c["vae_args"]),
    "rq_transformer": model("RQTransformerModel", "08_rq_transformer", "a.", lambda c: c["a"], extra=rq_codebooks),
    "codec_lm": model("CodecLMModel", "09_encodec", "lm.", lambda c: c["lm"]),
    "soundstream": model("SoundStreamModel", CODEC, "vae.", lambda c: c["vae_args"]),
    "idea_stylegan2": model("IdeaStyleGan2Model", "16_stylegan2", "g.", stylegan),
}
ORIGINALS = {
    **MODELS,
    "hifihybrid": model("HifiVocoderModel", "02_hifihybrid", "generator.", lambda c: c["args"]["generator"]),
    "rq_transformer_b": model("RQTransformerModel", "08_rq_transformer", "b.", lambda c: c["b"]),
    "mpd": Original("02_hifihybrid", "mpd.", lambda c: c["args"]["mpd"], MultiPeriodDiscriminator.from_original),
    "msd": Original("02_hifihybrid", "msd.", scales, MultiScaleDiscriminator.from_original),
    "melgan_judge": Original("04_melgan", "discriminator.", melgan_judge, MelGanDiscriminator.from_original),
    "multires": Original("12_multires_conv", "m0.", lambda c: c["args"][0], MultiresConv1d.from_original),
    "pooled_waveform": Original(
        CODEC, "disc_wave.", lambda c: c["wave_block_args"], PooledWaveformDiscriminator.from_original
    ),
    "two_sided_stft": Original(CODEC, "disc_stft.", lambda c: c["stft_args"], TwoSidedStftDiscriminator.from_original),
    "multi_scale_stft": Original(
        "15_msstft_balancer", "d.", lambda c: c["args"], MultiScaleStftDiscriminator.from_original
    ),
    "stylegan2_judge": Original("16_stylegan2", "d.", stylegan, StyleGan2Discriminator.from_original),
    "patch": Original(GPT, "vq.", patch, PatchDiscriminator.from_original, beside=("_", "quant_", "post_quant_")),
    "encodec_quantizer": quantizer("encodec", "09_encodec", "a.quantizer.", lambda c: c["a"]["q"]),
    "rq_vae_quantizer": quantizer("rq_vae", "08_rq_transformer", "rq2.", lambda c: c["rq2"]),
    "energy_port": Original(
        ENERGY, "t0.", lambda c: c["torch_args"][0], functools.partial(energy_from_original, "port")
    ),
    "energy_jax": Original(ENERGY, "jax.", lambda c: c["jax_args"], functools.partial(energy_from_original, "jax")),
    "som_quantizer": quantizer("kohonen_vae", "11_ksom", "hard2d.", som),
}
every = pytest.mark.parametrize("name", sorted(ORIGINALS))


def refusal(original: Original, source: object, arguments: object) -> str:
    with pytest.raises(REFUSED) as error:
        original.load(source, arguments)
    return str(error.value)


def one_of_each_kind(names: list[str]) -> Iterator[str]:
    """One name of every kind of tensor in every part of a network."""
    return iter(
        {(name.partition(".")[0].rstrip("0123456789"), name.rpartition(".")[2]): name for name in names}.values()
    )


def test_every_family_is_here():
    assert set(MODELS) == set(CONVERTIBLE)


@every
def test_every_key_that_is_missing_or_misshapen_is_named(name):
    original = ORIGINALS[name]
    weights, arguments = original.read()
    original.load(weights, arguments)
    for key in one_of_each_kind([key for key in weights if not key.startswith(original.beside)]):
        rest = {other: value for other, value in weights.items() if other != key}
        assert f"missing key {key!r}" in refusal(original, rest, arguments)
    wide = torch.zeros(*weights[key].shape, 2, dtype=weights[key].dtype)
    message = refusal(original, {**weights, key: wide}, arguments)
    assert f"key {key!r} has shape {tuple(wide.shape)}" in message and str(tuple(weights[key].shape)) in message


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda value: value.to(torch.int64), "torch.int64"),
        (lambda value: value * torch.nan, "not finite"),
        (lambda value: value.to("meta"), "meta device"),
        (lambda value: value.to_sparse(), "sparse"),
    ],
)
def test_tensors_without_proper_numbers(wrong, reason):
    original = ORIGINALS["multires"]
    weights, arguments = original.read()
    for key, value in weights.items():
        message = refusal(original, {**weights, key: wrong(value)}, arguments)
        assert repr(key) in message and reason in message


@every
def test_what_does_not_belong_is_named(name):
    original = ORIGINALS[name]
    weights, arguments = original.read()
    first = next(key for key in weights if not key.startswith(original.beside))
    surprise = first.partition(".")[0] + ".surprise"
    assert f"unexpected key {surprise!r}" in refusal(original, {**weights, surprise: torch.zeros(2)}, arguments)
    assert "'epoch'" in refusal(original, {**weights, "epoch": 3}, arguments)
    assert "list" in refusal(original, list(weights.values()), arguments)
    assert "hiden_sizze" in refusal(original, weights, {**arguments, "hiden_sizze": 3})
    assert "list" in refusal(original, weights, ["n_layer", 3])


def wrong_values(value: object) -> list:
    """Values that no argument of the kind of `value` may have."""
    if isinstance(value, bool):
        return ["three", 2]
    if isinstance(value, str):
        return [3, "surprise"]
    if isinstance(value, dict):
        return [3, {"surprise": 1}]
    wrong = ["three", {}]
    if isinstance(value, int):
        wrong += [0, -1, 0.5]
    elif isinstance(value, float):
        wrong += [float("nan"), float("inf")]
    elif isinstance(value, list):
        wrong += [["x"] * len(value), [{}] * len(value)]
    return wrong


# Where the original takes nothing for an answer.
ZERO_IS_LEGAL = ("vocab_size_cond", "block_size_cond", "context")


@every
def test_wrong_arguments_are_named(name):
    original = ORIGINALS[name]
    weights, arguments = original.read()
    for key, value in arguments.items():
        for wrong in wrong_values(value):
            if wrong == 0 and key in ZERO_IS_LEGAL:
                continue
            message = refusal(original, weights, {**arguments, key: wrong})
            assert key in message, (key, wrong, message)


# One of them is an argument of every original, and doubling it changes the network.
SIZES = (
    *(
        "size",
        "n_layer",
        "num_layers",
        "n_layers",
        "n_layers_per_block",
        "depth",
        "dim",
        "d_model",
        "dim_embed",
        "ch",
        "ngf",
    ),
    *("initial_channels", "channels", "filters", "num_D", "disc_ndf", "first_channel_size", "embedding_dim"),
    *("upsample_initial_channel", "embed_dim", "dimension", "n_embed", "channel_sizes", "D"),
)


@every
def test_arguments_of_another_network_are_refused(name):
    original = ORIGINALS[name]
    weights, arguments = original.read()
    chosen = next(key for key in SIZES if isinstance(arguments.get(key), (int, list)))
    value = arguments[chosen]
    other = 2 * value if isinstance(value, int) else [value[0], *[2 * entry for entry in value[1:]]]
    message = refusal(original, weights, {**arguments, chosen: other})
    assert chosen in message or "missing key" in message or any(repr(key) in message for key in weights), message


class Payload:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


@every
def test_code_and_damage_in_a_file(name, tmp_path, capsys):
    original = ORIGINALS[name]
    weights, arguments = original.read()
    torch.save({**weights, "more": Payload()}, tmp_path / "hostile.pt")
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps(Payload()))
    torch.save(weights, tmp_path / "cut.pt")
    save_file(weights, tmp_path / "cut.safetensors")
    for file in ("cut.pt", "cut.safetensors"):
        content = (tmp_path / file).read_bytes()
        original.load(tmp_path / file, arguments)
        (tmp_path / file).write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "text.pt").write_text(json.dumps(arguments))
    for file in ("hostile.pt", "hostile.pkl", "cut.pt", "cut.safetensors", "empty.safetensors", "text.pt"):
        assert file in refusal(original, tmp_path / file, arguments)
    assert capsys.readouterr().out == ""
    with pytest.raises(FileNotFoundError, match="none.pt"):
        original.load(tmp_path / "none.pt", arguments)
