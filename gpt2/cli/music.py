"""`gpt2 music`: `prepare` makes shards of MIDI files, `generate` plays, `render` shows and sounds, `measure` counts."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.cli.bar import bar
from gpt2.cli.common import (
    Device,
    DType,
    Json,
    Revision,
    Threads,
    Width,
    load_model,
    print_json,
)
from gpt2.cli.progress import duration
from gpt2.errors import BadData, BadOption
from gpt2.files import check_writable
from gpt2.training.words import counted

if TYPE_CHECKING:
    from gpt2.music.compose import Piece
    from gpt2.music.dataset import Prepared
    from gpt2.music.figures import Figures

# The model of music in the package.
MODEL = "pianola"

app = typer.Typer(help="Music: the same decoder on MIDI. Needs the extra music.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command("prepare")
def prepare(
    sources: Annotated[list[Path], typer.Argument(help="MIDI files, or folders of them.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of shards to make.", show_default=False)],
    transpose: Annotated[int, typer.Option(help="Copies to train on, this many semitones up and down; 0: none.")] = 3,
    stretch: Annotated[float, typer.Option(help="These are faster or slower by up to this share.")] = 0.05,
    validation: Annotated[float, typer.Option(help="Share of pieces held out, by the hash of their notes.")] = 0.05,
    least: Annotated[int, typer.Option(help="Leave out pieces with fewer notes.")] = 10,
    most: Annotated[
        float,
        typer.Option(help="And those with more notes at once on average: their pedal is mostly never let go of."),
    ] = 10.0,
    as_json: Json = False,
) -> None:
    """Make token shards of MIDI files, for `gpt2 train DIR --recipe music`."""
    from gpt2.music.dataset import PrepareOptions, prepare

    options = PrepareOptions(transpose, stretch, validation, least, most)
    _check_folder(out.absolute().parent)
    begun = time.monotonic()
    with bar() as progress:
        made = prepare(sources, out, options, progress)
    if as_json:
        from dataclasses import asdict

        print_json({**asdict(made), "folder": str(made.folder)})
    else:
        _tell(made, time.monotonic() - begun)


def _tell(made: "Prepared", seconds: float) -> None:
    for split, events in made.events.items():
        print(
            f"{split:<10} {counted(made.pieces[split], 'piece')}, {counted(made.documents[split], 'document')} with "
            f"copies, {events:,} events, {duration(made.seconds[split])}"
        )
    for reason, names in sorted(made.skipped.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(Path(name).name for name in names[:3]) + ", …" * (len(names) > 3)
        print(f"left out   {counted(len(names), 'file')} ({reason}): {shown}")
    print(f"{counted(made.files, 'file')} in {seconds:.0f} s. Train on it: gpt2 train {made.folder} --recipe music")


@app.command("generate")
def generate(
    out: Annotated[Path, typer.Option(help="MIDI file to write.", show_default=False)],
    model: Annotated[
        str,
        typer.Option(help="A shipped model, a folder (with a slash in it), a run folder, or owner/name on the hub."),
    ] = MODEL,
    primer: Annotated[
        Path | None, typer.Option(help="MIDI file to go on from; without it, from nothing.", show_default=False)
    ] = None,
    primer_seconds: Annotated[
        float | None, typer.Option(help="How much of the primer.", show_default="all of it")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of the new music.")] = 30.0,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.95,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest events; 0: all.")] = 0,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest events up to this probability.", show_default="off")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same piece.", show_default="random")] = None,
    n: Annotated[int, typer.Option(min=1, help="Pieces; out.mid becomes out-1.mid, out-2.mid, ...")] = 1,
    may_end: Annotated[
        bool, typer.Option("--may-end", help="A piece may end before its time, if the model says so.")
    ] = False,
    wav: Annotated[bool, typer.Option("--wav", help="Also a sound, beside the MIDI file.")] = False,
    png: Annotated[bool, typer.Option("--png", help="Also a piano roll, beside it.")] = False,
    sound_font: Annotated[
        Path | None, typer.Option(help="For --wav: an .sf2 file.", show_default="found on this machine")
    ] = None,
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Width = DType.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Play on from a MIDI file, or from nothing; only what can be played comes out."""
    from gpt2.music import compose
    from gpt2.music.midi import SUFFIXES, read_midi, write_midi
    from gpt2.music.rendering import render
    from gpt2.music.sound import check_sound

    if primer_seconds is not None and primer is None:
        raise BadOption("--primer-seconds is for --primer.")
    if sound_font is not None and not wav:
        raise BadOption("--sound-font is for --wav.")
    if out.suffix.lower() not in SUFFIXES:
        raise BadOption(f"--out {out} is no name of a MIDI file; let it end in .mid.")
    if primer is not None and out.exists() and out.samefile(primer):
        raise BadOption(f"--out {out} is the primer, which would be lost; choose another name.")
    given = None if primer is None else read_midi(primer)
    _check_folder(out.parent)
    if wav:
        check_sound(sound_font)
    language_model = load_model(model, revision, device, dtype, threads)
    begun = time.monotonic()
    with bar() as progress:
        made = compose.generate(
            language_model,
            given,
            seconds=seconds,
            primer_seconds=primer_seconds,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            may_end=may_end,
            n=n,
            progress=lambda done: progress("seconds of music", int(done), int(seconds)),
        )
    took = time.monotonic() - begun
    pieces = made if isinstance(made, list) else [made]
    files: list[list[Path]] = []
    for number, piece in enumerate(pieces, 1):
        file = out if n == 1 else out.with_stem(f"{out.stem}-{number}")
        write_midi(piece.notes, file)
        sound, picture = file.with_suffix(".wav") if wav else None, file.with_suffix(".png") if png else None
        files.append([path for path in (file, sound, picture) if path is not None])
        if wav or png:
            title = f"{language_model.source}, seed {piece.seed}" + (f", on from {primer.name}" if primer else "")
            render(
                piece.notes,
                wav=sound,
                png=picture,
                sound_font=sound_font,
                title=title,
                primer_ticks=piece.primer_ticks,
            )
    if as_json:
        print_json([_described(names, piece) for names, piece in zip(files, pieces, strict=True)])
        return
    for names, piece in zip(files, pieces, strict=True):
        print(
            f"{', '.join(map(str, names))}: {piece.notes.seconds:.1f} s, {counted(len(piece.notes), 'note')}, "
            f"{counted(len(piece.events), 'new event')}, seed {piece.seed}"
        )
    events = sum(len(piece.events) for piece in pieces)
    print(f"{events / max(took, 1e-9):,.0f} events/s", file=sys.stderr)


def _check_folder(folder: Path) -> None:
    """Raises BadOption for a folder that cannot be written: better before the music than behind it."""
    try:
        check_writable(folder)
    except OSError as error:
        raise BadOption(f"{folder} cannot be written ({error.strerror}); choose another --out.") from None


def _described(files: list[Path], piece: "Piece") -> dict[str, Any]:
    return {
        "file": str(files[0]),
        "files": [str(path) for path in files[1:]],
        "seconds": piece.notes.seconds,
        "notes": len(piece.notes),
        "primer_seconds": piece.primer_ticks / 100,
        "seed": piece.seed,
        "events": piece.events,
        "text": piece.text,
    }


@app.command("render")
def render(
    files: Annotated[list[Path], typer.Argument(help="MIDI files, or folders of them.", show_default=False)],
    wav: Annotated[bool, typer.Option("--wav", help="A sound, beside each file.")] = False,
    png: Annotated[bool, typer.Option("--png", help="A piano roll, beside each file.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="beside each file")] = None,
    sound_font: Annotated[
        Path | None, typer.Option(help="For --wav: an .sf2 file.", show_default="found on this machine")
    ] = None,
) -> None:
    """Turn MIDI files into sound, into pictures of their notes, or both."""
    from gpt2.music.midi import find_midi, read_midi
    from gpt2.music.rendering import render

    if not (wav or png):
        raise BadOption("Nothing to render: give --wav, --png, or both.")
    if sound_font is not None and not wav:
        raise BadOption("--sound-font is for --wav.")
    targets: dict[Path, Path] = {}
    for file in find_midi(files):
        target = (file.parent if out is None else out) / file.stem
        if target in targets:
            raise BadOption(f"{targets[target]} and {file} would both be {target}: render them into different folders.")
        targets[target] = file
    failed: list[BadData] = []
    for target, file in targets.items():
        # Not with_suffix: a name may hold dots of its own.
        sound, picture = (target.with_name(f"{target.name}.{kind}") for kind in ("wav", "png"))
        try:
            notes = read_midi(file)
            _check_folder(target.parent)
            render(
                notes,
                wav=sound if wav else None,
                png=picture if png else None,
                sound_font=sound_font,
                title=file.stem,
            )
        except BadData as error:
            failed.append(error)
            continue
        names = ", ".join(str(path) for path, wanted in ((sound, wav), (picture, png)) if wanted)
        print(f"{names}: {notes.seconds:.1f} s, {counted(len(notes), 'note')}")
    if failed:
        # The others are made, whatever is wrong with some.
        others = f" (and {counted(len(failed) - 1, 'other')} of {len(targets)})" if len(failed) > 1 else ""
        raise BadData(f"{failed[0]}{others}")


@app.command("measure")
def measure(
    sets: Annotated[
        list[Path], typer.Argument(help="MIDI files, or folders of them; each is a column.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """What music is like, in figures: density, pitch classes, polyphony, repetition; sets side by side.

    A column is a file, or the mean of a folder's files. The pitch classes of a set (in --json) are means after each
    piece was transposed to C major or A minor.
    """
    from dataclasses import asdict

    from gpt2.music.figures import mean_of, table

    measured = {str(path): _measured(path) for path in sets}
    if as_json:
        print_json(
            {
                "pieces": {name: asdict(each) for pieces in measured.values() for name, each in pieces.items()},
                "sets": {name: asdict(mean_of(list(pieces.values()))) for name, pieces in measured.items()},
            }
        )
        return
    print(table({f"{name} ({len(pieces)})": mean_of(list(pieces.values())) for name, pieces in measured.items()}))


def _measured(path: Path) -> "dict[str, Figures]":
    """The pieces of a file, which must be one, or of a folder, in which what is none is left out and told."""
    from gpt2.music.figures import measure
    from gpt2.music.midi import find_midi, read_midi

    found, left = {}, []
    for file in find_midi([path]):
        try:
            found[str(file)] = measure(read_midi(file))
        except BadData as error:
            if file == path:
                raise
            left.append(str(error))
    if not found:
        raise BadData(f"{path} holds no piece that can be played. {left[0]}")
    if left:
        print(f"gpt2: note: {path}: {counted(len(left), 'file')} left out. {left[0]}", file=sys.stderr)
    return found
