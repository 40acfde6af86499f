"""A model hub on this machine: stand-ins for what conf/ names, under the same ids and revisions, over HTTP.

    with Hub(write_repositories(folder, config)) as hub:
        fill(cache, hub, config)                        # or run a process with hub.environment(cache)
    environment(cache, HF_HUB_OFFLINE="1")              # for a process that is to go without the hub

The hub's own client, `datasets` and vLLM talk to it as to the real one (`HF_ENDPOINT`) and leave their own cache behind,
from which the same run goes offline. Of the hub's interface it plays what these clients ask for:
a repository at a revision, its file list, and the files. No LFS, no authentication, no pagination.
"""

import gzip
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.config.schema import BenchmarkConfig, Config, FamilyConfig
from pipeline.files import ROOT
from tests import tiny
from tests.adapters import write_adapter

DATA = ROOT / ".." / "shared" / "data"
ROWS = 40  # documents of each split
DONORS = ("sft", "grpo")
LARGE = 4.0  # GB: checkpoints of this size have a head of their own and three shards
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # as in Qwen2.5
TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Qwen.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Repository:
    """One model or data set: its files lie in `folder`, of whatever revision, and `main` stands for `revision`."""

    kind: str  # models or datasets
    id: str
    revision: str
    folder: Path
    earlier: tuple[str, ...] = ()  # what `main` was before

    def files(self) -> Iterator[str]:
        return (str(p.relative_to(self.folder)) for p in sorted(self.folder.rglob("*")) if p.is_file())


def write_repositories(folder: Path, config: Config) -> list[Repository]:
    """Stand-ins for every checkpoint and data set that `config` takes from the hub.

    Checkpoints have Qwen2.5's tensor names; those of 1.5B parameters tie their head and are one file, others have their
    own head, more rows of padding, and three shards. A family that is asked through the chat template of one checkpoint
    has it in that alone. A donor that is merged into another is an adapter. Donors that a recipe is to train are left to
    `train`.
    """
    made = []
    for benchmark in {b.dataset.id: b for b in config.benchmarks.values()}.values():
        where = folder / "datasets" / benchmark.dataset.id
        _write_dataset(where, benchmark, documents(folder))
        made.append(Repository("datasets", benchmark.dataset.id, _revision(benchmark.dataset), where))
    texts = [path.read_text() for path in sorted((ROOT / "evals").rglob("*.py"))]
    tokenizer = _tokenizer(texts)
    written: dict[str, dict[str, Any]] = {}  # families can share a target and its base
    for number, family in enumerate(config.families.values()):
        tied = (family.target.size_gb or 0.0) < LARGE
        settings = {
            "tied": tied,
            "rows": tokenizer.get_vocab_size() + (16 if tied else 48),
            "max_position_embeddings": family.max_model_len or 32768,
        }
        target = tiny.weights(tiny.config(**settings), seed=number, head=not tied)
        target = {k: v if k.endswith("norm.weight") else v * 4 for k, v in target.items()}  # decided answers
        logits = target["model.embed_tokens.weight" if tied else "lm_head.weight"]
        logits[[tokenizer.token_to_id(token) for token in SPECIAL]] *= 4  # that end, sooner or later
        target = written.setdefault(family.target.id, target)
        sft = tiny.moved(target, seed=number + 10, share=0.5, scale=0.05)  # near enough to be of one start
        states = {"base": tiny.moved(target, number + 20), "target": target, "sft": sft}
        states["grpo"] = tiny.moved(sft, number + 30, share=0.5, scale=0.05)
        for part, state in states.items():
            source = getattr(family, part)
            if source is None or (part in ("target", "base") and any(r.id == source.id for r in made)):
                continue
            from_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", source.id) is not None
            repository = folder / "models" / source.id if from_hub else Path(source.id)
            where = (
                repository / f"runs-{part}" if _share_a_repository(family) and part in DONORS else repository
            )
            if where.exists():
                continue
            if source.merge_into is not None:
                write_adapter(where, seed=number, size=0.15)
            else:
                tiny.write(where, state, shards=1 if tied else 3, **settings)
                _finish(where, tokenizer, part, template=family.template in (None, part))
            if from_hub:
                made.append(Repository("models", source.id, _revision(source), repository))
            else:
                (where / "training.json").write_text("{}")  # a recipe's mark that the donor is whole
    return made


def _share_a_repository(family: FamilyConfig) -> bool:
    """Whether the donors are folders of one repository, here `runs-sft` and `runs-grpo`."""
    return family.sft is not None and family.grpo is not None and family.sft.id == family.grpo.id


def trained(results: Path) -> list[str]:
    """Overrides that name the donors of the larger size by the folders where a recipe puts them."""
    return [f"families.qwen7b.{part}.id={results}/donors/qwen2.5-7b/{part}" for part in ("sft", "grpo")]


def _revision(source: Any) -> str:
    return source.revision or hashlib.sha1(source.id.encode()).hexdigest()


def documents(folder: Path) -> Path:
    """The public benchmarks where they are at hand, else generated ones in the same form and layout."""
    if DATA.is_dir():
        return DATA
    generated = folder / "generated"
    if not generated.is_dir():
        from evals.micro import write_benchmarks

        write_benchmarks(generated, seed=0)
    return generated


def _write_dataset(where: Path, benchmark: BenchmarkConfig, source: Path) -> None:
    """Parquet files and a card that names configurations and splits, as data sets on the hub have them.

    The card alone, where `source` has none of the files: enough for a plan.
    """
    dataset, card = benchmark.dataset, []
    where.mkdir(parents=True, exist_ok=True)
    some = sorted((source / "bbh" / "bbh").glob("*.json"))[
        0
    ]  # generated documents do not cover every subtask
    for subtask in benchmark.subtasks or [None]:
        name = dataset.config.format(subtask=subtask) if dataset.config else "default"
        described: dict[str, Any] = {"config_name": name, "data_files": []}
        for split, file in dataset.files.items():
            path = source / file.format(subtask=subtask)
            path = path if path.is_file() or subtask is None else some
            if not path.is_file():
                continue
            inside = where / name / f"{split}-00000-of-00001.parquet"
            inside.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(pyarrow.Table.from_pylist(_rows(path, dataset.json_field)), inside)
            described["data_files"].append({"split": split, "path": f"{name}/{split}-*"})
        card.append(described)
    (where / "README.md").write_text(f"---\nconfigs: {json.dumps(card)}\n---\nStand-in.\n")


def _rows(path: Path, json_field: str | None) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    if ".jsonl" in path.suffixes:
        return [json.loads(line) for line in text.splitlines()][:ROWS]
    rows: Any = json.loads(text)
    return list(rows[json_field] if json_field else rows)[:ROWS]


def _tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with Qwen2.5's special tokens: small, and every text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _finish(where: Path, tokenizer: Tokenizer, part: str, template: bool) -> None:
    """Tokenizer files and stop tokens as Qwen2.5's base and Instruct models have them."""
    tokenizer.save(str(where / "tokenizer.json"))
    end = "<|endoftext|>" if part == "base" else "<|im_end|>"
    (where / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "bos_token": None,
                "eos_token": end,
                "pad_token": "<|endoftext|>",
                "unk_token": None,
            }
            | ({"chat_template": TEMPLATE} if template else {})
        )
    )
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    stops = [ids["<|endoftext|>"]] if part == "base" else [ids["<|im_end|>"], ids["<|endoftext|>"]]
    (where / "generation_config.json").write_text(json.dumps({"eos_token_id": stops, "do_sample": False}))
    settings = json.loads((where / "config.json").read_text())
    settings |= {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids[end]}
    (where / "config.json").write_text(json.dumps(settings))


class Hub:
    """Serves repositories on a free port of the loopback interface; `requests` lists what was asked: method and path.

    With a `fault` it answers nothing but that: a status, "silence" (takes a request and says nothing), "hang up", or for
    files larger than 1000 bytes "cut" (the body ends in the middle).
    """

    def __init__(self, repositories: list[Repository]) -> None:
        self.repositories = {(r.kind, r.id): r for r in repositories}
        self.requests: list[str] = []
        self.fault: int | str | None = None
        self.ended = threading.Event()
        hub = self

        class Handler(_Handler):
            served = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def move(self, model: str, revision: str) -> None:
        """Let the `main` of a model be another commit."""
        found = self.repositories["models", model]
        moved = replace(found, revision=revision, earlier=(*found.earlier, found.revision))
        self.repositories["models", model] = moved

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """What a process needs to use this hub with a cache of its own."""
        return environment(cache) | {"HF_ENDPOINT": self.endpoint}


def fill(cache: Path, hub: Hub, config: Config) -> None:
    """Downloads all that `config` takes from the hub, with the hub's own client, into a cache (an `HF_HOME`)."""
    from huggingface_hub import snapshot_download

    families, benchmarks = config.families.values(), config.benchmarks.values()
    parts = [source for family in families for source in family.sources().values()]
    sources = [("models", p) for p in parts] + [("datasets", b.dataset) for b in benchmarks]
    for kind, source in sources:
        if (kind, source.id) in hub.repositories:
            snapshot_download(
                source.id,
                repo_type=kind.removesuffix("s"),
                revision=source.revision,
                endpoint=hub.endpoint,
                cache_dir=cache / "hub",
            )


def environment(cache: Path, **more: str) -> dict[str, str]:
    """The environment without settings of the hub's clients but these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "RV_"))}
    return kept | {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"} | more


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body)

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.served.requests.append(f"{self.command} {path}")
        fault = self.served.fault
        if isinstance(fault, int):
            return self._send(fault, b"{}")
        if fault in ("silence", "hang up"):
            self.served.ended.wait(60 if fault == "silence" else 0)
            self.close_connection = True
            return None
        api = re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        )
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            kind, name, what, revision, inside = api.groups()
        elif file:
            kind, name, what = "datasets" if file[1] else "models", file[2], "resolve"
            revision, inside = file[3], file[4]
        else:
            return self._send(404, b"{}")
        found = self.served.repositories.get((kind, name))
        if found is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in (None, "main", found.revision, *found.earlier):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        sha = revision if revision in found.earlier else found.revision
        commit = {"X-Repo-Commit": sha}
        if what == "resolve":
            target = found.folder / inside
            if not target.is_file():
                return self._send(404, b"{}", commit | {"X-Error-Code": "EntryNotFound"})
            content = target.read_bytes()
            return self._send(200, content, commit | {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
        if what in (None, "revision"):
            siblings = [{"rfilename": f} for f in found.files()]
            return self._json(
                {"_id": "0", "id": name, "sha": sha, "private": False, "siblings": siblings}
                | {"tags": [], "downloads": 0, "likes": 0}
            )
        if what == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            entries = self._tree(found, inside or "", recursive)
            return (
                self._json(entries)
                if entries or not inside
                else self._send(404, b"{}", commit | {"X-Error-Code": "EntryNotFound"})
            )
        asked = (
            json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
        )
        everything = {e["path"]: e for e in self._tree(found, "", recursive=True)}
        return self._json([everything[p] for p in asked if p in everything])

    @staticmethod
    def _tree(repository: Repository, inside: str, recursive: bool) -> list[dict[str, Any]]:
        found = []
        for path in sorted((repository.folder / inside).glob("**/*" if recursive else "*")):
            entry = {"path": str(path.relative_to(repository.folder)), "size": 0, "type": "directory"}
            content = path.read_bytes() if path.is_file() else str(path).encode()
            if path.is_file():
                entry |= {"size": len(content), "type": "file"}
            found.append(entry | {"oid": hashlib.sha1(content).hexdigest()})
        return found

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.served.fault == "cut" and len(content) > 1000:
            content, self.close_connection = content[: len(content) // 2], True
        if self.command != "HEAD":
            self.wfile.write(content)
