"""`melreformer data`: render MIDI, build datasets of audio, tokenize MIDI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from melreformer_hf._text import duration_in_words

_UNIT = {"notes": "notes"}
app = typer.Typer(
    help="Make training data: render MIDI to audio, build datasets from audio, tokenize MIDI.\n\n"
    "Example: melreformer data build ~/music --output data/mine. MIDI of your own: render it first, then build "
    "from the folder of renderings. Any audio dataset on the Hub trains without building: melreformer train RECIPE "
    "--dataset user/anything.",
    no_args_is_help=True,
)

Label = Annotated[
    str | None,
    typer.Option(
        help="folder: label pieces by the folder they lie in; or a column of the metadata. "
        "Default: the column label, where there is one."
    ),
]
License = Annotated[str, typer.Option(help="Licence of pieces whose metadata name none.")]
Metadata = Annotated[
    Path | None,
    typer.Option(
        help="CSV or .jsonl: file_name, split, license, attribution; other columns are kept. "
        "Default: metadata.csv or metadata.jsonl in the folder."
    ),
]
ValidationFraction = Annotated[float, typer.Option(help="Share of the pieces that choose the best weights, 0 to 1.")]
TestFraction = Annotated[float, typer.Option(help="Share of the pieces that are measured at the end, 0 to 1.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is there.")]
PushToHub = Annotated[str | None, typer.Option(help="Upload to this Hub dataset, user/name, afterwards.")]


@app.command()
def render(
    midi_dir: Annotated[Path, typer.Argument(help="Folder searched for .mid and .midi files.")],
    output: Annotated[Path, typer.Option(help="Folder for WAV files and metadata.csv.")],
    soundfont: Annotated[
        Path | None,
        typer.Option(
            help="SF2 or SF3 file, for example FluidR3_GM.sf2 (MIT). Default: the piano that comes with the package."
        ),
    ] = None,
    synth: Annotated[
        str,
        typer.Option(
            help="fluidsynth: the program, with reverb and every controller; sampled: the package's own player of notes "
            "and pedal, dry; auto: FluidSynth where it is installed and a sound font is given, else sampled."
        ),
    ] = "auto",
    metadata: Annotated[
        Path | None, typer.Option(help="CSV: file_name, split, license, attribution. Default: none.")
    ] = None,
    sampling_rate: Annotated[int, typer.Option(help="Samples per second of the WAV files.")] = 22050,
    gain: Annotated[
        float, typer.Option(min=0, max=10, help="Master gain, 0 to 10; raise it for quiet sound fonts.")
    ] = 0.5,
    channels: Annotated[int, typer.Option(min=1, max=2, help="1 for mono, 2 for stereo.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Renderings at a time.")] = 2,
) -> None:
    """Render a folder of MIDI files to audio, about a hundred times faster than real time.

    Files that are there already are kept: run it again to go on after an interruption. A sound font that cannot be
    loaded ends with an error; no other one takes its place.

    Example: melreformer data render midi --output wav
    """
    from melreformer_hf.data.rendering import render_folder

    report = render_folder(
        midi_dir,
        output,
        soundfont,
        synth=synth,
        metadata=metadata,
        sampling_rate=sampling_rate,
        gain=gain,
        channels=channels,
        workers=workers,
    )
    typer.echo(f"rendered {len(report.rendered)}, kept {len(report.kept)}, failed {len(report.failed)}, in {output}")
    for name, reason in report.failed:
        typer.echo(f"  failed: {name}: {reason}")


@app.command()
def build(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder searched for WAV, FLAC, OGG and MP3.")],
    output: Annotated[Path, typer.Option(help="Folder of the dataset; appears when complete.")],
    sampling_rate: Annotated[int, typer.Option(help="Samples per second of the dataset.")] = 22050,
    channels: Annotated[int, typer.Option(help="1 mixes down to mono, 2 keeps stereo.")] = 1,
    label: Label = None,
    license: License = "unknown",
    metadata: Metadata = None,
    validation_fraction: ValidationFraction = 0.1,
    test_fraction: TestFraction = 0.1,
    silence_weight: Annotated[
        float,
        typer.Option(
            help="How often trainings take a crop that is mostly silent (more than half below -60 dB) beside another "
            "one: 1 like others, 0 never."
        ),
    ] = 0.1,
    workers: Annotated[int, typer.Option(min=1, help="Recordings decoded at a time.")] = 2,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Build a dataset of sharded Parquet from a folder of music, with the splits train, validation and test.

    Everything is decoded and resampled once, here, so that the first epoch of a training is as fast as the later ones.
    Files that cannot be used are skipped and listed in report.json. Splits are by recording: by the column split of the
    metadata, else by a hash of the name, so that files added later move none.

    Example: melreformer data build ~/music --output data/mine --license CC0-1.0
    """
    import pyarrow  # noqa: F401  of the extra `train`: missed before hours of decoding rather than after

    from melreformer_hf.data.building import BuildConfig, build_dataset

    config = BuildConfig(
        sampling_rate=sampling_rate,
        channels=channels,
        license=license,
        metadata=metadata,
        label=label,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        silence_weight=silence_weight,
        workers=workers,
        overwrite=overwrite,
    )
    report = build_dataset(folder, output, config)
    for name, info in report["splits"].items():
        length = duration_in_words(60 * info["hours"])
        typer.echo(f"{name}: {info['recordings']} recordings, {length}, {info['shards']} shards")
    for note in report["notes"]:
        typer.echo(note)
    _finish(report, output, push_to_hub)


@app.command()
def tokenize(
    midi_dir: Annotated[Path, typer.Argument(help="Folder searched for .mid and .midi files.")],
    output: Annotated[Path, typer.Option(help="Folder of the dataset; appears when complete.")],
    scheme: Annotated[
        str,
        typer.Option(
            help="arrival or interarrival: rows of 1024 tokens of MidiTokenizer; notes: the notes themselves."
        ),
    ] = "arrival",
    variants: Annotated[
        int,
        typer.Option(help="Of every training piece, of arrival: 10 are the original's augmentation by known notes."),
    ] = 1,
    by_piece: Annotated[
        bool, typer.Option("--by-piece", help="A row holds one piece only. Always so where pieces have labels.")
    ] = False,
    label: Label = None,
    license: License = "unknown",
    metadata: Metadata = None,
    validation_fraction: ValidationFraction = 0.1,
    test_fraction: TestFraction = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of the augmentation.")] = 0,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
) -> None:
    """Tokenize a folder of MIDI files for token models, with the splits train, validation and test by piece.

    Pieces that cannot be read are listed in report.json; the token schemes leave out pieces under 100 notes or 10 s, over
    an hour, or with more than 16 instruments, and count them there.

    Example: melreformer data tokenize ~/midi --output tokens/mine --scheme arrival --variants 10
    """
    from melreformer_hf.data.tokenizing import TokenizeConfig, tokenize_folder

    config = TokenizeConfig(
        scheme=scheme,
        variants=variants,
        by_piece=by_piece,
        label=label,
        license=license,
        metadata=metadata,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        overwrite=overwrite,
        seed=seed,
    )
    report = tokenize_folder(midi_dir, output, config)
    for name, info in report["splits"].items():
        typer.echo(
            f"{name}: {info['pieces']} pieces, {info['rows']} rows, {info['values']} {_UNIT.get(scheme, 'tokens')}"
        )
    for note in report["notes"]:
        typer.echo(note)
    counts = report["counts"]
    unsuitable = {name: counts[name] for name in ("short", "long", "crowded") if counts[name]}
    if unsuitable:
        typer.echo(f"left out: {', '.join(f'{count} too {name}' for name, count in unsuitable.items())}")
    _finish(report, output, push_to_hub)


def _finish(report: dict, output: Path, push_to_hub: str | None) -> None:
    if report["skipped"]:
        first = report["skipped"][0]
        typer.echo(
            f"skipped {len(report['skipped'])} files, see {output / 'report.json'}; the first: {first['reason']}"
        )
    typer.echo(f"wrote {output}")
    if push_to_hub is not None:
        from melreformer_hf.hub.push import push_folder

        typer.echo(f"uploaded to {push_folder(output, push_to_hub, 'dataset')}")
