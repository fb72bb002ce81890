"""`sfumato train-autoencoder`: train an autoencoder and score it, or resume an interrupted run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato import pretrained
from sfumato.cli import common, kinds, signatures
from sfumato.cli.common import pick
from sfumato.cli.parser import Namespace, Parser, resolved, settings
from sfumato.cli.signatures import SOURCE, Parameter
from sfumato.errors import Refused
from sfumato.training.services import SERVICES

if TYPE_CHECKING:
    from sfumato.autoencoding import TrainedAutoencoder
    from sfumato.evaluation.protocol import Judge
    from sfumato.networks.autoencoder import AutoencoderOptions
    from sfumato.training.data import Data
    from sfumato.training.options import TrainOptions

ABOUT = (
    "Train an autoencoder of images, and score its reconstructions of held-out images. The same "
    "command again resumes an interrupted run, and gives the same weights bit for bit."
)
CARD, SCORES = "README.md", "scores.json"


def run(argv: Sequence[str]) -> int:
    """Train and score as the command line says; the exit code."""
    training = signatures.read(SOURCE / "training" / "options.py", "TrainOptions").parameters
    found = signatures.read(SOURCE / "networks" / "autoencoder.py", "AutoencoderOptions").parameters
    network = tuple(row for row in found if row.name != "levels")
    parser = _parser(training, network)
    values = parser.read(argv, settings(argv))

    from sfumato.networks.autoencoder import AutoencoderOptions
    from sfumato.training.options import TrainOptions

    options = TrainOptions(**pick(values, training))
    size = AutoencoderOptions(**pick(values, network))
    if values.dry_run:
        print(resolved(parser, values))
        return 0
    return _train(options, size, values)


def _train(options: TrainOptions, size: AutoencoderOptions, values: Namespace) -> int:
    from dataclasses import replace

    from accelerate import PartialState

    from sfumato import files
    from sfumato.autoencoding import AutoencoderConfig
    from sfumato.evaluation.extractor import bundled
    from sfumato.training.data import load
    from sfumato.training.reconstruction import train_autoencoder

    place = common.device(values.device)
    files.check_writable(Path(values.out) / "run.json")
    trackers = common.trackers(values, values.out)
    data = load(values.data, values.split, **common.asked(values))
    if values.flip:
        data = data.mirrored()
    if values.categorical:
        size = replace(size, levels=_levels(data))
    known = bundled(data.record.name) if values.perceptual else None
    features = None if known is None else known.sha256
    config = AutoencoderConfig(data.record, size, values.kl, values.perceptual, features)
    real, judge = _judge(config.record.shape, values)
    try:
        net = None if known is None else known.net
        trained = train_autoencoder(config, data, options, values.out, trackers, place, net)
    except KeyboardInterrupt:
        print(f"sfumato: stopped; the same command resumes {values.out}.", file=sys.stderr)
        return 130
    state = PartialState()
    state.destroy_process_group()  # else one process's metrics would wait for the others'
    if not state.is_main_process:
        return 0
    record = _scored(trained, real, judge, options.steps, Path(values.out))
    if not values.quiet:
        print(f"{values.out}: checkpoints/, previews/, log.jsonl, run.json, {CARD}, {SCORES}")
        row = record["results"][0]
        names = [name for name in ("psnr", "tokens", "exact", "fid") if row.get(name) is not None]
        print("reconstructions: " + ", ".join(f"{name} {row[name]:.4g}" for name in names))
    return 0


def _levels(data: Data) -> int:
    """The levels of tokens that are the raw values of data."""
    if data.images.dtype.kind != "u":
        raise Refused(f"--categorical needs whole numbers; {data.record.name} has others.")
    return data.record.values


def _judge(shape: tuple[int, ...], values: Namespace) -> tuple[Data, Judge]:
    """The held-out images, and what scores reconstructions of them."""
    from sfumato.evaluation.extractor import choose
    from sfumato.evaluation.protocol import Judge
    from sfumato.training.data import load
    from sfumato.training.sources import held_out, splits

    how = common.asked(values)
    real: Data = load(values.data, held_out(values.data), **how)
    real.record.check_shape(shape, values.data)
    other = None
    if real.record.split != "train" and "train" in splits(values.data):
        other = load(values.data, "train", **how)
    spec = values.extractor
    if spec == "auto" and real.record.name not in pretrained.features():
        spec = "pca"
    count = min(values.n, len(real))
    return real, Judge(real, other, lambda *found: choose(spec, *found), count)


def _scored(
    trained: TrainedAutoencoder, real: Data, judge: Judge, step: int, out: Path
) -> dict[str, Any]:
    """Write the card of a run and the record of its scores."""
    from sfumato import files
    from sfumato.evaluation import protocol, reconstructions

    levels = trained.config.network.levels
    images = reconstructions.reconstructions(trained.reconstruct, real, judge.count, levels)
    record = reconstructions.record(judge, images, str(out), trained.config.to_dict(), step)
    protocol.write(record, out / SCORES)
    files.write(out / CARD, reconstructions.card(record))
    return record


def _parser(training: Sequence[Parameter], network: Sequence[Parameter]) -> Parser:
    parser = Parser("train-autoencoder", ABOUT)
    common.data_options(parser)
    parser.option("flip", kinds.YES, False, "train on each image and on its mirror image")
    parser.option("out", kinds.PATH, "runs/autoencoder", "the run's folder")
    common.device_option(parser, "where to train")
    told = "program that receives figures and pictures, beside the run's log; may be repeated"
    known = kinds.several(kinds.choice(*SERVICES), empty=True)
    parser.option("tracker", known, (), told, repeated=True)
    text = "take images as tokens, whole numbers, whose logits are learned by cross entropy"
    parser.option("categorical", kinds.YES, False, text)
    parser.option("kl", kinds.NUMBER, 1e-6, "weight of the latents' divergence from N(0, I)")
    text = "weight of the distance in the features of the classifier bundled for these data"
    parser.option("perceptual", kinds.NUMBER, 0.0, text)
    parser.option("n", kinds.POSITIVE, 10_000, "reconstructions of held-out images to score")
    text = "auto (the classifier for this data set, or pca), FILE.py:NAME, inception, or pca"
    parser.option("extractor", kinds.TEXT, "auto", text)
    parser.options(training, "training", also={"precision": "dtype"})
    parser.options(network, "network")
    parser.about_the_call()
    return parser
