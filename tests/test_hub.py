"""Models on the Hub, by a stand-in of its HTTP interface on loopback."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

import sfumato as sf
from sfumato import cards, hub, scores
from sfumato.cli import main
from sfumato.config import Backbone, Config
from sfumato.networks import UNetOptions
from sfumato.networks.transformers import uvit
from sfumato.training.train import TrainOptions, build, train

TINY = UNetOptions(width=8, multipliers=(1,))
OPTIONS = TrainOptions(images=64, batch=16, preview_every=0)
FILES = {"config.json", "facts.safetensors", "model.safetensors"}


class Hub:
    """Repositories by name, each a list of commits: files by path. `asked` has every request."""

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.large: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.status = 200
        hub = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.asked.append(f"{self.command} {self.path}")
                length = int(self.headers.get("Content-Length") or 0)
                hub.answer(self, self.command, self.path.partition("?")[0], self.rfile.read(length))

            do_HEAD = do_POST = do_PUT = do_GET

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, repo: str, files: dict[str, bytes]) -> str:
        """A commit on top of the last."""
        commits = self.repos.setdefault(repo, [])
        commit = hashlib.sha1(f"{repo}{len(commits)}".encode()).hexdigest()
        commits.append((commit, {**(commits[-1][1] if commits else {}), **files}))
        return commit

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos[repo]
        revision = self.tags.get((repo, revision), revision)
        found = [c for c in commits if c[0] == revision or revision == "main"]
        return found[-1] if found else None

    def answer(self, to, verb: str, path: str, body: bytes) -> None:
        if self.status != 200:
            return send(to, self.status, {"error": "out of order"})
        if path == "/api/repos/create":
            told = json.loads(body)
            repo = f"{told['organization']}/{told['name']}"
            if repo in self.repos:
                return send(to, 409, {"error": "exists", "url": f"{self.url}/{repo}"})
            self.add(repo, {".gitattributes": b""})
            if told.get("visibility") == "private":
                self.private.add(repo)
            return send(to, 200, {"url": f"{self.url}/{repo}"})
        if path == "/api/validate-yaml":
            return send(to, 200, {"warnings": [], "errors": []})
        if found := re.fullmatch(r"/lfs/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.large[found[1]] = body
            return send(to, 200, {})
        known = re.match(r"(?:/api/models)?/([\w.-]+/[\w-]+(?:\.\w+)?)", path)
        repo = known[1].removesuffix(".git") if known else ""
        if repo not in self.repos:
            return send(to, 404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
        rest = path[path.index(repo) + len(repo) :]
        return (self.read if verb in ("GET", "HEAD") else self.write)(to, repo, rest, body)

    def read(self, to, repo: str, rest: str, body: bytes) -> None:
        _, what, revision, *name = rest.split("/", 3)
        found = self.at(repo, revision)
        if found is None:
            return send(to, 404, {"error": "none"}, {"X-Error-Code": "RevisionNotFound"})
        commit, files = found
        if what == "revision":
            return send(to, 200, {"id": repo, "sha": commit, "siblings": []})
        if what == "tree":
            rows = [(path, len(data), oid(data)) for path, data in files.items()]
            keys = ("path", "size", "oid")
            return send(
                to, 200, [{"type": "file", **dict(zip(keys, r, strict=True))} for r in rows]
            )
        assert what == "resolve"
        data = files[name[0]]
        return send(to, 200, data, {"X-Repo-Commit": commit, "ETag": f'"{oid(data)}"'})

    def write(self, to, repo: str, rest: str, body: bytes) -> None:
        if rest.startswith("/preupload"):
            rows = [
                {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return send(to, 200, {"files": rows})
        if rest.endswith("/info/lfs/objects/batch"):
            rows = [
                {**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return send(to, 200, {"transfer": "basic", "objects": rows})
        assert rest.startswith("/commit")
        files = {}
        for line in map(json.loads, body.splitlines()):
            told = line["value"]
            if line["key"] == "file":
                files[told["path"]] = base64.b64decode(told["content"])
            elif line["key"] == "lfsFile":
                files[told["path"]] = self.large[told["oid"]]
        commit = self.add(repo, files)
        return send(
            to, 200, {"commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit}
        )


def oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def send(to, status: int, body, headers=()) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    to.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
        to.send_header(name, value)
    to.end_headers()
    if to.command != "HEAD":
        to.wfile.write(data)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The stand-in, which huggingface_hub takes for the Hub, and an empty cache."""
    found = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that has seen 64 images."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    data = sf.load("digits")
    config = Config("soft", data.record, network=TINY, sampler=sf.Sampler(steps=2))
    train(build(config, data, OPTIONS), data, OPTIONS, out, device="cpu")
    return out


def text(there: Hub, repo: str, path: str = "README.md") -> str:
    return there.repos[repo][-1][1][path].decode()


def test_a_model_comes_back_as_it_went(there, run, tmp_path):
    """Bit by bit, from a commit with a card; a second upload is a second commit."""
    model = sf.from_pretrained(run)
    page = model.push_to_hub("ann/tiny", run=run, licence="cc0-1.0")
    assert page == f"{there.url}/ann/tiny"
    again = sf.from_pretrained("ann/tiny")
    assert again.config == model.config
    assert torch.equal(again.sample(range(2)), model.sample(range(2)))
    first = there.repos["ann/tiny"][-1][0]
    assert {*there.repos["ann/tiny"][-1][1]} == {*FILES, "README.md", ".gitattributes"}

    for parameter in model.trainable.parameters():
        parameter.data.zero_()
    model.push_to_hub("ann/tiny")
    there.tags["ann/tiny", "v1"] = first
    new = sf.from_pretrained("ann/tiny")
    old = sf.from_pretrained("ann/tiny", revision="v1")
    assert not any(p.any() for p in new.trainable.parameters())
    assert any(p.any() for p in old.trainable.parameters())
    by_name = sf.from_pretrained(f"ann/tiny@{first}")
    assert torch.equal(by_name.sample([3]), old.sample([3]))


def test_only_files_that_are_read_are_fetched(there, run):
    """Pickles and other files of a repository are left where they are; so are raw weights."""
    sf.from_pretrained(run).push_to_hub("ann/tiny")
    raw = (run / "checkpoints" / "00000004" / "raw.safetensors").read_bytes()
    there.add("ann/tiny", {"pytorch_model.bin": b"\x80", "big.safetensors": b"", "x.pkl": b"\x80"})
    there.add("ann/tiny", {"raw.safetensors": raw})

    def fetched() -> set[str]:
        names = [re.search(r"GET .*/resolve/\w+/(.*)", line) for line in there.asked]
        return {found[1] for found in names if found}

    there.asked.clear()
    sf.from_pretrained("ann/tiny")
    assert fetched() == FILES
    there.asked.clear()
    sf.from_pretrained("ann/tiny", weights="raw")
    assert fetched() == {"raw.safetensors"}
    there.asked.clear()
    sf.from_pretrained("ann/tiny")  # all in the cache: only asked which commit is the latest
    assert fetched() == set() and len(there.asked) == 1


def test_nothing_is_asked_for_that_is_no_name(there, run, tmp_path):
    """Folders, bundled models, one word, absolute paths, slips beside a folder that exists."""
    there.asked.clear()
    sf.from_pretrained(run)
    sf.from_pretrained("fashion-soft")
    Path("runs").mkdir()
    Path("mine").mkdir()
    Path("mine/model").symlink_to(run)
    sf.from_pretrained("mine/model")
    for name in ("soft", "runs/none", "runs/a/b", "./a/b", "../a", "~/a", str(tmp_path / "a")):
        with pytest.raises(ValueError, match="no model at"):
            sf.from_pretrained(name)
    with pytest.raises(ValueError, match=r"of one on the Hub, runs/none@main"):
        sf.from_pretrained("runs/none")
    with pytest.raises(ValueError, match="no model at"):
        sf.from_pretrained(Path("ann/tiny"))
    with pytest.raises(ValueError, match="a revision belongs to a model on the Hub"):
        sf.from_pretrained(run, revision="v1")
    assert there.asked == []
    with pytest.raises(ValueError, match="there is no runs/none@main here, and none on the Hub"):
        sf.from_pretrained("runs/none@main")
    assert there.asked != []


def test_the_card_says_what_the_run_and_the_record_say(there, run, tmp_path):
    model = sf.from_pretrained(run)
    record = tmp_path / "scores.json"
    words = ("--n", "20", "--steps", "2", "--quiet", "--out", str(record))
    assert main(["evaluate", str(run), *words]) == 0
    model.push_to_hub("ann/tiny", run=run, records=[record], licence="apache-2.0")
    _, about, card = text(there, "ann/tiny").split("---\n", 2)
    assert yaml.safe_load(about) == {
        "license": "apache-2.0",
        "library_name": "sfumato",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "soft"],
    }
    for said in (
        "`soft` on 1,500 images of digits (train), unconditional.",
        f"- {sum(p.numel() for p in model.trainable.parameters()):,} parameters in float32.",
        "- 64 training images seen, batch 16, seed 0, 0 minutes.",
        "- Default sampler: `momentum`, 2 steps.",
        "sfumato sample ann/tiny --seeds 0-63 --out samples.png",
        'sf.from_pretrained("ann/tiny")',
        "Of the weights: apache-2.0.",
        "[scores.json](records/scores.json)",
    ):
        assert said in card
    row = scores.read(record)["results"][0]
    assert f"| `momentum` | 2 | 20 | {row['fid']:.4g} | {row['kid']:.4g} |" in card

    copy = tmp_path / "copy.json"
    copy.write_text(text(there, "ann/tiny", "records/scores.json"))
    assert scores.read(copy)["subject"]["run"] == "ann/tiny"
    assert main(["evaluate", "--verify", str(copy), "--quiet"]) == 0


def test_a_record_or_a_run_of_another_model_is_refused(there, run, tmp_path):
    model = sf.from_pretrained(run)
    other = Path("docs/records/fashion-soft-500.json")
    there.asked.clear()
    with pytest.raises(ValueError, match="is the record of another model than this one"):
        model.push_to_hub("ann/tiny", records=[Path(__file__).parents[1] / other])
    with pytest.raises(ValueError, match=r"has no run\.json and log\.jsonl"):
        model.push_to_hub("ann/tiny", run=tmp_path)
    with pytest.raises(ValueError, match="is the run of another model"):
        sf.from_pretrained("fashion-soft").push_to_hub("ann/tiny", run=run)
    for name in ("tiny", "a/b/c", "a/b@main", "/a/b"):
        with pytest.raises(ValueError, match="has a name of two parts, user/name"):
            model.push_to_hub(name)
    assert there.asked == []


def test_paths_of_this_machine_are_not_published(there, tmp_path):
    """Of data and initial weights, the last part remains; names of one or two parts stay."""
    for name, left in (
        ("/home/ann/secret/faces", "faces"),
        ("~/faces.npz", "faces.npz"),
        ("../ann/faces", "faces"),
        ("digits", "digits"),
        ("ann/faces", "ann/faces"),
        ("a/b/faces", "faces"),
    ):
        assert cards.short(name) == left
    record = sf.Record("/home/ann/secret/faces.npz", (1, 8, 8), 0, 16, count=3)
    model = sf.Model(Config("ddpm", record, network=TINY))
    there_was = {"name": "/home/ann/secret/faces.npz", "split": "train"}
    made = {
        "format": 1,
        "subject": dict.fromkeys(("run", "data", "guide"), "/home/ann/secret/x"),
        "n": 3,
        "data": there_was,
        "extractor": {"name": "/home/ann/secret/mine.py:mean"},
        "results": [{"model": scores.fingerprint(model), **dict.fromkeys(cards.SCORES, 0.5)}],
    }
    (tmp_path / "made.json").write_text(json.dumps(made))
    model.push_to_hub("ann/faces", records=[tmp_path / "made.json"])
    for path, data in there.repos["ann/faces"][-1][1].items():
        assert b"secret" not in data, path
    fetched = sf.from_pretrained("ann/faces")
    assert fetched.config.record.name == "faces.npz"
    (row,) = json.loads(text(there, "ann/faces", "records/made.json"))["results"]
    assert row["model"] == scores.fingerprint(fetched)


def test_a_card_says_which_code_of_the_author_a_model_needs(there):
    """Of a backbone in a file, by the file's name alone; of a bundled one, none."""
    record = sf.Record("digits", (1, 8, 8), 0, 16, count=3)
    for backbone, flag in (
        (Backbone("/home/ann/secret/net.py:mine", {}, "0" * 64), " --backbone FILE.py:NAME"),
        (Backbone("uvit", {"width": 8, "layers": 1, "heads": 2}), ""),
    ):
        built = uvit(record.shape, width=8, layers=1, heads=2) if flag else None
        model = sf.Model(Config("ddpm", record, network=None, backbone=backbone), backbone=built)
        model.push_to_hub("ann/net")
        card = text(there, "ann/net", "README.md")
        assert f"sfumato sample ann/net{flag} --seeds" in card
        assert ("backbone=..." in card) == ("module of its author" in card) == bool(flag)
        assert "secret" not in card + text(there, "ann/net", "config.json")


def test_what_is_no_model_of_ours_is_refused_before_its_weights(there):
    there.add("ann/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"0"})
    there.add("ann/none", {"README.md": b"nothing"})
    for name in ("ann/bert", "ann/none"):
        with pytest.raises(ValueError, match=f"{name} on the Hub is no model of sfumato"):
            sf.from_pretrained(name)
    assert not any("resolve" in line and "safetensors" in line for line in there.asked)
    with pytest.raises(ValueError, match="ann/bert@v9 on the Hub has no such revision"):
        sf.from_pretrained("ann/bert", revision="v9")
    with pytest.raises(ValueError, match=r"none on the Hub .* that you may see"):
        sf.from_pretrained("bob/tiny")


def test_without_a_connection_the_cache_serves_and_else_one_sentence(there, run, monkeypatch):
    sf.from_pretrained(run).push_to_hub("ann/tiny")
    sf.from_pretrained("ann/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    there.asked.clear()
    sf.from_pretrained("ann/tiny")
    with pytest.raises(ValueError, match="cannot be fetched: HF_HUB_OFFLINE is set, and its cache"):
        sf.from_pretrained("bob/tiny")
    with pytest.raises(ValueError, match=r"cannot be uploaded: HF_HUB_OFFLINE is set\."):
        sf.from_pretrained(run).push_to_hub("ann/tiny")
    assert there.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"the Hub \(http://127.0.0.1:9\) cannot be reached"):
        sf.from_pretrained("bob/tiny")
    with pytest.raises(ValueError, match="cannot be reached"):
        sf.from_pretrained(run).push_to_hub("ann/tiny")


def test_what_the_hub_refuses_is_one_sentence(there, run, capsys):
    there.status = 403
    with pytest.raises(ValueError, match="ann/tiny cannot be uploaded: the Hub says: 403"):
        sf.from_pretrained(run).push_to_hub("ann/tiny")
    assert main(["sample", "ann/tiny", "--seeds", "0", "--out", "a.png"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "ann/tiny" in err


def test_the_command_line_takes_names(there, run, capsys):
    """Every verb with a RUN: here sample, show, evaluate and training from such weights."""
    sf.from_pretrained(run).push_to_hub("ann/tiny")
    seeds = ("--seeds", "0-1", "--quiet")
    assert main(["sample", "ann/tiny", *seeds, "--out", "a.png"]) == 0
    assert main(["sample", "ann/tiny@main", *seeds, "--out", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert main(["show", "ann/tiny", "--seeds", "0", "--out", "c.png", "--quiet"]) == 0
    small = ("--n", "8", "--steps", "2", "--quiet")
    assert main(["evaluate", "ann/tiny", *small, "--out", "d.json"]) == 0
    words = ("--from", "ann/tiny", "--images", "16", "--batch", "16", "--preview-every", "0")
    assert main(["train", "soft", *words, "--quiet", "--out", "new"]) == 0
    made = json.loads(Path("new/run.json").read_text())
    assert made["model"]["origin"]["name"] == "ann/tiny"


def test_a_run_is_pushed_by_the_command_line(there, run, capsys):
    """The card of a run has its training; the model is the one that was trained."""
    assert main(["push", str(run), "ann/tiny", "--licence", "mit", "--private"]) == 0
    assert capsys.readouterr().out == f"{there.url}/ann/tiny\n"
    assert there.private == {"ann/tiny"}
    card = text(there, "ann/tiny")
    assert "license: mit\n" in card and "64 training images seen" in card
    mine, theirs = (sf.from_pretrained(name) for name in (run, "ann/tiny"))
    assert scores.fingerprint(mine) == scores.fingerprint(theirs)
    assert main(["push", str(run)]) == 2
    assert "push needs a run and a name" in capsys.readouterr().err


def test_the_environment_names_the_hub(there, run, tmp_path):
    """In a process of its own, HF_ENDPOINT and HF_HUB_OFFLINE are all that says where to ask."""
    sf.from_pretrained(run).push_to_hub("ann/tiny")
    given = {"HF_ENDPOINT": there.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    env = {**os.environ, **given}

    def ran(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command, where = [sys.executable, *words], {**env, **more}
        return subprocess.run(
            command, env=where, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    there.asked.clear()
    refused = ran("-c", "from sfumato import hub; hub.fetch('ann/tiny', ())", HF_HUB_OFFLINE="1")
    assert "Refused: there is no ann/tiny here, and it cannot be fetched: HF" in refused.stderr
    assert there.asked == []
    words = ("sample", "ann/tiny", "--seeds", "0", "--steps", "1", "--quiet")
    drawn = ran("-m", "sfumato", *words)
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert (tmp_path / "samples.png").is_file()


def test_names_have_two_parts():
    for name in ("ann/tiny", "a-b/c.d", "ann/tiny@v1.0", "ann/tiny@refs/pr/1", "0/1"):
        assert hub.named(name)
    for name in ("tiny", "/a/b", "a/b/c", "./a", "../a", "~/a", "-a/b", "a/b@", "a b/c", "a/"):
        assert not hub.named(name)
