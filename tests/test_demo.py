"""The page's JSON interface, without a browser: what it answers is what the library computes.

`make demo-test` uses the page itself, in a browser.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import socket
import struct
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato import pictures, trajectory
from sfumato.cli import main
from sfumato.errors import Refused
from sfumato.restoration import simulated
from test_trajectory import CLASSES, SHAPE, model

pytest.importorskip("starlette", reason="the page needs the extra demo: pip install '.[demo]'")
pytest.importorskip("uvicorn", reason="the page needs the extra demo: pip install '.[demo]'")

from starlette.testclient import TestClient

from sfumato.demo import app, images, jobs, options, server

pytestmark = pytest.mark.filterwarnings("ignore::sfumato.sampling.sample.Diverged")

HERE = "http://127.0.0.1:8000"
MODELS = {"pets": lambda: model(conditional=True), "soft": lambda: model("soft")}


@pytest.fixture(scope="module")
def client():
    made = app.create_app([*MODELS], lambda name: MODELS[name]())
    with TestClient(made, base_url=HERE) as found:
        yield found


def decoded(sheet) -> np.ndarray:
    return np.frombuffer(base64.b64decode(sheet["data"]), np.uint8).reshape(sheet["shape"])


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def photo(width: int = 12, height: int = 10, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def uploaded(client, data: bytes, kind: str = "image/png"):
    return client.post("/api/image", content=data, headers={"Content-Type": kind})


def events(response) -> list[dict]:
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.strip().split("\n\n")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def refused(response, sentence: str, status: int = 400) -> None:
    assert response.status_code == status
    assert re.search(sentence, response.json()["error"]), response.json()


FORWARD = {"method": "soft", "levels": {}, "image": "flower", "seed": 0, "t": 0.5, "frames": 0}
SAMPLE = {
    **{"model": "pets", "sampler": "ddim", "numbers": {"eta": 0.5}, "steps": 4, "grid": "uniform"},
    **{"images": 2, "seed": 7, "class": 1, "clip": False, "guidance": 2.0},
}
RESTORE = {
    **{"model": "soft", "sampler": None, "numbers": {}, "steps": 3, "grid": "own", "images": 2},
    **{"seed": 7, "class": None, "image": "sample", "example": 4, "clean": True},
    **{"operator": "blur", "parameters": {"sigma": 1.5}, "noise": 0.1},
    **{"rule": "spectrum", "scale": 1.0},
}


def test_the_options_are_those_of_the_library(client):
    told = client.get("/api/options").json()
    assert [method["name"] for method in told["methods"]] == [*sf.METHODS]
    assert [sampler["name"] for sampler in told["samplers"]] == [*sf.KERNELS]
    assert told["models"] == [*MODELS]
    known = client.get("/api/model", params={"name": "pets"}).json()
    assert known["classes"] == [*CLASSES] and known["guidance"] > 0
    assert known["shape"] == [*SHAPE] and not known["fixed"]
    plain = client.get("/api/model", params={"name": "soft"}).json()
    assert plain["classes"] is None and plain["guidance"] == 0
    refused(client.get("/api/model", params={"name": "sofd"}), "did you mean 'soft'")
    refused(client.get("/api/model", params={"name": "../runs"}), "no model '../runs'")


def test_levels_are_the_parameters_of_the_corruption():
    """As written out here for some methods, from the papers' own words."""
    named = {
        name: [control.name for control in options.levels(name)]
        for name in ("ddpm", "soft", "cold", "edm", "vp", "vdm")
    }
    assert named == {
        "ddpm": ["betas", "length"],
        "soft": ["blur.0", "blur.1", "sigma.0", "sigma.1", "knee", "noise"],
        "cold": ["blur.0", "blur.1"],
        "edm": ["sigma.1"],
        "vp": ["beta.0", "beta.1"],
        "vdm": ["gamma.0", "gamma.1"],
    }


@pytest.mark.parametrize("name", sorted(sf.METHODS))
def test_every_method_corrupts_at_its_defaults(client, name):
    levels = {control.name: control.value for control in options.levels(name)}
    found = client.post("/api/forward", json={**FORWARD, "method": name, "levels": levels})
    assert found.status_code == 200, found.text
    assert {*found.json()["spectrum"]["lines"]} == {"image", "signal", "noise", "x_t"}


def test_forward_is_the_process(client):
    """Bytes of x_t and of the strip, at levels that are not the defaults."""
    name = uploaded(client, encoded(photo())).json()["image"]
    levels = {"blur.0": 0.01, "blur.1": 0.2, "noise": "power"}
    ask = {**FORWARD, "image": name, "levels": levels, "seed": 3, "frames": 5}
    found = client.post("/api/forward", json=ask).json()
    x0 = torch.from_numpy(np.array(photo()).transpose(2, 0, 1)).float().div(127.5).sub(1)[None]
    process = sf.METHODS["soft"]((3, 10, 12), blur=(0.01, 0.2), noise="power").process
    eps = torch.randn(3, 10, 12, generator=torch.Generator().manual_seed(3))[None]
    x = process.corrupt(x0, 0.5, eps)
    assert np.array_equal(decoded(found["x"]), pictures.to_uint8(x))
    strip = trajectory.forward(process, x0, 5, 3)[0]
    assert np.array_equal(decoded(found["frames"]), pictures.to_uint8(strip))
    power = np.array(found["spectrum"]["lines"]["x_t"])
    np.testing.assert_allclose(power, trajectory.spectrum(x)[1], rtol=1e-3)


def test_sampling_is_the_models_own(client):
    """Each moment's x_t and estimate, and the end, byte for byte."""
    told = events(client.post("/api/sample", json=SAMPLE))
    assert [event["kind"] for event in told] == ["begin", *["moment"] * 5, "end"]
    sampler = sf.Sampler("ddim:eta=0.5", 4, "uniform")
    seen: list[trajectory.Moment] = []
    made = MODELS["pets"]()
    trajectory.watch(made, [7, 8], seen.append, sampler, [1, 1], guidance=2.0)
    assert any("diverged" in note for note in told[-1]["notes"])
    assert told[0]["calls"] == made.network_calls(sampler, guidance=2.0)
    for event, moment in zip(told[1:-1], seen, strict=True):
        assert (event["done"], event["t"]) == (moment.done, moment.time)
        assert np.array_equal(decoded(event["x"]), pictures.to_uint8(moment.x))
        assert moment.estimate is not None
        assert np.array_equal(decoded(event["estimate"]), pictures.to_uint8(moment.estimate))
    last = made.sample([7, 8], sampler, [1, 1], guidance=2.0)
    assert np.array_equal(decoded(told[-2]["x"]), pictures.to_uint8(last))


def test_restoring_is_the_librarys_own(client):
    told = events(client.post("/api/restore", json=RESTORE))
    assert [event["kind"] for event in told] == ["begin", *["moment"] * 4, "restored", "end"]
    made = MODELS["soft"]()
    truth = made.sample([4], sf.Sampler(steps=10)).clamp(-1, 1)
    operator = sf.measurement("blur:sigma=1.5", SHAPE)
    y = simulated(truth, operator, 0.1, 7)
    drawn = sf.restore(made, y, operator, 0.1, [7, 8], sf.Sampler(steps=3))[0]
    shown = client.post("/api/measure", json=RESTORE).json()
    assert np.array_equal(decoded(shown["truth"]), pictures.to_uint8(truth))
    assert np.array_equal(decoded(shown["measured"]), pictures.to_uint8(y))
    mean, spread = (decoded(told[-2][name]).astype(int) for name in ("mean", "spread"))
    assert np.abs(mean - pictures.to_uint8(drawn.mean(0, keepdim=True))).max() <= 1
    deviation = drawn.numpy().std(0, keepdims=True)
    assert np.abs(spread - np.clip(255 * deviation, 0, 255).transpose(0, 2, 3, 1)).max() <= 1


@pytest.mark.parametrize("operator", sorted(sf.measurements.OPERATORS))
def test_every_operator_measures_an_upload(client, operator):
    name = uploaded(client, encoded(photo(), "JPEG"), "image/jpeg").json()["image"]
    ask = {**RESTORE, "image": name, "operator": operator, "parameters": {}}
    found = client.post("/api/measure", json=ask).json()
    assert found["truth"]["shape"] == [1, 8, 8, 1], found
    direct = client.post("/api/measure", json={**ask, "clean": False}).json()
    assert "truth" not in direct and direct["measured"]["shape"] == found["measured"]["shape"]


@pytest.mark.parametrize(
    ("path", "change", "sentence"),
    [
        ("forward", {"method": "softt"}, "no method 'softt'; did you mean 'soft'"),
        ("forward", {"t": 1.5}, "t is from 0 to 1; got 1.5"),
        ("forward", {"t": "now"}, "t needs a number; got 'now'"),
        ("forward", {"t": None}, "t needs a number"),
        ("forward", {"levels": {"steps": 3.5e9}}, "steps is from 10 to 1000"),
        ("forward", {"levels": {"noise": "/etc/passwd.npy"}}, "no noise '/etc/passwd.npy'"),
        ("forward", {"levels": {"blur.0": 0.05, "blur.1": 0.036}}, "from a small to a large level"),
        ("forward", {"image": "0123456789abcdef"}, "no longer here; choose it again"),
        ("forward", {"frames": 10**6}, "frames is from 0 to 15"),
        ("sample", {"model": "/etc"}, "no model '/etc'"),
        ("sample", {"sampler": "ddimm"}, "did you mean 'ddim'"),
        ("sample", {"numbers": {"eta": "x"}}, "eta needs a number"),
        ("sample", {"numbers": {"amount": 2}}, "takes eta; got 'amount=2'"),
        ("sample", {"steps": 10**7}, "steps is from 1 to 1000"),
        ("sample", {"images": 17}, "images is from 1 to 16"),
        ("sample", {"class": 3}, "class is from 0 to 2"),
        ("sample", {"grid": "fast"}, "no grid 'fast'"),
        ("sample", {"model": "soft"}, "guidance without a guide needs a model of classes"),
        ("sample", {"clip": 1}, "clip needs true or false"),
        ("restore", {"rule": "magic"}, "no rule 'magic'"),
        ("restore", {"parameters": {"sigma": -1}}, "sigma is from 0 to 8"),
        ("restore", {"operator": "FILE.py:mine"}, "no operator 'FILE.py:mine'"),
        ("restore", {"noise": float("inf")}, "noise needs a number"),
    ],
)
def test_a_wrong_request_is_one_sentence(client, path, change, sentence):
    base = {"forward": FORWARD, "sample": SAMPLE, "restore": RESTORE}[path]
    body = json.dumps({**base, **change})
    headers = {"Content-Type": "application/json"}
    response = client.post(f"/api/{path}", content=body, headers=headers)
    if path == "forward":
        return refused(response, sentence)
    last = events(response)[-1]
    assert last["kind"] == "error" and re.search(sentence, last["error"]), last
    assert "\n" not in last["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"[" * 60000, b'"' + b"x" * 70000 + b'"'])
def test_a_body_that_is_no_object_is_refused(client, body):
    headers = {"Content-Type": "application/json"}
    refused(client.post("/api/forward", content=body, headers=headers), "JSON object|larger than")


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header announces many pixels, with data for none of them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        parts += [struct.pack(">I", len(data)), kind, data]
        parts.append(struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def test_uploads_are_bounded_before_they_are_decoded(client):
    refused(uploaded(client, bomb(9000, 9000)), "9000 x 9000 pixels; reduce it")
    refused(uploaded(client, bomb(30000, 30000)), "cannot be read as an image: Image size")
    refused(uploaded(client, bytes(images.BYTES + 1)), "larger than 16 MB")
    refused(uploaded(client, encoded(photo())[:200]), "cannot be read as an image")
    for kind in ("GIF", "TIFF", "BMP", "WEBP"):
        refused(uploaded(client, encoded(photo(), kind)), "not PNG or JPEG")
    refused(uploaded(client, b"<svg onload=alert(1)>", "image/svg+xml"), "this takes image/png")
    refused(uploaded(client, b"import os"), "not PNG or JPEG")


def test_a_large_upload_is_reduced(client):
    found = uploaded(client, encoded(photo(900, 300, "L"))).json()["sheet"]
    assert found["shape"] == [1, images.SIDE // 3, images.SIDE, 1]


def test_the_album_forgets_the_oldest():
    album = images.Album()
    names = [album.add(encoded(photo(4 + i, 4))) for i in range(images.KEPT + 1)]
    album.whole(names[-1])
    with pytest.raises(Refused, match="choose it again"):
        album.whole(names[0])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "127.0.0.1:9999", "Origin": "http://127.0.0.1:9999"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": HERE}, 200),
    ],
)
def test_other_sites_are_refused(client, headers, status):
    response = client.post("/api/forward", json=FORWARD, headers=headers)
    assert response.status_code == status, response.text


def test_a_form_of_another_site_cannot_ask(client):
    """A cross-site form sends without asking first, but only in these types."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        body = json.dumps(FORWARD)
        answer = client.post("/api/forward", content=body, headers={"Content-Type": kind})
        refused(answer, "this takes application/json")


def test_the_page_is_whole_and_loads_from_here_alone(client):
    """Every file that the page names is there, none names an address, and the headers say so."""
    page = client.get("/")
    assert page.status_code == 200 and "<title>Sfumato</title>" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in page.headers
    files = sorted(path for path in app.STATIC.rglob("*") if path.is_file())
    named = {
        name
        for path in files
        for name in re.findall(r"\b(?!this\b)[\w-]+\.(?:js|css|svg)\b", read(path))
    }
    assert named == {path.name for path in files} - {"index.html"}
    for path in files:
        answer = client.get(f"/{path.name}")
        assert answer.status_code == 200 and answer.content == path.read_bytes()
        assert {*re.findall(r"https?://[^\s\"']+", read(path))} <= {"http://www.w3.org/2000/svg"}
    assert client.get("/../app.py").status_code == 404
    assert client.get("/%2e%2e/app.py").status_code == 404


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_a_failure_is_one_sentence_and_no_secret():
    def broken(name: str):
        raise KeyError("secret")

    with TestClient(
        app.create_app(["m"], broken), base_url=HERE, raise_server_exceptions=False
    ) as found:
        answer = found.get("/api/model", params={"name": "m"})
    assert answer.status_code == 500 and "secret" not in answer.text
    assert "traceback" in answer.json()["error"]
    assert answer.headers["x-content-type-options"] == "nosniff"


async def _never() -> bool:
    return False


def test_a_newer_job_stops_the_one_before():
    """At its next step; and the newer one begins only when the older has ended."""

    async def both():
        desk = jobs.Desk()
        begun = threading.Event()
        order = []

        def long(job, tell):
            for step in range(10**6):
                tell({"kind": "moment", "done": step})
                order.append("old")
                begun.set()

        def short(job):
            order.append("new")
            return "done"

        async def first():
            return [json.loads(e.removeprefix("data: ")) async for e in desk.events(long, _never)]

        running = asyncio.create_task(first())
        await asyncio.get_running_loop().run_in_executor(None, begun.wait)
        result = await desk.result(short)
        told = await asyncio.wait_for(running, 5)
        return result, told, order

    result, told, order = asyncio.run(both())
    assert result == "done" and told[-1] == {"kind": "stopped"}
    assert order[-1] == "new" and order.count("new") == 1 and len(order) < 10**6


def test_a_job_stops_when_its_page_is_gone():
    async def alone():
        desk = jobs.Desk()
        over = threading.Event()

        def long(job, tell):
            try:
                while True:
                    job.check()
            finally:
                over.set()

        async def gone():
            return True

        told = [event async for event in desk.events(long, gone)]
        return told, await asyncio.get_running_loop().run_in_executor(None, over.wait, 5)

    told, over = asyncio.run(alone())
    assert told == [] and over


def complaint(capsys, *words) -> str:
    assert main(["demo", *map(str, words)]) == 2
    found = capsys.readouterr().err.strip()
    assert found.startswith("sfumato: ") and "\n" not in found
    return found


def test_bad_input_of_the_command(capsys, tmp_path, monkeypatch):
    assert "--port is a port from 1 to 65535; got 0" in complaint(capsys, "--port", 0)
    assert "got 70000" in complaint(capsys, "--port", 70000)
    assert "needs a whole number" in complaint(capsys, "--port", "http")
    assert "no_such" in complaint(capsys, "no_such")
    assert str(tmp_path) in complaint(capsys, tmp_path)
    with socket.socket() as other:
        other.bind((server.ADDRESS, 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port} is in use; choose another" in complaint(capsys, "--port", port)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'sfumato[demo]'" in complaint(capsys)


def test_the_server_is_on_the_loopback_interface_alone(monkeypatch):
    """It says where it is, answers there, and on no other address of this machine."""
    servers = []

    class Kept(server.uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr(server.uvicorn, "Server", Kept)
    with socket.socket() as free:
        free.bind((server.ADDRESS, 0))
        port = free.getsockname()[1]
    addresses = []
    told = threading.Event()

    def ready(address: str) -> None:
        addresses.append(address)
        told.set()

    running = threading.Thread(target=server.serve, args=((), model, port, ready))
    running.start()
    try:
        assert told.wait(10) and addresses == [f"http://127.0.0.1:{port}"]
        with socket.create_connection((server.ADDRESS, port), 10) as one:
            one.settimeout(10)
            one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert one.recv(64).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), 2)
    finally:
        servers[0].should_exit = True
        running.join(10)
    assert not running.is_alive()
