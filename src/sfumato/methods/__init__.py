"""Published methods: functions of a signal's shape, the data's statistics and their own parameters.

`METHODS` are the names that the command line takes.
"""

from __future__ import annotations

from collections.abc import Callable

from sfumato.methods.blurring import blurring
from sfumato.methods.chain import chain
from sfumato.methods.cold import cold
from sfumato.methods.ddim import ddim
from sfumato.methods.ddpm import ddpm
from sfumato.methods.edm import edm
from sfumato.methods.ihdm import ihdm
from sfumato.methods.ncsn import ncsn, ncsnv2
from sfumato.methods.ni import ni_ddpm, ni_smld
from sfumato.methods.recipe import Recipe as Recipe
from sfumato.methods.score_sde import subvp, ve, vp
from sfumato.methods.soft import soft
from sfumato.methods.soft_down import soft_down
from sfumato.methods.soft_mask import soft_mask
from sfumato.methods.vdm import vdm

METHODS: dict[str, Callable[..., Recipe]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "vdm": vdm,
    "ncsn": ncsn,
    "ncsnv2": ncsnv2,
    "ve": ve,
    "vp": vp,
    "subvp": subvp,
    "edm": edm,
    "ihdm": ihdm,
    "blurring": blurring,
    "soft": soft,
    "soft-mask": soft_mask,
    "soft-down": soft_down,
    "cold": cold,
    "ni-ddpm": ni_ddpm,
    "ni-smld": ni_smld,
}
"""Methods by name: functions of a signal's shape, of statistics and of their own parameters.

>>> len(sf.METHODS), [*sf.METHODS][:3]
(17, ['ddpm', 'ddim', 'vdm'])
>>> recipe = sf.METHODS["ddpm"]((1, 8, 8), betas="cosine")
>>> recipe.process.signal.at(torch.tensor(1.0).double()).gain < 1e-3
tensor(True)
"""

READ: dict[str, Callable[..., Recipe]] = {"diffusers": chain}
"""Methods of models that other programs have trained; with `METHODS`, what a config may name."""
