"""The checkpoints of one target and its donors, opened."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline import hub
from pipeline.config.schema import CheckpointConfig, EngineConfig, FamilyConfig, Start
from pipeline.errors import UserError
from pipeline.files import ROOT, digest
from pipeline.plan.sources import Sources
from pipeline.weights.checkpoint import Checkpoint, Folder
from pipeline.weights.json_files import read_object

if TYPE_CHECKING:
    from pipeline.weights.parts import Part

ORIGIN = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Keys of config.json that say where a model comes from and change no answer."""


class FamilyRefused(UserError):
    """One family cannot be opened or used as it is configured; others may be."""

    def __init__(self, family: str, reason: str) -> None:
        super().__init__(reason)
        self.family = family


@contextmanager
def of_family(name: str) -> Iterator[None]:
    """A mistake that is found inside is this family's; a hub that does not answer is nobody's."""
    try:
        yield
    except (hub.Unreachable, FamilyRefused):
        raise
    except UserError as e:
        raise FamilyRefused(name, str(e)) from e


@dataclass(frozen=True)
class Family:
    """The checkpoints of one target and its donors, and the key of its vector; None without both donors."""

    name: str
    config: FamilyConfig
    target: Checkpoint
    sft: Checkpoint | None
    grpo: Checkpoint | None
    base: Checkpoint | None
    vector_key: str | None

    def checkpoint(self, start: Start) -> Checkpoint:
        """The checkpoint that a condition starts from.

        Raises:
            UserError: if the family does not have it.
        """
        found: Checkpoint | None = getattr(self, start.value)
        if found is None:
            raise UserError(
                f"families.{self.name}.{start.value}: a condition needs this checkpoint; set its id"
            )
        return found

    @cached_property
    def architecture(self) -> str:
        """Families with equal values can share one engine."""
        own = [s for s in (self.config.max_model_len, self.template_hash) if s is not None]
        return digest([model_config(self.target), self.target.tokenizer_fingerprint, *own])

    @property
    def template_source(self) -> Checkpoint:
        """The checkpoint whose chat template prompts go through."""
        return self.target if self.config.template is None else self.checkpoint(Start(self.config.template))

    @property
    def template_hash(self) -> str | None:
        """sha256 of that template, where it is not the target's own."""
        found = self.template_source.chat_template_hash
        return None if found == self.target.chat_template_hash else found

    def engine(self, config: EngineConfig) -> EngineConfig:
        """The options of its engine: with its own length, where it has fewer positions."""
        own = self.config.max_model_len
        return config if own is None else replace(config, max_model_len=min(own, config.max_model_len))


def vector_key_of(family: Family, part: "Part | None") -> str | None:
    """The key of a family's vector, or of a part of it; None without both donors."""
    if part is None or family.vector_key is None:
        return family.vector_key
    from pipeline.weights.parts import PARTS_VERSION

    return digest([family.vector_key, asdict(part), PARTS_VERSION])


def locate(source: CheckpointConfig) -> str:
    """A folder or hub id; shipped checkpoints are found from any working directory."""
    local = ROOT / source.id
    return str(local) if local.is_dir() else source.id


def open_family(name: str, config: FamilyConfig, sources: Sources) -> Family:
    """Open the checkpoints of a family, at the revisions that are configured or pinned.

    Raises:
        UserError: if one is not there or is damaged, or the target lacks the chat template that is asked for.
    """
    opened: dict[str, Checkpoint] = {}
    found = config.sources()
    for part in ("target", "base", "sft", "grpo"):  # an adapter comes after what it is merged into
        if part in found:
            opened[part] = _open(found[part], sources, opened)
    target = opened["target"]
    _check_template(name, config, opened)
    sft, grpo, base = (opened.get(part) for part in ("sft", "grpo", "base"))
    vector_key = None
    if sft is not None and grpo is not None:
        vector_key = digest({"difference": [grpo.fingerprint, sft.fingerprint]})
    return Family(name, config, target, sft, grpo, base, vector_key)


def _open(source: CheckpointConfig, sources: Sources, opened: Mapping[str, Checkpoint]) -> Checkpoint:
    """A checkpoint, or what an adapter makes of one that is opened already."""
    where = (locate(source), sources.revision(source), source.subfolder)
    if source.merge_into is None:
        return Checkpoint.open(*where)
    from pipeline.weights.adapter import merged

    return merged(Folder.find(*where), opened[source.merge_into])


def _check_template(name: str, config: FamilyConfig, opened: Mapping[str, Checkpoint]) -> None:
    """Refuse a family whose prompts are to go through a chat template that is not there."""
    source = opened[config.template or "target"]
    if not config.chat or source.chat_template_hash is not None:
        return
    remedy = f"set families.{name}.chat=false for a base model"
    if config.template is None:
        remedy += f", or families.{name}.template to the donor whose template it is to be asked with"
    raise UserError(f"{source.source}: expected a chat template, found none; {remedy}")


def model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Digest of config.json without its origin, and the stop tokens of generation_config.json."""
    model = {k: v for k, v in checkpoint.config.items() if k not in ORIGIN}
    path = checkpoint.path / "generation_config.json"
    generation = read_object(path) if path.exists() else {}
    return {"config": digest(model), "eos_token_id": generation.get("eos_token_id")}
