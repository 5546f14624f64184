"""python -m model_zoo: prepares, exports, checks and measures the models that DSD runs."""

from __future__ import annotations

import os
import platform
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from model_zoo.errors import ExportError, UnusableModel
from model_zoo.exporting.gguf_llama import UnsupportedGguf
from model_zoo.exporting.onnx_export import Exporter
from model_zoo.measuring.lengths import MeasuredLengths, histogram, lengths_of_trace
from model_zoo.prepare import Notify, prepare
from model_zoo.prompt_file import read_prompts
from model_zoo.smollm2 import PairPart, recipes
from model_zoo.wheel import DownloadError
from shared.data.profiles import PROFILE_NAME, Profile
from shared.data.recording import Header, Recorded, Recording
from shared.policies.reading import FIRST_READ
from shared.protocol.messages import Sampling
from shared.runtime.home import DEFAULT_MODEL, default_models_dir
from shared.runtime.machine import describe_machine

app = typer.Typer(add_completion=False, no_args_is_help=True)
console = Console(stderr=True, soft_wrap=True)


class Quantization(StrEnum):
    """Weights of a draft: float32, or of so many bits."""

    FP32 = "fp32"
    INT8 = "int8"
    INT4 = "int4"


@app.callback()
def model_zoo() -> None:
    """Prepare, export, check and measure the models that DSD runs."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # cleans up, as Ctrl-C does


@app.command("prepare")
def prepare_default_pair(
    only: Annotated[
        list[PairPart] | None, typer.Option(help="Make only this part and the target. May be repeated.")
    ] = None,
) -> None:
    """Make the default pair, SmolLM2-135M: the target, and its int8 and int4 drafts.

    The models go to DSD_HOME, by default the folder dsd in the user cache directory. Intact parts are kept, so a second
    run is quick.
    """
    folder = default_models_dir()
    started = time.monotonic()
    with (
        _errors_exit("prepare", DownloadError, UnsupportedGguf, ExportError, OSError),
        _progress(f"checking {folder}") as notify,
    ):
        built = prepare(folder, recipes(only or list(PairPart)), notify)
    made = f"made {', '.join(built)} in {time.monotonic() - started:.0f} s" if built else "nothing to do"
    console.print(f"{DEFAULT_MODEL} is ready in {folder} ({made})", markup=False, highlight=False)


@app.command("export")
def export_draft_of_a_model(
    model: Annotated[str, typer.Option(help="Folder or hub id of a Hugging Face causal language model.")],
    out: Annotated[Path, typer.Option(help="Folder of the draft; must not exist.")],
    quantize: Annotated[Quantization, typer.Option(help="Bits of each weight; fp32: float32.")] = Quantization.INT8,
    exporter: Annotated[
        Exporter,
        typer.Option(help="Exporter of the graph; auto: the model builder if it knows the architecture, else torch."),
    ] = Exporter.AUTO,
) -> None:
    """Export your own model as a draft, and compare it with the model.

    The draft is written only if both compute the same. export.json keeps how well its guesses follow the model.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch reads it when it loads: its threads must not spin
    from model_zoo.exporting.export import export_model  # loads torch: `prepare` without work must stay quick

    started = time.monotonic()
    with _errors_exit("export", UnusableModel, ExportError, OSError), _progress(f"reading {model}") as notify:
        record = export_model(model, out, quantize.value, exporter, notify)
    made = f"{record.architecture}, {quantize}, {time.monotonic() - started:.0f} s"
    agreement = f"at {record.agreement:.0%} of the positions of sampled texts its top token is its source's"
    console.print(f"{out} is a draft of {model} ({made}); {agreement}", markup=False, highlight=False)


@app.command("distill")
def make_a_small_draft_for_a_target(
    target: Annotated[
        str | None, typer.Option(help="Folder or hub id of the target; default: the prepared one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the draft; default: draft-distilled beside the pair.")
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL file of prompts, or of traffic with its messages. May be repeated.", exists=True),
    ] = None,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the target that the draft keeps.")] = 10,
    vocabulary: Annotated[int, typer.Option(min=256, help="Tokens that the draft can guess, the likeliest.")] = 16384,
    hours: Annotated[float, typer.Option(min=0.001, max=1000, help="Time for answers and training.")] = 3.5,
    quantize: Annotated[Quantization, typer.Option(help="Bits of each weight; fp32: float32.")] = Quantization.INT8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a small draft for a target from the target's own answers.

    The target answers the prompts, then user turns of its own invention; a copy of it with few layers learns its
    distributions. Begun again with the same options, a run that was killed goes on where it was.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch reads it when it loads: its threads must not spin
    from model_zoo.distilling.distill import Plan, distill  # loads torch

    plan = Plan(
        target or str(default_models_dir() / "target"),
        out or default_models_dir() / "draft-distilled",
        prompts or [],
        layers,
        vocabulary,
        hours,
        quantize.value,
        seed,
        f"python -m model_zoo distill {shlex.join(_without_folders(sys.argv[2:]))}",
    )
    with _errors_exit("distill", UnusableModel, ExportError, ValueError, OSError), _progress("reading") as notify:
        card = distill(plan, notify)
    guessed = f"{card.acceptance.greedy:.1%} of the tokens at temperature 0, {card.acceptance.sampled:.1%} at 0.8"
    console.print(f"{plan.out}: guesses {guessed}; a step takes {card.step_ms} ms", markup=False, highlight=False)


@app.command("check")
def check_that_a_pair_fits(
    draft: Annotated[str, typer.Option(help="Folder of an exported draft, or folder or hub id of a model.")],
    target: Annotated[str, typer.Option(help="Folder or hub id of the target.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Check that each token id means the same to a draft and a target; exit with status 1 if not."""
    from model_zoo.vocabulary import compare, made_for, read_draft, read_model  # loads transformers

    with _errors_exit("check", UnusableModel, OSError):
        comparison = compare(read_draft(draft), read_model(target))
        comparison = msgspec.structs.replace(comparison, made_for_target=made_for(draft, target))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(comparison)).decode())
    else:
        print(f"{'fits' if comparison.agrees else 'does not fit'}: {comparison.verdict}")
        for name in ("vocab_sizes", "max_contexts", "eos_token_ids"):
            ours, theirs = getattr(comparison, name)
            print(f"  {name.replace('_', ' ')}: {ours} in the draft, {theirs} in the target")
        if comparison.made_for_target is not None:
            which = "these weights" if comparison.made_for_target else "other weights, so its card does not hold here"
            print(f"  the draft was made for {which}")
    raise typer.Exit(0 if comparison.agrees else 1)


@app.command("record")
def record_what_a_pair_says(
    prompts: Annotated[Path, typer.Option(help="JSONL file with a prompt in each line.", exists=True)],
    out: Annotated[Path, typer.Option(help="File of the recording; overwritten.")],
    target: Annotated[Path | None, typer.Option(help="Folder of the target; default: the prepared one.")] = None,
    draft: Annotated[Path | None, typer.Option(help="Folder of the draft; default: the prepared int8 one.")] = None,
    field: Annotated[str | None, typer.Option(help="Field of the prompt in a line; default: detected.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    most_read: Annotated[
        int | None,
        typer.Option(
            min=FIRST_READ + 1, help=f"Tokens of a prompt that the draft reads: {FIRST_READ} first, the others last."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each model.")] = 1,
) -> None:
    """Record a target's answers to prompts and where a draft guesses them, to replay both without models."""
    _check_can_be_made(out)
    from model_zoo.measuring.record import prompt_ids, record, stop_ids  # loads torch and transformers
    from services.cloud_verifier.torch_engine.model import load_target
    from services.edge_drafter.model import load_draft

    folders = target or default_models_dir() / "target", draft or default_models_dir() / "draft-int8"
    with _errors_exit("record", ValueError, OSError):
        texts = read_prompts(prompts, field)
        with _progress(f"loading {folders[0]} and {folders[1]}") as notify:
            models = load_target(str(folders[0]), num_threads=threads), load_draft(str(folders[1]), threads)
            sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
            found: list[Recorded] = []
            ids, stops = prompt_ids(folders[0], texts), stop_ids(folders[0])
            for each in record(*models, ids, stops, sampling, max_tokens, most_read):
                found.append(each)
                notify(f"prompt {len(found)} of {len(texts)}")
        how = f"{max_tokens} tokens, temperature {temperature:g}, top_p {top_p:g}, seed {seed}"
        how += f", {most_read} of a prompt read" if most_read else ""
        origin = f"model_zoo record, {prompts.name}, {how}, {platform.machine()}, {date.today()}"
        header = Header(
            target=models[0].name,
            draft=models[1].name,
            vocab_size=models[0].vocab_size,
            max_context=min(model.max_context for model in models),
            origin=origin,
        )
        Recording(header, tuple(found)).write(out)
    num_tokens = sum(len(each.target_ids) for each in found)
    share = sum(sum(each.draft_right) for each in found) / num_tokens
    line = f"{out}: {len(found)} answers, {num_tokens} tokens, {share:.1%} of them guessed"
    console.print(line, markup=False, highlight=False)


@app.command("lengths")
def measure_lengths_of_prompts_and_answers(
    out: Annotated[Path, typer.Option(help="JSON file of the histograms; overwritten.")],
    prompts: Annotated[Path | None, typer.Option(help="JSONL file with a prompt in each line.")] = None,
    trace: Annotated[Path | None, typer.Option(help="JSONL file with prompt_tokens and target_tokens.")] = None,
    target: Annotated[Path | None, typer.Option(help="Folder of the target; default: the prepared one.")] = None,
    field: Annotated[str | None, typer.Option(help="Field of the prompt in a line; default: detected.")] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Number of prompts, from the first on; default: all.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Measure the lengths of prompts and of a target's greedy answers, or take both from a trace."""
    if (prompts is None) == (trace is None):
        raise typer.BadParameter("either --prompts or --trace must be given")
    _check_can_be_made(out)
    with _errors_exit("lengths", ValueError, OSError):
        if trace is not None:
            found = lengths_of_trace(trace)
        else:
            assert prompts is not None
            folder = target or default_models_dir() / "target"
            found = _lengths_of_answers(read_prompts(prompts, field)[:most], prompts.name, folder, max_tokens, threads)
        found.write(out)
    console.print(f"{out}: {found.origin}", markup=False, highlight=False)


def _lengths_of_answers(texts: list[str], name: str, folder: Path, max_tokens: int, threads: int) -> MeasuredLengths:
    from model_zoo.measuring.record import answers, prompt_ids, stop_ids  # loads torch and transformers
    from services.cloud_verifier.torch_engine.model import load_target

    with _progress(f"loading {folder}") as notify:
        model = load_target(str(folder), num_threads=threads)
        ids = prompt_ids(folder, texts)
        lengths: list[int] = []
        for answer in answers(model, ids, stop_ids(folder), Sampling(), max_tokens, model.max_context):
            lengths.append(len(answer))
            notify(f"prompt {len(lengths)} of {len(ids)}")
    origin = (
        f"model_zoo lengths, {name}, {len(ids)} prompts, greedy answers of {model.name} of at most {max_tokens} "
        f"tokens, {platform.machine()}, {date.today()}"
    )
    return MeasuredLengths(origin, histogram([len(prompt) for prompt in ids]), histogram(lengths))


@app.command("profile")
def time_a_model_on_this_machine(
    out: Annotated[Path, typer.Option(help="JSON file of the profile; overwritten.")],
    target: Annotated[Path | None, typer.Option(help="Folder of a target.")] = None,
    draft: Annotated[Path | None, typer.Option(help="Folder of a draft.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Time a target's passes or a draft's steps, and fit a profile for the simulator."""
    from model_zoo.measuring import profile  # loads torch
    from services.cloud_verifier.torch_engine.model import load_target
    from services.edge_drafter.model import load_draft

    if (target is None) == (draft is None):
        raise typer.BadParameter("either --target or --draft must be given")
    if not re.fullmatch(PROFILE_NAME, out.stem):
        raise typer.BadParameter(
            f"the file name of --out is the profile's name and must match {PROFILE_NAME}, got {out.stem!r}"
        )
    _check_can_be_made(out)
    passes = steps = None
    with _errors_exit("profile", ValueError, OSError), _progress("measuring; run nothing else meanwhile"):
        if target is not None:
            verifying = load_target(str(target), num_threads=threads)
            passes, error = profile.fit_passes(profile.time_passes(verifying))
            name = verifying.name
        else:
            drafting = load_draft(str(draft), threads)
            steps, error = profile.fit_steps(profile.time_steps(drafting))
            name = drafting.name
    how = f"{name}, {threads} thread{'s' * (threads > 1)}, {describe_machine()}, {date.today()}"
    origin = f"model_zoo profile: {how}; off by {error}; peak memory {profile.peak_mib():.0f} MiB"
    found = Profile(name=out.stem, origin=origin, verifier=passes, drafter=steps)
    out.write_text(found.model_dump_json(indent=2, exclude_none=True) + "\n")
    console.print(f"{out}: {origin}", markup=False, highlight=False)


@contextmanager
def _errors_exit(command: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turns an error of these kinds into one line on standard error and exit status 1."""
    try:
        yield
    except kinds as error:
        console.print(f"{command} failed: {error}", style="red", markup=False)
        raise typer.Exit(1) from error


def _without_folders(arguments: Sequence[str]) -> list[str]:
    """Command line arguments as a card may tell them: files and folders by their names alone."""
    return [Path(each).name if "/" in each and Path(each).exists() else each for each in arguments]


def _check_can_be_made(out: Path) -> None:
    """Raises BadParameter, before any work, if `out` can't be written."""
    if not out.parent.is_dir():
        raise typer.BadParameter(f"the folder of --out, {out.parent}, does not exist")
    if out.is_dir():
        raise typer.BadParameter(f"--out, {out}, is a folder")


@contextmanager
def _progress(first_line: str) -> Iterator[Notify]:
    """Shows one live line with a clock on a terminal, else plain lines."""
    if not console.is_terminal:
        yield lambda line: console.print(line, markup=False, highlight=False)
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(first_line)
        yield lambda line: progress.update(task, description=line)


if __name__ == "__main__":
    app(prog_name="python -m model_zoo")
