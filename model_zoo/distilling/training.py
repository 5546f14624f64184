"""Trains a student on the target's answers, with transformers' Trainer.

The loss is the cross-entropy of the student against the target's distribution over its likeliest tokens, as far as they
are in the draft's vocabulary (Hinton and others, arXiv 1503.02531, at temperature 1). The learning rate follows the
clock, so a training ends when its time is over, on a machine of any speed.

Invariant: a training that is killed goes on from its last checkpoint, with the time that it had taken until then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from model_zoo.distilling.answers import Answer, write_whole
from shared.data.draft_card import Progress

LEARNING_RATE, WARM_UP, LOWEST = 6e-4, 0.03, 0.05  # the last two as shares: of the time, of the rate
BATCH = 8  # answers
EVERY_S = 300.0  # between two looks at the acceptance, each with a checkpoint
PROGRESS = "progress.json"
MOST_EPOCHS = 1000  # the clock ends a training


@dataclass(frozen=True)
class Lesson:
    """What a student learns. token_ids: the draft's vocabulary; the student's logits have its order."""

    train: Sequence[Answer]
    held_out: Sequence[Answer]
    token_ids: Sequence[int]
    vocab_size: int


@dataclass(frozen=True)
class Time:
    """Seconds of the whole distillation: when this training begins, and when it ends."""

    begun_s: float
    end_s: float


def train(
    student: PreTrainedModel, lesson: Lesson, folder: Path, span: Time, seed: int, tell: Callable[[Progress], None]
) -> list[Progress]:
    """Trains in place; returns the progress so far, that of earlier runs in the same folder included."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(folder)
    earlier = [each for each in read_progress(folder) if checkpoint is not None and each.step <= step_of(checkpoint)]
    begun_s = earlier[-1].seconds if earlier else span.begun_s
    if begun_s >= span.end_s and checkpoint is not None:
        student.load_state_dict(_weights(checkpoint), strict=False)
        return earlier
    _write_progress(folder, earlier)  # without the lines after the checkpoint
    clock = _Clock(span, time.monotonic() - begun_s)
    on_gpu = torch.cuda.is_available()
    trained = [weights for weights in student.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    watcher = _Watcher(lesson, folder, clock, earlier, tell)
    trainer = _DistillTrainer(
        model=student,
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=MOST_EPOCHS,
            per_device_train_batch_size=BATCH,
            train_sampling_strategy="group_by_length",
            bf16=is_bfloat16_fast(),
            use_cpu=not on_gpu,
            seed=seed,
            save_strategy="no",  # the watcher says when
            save_total_limit=2,
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=on_gpu,
        ),
        data_collator=_Collator(lesson),
        train_dataset=_Lessons(lesson.train),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: clock.rate())),
        callbacks=[watcher],
    )
    watcher.losses = trainer.losses
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return watcher.progress


def is_bfloat16_fast() -> bool:
    """Whether the GPU, or the processor if there is none, multiplies in bfloat16."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def acceptance(student: PreTrainedModel, answers: Sequence[Answer], token_ids: Sequence[int]) -> float:
    """Share of the tokens of greedy answers that are the student's likeliest."""
    ids = torch.tensor(list(token_ids))
    right = total = 0
    for answer in answers:
        text = torch.tensor([answer.prompt + answer.token_ids], device=student.device)
        logits = student(input_ids=text, use_cache=False).logits[0, len(answer.prompt) - 1 : -1]
        guesses = ids[logits.argmax(-1).cpu()]
        right += int((guesses == torch.tensor(answer.token_ids)).sum())
        total += len(answer.token_ids)
    return right / total


def read_progress(folder: Path) -> list[Progress]:
    path = folder / PROGRESS
    return msgspec.json.decode(path.read_bytes(), type=list[Progress]) if path.is_file() else []


def _write_progress(folder: Path, progress: Sequence[Progress]) -> None:
    write_whole(folder / PROGRESS, msgspec.json.encode(list(progress)))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: a Trainer writes its state last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if path.read_text().endswith("}\n")]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "model.safetensors")


@dataclass(frozen=True)
class _Clock:
    span: Time
    zero: float  # of the monotonic clock

    def now(self) -> float:
        return time.monotonic() - self.zero

    def rate(self) -> float:
        """Share of the learning rate: it rises, then falls as a cosine does."""
        done = (self.now() - self.span.begun_s) / (self.span.end_s - self.span.begun_s)
        if done < WARM_UP:
            return max(done / WARM_UP, 0.01)
        return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * min((done - WARM_UP) / (1 - WARM_UP), 1)))


class _Lessons(Dataset[dict[str, Any]]):
    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        answer = self._answers[index]
        return {"input_ids": answer.prompt + answer.token_ids, "answer": answer}  # the sampler reads the length


class _Collator:
    """A batch: texts, padded at their ends; positions of the taught logits in the flat batch; their distributions."""

    def __init__(self, lesson: Lesson) -> None:
        self._index = torch.full((lesson.vocab_size,), -1)
        self._index[torch.tensor(list(lesson.token_ids))] = torch.arange(len(lesson.token_ids))

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(item["input_ids"]) for item in items)
        ids = torch.zeros(len(items), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        positions = []
        for row, item in enumerate(items):
            length, first = len(item["input_ids"]), len(item["answer"].prompt)
            ids[row, :length] = torch.tensor(item["input_ids"])
            mask[row, :length] = 1
            positions.append(torch.arange(first - 1, length - 1) + row * longest)
        likeliest = self._index[torch.cat([item["answer"].likeliest for item in items]).long()]
        weights = torch.cat([item["answer"].logprobs for item in items]).float().exp() * (likeliest >= 0)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "positions": torch.cat(positions),
            "likeliest": likeliest.clamp(min=0),
            "weights": weights / weights.sum(-1, keepdim=True).clamp(min=1e-6),
        }


class _DistillTrainer(Trainer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.losses: list[float] = []  # since the watcher's last look

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **options: Any) -> Tensor:
        positions, likeliest, weights = (inputs.pop(name) for name in ("positions", "likeliest", "weights"))
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[positions].float()
        loss = -(weights * functional.log_softmax(logits, -1).gather(-1, likeliest)).sum(-1).mean()
        self.losses.append(loss.item())
        return loss


class _Watcher(TrainerCallback):
    """Looks at the acceptance from time to time, and ends the training when its time is over."""

    def __init__(
        self, lesson: Lesson, folder: Path, clock: _Clock, earlier: list[Progress], tell: Callable[[Progress], None]
    ) -> None:
        self.progress = list(earlier)
        self.losses: list[float] = []
        self._lesson, self._folder, self._clock, self._tell = lesson, folder, clock, tell
        self._looked_s = clock.now()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> TrainerControl:
        now = self._clock.now()
        is_over = now >= self._clock.span.end_s
        if is_over or now - self._looked_s >= EVERY_S:
            self._look(given["model"], state.global_step, state.epoch or 0.0)
            control.should_save = True
            self._looked_s = self._clock.now()
        control.should_training_stop = is_over
        return control

    def _look(self, student: PreTrainedModel, step: int, epochs: float) -> None:
        student.eval()  # type: ignore[no-untyped-call]
        found = Progress(
            seconds=math.ceil(self._clock.now() * 10) / 10,  # never below the end of a training that is over
            step=step,
            tokens=round(epochs * sum(len(answer.token_ids) for answer in self._lesson.train)),
            loss=round(sum(self.losses) / max(len(self.losses), 1), 4),
            acceptance=round(acceptance(student, self._lesson.held_out, self._lesson.token_ids), 4),
        )
        student.train()
        self.losses.clear()
        self.progress.append(found)
        _write_progress(self._folder, self.progress)
        self._tell(found)
