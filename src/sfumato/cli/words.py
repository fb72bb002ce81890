"""Words are options of other programs, with their equivalents here."""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple, final


@final
class Cure(NamedTuple):
    """The equivalent of some options of other programs."""

    option: str
    """The option here; verbs without it do not suggest this cure."""
    sentence: str
    words: str


CURES = (
    Cure(
        "images",
        "training is counted in images: use --images N, where an epoch is as many as the data have",
        "epoch epochs num-epochs max-epochs n-epochs num-train-epochs",
    ),
    Cure(
        "images",
        "training is counted in images: use --images N, which is steps times --batch",
        "iterations iters max-iters max-steps train-steps max-train-steps train-num-steps",
    ),
    Cure(
        "from",
        "the same command resumes a run; --from RUN starts another run from its weights",
        "resume resume-from resume-from-checkpoint continue checkpoint ckpt load init pretrained "
        "finetune",
    ),
    Cure("learning-rate", "use --learning-rate X", "lr train-lr"),
    Cure("weight-decay", "use --weight-decay X", "wd"),
    Cure("batch", "use --batch N", "bs"),
    Cure(
        "checkpointing",
        "use --checkpointing",
        "gradient-checkpointing grad-checkpointing activation-checkpointing use-checkpoint",
    ),
    Cure("precision", "use --precision bfloat16", "amp fp16 bf16 half mixed-precision"),
    Cure("device", "use --device cuda, and torchrun for several", "gpu gpus gpu-ids num-gpus"),
    Cure("width", "use --width N", "dim channels num-channels base-channels"),
    Cure("out", "use --out PATH", "output output-dir outdir save-dir logdir results-folder"),
    Cure("seeds", "use --seeds 0-63: one image for each", "num-samples num-images n-samples count"),
    Cure(
        "tracker",
        "use --tracker tensorboard, wandb or trackio",
        "logger log-with report-to with-tracking wandb use-wandb tensorboard trackio",
    ),
    Cure("conditional", "use --conditional", "class-cond class-conditional"),
    Cure(
        "guidance",
        "use --guidance W, where 0 is none: W is the scale of other programs less 1",
        "guidance-scale cfg cfg-scale scale w",
    ),
    Cure("guidance", "use --classifier RUN --guidance W", "classifier-scale classifier-guidance"),
    Cure(
        "drop-classes",
        "use --drop-classes 0.1 with --conditional",
        "class-dropout-prob class-dropout label-dropout cond-drop-prob p-uncond",
    ),
)


def cure(word: str, options: Container[str]) -> str | None:
    """The sentence for an unknown option that other programs have, or None.

    Args:
        word: as typed, without dashes in front.
        options: those of the verb, by name with dashes inside.
    """
    word = word.replace("_", "-").lower()
    for option, sentence, words in CURES:
        if option in options and word in words.split():
            return f"no option '--{word}'; {sentence}."
    return None
