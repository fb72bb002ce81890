r"""How a network is run while it trains: for time and memory; values change by rounding alone.

bfloat16          the backbone under autocast (`--precision`), never the algebra of the process
TF32              on GPUs that have it, of float32: for convolutions, as torch does unless told
                  otherwise; never for matrix products, since transforms of the process are
                  some, and 10 bits would move x_t by 1e-3
compiled          the backbone by torch.compile (`--compile`)
recomputed        activations of blocks are not kept for the gradient (`--checkpointing`)
channels last     weights of convolutions have that layout from the start, see `Model`
fused AdamW       on a GPU, in place of hundreds of small kernels. The one for processors rounds
                  otherwise than torch's default there, and runs begun before would change
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import convert_to_fp32
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from sfumato.errors import Refused
from sfumato.training.options import TrainOptions


def bfloat16(options: TrainOptions, device: torch.device) -> bool:
    """Whether the backbone runs in bfloat16: as asked, or on a GPU that computes in it."""
    if options.precision != "auto":
        return options.precision == "bfloat16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def optimizer(trainable: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW of all parameters."""
    return torch.optim.AdamW(
        trainable.parameters(),
        lr=options.learning_rate,
        betas=(0.9, options.beta2),
        weight_decay=options.weight_decay,
        fused=next(trainable.parameters()).is_cuda or None,
    )


@contextmanager
def running(network: nn.Module, options: TrainOptions, device: torch.device) -> Iterator[nn.Module]:
    """Within, torch and `network` are set as asked; yields the network to train, compiled or not.

    Afterwards the network is as it was, however training ended.

    Raises:
        ValueError: activations are to be recomputed, and the network cannot do so.
    """
    kind = device.type if bfloat16(options, device) else None
    with _exact(), _recomputed(network, options.checkpointing), _autocast(network, kind):
        yield torch.compile(network) if options.compile else network  # type: ignore[misc]


@contextmanager
def _exact() -> Iterator[None]:
    """Within, matrix products of float32 have all its bits, whatever the caller has set."""
    newer = torch.backends.cuda.matmul
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer names, which cannot be mixed with the older
        setting = newer.fp32_precision
        newer.fp32_precision = "ieee"
        try:
            yield
        finally:
            newer.fp32_precision = setting
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _autocast(network: nn.Module, kind: str | None) -> Iterator[None]:
    """Within, `network` computes in bfloat16 on devices of this kind, and returns float32.

    Its own forward is set, since a compiled or a distributed network calls that one.
    """
    if kind is None:
        yield
        return
    own = network.__dict__.get("forward")
    cast = torch.autocast(kind, torch.bfloat16)(network.forward)
    network.forward = lambda *args, **given: convert_to_fp32(cast(*args, **given))
    try:
        yield
    finally:
        del network.forward
        if own is not None:
            network.forward = own


@contextmanager
def _recomputed(network: nn.Module, asked: bool) -> Iterator[None]:
    """Within, blocks of `network` compute their activations again for the gradient, if `asked`."""
    if not asked:
        yield
        return
    found = [module for module in network.modules() if isinstance(module, ModelMixin)]
    able = [module for module in found if module._supports_gradient_checkpointing]
    if not able:
        raise Refused(
            f"{type(network).__name__} cannot recompute its activations. Leave --checkpointing out "
            "and use --accumulate to save memory, or train --backbone unet or dit."
        )
    for module in able:
        module.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for module in able:
            module.disable_gradient_checkpointing()
