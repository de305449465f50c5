"""Class GPT or GPT-VAE, mel VQ-VAE, vocoder: sounds from tokens that a model draws, or that a recording is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

# Imported by name: diffusers resolves saved components among modules that are loaded.
from melreformer_hf.models.class_gpt.modeling_class_gpt import ClassGptModel
from melreformer_hf.models.gpt_vae.modeling_gpt_vae import GptVaeModel
from melreformer_hf.models.hifi_vocoder.modeling_hifi_vocoder import HifiVocoderModel
from melreformer_hf.models.mel_vqvae.modeling_mel_vqvae import MelVqvaeModel
from melreformer_hf.models.melgan_vocoder.modeling_melgan_vocoder import MelGanVocoderModel
from melreformer_hf.nn.token_drawing import TokenSampling, draw_tokens
from melreformer_hf.pipelines.mel_to_audio import MelToAudio
from melreformer_hf.pipelines.outputs import SoundPipelineOutput
from melreformer_hf.pipelines.pipeline_utils import AudioPipeline, RowGenerators, bare, check_count, row_generators
from melreformer_hf.pipelines.sound_editing import Recording, SoundEditing

OUTPUT_TYPES = ("pt", "np", "mel", "tokens")


class TokenGenerationPipeline(SoundEditing, MelToAudio, AudioPipeline):
    """Sounds from tokens: of a class, of a latent, of a recording that goes on, is repaired or blended into another.

    Args:
        mel_vqvae: makes mels tokens, and tokens mels.
        vocoder: makes mels audible.
        class_gpt: draws tokens of a class; `None` for a pipeline without classes.
        gpt_vae: makes tokens a latent, and draws tokens of a latent; `None` for a pipeline without latents.

    Raises:
        ValueError: parts of different mel contracts, or of other tokens than those of `mel_vqvae`.

    Example:
        >>> import torch
        >>> from melreformer_hf import ClassGptConfig, ClassGptModel, HifiVocoderConfig, HifiVocoderModel
        >>> from melreformer_hf import MelVqvaeConfig, MelVqvaeModel, TokenGenerationPipeline
        >>> vocoder = HifiVocoderModel(HifiVocoderConfig.preset("istft_tiny", hidden_size=16, num_hidden_layers=1))
        >>> mel = vocoder.config.mel_config.to_dict()
        >>> vqvae = MelVqvaeModel(MelVqvaeConfig.preset("tiny", mel=mel, input_range=(-11.5, 2.0)))
        >>> gpt = ClassGptModel(ClassGptConfig.preset("tiny", num_tokens=320, class_names=["a", "b", "c", "d"]))
        >>> pipe = TokenGenerationPipeline(vqvae.eval(), vocoder.eval(), gpt.eval())
        >>> pipe("b", audio_length_in_s=0.1, generator=torch.Generator().manual_seed(0)).audios.shape
        torch.Size([1, 1, 2304])
    """

    card_template = "sound_pipeline_card.md"
    card_tags = ("audio", "text-to-audio", "sound-generation", "mel-spectrogram", "vocoder")
    model_cpu_offload_seq = "gpt_vae->class_gpt->mel_vqvae->vocoder"
    _optional_components = ["class_gpt", "gpt_vae"]

    def __init__(
        self,
        mel_vqvae: MelVqvaeModel,
        vocoder: HifiVocoderModel | MelGanVocoderModel,
        class_gpt: ClassGptModel | None = None,
        gpt_vae: GptVaeModel | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(mel_vqvae=mel_vqvae, vocoder=vocoder, class_gpt=class_gpt, gpt_vae=gpt_vae)
        config = bare(mel_vqvae).config
        config.mel_config.check_matches(bare(vocoder).config.mel_config, "mel_vqvae", "vocoder")
        if class_gpt is None and gpt_vae is None:
            raise ValueError("class_gpt or gpt_vae must be given: nothing draws tokens, got neither.")
        for name, model in (("class_gpt", class_gpt), ("gpt_vae", gpt_vae)):
            if model is None:
                continue
            vocab_size, tokens = bare(model).config.vocab_size, bare(model).config.num_tokens
            if vocab_size != config.codebook_size:
                raise ValueError(
                    f"{name}.config.vocab_size must be mel_vqvae.config.codebook_size={config.codebook_size}, got "
                    f"{vocab_size}: it learned the tokens of another model."
                )
            if tokens % config.num_token_rows:
                raise ValueError(
                    f"{name}.config.num_tokens must be whole columns of {config.num_token_rows} tokens, got {tokens}."
                )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in order; empty where the checkpoint does not tell them or has none."""
        return () if self.class_gpt is None else tuple(bare(self.class_gpt).config.class_names)

    @property
    def num_rows(self) -> int:
        """Tokens per column."""
        return bare(self.mel_vqvae).config.num_token_rows

    @property
    def column_frames(self) -> int:
        """Mel frames per column."""
        return bare(self.mel_vqvae).config.stride

    def max_columns(self, model: torch.nn.Module) -> int:
        """Columns that a token model sees at once."""
        return bare(model).config.num_tokens // self.num_rows

    def class_labels(self, wanted: str | int | None) -> torch.Tensor:
        """Number (1,) of a class by its name or number; of the class for any where `None`.

        Raises:
            ValueError: no such class, or none is given to a model that has none for any.
        """
        if self.class_gpt is None:
            raise ValueError(f"class_label must be None: this pipeline has no class_gpt, got {wanted!r}.")
        config = bare(self.class_gpt).config
        if wanted is None and not config.null_class:
            known = list(self.class_names) or f"0..{config.num_classes - 1}"
            raise ValueError(f"class_label must be given, one of {known}: the model has no class that stands for any.")
        if wanted is None:
            number = config.num_classes
        elif isinstance(wanted, str):
            number = config.class_label(wanted)
        elif isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted < config.num_classes:
            raise ValueError(f"class_label must be a name or a number in 0..{config.num_classes - 1}, got {wanted!r}.")
        else:
            number = wanted
        return torch.tensor([number], device=self._execution_device)

    @torch.no_grad()
    def __call__(
        self,
        class_label: str | int | Sequence[str | int] | None = None,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        *,
        latents: torch.Tensor | None = None,
        recording: Recording | None = None,
        keep_in_s: float | None = None,
        sampling: TokenSampling | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pt",
        callback_on_column: Callable[[torch.Tensor], None] | None = None,
        return_dict: bool = True,
    ) -> SoundPipelineOutput | tuple:
        """Draw sounds: all that `stream` yields, in one.

        Args:
            class_label: name or number of a class, or several; `None` is any, of a model that knows it.
            audio_length_in_s: length in seconds; `None` is what the model sees at once. Longer sounds go on from the
                second half of what came before.
            num_waveforms_per_prompt: sounds per class, or per latent.
            latents: (row, hidden) to draw from in place of a class, see `sample_latents` and `latents_of`.
            recording: a path, or the pair that `read_audio` gives, whose beginning is kept.
            keep_in_s: how much of it; `None` keeps its first half.
            sampling: how tokens are drawn, see `TokenSampling`; `None` draws from all.
            generator: one, or one per sound: the same gives the same sound, alone and in a batch.
            output_type: what `audios` holds: sound as `pt` or `np`, or `mel`, or `tokens`, to stop earlier.
            callback_on_column: told (row, token) of every column when it is drawn.
            return_dict: whether to return `SoundPipelineOutput` rather than a tuple of `audios`.

        Raises:
            ValueError: an argument breaks its rule.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        codes: list[torch.Tensor] = []
        mels: list[torch.Tensor] = []
        chunks = self._drawn(
            (class_label, latents, num_waveforms_per_prompt), audio_length_in_s, (recording, keep_in_s), sampling,
            generator, callback_on_column, codes.append,
        )  # fmt: skip
        for mel in chunks:
            mels.append(mel)
        output = self.sounds_of(torch.cat(codes, dim=2), torch.cat(mels, dim=2), output_type)
        return output if return_dict else (output.audios,)

    @torch.no_grad()
    def stream(
        self,
        class_label: str | int | Sequence[str | int] | None = None,
        audio_length_in_s: float | None = None,
        num_waveforms_per_prompt: int = 1,
        *,
        latents: torch.Tensor | None = None,
        recording: Recording | None = None,
        keep_in_s: float | None = None,
        sampling: TokenSampling | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback_on_column: Callable[[torch.Tensor], None] | None = None,
    ) -> Iterator[torch.Tensor]:
        """`__call__`, yielding (batch, 1, sample) while tokens are drawn; joined, what it returns.

        The decoder of tokens sees all columns of a window together, so the first sound comes with the first window, and
        more with each half of one. Columns are told as they come.
        """
        mels = self._drawn(
            (class_label, latents, num_waveforms_per_prompt), audio_length_in_s, (recording, keep_in_s), sampling,
            generator, callback_on_column, None,
        )  # fmt: skip
        first = next(mels, None)
        if first is None:
            return
        frames = torch.full((len(first),), 1 << 40)  # every row is as long as the others

        def joined() -> Iterator[torch.Tensor]:
            yield first
            yield from mels

        yield from self.calmly(self.make_audible(joined(), frames))

    def _drawn(
        self,
        what: tuple,
        audio_length_in_s: float | None,
        beginning: tuple[Recording | None, float | None],
        sampling: TokenSampling | None,
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callable[[torch.Tensor], None] | None,
        told: Callable[[torch.Tensor], None] | None,
    ) -> Iterator[torch.Tensor]:
        """Mels (batch, mel, frame), window by window, of tokens that are drawn; `told` gets their codes."""
        model, condition, without = self._condition(*what)
        rows = row_generators(generator, len(next(iter(condition.values()))))
        given = self._kept(*beginning, len(rows))
        frames = self._frames(model, audio_length_in_s, given.shape[2])
        columns = -(-frames // self.column_frames)
        sampling = sampling or TokenSampling()
        device, widest = self._execution_device, self.max_columns(model)
        codes, seen = given.to(device), 0
        while seen < columns:
            # Of a long sound the model is given the newest half of what it sees at once.
            begin = 0 if columns <= widest or codes.shape[2] < widest else codes.shape[2] - widest // 2
            end = min(begin + widest, columns)
            window = codes[..., begin:]
            for column in self._draw_columns(model, condition, window, end - codes.shape[2], sampling, rows, without):
                if callback is not None:
                    callback(column)
                codes = torch.cat([codes, column[..., None]], dim=2)
            mel = self.mel_of_codes(codes[..., begin:end])[..., (seen - begin) * self.column_frames :]
            if told is not None:
                told(codes[..., seen:end])
            yield mel[..., : frames - seen * self.column_frames]
            seen = end

    def _condition(
        self, class_label: object, latents: torch.Tensor | None, copies: int
    ) -> tuple[torch.nn.Module, dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
        """Who draws, of what, and what stands for nothing of the kind."""
        check_count("num_waveforms_per_prompt", copies)
        if latents is not None:
            if class_label is not None:
                raise ValueError(f"class_label must be None with latents, got {class_label!r}.")
            self.check_has_latents()
            width = bare(self.gpt_vae).config.hidden_size
            if latents.ndim != 2 or latents.shape[1] != width:
                raise ValueError(f"latents must be (row, {width}), got {tuple(latents.shape)}.")
            latents = latents.to(self._execution_device, bare(self.gpt_vae).dtype)
            return self.gpt_vae, {"latents": latents.repeat_interleave(copies, 0)}, None
        wanted = list(class_label) if isinstance(class_label, (list, tuple)) else [class_label]
        labels = torch.cat([self.class_labels(one) for one in wanted]).repeat_interleave(copies)
        config = bare(self.class_gpt).config
        without = {"class_labels": torch.full_like(labels, config.num_classes)} if config.null_class else None
        return self.class_gpt, {"class_labels": labels}, without

    def _frames(self, model: torch.nn.Module, audio_length_in_s: float | None, given: int) -> int:
        """Frames of the whole sound."""
        if audio_length_in_s is None:
            return max(self.max_columns(model), 2 * given) * self.column_frames
        frames = self.frames_of(audio_length_in_s)
        if frames <= given * self.column_frames:
            seconds = given * self.column_frames / self.mel_config.frame_rate
            raise ValueError(
                f"audio_length_in_s must be above the {seconds:.2f} s that are kept, got {audio_length_in_s!r}."
            )
        return frames

    def _kept(self, recording: Recording | None, keep_in_s: float | None, rows: int) -> torch.Tensor:
        """Codes (row, token row, column) of the beginning of a recording; no columns where there is none."""
        if recording is None:
            if keep_in_s is not None:
                raise ValueError(f"keep_in_s must be None without a recording, got {keep_in_s!r}.")
            return torch.zeros(rows, self.num_rows, 0, dtype=torch.long)
        mel = self.mel_of(recording)
        frames = mel.shape[-1] // 2 if keep_in_s is None else self.frames_of(keep_in_s, "keep_in_s")
        columns = frames // self.column_frames
        if not 0 < columns <= mel.shape[-1] // self.column_frames:
            shortest = self.column_frames / self.mel_config.frame_rate
            raise ValueError(
                f"keep_in_s must be from {shortest:.2f} s to the recording's length, "
                f"{mel.shape[-1] / self.mel_config.frame_rate:.2f} s, got {keep_in_s!r}."
            )
        codes = self.codes_of(mel[:, : columns * self.column_frames])
        return codes.expand(rows, -1, -1)

    def _draw_columns(
        self,
        model: torch.nn.Module,
        condition: dict[str, torch.Tensor],
        window: torch.Tensor,
        count: int,
        sampling: TokenSampling,
        rows: RowGenerators,
        without: dict[str, torch.Tensor] | None,
    ) -> Iterator[torch.Tensor]:
        """Columns (row, token row) that follow a window of codes (row, token row, column)."""
        given = bare(self.mel_vqvae).codes_to_tokens(window)
        generators = None if None in rows else list(rows)
        drawn = draw_tokens(model, condition, given, count * self.num_rows, sampling, generators, without)
        for token in drawn:
            column = [token, *(next(drawn) for _ in range(self.num_rows - 1))]
            yield torch.stack(column, 1)


__all__ = ["TokenGenerationPipeline"]
