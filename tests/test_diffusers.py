"""Pipelines of diffusers as models and models as pipelines, against diffusers itself."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
    UNet2DModel,
)
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler
from diffusers.utils import logging
from torch import nn

import sfumato as sf
from sfumato.bridge.scheduler import SfumatoScheduler
from sfumato.bridge.write import chain_of, components, general
from sfumato.cli import main
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.methods import READ
from sfumato.sampling.samplers import spelled

logging.disable_progress_bar()
IMAGE = (3, 8, 8)
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "trained")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
TINY = {
    **{"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1},
    **{"norm_num_groups": 4, "attention_head_dim": 4},
    **{"down_block_types": ("DownBlock2D", "AttnDownBlock2D")},
    **{"up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
}


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**TINY).eval()


def scheduler(kind, schedule="linear", **given):
    """diffusers' scheduler; DDIM's does not know sigmoid, whose variances it is given."""
    if schedule == "trained":
        given |= {
            "trained_betas": [0.001 + 0.007 * k for k in range(40)],
            "num_train_timesteps": 40,
        }
    elif schedule == "sigmoid" and kind is DDIMScheduler:
        given["trained_betas"] = DDPMScheduler(beta_schedule="sigmoid").betas.tolist()
    else:
        given["beta_schedule"] = schedule
    return kind(clip_sample=False, **given)


def theirs(found, unet, x, steps, clip=None) -> list[torch.Tensor]:
    """The states of their DDIM from x."""
    found.set_timesteps(steps)
    states = []
    with torch.no_grad():
        for t in found.timesteps:
            out = unet(x, t).sample
            x = found.step(out, t, x, use_clipped_model_output=clip).prev_sample
            states.append(x)
    return states


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_is_theirs_step_by_step(unet, spacing, prediction):
    """All schedules: within 1e-4 of values up to 1, float32, in each of 7 steps of a chain.

    Errors of single precision are in proportion to the largest value on the way: noise is
    predicted by a network that knows nothing, so that its chains grow.
    """
    for schedule in SCHEDULES:
        asked = {"prediction_type": prediction, "timestep_spacing": spacing}
        found = scheduler(DDIMScheduler, schedule, **asked)
        model = sf.from_diffusers(DDIMPipeline(unet, found))
        x, ours = model.start([0, 1]), []
        model.sample([0, 1], sf.Sampler(steps=7), callback=lambda i, x, to=ours: to.append(x))
        expected = theirs(found, unet, x, 7)
        assert len(ours) == len(expected) == 7
        for mine, other in zip(ours, expected, strict=True):
            largest = max(1.0, *(float(state.abs().max()) for state in expected))
            assert float((mine - other).abs().max()) <= 1e-4 * largest / 3, (schedule, spacing)


@pytest.mark.parametrize("steps", [1000, 13])
def test_every_step_of_a_chain_is_theirs(steps):
    """One step from each level, of states of size 1, for all schedules and predictions: 1e-4."""

    class Known(nn.Module):
        def forward(self, x, label):
            return x.flip(3) * 0.7

    torch.manual_seed(0)
    x = torch.randn(1, 1, 4, 4)
    for schedule, prediction in itertools.product(SCHEDULES[:3], PREDICTIONS):
        found = scheduler(DDIMScheduler, schedule, prediction_type=prediction)
        found.set_timesteps(steps)
        recipe = READ["diffusers"]((1, 4, 4), beta_schedule=schedule, prediction_type=prediction)
        denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, Known())
        stride = 1000 // steps
        for k in {1000, 700, 300, 20, 2, 1}:
            grid = torch.tensor([k, max(k - stride, 0)], dtype=torch.float64) / 1000
            mine = sf.sample(recipe.sampler.kernel, denoiser, x, grid)
            other = found.step(Known()(x, None), k - 1, x).prev_sample
            if float(other.abs().max()) < 50:  # cosine's first step from noise divides by 5e-5
                torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-4)


def test_ddpm_is_theirs_in_law(unet):
    """Mean and deviation of a step with noise: of both variances, from their own step."""
    for variance in ("fixed_small", "fixed_large"):
        found = scheduler(DDPMScheduler, variance_type=variance)
        model = sf.from_diffusers(DDPMPipeline(unet, found))
        found.set_timesteps(10)
        x, t = torch.zeros(1, *IMAGE), found.timesteps[3]
        grid = torch.stack([t + 1, t - 99]).double() / 1000
        with torch.no_grad():
            out = unet(x, t).sample
        ours, other = [], []
        for seed in range(2):
            torch.manual_seed(seed)
            noise = torch.randn(1, *IMAGE)
            kernel = model.sampler.kernel
            ours.append(sf.sample(kernel, model.denoiser, x, grid, lambda like, n=noise: n))
            generator = torch.Generator().manual_seed(seed)
            other.append(found.step(out, t, x, generator=generator).prev_sample)
        torch.testing.assert_close(torch.stack(ours), torch.stack(other), rtol=1e-4, atol=1e-4)


def test_a_clipped_chain_is_theirs(unet):
    """With `clip=True` and their `use_clipped_model_output`, the form that stays consistent."""
    found = DDIMScheduler(timestep_spacing="trailing")
    model = sf.from_diffusers(DDIMPipeline(unet, found))
    ours = model.sample([0, 1], sf.Sampler(steps=5), clip=True)
    expected = theirs(found, unet, model.start([0, 1]), 5, clip=True)[-1]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_the_ends_of_their_grids(unet):
    """An offset of leading steps, and a last step that stays at the first level."""
    for given in ({"steps_offset": 1}, {"set_alpha_to_one": False}):
        found = scheduler(DDIMScheduler, prediction_type="v_prediction", **given)
        model = sf.from_diffusers(DDIMPipeline(unet, found))
        ours = model.sample([0], sf.Sampler(steps=4))
        expected = theirs(found, unet, model.start([0]), 4)[-1]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    with pytest.raises(sf.Refused, match="Use fewer steps"):
        READ["diffusers"](IMAGE, steps_offset=2).grid(1000)


@pytest.fixture(scope="module")
def exploding() -> UNet2DModel:
    """The blocks of NCSN++: told sigma, returns the score of x in [0, 1]."""
    torch.manual_seed(0)
    size = {"block_out_channels": (32, 32), "layers_per_block": 1, "sample_size": 8}
    down = ("SkipDownBlock2D", "AttnSkipDownBlock2D")
    up = ("AttnSkipUpBlock2D", "SkipUpBlock2D")
    kind = {"time_embedding_type": "fourier", "down_block_types": down, "up_block_types": up}
    return UNet2DModel(**size, **kind).eval()


def folder(path: Path, unet, found, index: dict[str, list[str]] | None = None) -> Path:
    """A pipeline's folder, as its parts are saved."""
    unet.save_pretrained(path / "unet")
    found.save_pretrained(path / "scheduler")
    names = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", type(found).__name__]}
    (path / "model_index.json").write_text(json.dumps({"_class_name": "Any", **(index or names)}))
    return path


def test_score_sde_ve_is_theirs(exploding, tmp_path):
    """A predictor's mean between their noise levels, in units of [-1, 1]."""
    found = ScoreSdeVeScheduler(num_train_timesteps=20, sigma_max=50.0)
    model = sf.from_diffusers(folder(tmp_path / "ve", exploding, found))
    assert model.config.parameters["sigma"] == (0.01, 50.0) and model.sampler.steps == 20
    assert spelled(model.sampler.kernel) == "reverse-diffusion-pc:snr=0.15"
    found.set_timesteps(20)
    found.set_sigmas(20)
    kernel = sf.Sampler("reverse-diffusion").kernel
    torch.manual_seed(0)
    for i in (0, 7, 15):
        level = 19 - i
        t, s = level / 19, (level - 1) / 19
        sigma = float(found.discrete_sigmas[level])
        x = torch.rand(2, *IMAGE) + sigma * torch.randn(2, *IMAGE)
        with torch.no_grad():
            score = exploding(x, torch.full((2,), sigma)).sample
        other = found.step_pred(score, torch.tensor((level + 0.01) / 19), x).prev_sample_mean
        grid = torch.tensor([t, s], dtype=torch.float64)
        mine = sf.sample(kernel, model.denoiser, 2 * x - 1, grid, torch.zeros_like)
        torch.testing.assert_close((mine + 1) / 2, other, rtol=1e-4, atol=1e-4 * sigma)


def test_karras_ve_is_theirs(exploding, tmp_path):
    """An Euler step of their pipeline's equations: derivative from sigma / 2 and (x + 1) / 2."""
    found = KarrasVeScheduler()
    model = sf.from_diffusers(folder(tmp_path / "kve", exploding, found))
    assert spelled(model.sampler.kernel) == "heun" and model.sampler.grid == "karras"
    torch.manual_seed(0)
    for sigma, after in ((20.0, 11.0), (0.5, 0.3)):
        x = torch.randn(2, *IMAGE) * sigma
        with torch.no_grad():
            out = sigma / 2 * exploding((x + 1) / 2, torch.tensor(sigma / 2)).sample
        other = found.step(out, sigma, after, x).prev_sample
        wanted = torch.tensor([sigma, after], dtype=torch.float64)
        grid = (wanted / 0.02).log() / torch.tensor(100 / 0.02, dtype=torch.float64).log()
        mine = sf.sample(sf.Sampler("ddim").kernel, model.denoiser, x, grid)
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * sigma)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_theirs(unet, tmp_path, prediction):
    """Euler's steps of their scheduler, which scales the input and tells log(sigma) / 4."""
    found = EDMEulerScheduler(prediction_type=prediction, sigma_max=10.0)
    model = sf.from_diffusers(folder(tmp_path / "edm", unet, found))
    found.set_timesteps(5)
    torch.manual_seed(0)
    start = x = torch.randn(2, *IMAGE) * 10
    with torch.no_grad():
        for t in found.timesteps:
            out = unet(found.scale_model_input(x, t), t).sample
            x = found.step(out, t, x).prev_sample
    grid = torch.cat([found.sigmas[:-1].double() / 10, torch.zeros(1).double()])
    grid[0] = 1.0
    mine = sf.sample(sf.Sampler("euler").kernel, model.denoiser, start, grid)
    torch.testing.assert_close(mine, x, rtol=1e-4, atol=1e-4)


def test_a_folder_is_a_run_for_every_verb(unet, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one = UNet2DModel(**{**TINY, "in_channels": 1, "out_channels": 1}).eval()
    DDIMPipeline(one, DDIMScheduler()).save_pretrained("theirs")
    few = ["--steps", "2", "--quiet"]
    assert main(["sample", "theirs", "--seeds", "0-1", "--clip", *few]) == 0
    assert main(["sample", "theirs", "--seeds", "0", "--sampler", "unipc", *few]) == 0
    score = ["evaluate", "theirs", "--n", "8", "--extractor", "pca", "--clip", *few]
    assert main([*score, "--data", "digits", "--range", "0,16", "--out", "record.json"]) == 0
    assert main([*score, "--out", "other.json"]) == 2
    assert "does not say what it was trained on" in " ".join(capsys.readouterr().err.split())
    bits = ["likelihood", "theirs", "--data", "digits", "--n", "1", "--by", "bound", "--draws", "2"]
    assert main([*bits, "--bins", "17", "--quiet"]) == 0
    model = sf.from_pretrained("theirs")
    model.save_pretrained("ours")
    same = sf.from_pretrained("ours").sample([5], sf.Sampler(steps=2))
    assert torch.equal(same, model.sample([5], sf.Sampler(steps=2)))


def test_older_names_of_weights_are_read(unet, tmp_path):
    path = tmp_path / "old"
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(path)
    from safetensors.torch import load_file, save_file

    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value"}
    renamed = {}
    for name, value in load_file(file).items():
        parts = name.replace(".to_out.0.", ".proj_attn.").split(".")
        renamed[".".join(old.get(part, part) for part in parts)] = value
    save_file(renamed, file)
    x = sf.from_diffusers(path).sample([0], sf.Sampler(steps=1))
    assert torch.equal(x, sf.from_diffusers(DDIMPipeline(unet, DDIMScheduler())).sample(
        [0], sf.Sampler(steps=1)))  # fmt: skip


class Other:
    def __init__(self, **parts):
        self.__dict__.update(parts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rescale_betas_zero_snr": True}, "leaves no signal at the last step"),
        ({"prediction_type": "flow"}, "no prediction_type 'flow'"),
        ({"beta_schedule": "laplace"}, "no beta_schedule 'laplace'"),
    ],
)
def test_schedulers_that_are_not_read(unet, tmp_path, change, said):
    path = folder(tmp_path / "a", unet, DDIMScheduler())
    file = path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(sf.Refused, match=said):
        sf.from_pretrained(path)


def test_pipelines_that_are_not_read(unet, tmp_path):
    path = folder(tmp_path / "a", unet, DDIMScheduler())
    cases = {
        "FlowMatch of diffusers is not read": {"scheduler": ["diffusers", "FlowMatch"]},
        "UNet3D of diffusers is not read": {"unet": ["diffusers", "UNet3D"]},
        "a pipeline of scheduler, unet, vae": {"vae": ["diffusers", "AutoencoderKL"]},
    }
    index = json.loads((path / "model_index.json").read_text())
    for said, change in cases.items():
        if "scheduler" in change:
            FlowMatchEulerDiscreteScheduler().save_pretrained(path / "scheduler")
        else:
            DDIMScheduler().save_pretrained(path / "scheduler")
        (path / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(sf.Refused, match=said):
            sf.from_diffusers(path)
    (path / "model_index.json").write_text(json.dumps(index))
    folder(path, unet, DDPMScheduler(variance_type="learned_range"), None)
    with pytest.raises(sf.Refused, match="returns its variance"):
        sf.from_diffusers(path)
    (path / "unet" / "diffusion_pytorch_model.safetensors").rename(path / "unet" / "model.bin")
    folder_ = shutil.copytree(path, tmp_path / "b")
    DDIMScheduler().save_pretrained(folder_ / "scheduler")
    (folder_ / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(sf.Refused, match="never unpickled"):
        sf.from_diffusers(folder_)
    with pytest.raises(sf.Refused, match="got Other with vae"):
        sf.from_diffusers(Other(unet=unet, scheduler=DDIMScheduler(), vae=unet))
    with pytest.raises(sf.Refused, match=r"no model_index\.json"):
        sf.from_diffusers(tmp_path)
    with pytest.raises(sf.Refused, match="does not say the size"):
        sf.from_diffusers(
            DDIMPipeline(UNet2DModel(**TINY | {"sample_size": None}), DDIMScheduler())
        )


def untrained(method, patch=1, **given) -> sf.Model:
    """A model of ours with weights at random."""
    torch.manual_seed(0)
    size = sf.UNetOptions(width=8, multipliers=(1, 2), attention=(1,), patch=patch)
    config = sf.Config(method, sf.Record("none", (1, 8, 8)), given, size)
    model = sf.Model(config, sf.load("digits").stats())
    for weights in model.denoiser.backbone.parameters():
        nn.init.normal_(weights, std=0.05)
    return model.to("cpu")


WHITE = {
    "ddpm": {"prediction": "velocity"},
    "ddim": {},
    "vp": {},
    "ve": {"sigma": (0.01, 5.0)},
}


@pytest.mark.parametrize("method", WHITE)
def test_white_noise_is_sampled_by_diffusers_alone(method, tmp_path):
    """The folder names diffusers' classes; in theirs and in ours a chain ends at the same image.

    VE is in units in which its variance is 1: x / (1 + sigma^2)^1/2.
    """
    model = untrained(method, **WHITE[method])
    model.save_diffusers(tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert {index["unet"][0], index["scheduler"][0]} == {"diffusers"}
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.unet, UNet2DModel)
    found = DDIMScheduler.from_config(pipe.scheduler.config)
    start = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = theirs(found, pipe.unet, start, 10)[-1]
    one = torch.ones((), dtype=torch.float64)
    process = model.recipe.process
    wide = (process.signal.at(one) @ process.signal.at(one) + process.cov(one)).sqrt()
    grid = torch.linspace(1, 0, 11, dtype=torch.float64)
    model.denoiser.eval()
    ours = sf.sample(sf.Sampler("ddim").kernel, model.denoiser, wide(start), grid)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    again = sf.from_diffusers(tmp_path / "out")
    back = sf.sample(sf.Sampler("ddim").kernel, again.denoiser, start, grid)
    torch.testing.assert_close(back, expected, rtol=1e-4, atol=1e-4)


def test_a_folder_of_white_noise_needs_no_sfumato(tmp_path):
    untrained("ddpm").save_diffusers(tmp_path / "out")
    script = f"""
import sys
sys.modules["sfumato"] = None
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "out")!r})
pipe.set_progress_bar_config(disable=True)
made = pipe(num_inference_steps=2, output_type="pt", generator=torch.manual_seed(0)).images
assert made.shape == (1, 1, 8, 8) and made.isfinite().all()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, cwd=tmp_path)


GENERAL = {
    "soft": (1, {}),
    "soft-down": (2, {}),
    "ni-ddpm": (2, {}),
    "edm": (2, {}),
    "cold": (1, {}),
    "ihdm": (1, {"count": 4}),
}


@pytest.mark.parametrize("method", GENERAL)
def test_any_process_is_sampled_by_our_scheduler(method, tmp_path):
    """Their loop with our scheduler equals our own, from the same numbers, noise included."""
    patch, given = GENERAL[method]
    model = untrained(method, patch, **given)
    model.save_diffusers(tmp_path / "out")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.scheduler, SfumatoScheduler)
    assert isinstance(pipe.unet, UNet2DModel) is (patch == 1)
    pipe.scheduler.set_timesteps(4)
    drawn = sf.Seeds([0, 1])
    draws = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    x = drawn(torch.zeros(2, 1, 8, 8))
    for generator in draws:
        torch.randn(1, 8, 8, generator=generator)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x, generator=draws).prev_sample
    kernel = pipe.scheduler.sampler.kernel
    grid = pipe.scheduler.times
    expected = model.sample([0, 1], sf.Sampler(kernel, grid=grid))
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    again = sf.from_diffusers(tmp_path / "out")
    torch.testing.assert_close(again.sample([0, 1], sf.Sampler(kernel, grid=grid)), expected,
                               rtol=1e-4, atol=1e-4)  # fmt: skip


def test_our_scheduler_corrupts_as_the_process_does():
    """`add_noise` is the network's input: in_t (C_t x_0 + S_t eps), at the time of any timestep."""
    for method in ("soft", "edm"):
        model = untrained(method)
        found = general(model)
        times = torch.tensor([0.3, 0.9], dtype=torch.float64).reshape(2, 1, 1, 1)
        process = model.recipe.process
        told = model.recipe.parametrization(process, times)
        steps = told.label.reshape(-1) * 1000 - 1
        x0, eps = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
        expected = told.inp(process.signal.at(times)(x0) + process.noise.at(times)(eps))
        torch.testing.assert_close(found.add_noise(x0, eps, steps), expected, rtol=1e-5, atol=1e-5)


def test_a_network_of_ours_beside_their_scheduler(tmp_path):
    """With patches the network is ours, and white noise still has their scheduler."""
    parts = components(untrained("ddpm", patch=2))
    assert not parts.alone and isinstance(parts.scheduler, DDPMScheduler)
    x = torch.randn(2, 1, 8, 8)
    out = parts.unet(x, torch.tensor(299)).sample
    model = untrained("ddpm", patch=2)
    torch.testing.assert_close(out, model.denoiser.backbone.eval()(x, torch.full((2,), 0.3)))
    assert chain_of(untrained("soft")) is None and chain_of(untrained("subvp")) is None


def test_models_that_cannot_be_exported(tmp_path):
    """Each is refused in one sentence, and nothing is left in the folder."""
    images, rising = sf.Record("none", (1, 8, 8), classes=("a", "b")), sf.Record("none", (1, 8))
    size = sf.UNetOptions(width=32, multipliers=(1,))
    own = sf.Model(
        sf.Config("mine.py:f", sf.Record("none", (1, 8, 8)), network=size, sha256="0"),
        method=sf.METHODS["soft"],
    )
    given = sf.Model(
        sf.Config("soft", sf.Record("none", (1, 8, 8)), network=None), backbone=nn.Identity()
    )
    learned = untrained("vdm")
    with torch.no_grad():
        for levels in learned.recipe.process.parameters():
            levels += torch.randn_like(levels)
    cases = {
        "a model of classes": sf.Model(sf.Config("soft", images, conditional=True, network=size)),
        "drawn for each image": untrained("soft-mask", wander=True),
        "theirs are images": sf.Model(sf.Config("ddpm", rising, network=size)),
        "are learned": learned,
        "code in a file": own,
        "a module of your own": given,
    }
    for said, model in cases.items():
        with pytest.raises(sf.Refused, match=said):
            model.save_diffusers(tmp_path / "out")
        assert not [*tmp_path.iterdir()]
    (tmp_path / "out").mkdir()
    with pytest.raises(sf.Refused, match="exists"):
        untrained("ddpm").save_diffusers(tmp_path / "out")
