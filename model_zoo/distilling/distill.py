"""Makes a small draft for a target from the target's own answers: prompts, answers, layers, training, export, card.

Everything that a run makes lies in a work folder beside the draft, and a run that was killed goes on there.

Invariant: the draft's folder appears when all is done. Prompts that judge are never trained on.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import msgspec
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from model_zoo.distilling.answers import write_whole
from model_zoo.distilling.card import PLOT, half_hours, judge, plot
from model_zoo.distilling.corpus import Corpus
from model_zoo.distilling.student import evenly, layers_of, most_influential, with_head_of, without_layers
from model_zoo.distilling.training import Lesson, Time, is_bfloat16_fast, train
from model_zoo.exporting.export import TEXT_FILES, export_model
from model_zoo.exporting.onnx_export import Exporter, Precision
from model_zoo.manifest import sha256_of
from model_zoo.prepare import Notify
from model_zoo.source import Source, open_source, weights_sha256
from services.cloud_verifier.torch_engine.model import name_of
from services.edge_drafter.draft_config import VOCABULARY
from services.edge_drafter.model import load_draft
from shared.data.draft_card import CARD, Card, Progress, read_card
from shared.runtime.machine import describe_machine

HELD_OUT = 20  # one prompt in so many judges
ANSWERS_SHARE, TRIAL_SHARE = 0.45, 0.03  # of the time
MOST_JUDGED = 64  # answers that a look at the acceptance reads
WATCHED_TEXTS = 16  # for the influence of layers
SETTINGS = "settings.json"
_PACKAGES = ("accelerate", "onnxruntime", "onnxruntime-genai", "torch", "transformers")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a distillation depends on; a work folder belongs to one of them."""

    target_sha256: str
    prompts: dict[str, str]  # sha256 of each file, by name
    num_layers: int
    vocab_size: int
    hours: float
    seed: int


@dataclass(frozen=True)
class Plan:
    target: str
    out: Path
    prompts: Sequence[Path]
    num_layers: int
    vocab_size: int
    hours: float
    precision: Precision
    seed: int
    command: str

    @property
    def work(self) -> Path:
        return self.out.with_name(f"{self.out.name}-work")

    @property
    def seconds(self) -> float:
        return self.hours * 3600


def distill(plan: Plan, tell: Notify) -> Card:
    """A draft that was made before with the same settings is left as it is.

    Raises UnusableModel, ExportError, ValueError for a prompt file or a folder, OSError.
    """
    is_made = plan.out.exists()
    if is_made and not ((plan.work / SETTINGS).is_file() and (plan.out / CARD).is_file()):
        raise _exists(plan)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = open_source(plan.target)
    settings = _settings(plan, source)
    if is_made:
        return _finished(plan, settings, tell)
    _claim(plan, settings)
    target = _load_target(source)
    depth = len(layers_of(target)[1])
    if not 1 <= plan.num_layers < depth:
        raise ValueError(f"a draft of {plan.target} has 1…{depth - 1} layers, got {plan.num_layers}")
    rows = target.config.get_text_config().vocab_size
    if plan.vocab_size < rows and _has_biased_head(target):
        raise ValueError(f"the head of {plan.target} has a bias, and can't be reduced: give --vocabulary {rows}")
    files = {path.name: path for path in plan.prompts}
    corpus = Corpus(target, source.folder, plan.work / "answers", files, plan.seed, tell)
    answers_s = corpus.collect(plan.seconds * ANSWERS_SHARE)
    lesson, coverage = _lesson(corpus, plan.vocab_size, target)
    tell(f"{len(lesson.train)} answers; {len(lesson.token_ids)} tokens have {coverage:.2%} of their probability")
    chosen = _choose_layers(plan, target, lesson, answers_s, tell)
    trials_s = len(chosen.trials) * plan.seconds * TRIAL_SHARE
    span = Time(answers_s + trials_s, answers_s + plan.seconds * (1 - ANSWERS_SHARE))
    student = _student(target, chosen.layers, lesson)
    progress = train(student, lesson, plan.work / "training", span, plan.seed, _teller(tell, plan.hours))
    model = _save_model(plan.work / "model", target, student, chosen.layers, lesson, source)
    return _finish(plan, settings, model, corpus, lesson, coverage, chosen, answers_s, progress, tell)


# --- the target and its answers ---------------------------------------------------------------------------------------


def _settings(plan: Plan, source: Source) -> Settings:
    if len({path.name for path in plan.prompts}) < len(plan.prompts):
        raise ValueError("two files of prompts have the same name")
    return Settings(
        weights_sha256(source.folder),
        {path.name: sha256_of(path) for path in plan.prompts},
        plan.num_layers,
        plan.vocab_size,
        plan.hours,
        plan.seed,
    )


def _finished(plan: Plan, settings: Settings, tell: Notify) -> Card:
    """The card of the draft that is there. Raises ValueError unless it has these settings and this precision."""
    found = read_card(plan.out / CARD)
    if _read_settings(plan.work / SETTINGS) != settings or found.precision != plan.precision:
        raise _exists(plan)
    tell(f"{plan.out} was made before")
    return found


def _exists(plan: Plan) -> ValueError:
    return ValueError(f"{plan.out} exists already: choose another folder or remove it")


def _read_settings(path: Path) -> Settings:
    """Raises ValueError naming the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not hold the settings of a distillation: {error}") from error


def _claim(plan: Plan, settings: Settings) -> None:
    """Takes the work folder. Raises ValueError if it belongs to other settings."""
    path = plan.work / SETTINGS
    if not path.is_file():
        plan.work.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(settings)) + b"\n")
    elif (earlier := _read_settings(path)) != settings:
        differing = [name for name in Settings.__struct_fields__ if getattr(earlier, name) != getattr(settings, name)]
        raise ValueError(
            f"{plan.work} holds a distillation with other {', '.join(differing)}: finish it with those, or remove it"
        )


def _load_target(source: Source) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source.folder, dtype=torch.bfloat16 if is_bfloat16_fast() else torch.float32
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()  # type: ignore[arg-type, no-any-return]


# --- what the student learns, and which layers it has -----------------------------------------------------------------


def _lesson(corpus: Corpus, vocab_size: int, target: PreTrainedModel) -> tuple[Lesson, float]:
    """What the student learns, and the share of the target's probability that the draft's vocabulary has."""
    batches = corpus.answers()
    judging = [each for batch in batches for each in batch[::HELD_OUT]]  # even numbers, so all of them are greedy
    answers = [each for batch in batches for each in batch]
    held_out = {tuple(each.prompt) for each in judging}
    training = [each for each in answers if tuple(each.prompt) not in held_out]
    if not training:
        raise ValueError("the time was too short for answers to train on: give more hours")
    rows = target.config.get_text_config().vocab_size
    mass = torch.zeros(rows, dtype=torch.float64)
    for each in training:
        mass.index_add_(0, each.likeliest.flatten().long(), each.logprobs.flatten().double().exp())
    total = float(mass.sum())
    share = mass.clone()
    mass[torch.tensor(corpus.stops, dtype=torch.int64)] = torch.inf  # a draft must be able to guess the end
    token_ids = sorted(mass.topk(min(vocab_size, rows)).indices.tolist())
    return Lesson(training, judging[:MOST_JUDGED], token_ids, rows), float(share[token_ids].sum()) / total


@dataclass(frozen=True)
class _Chosen:
    rule: str
    layers: list[int]
    trials: dict[str, float]


def _choose_layers(plan: Plan, target: PreTrainedModel, lesson: Lesson, answers_s: float, tell: Notify) -> _Chosen:
    """The layers with which a short training comes farthest."""
    depth = len(layers_of(target)[1])
    texts = [each.prompt + each.token_ids for each in lesson.held_out[:WATCHED_TEXTS]]
    rules = {"evenly": evenly(depth, plan.num_layers)}
    if (influential := most_influential(target, texts, plan.num_layers)) not in rules.values():
        rules["influence"] = influential
    trials = {}
    for number, (rule, layers) in enumerate(rules.items()):
        begun_s = answers_s + number * plan.seconds * TRIAL_SHARE
        span = Time(begun_s, begun_s + plan.seconds * TRIAL_SHARE)
        tell(f"trial: layers {', '.join(map(str, layers))} ({rule})")
        student = _student(target, layers, lesson)
        progress = train(student, lesson, plan.work / f"trial-{rule}", span, plan.seed, _teller(tell, plan.hours))
        trials[rule] = progress[-1].acceptance
        del student
        gc.collect()  # a Trainer holds its model in a cycle
    best = max(trials, key=trials.__getitem__)
    return _Chosen(best, rules[best], trials)


def _has_biased_head(target: PreTrainedModel) -> bool:
    head = target.get_output_embeddings()  # type: ignore[no-untyped-call]
    return getattr(head, "bias", None) is not None


def _student(target: PreTrainedModel, layers: Sequence[int], lesson: Lesson) -> PreTrainedModel:
    student = without_layers(target, layers)
    student.to(target.device)  # type: ignore[arg-type]
    with_head_of(student, lesson.token_ids)
    return student


def _teller(tell: Notify, hours: float) -> Callable[[Progress], None]:
    def told(progress: Progress) -> None:
        tell(
            f"{progress.seconds / 60:.0f} min of {hours:g} h: acceptance {progress.acceptance:.3f}, loss "
            f"{progress.loss:.3f}, {progress.tokens} tokens"
        )

    return told


# --- the draft --------------------------------------------------------------------------------------------------------


def _save_model(
    folder: Path,
    target: PreTrainedModel,
    student: PreTrainedModel,
    layers: Sequence[int],
    lesson: Lesson,
    source: Source,
) -> Path:
    """Writes the trained model with the target's whole head, for any tool, and the draft's vocabulary beside it."""
    whole = without_layers(target, layers)
    reduced = student.get_output_embeddings()  # type: ignore[no-untyped-call]
    trained = {
        name: value.cpu()
        for name, value in student.named_parameters()
        if value is not reduced.weight and value is not getattr(reduced, "bias", None)
    }
    unexpected = whole.load_state_dict(trained, strict=False).unexpected_keys
    assert not unexpected, unexpected
    whole.save_pretrained(folder)
    for name in TEXT_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    if len(lesson.token_ids) < lesson.vocab_size:
        (folder / VOCABULARY).write_bytes(msgspec.json.encode(lesson.token_ids) + b"\n")
    return folder


def _finish(
    plan: Plan,
    settings: Settings,
    model: Path,
    corpus: Corpus,
    lesson: Lesson,
    coverage: float,
    chosen: _Chosen,
    answers_s: float,
    progress: Sequence[Progress],
    tell: Notify,
) -> Card:
    made = plan.work / "draft"
    if made.exists():
        shutil.rmtree(made)
    export_model(str(model), made, plan.precision, Exporter.AUTO, tell)
    tell("judging the draft on held-out prompts")
    acceptance, step_ms = judge(load_draft(str(made), num_threads=1), lesson.held_out, plan.seed)
    num_tokens = sum(len(each.token_ids) for each in lesson.train)
    card = Card(
        target=name_of(plan.target),
        target_sha256=settings.target_sha256,
        layers=list(chosen.layers),
        choice=chosen.rule,
        trials=chosen.trials,
        vocab_size=len(lesson.token_ids),
        coverage=round(coverage, 5),
        prompts=corpus.num_prompts(),
        answer_tokens=num_tokens,
        epochs=round(progress[-1].tokens / num_tokens, 2),
        answers_s=round(answers_s, 1),
        training_s=round(progress[-1].seconds - answers_s, 1),
        half_hours=half_hours(progress),
        acceptance=acceptance,
        precision=plan.precision,
        step_ms=step_ms,
        machine=describe_machine(),
        command=plan.command,
        date=str(date.today()),
        versions={package: version(package) for package in _PACKAGES},
    )
    (made / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card)) + b"\n")
    plot(progress, made / PLOT)
    made.rename(plan.out)
    return card
