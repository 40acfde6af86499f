"""Proof that a live vLLM model holds the weights that were streamed to it, bit for bit, where it held weights before.

    certificate = Certificate(model, pool)
    model.load_weights(certificate.watch(tensors))   # remembers a checksum of every row that goes by
    certificate.differences()                        # names of what is something else

The checksums (pipeline/engine/checksums.py) are taken of what the kernels use: of a plain parameter directly; of a matrix
that vLLM's CPU build has packed away, of the matrix that the layer's own kernel gives back for one-hot inputs, which is
exact in any dtype. So a stale packed head, a tensor that did not come, rows in the wrong place of a fused matrix and a
wrong shard of a tensor-parallel worker all show. Compiled code and CUDA graphs hold addresses: every parameter and buffer
must lie where it lay before, and buffers, which no checkpoint has, must hold what they held.

Covers models whose loader fuses q/k/v and gate/up and shards by rows or columns as Llama and Qwen2 do in vLLM 0.24 to
0.33; quantised weights are not covered. Memory: one 64-bit number a row.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import torch

from pipeline.engine.checksums import row_checksums
from pipeline.files import sha256

ONE_HOT_ROWS = 256  # columns of a packed matrix that are asked for at a time
CONVERTED = 1 << 20  # entries that are converted at a time
FUSED = {  # part of a Hugging Face name → (vLLM's fused layer, position in it)
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Slice = tuple[slice, slice]


class Place(NamedTuple):
    """Where a tensor lies, and how."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Place":
        return cls(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


class Certificate:
    """What the weights of one model should be after a swap, and whether they are.

    Args:
        model: the live model, before the swap.
        pool: threads that take the checksums; on a GPU on its default stream, which must be the caller's too.
    """

    def __init__(self, model: Any, pool: Executor) -> None:
        self.model, self.pool = model, pool
        self.modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
        self.tied = bool(getattr(model.config, "tie_word_embeddings", False))
        self.dtype: torch.dtype = next(model.parameters()).dtype
        # a tied embedding is looked up in the weight itself, whatever the head's kernel uses
        packed = {f"{path}.weight" for path, module in self.modules.items() if _is_packed(module)}
        self.packed = packed - {EMBEDDING}
        self.expected: dict[str, dict[int, Future[torch.Tensor]]] = {}
        self.places, self.buffers = self._places(), self._buffers()

    @property
    def is_plain(self) -> bool:
        """Whether the kernels use every parameter as it is loaded, so that new weights can be written over it."""
        return not self.packed

    def watch(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass `tensors` (Hugging Face names) on, remembering this worker's share of each."""
        for name, tensor in tensors:
            self.expect(name, tensor)
            yield name, tensor

    def expect(self, name: str, tensor: torch.Tensor) -> None:
        """The model should hold this tensor under its Hugging Face name; nothing may change it until `differences`."""
        if self.tied and name == HEAD:
            return  # vLLM takes the embedding in its place
        live, part = name, 0
        for piece in name.split("."):
            if piece in FUSED:
                fused, part = FUSED[piece]
                live = name.replace(f".{piece}.", f".{fused}.")
        self._expect(live, part, tensor)
        if self.tied and name == EMBEDDING and HEAD.rpartition(".")[0] in self.modules:
            if self._holds_the_same(EMBEDDING, HEAD):
                self.expected[HEAD] = self.expected[EMBEDDING]
            else:
                self._expect(HEAD, 0, tensor)

    def _expect(self, live: str, part: int, tensor: torch.Tensor) -> None:
        rows, columns = self._share(live.rpartition(".")[0], part, tensor.shape)
        value = (tensor if tensor.dim() > 1 else tensor[:, None])[rows, columns]
        sums = self.pool.submit(_checksums, value, self.dtype, live in self.packed)
        self.expected.setdefault(live, {})[part] = sums

    def differences(self) -> list[str]:
        """Names of the live parameters and buffers that are not what was expected, or of which nothing came."""
        expected = {
            name: torch.cat([parts[i].result() for i in sorted(parts)])
            for name, parts in self.expected.items()
        }
        places, buffers = self._places(), self._buffers()
        wrong = {name for name, _ in self.model.named_parameters()} - expected.keys()
        wrong |= {f"{name} (moved)" for name in places if places[name] != self.places.get(name)}
        wrong |= {name for name in buffers if buffers[name] != self.buffers.get(name)}
        plain = self._plain([name for name in expected if name not in self.packed])
        for name, checksums in expected.items():
            sums = self._probed(name) if name in self.packed else plain[name]
            found = sums.result() if isinstance(sums, Future) else sums
            # a vocabulary is padded at its end; those rows belong to no token
            padded = name in (EMBEDDING, HEAD) and found is not None and len(found) > len(checksums)
            if found is None or not torch.equal(found[: len(checksums)] if padded else found, checksums):
                wrong.add(name)
        return sorted(wrong)

    def _places(self) -> dict[str, Place]:
        """Where every parameter and buffer lies."""
        held = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: Place.of(tensor) for name, tensor in held}

    def _buffers(self) -> dict[str, str]:
        """A digest of what every buffer holds."""
        return {
            name: sha256(buffer.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy().tobytes())
            for name, buffer in self.model.named_buffers()
        }

    def _plain(self, names: Iterable[str]) -> "dict[str, Future[torch.Tensor] | None]":
        """Row checksums of parameters that the kernels use as they are; None where the model has none of that name.

        Two names of the same memory, such as a tied head's, share them.
        """
        sums: dict[Place, Future[torch.Tensor]] = {}
        found: dict[str, Future[torch.Tensor] | None] = {}
        for name in names:
            value = self._live(name)
            if value is None:
                found[name] = None
                continue
            place = Place.of(value)
            if place not in sums:
                matrix = value.data if value.dim() > 1 else value.data[:, None]
                sums[place] = self.pool.submit(_checksums, matrix, self.dtype, False)
            found[name] = sums[place]
        return found

    def _live(self, name: str) -> torch.Tensor | None:
        path, _, kind = name.rpartition(".")
        value: torch.Tensor | None = getattr(self.modules.get(path), kind, None)
        return value

    def _holds_the_same(self, *names: str) -> bool:
        """Whether these are one parameter in one place, which the kernels use as it is."""
        values = [self._live(name) for name in names]
        places = {Place.of(value) for value in values if value is not None}
        return len(places) == 1 and None not in values and not self.packed & set(names)

    def _probed(self, name: str) -> torch.Tensor:
        """Row checksums of a packed matrix, column by column through the layer's own kernel."""
        module = self.modules[name.rpartition(".")[0]]
        width = getattr(module, "input_size_per_partition", None) or module.embedding_dim
        total = torch.zeros(0, dtype=torch.int64)
        for start in range(0, width, ONE_HOT_ROWS):
            count = min(ONE_HOT_ROWS, width - start)
            one_hot = torch.zeros(count, width, dtype=self.dtype)
            one_hot[torch.arange(count), torch.arange(start, start + count)] = 1
            columns = module.quant_method.apply(module, one_hot, bias=None)
            part = row_checksums(columns.t() + 0.0, first=start)
            total = part if start == 0 else total + part
        return total

    def _share(self, path: str, part: int, shape: torch.Size) -> Slice:
        """Rows and columns of a whole tensor that this worker holds."""
        module: Any = self.modules.get(path)
        every = slice(None)
        if hasattr(module, "shard_indices"):
            indices = module.shard_indices
            return slice(indices.org_vocab_start_index, indices.org_vocab_end_index), every
        size, rank = getattr(module, "tp_size", 1), getattr(module, "tp_rank", 0)
        if size == 1 or module is None:
            return every, every
        if hasattr(module, "num_kv_head_replicas") and part > 0:
            size, rank = size // module.num_kv_head_replicas, rank // module.num_kv_head_replicas
        if hasattr(module, "input_is_parallel"):
            # Split by columns; a bias is whole, and added by one worker alone.
            width = shape[-1] // size
            return (every, slice(rank * width, (rank + 1) * width)) if len(shape) > 1 else (every, every)
        height = shape[0] // size
        return slice(rank * height, (rank + 1) * height), every


def _is_packed(module: Any) -> bool:
    """Whether vLLM's CPU build holds the module's matrix apart, in its kernel's own layout.

    Its kernels are functions: one that closes over something does not use the weight that it is handed.
    """
    weight, kernel = getattr(module, "weight", None), getattr(module, "cpu_linear", None)
    if kernel is None or weight is None:
        return False
    return not weight.numel() or bool(getattr(kernel, "__closure__", None))


def _checksums(matrix: torch.Tensor, dtype: torch.dtype, packed: bool) -> torch.Tensor:
    """Row checksums in the model's dtype; of a matrix that will be packed with −0 as 0, as its kernel gives it back."""
    if matrix.dtype == dtype and not packed:
        return row_checksums(matrix)
    step = max(1, CONVERTED // max(1, matrix.shape[1]))
    blocks = (matrix[start : start + step].to(dtype) for start in range(0, len(matrix), step))
    parts = [row_checksums(block + 0.0 if packed else block) for block in blocks]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
