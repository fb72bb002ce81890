r"""Sharding gives each process a part of every weight, gradient and moment: torch's FSDP2.

`accelerate launch --use_fsdp` asks for it, by the variable ACCELERATE_USE_FSDP. Blocks of the
network are gathered for their own forward and backward pass, and freed again. What is saved is
whole, so that a run resumes with any number of processes, sharded or not.

References:
    PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Y. Zhao et al., 2023),
    https://arxiv.org/abs/2304.11277
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sfumato import files
from sfumato.errors import Refused
from sfumato.processes import here
from sfumato.training.denoising import Corrupted
from sfumato.training.objective import Objective
from sfumato.training.options import TrainOptions

LEAST = 2**16
"""Weights of a block that is gathered by itself; smaller ones are gathered with the rest."""
TRUE = ("1", "true", "yes")


def asked() -> bool:
    """Whether the environment asks for it, for several processes."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in TRUE and here().count > 1


def check(objective: Objective, options: TrainOptions) -> None:
    """Raise ValueError for what needs whole weights in each process."""
    plain = isinstance(objective, Corrupted) and objective.model.config.flow_map is None
    if not plain or objective.beside:
        raise Refused(
            "sharded weights are for one network: not for an autoencoder, a flow map, or a method "
            "whose schedule is learned. Leave out --use_fsdp."
        )
    if options.preview_every:
        raise Refused(
            "previews are drawn by one process, and with --use_fsdp none has the whole network. "
            "Give --preview-every 0."
        )
    if options.averages:
        raise Refused("--averages is not for sharded weights; leave it or --use_fsdp out.")
    if options.compile:
        raise Refused("--compile is not for sharded weights; leave it or --use_fsdp out.")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() in TRUE:
        raise Refused("sharded weights stay on the device here: leave FSDP_OFFLOAD_PARAMS out.")


def sharded(objective: Objective, device: torch.device) -> nn.Module:
    """A copy of the objective's network whose weights are shared out over all processes."""
    # Weights of channels last are not shared out by torch.
    network = copy.deepcopy(objective.network)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[reportCallIssue]: as documented
    mesh = init_device_mesh(device.type, (here().count,))
    blocks = {id(block) for block in _blocks(network)}
    for module in [*network.modules()][:0:-1]:  # what is within first
        size = sum(parameter.numel() for parameter in module.parameters())
        if id(module) in blocks and size >= LEAST:
            fully_shard(module, mesh=mesh)
        elif isinstance(module, AdaLayerNormZero) and module.emb is not None:
            fully_shard(module.emb, mesh=mesh)  # DiT calls that of its first block by itself
    fully_shard(network, mesh=mesh)
    if isinstance(objective, Corrupted):  # others are refused by `check`
        objective.denoiser.process.to(device)
    return network


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The modules in lists, and those in dictionaries in lists, which are no layers themselves."""
    for blocks in network.modules():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                yield from block.values() if isinstance(block, nn.ModuleDict) else (block,)


def whole(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """All of each tensor, in main memory where it was sharded; {} unless `keep`.

    Every process must ask for them. A device has one whole tensor at a time.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = one(tensor)
        if keep:
            found[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return found


def one(tensor: Tensor) -> Tensor:
    """A tensor of which each process has all."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, shared out as `other` is."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )


def load(module: nn.Module, path: Path) -> None:
    """`files.load_weights`, into a module that may be sharded."""
    held = module.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in held.values()):
        files.load_weights(module, path)
        return
    found = files.read_tensors(path)
    files.check_weights(held, path, found)
    module.load_state_dict({name: like(tensor, held[name]) for name, tensor in found.items()})
