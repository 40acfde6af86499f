"""Proof that a live vLLM model holds the weights that were streamed to it, bit for bit.

    certificate = Certificate(model)
    model.load_weights(certificate.watch(tensors))   # remembers a checksum of every row that goes by
    certificate.differences()                        # names of live parameters that are something else

The checksum of a row is Σ_j bits(W_ij)·k_j modulo 2⁶⁴ with a pseudo-random odd k_j for each column. It is taken of what
the kernels use: of a plain parameter directly; of a matrix that vLLM's CPU build has packed away, of the matrix that the
layer's own kernel gives back for one-hot inputs, which is exact in any dtype. So a stale packed head, a tensor that did
not come, rows in the wrong place of a fused matrix and a wrong shard of a tensor-parallel worker all show.

Covers models whose loader fuses q/k/v and gate/up and shards by rows or columns as Llama and Qwen2 do in vLLM 0.24 to
0.33; quantised weights are not covered. Memory: one 64-bit number a row.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

PIECE = 1 << 20  # entries that are expanded to 64 bits at a time
FUSED = {  # part of a Hugging Face name → (vLLM's fused layer, position in it)
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Slice = tuple[slice, slice]


class Certificate:
    """What the weights of one model should be, and whether they are."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
        self.tied = bool(getattr(model.config, "tie_word_embeddings", False))
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.expected: dict[str, dict[int, torch.Tensor]] = {}

    def watch(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass `tensors` (Hugging Face names) on, remembering this worker's share of each."""
        for name, tensor in tensors:
            self.expect(name, tensor)
            yield name, tensor

    def expect(self, name: str, tensor: torch.Tensor) -> None:
        """The model should hold this tensor under its Hugging Face name."""
        if self.tied and name == HEAD:
            return  # vLLM takes the embedding in its place
        live, part = name, 0
        for piece in name.split("."):
            if piece in FUSED:
                fused, part = FUSED[piece]
                live = name.replace(f".{piece}.", f".{fused}.")
        rows, columns = self._share(live.rpartition(".")[0], part, tensor.shape)
        value = tensor.to(self.dtype) if tensor.dim() > 1 else tensor[:, None].to(self.dtype)
        self.expected.setdefault(live, {})[part] = row_checksums(value[rows, columns])

    def differences(self) -> list[str]:
        """Names of the live parameters that are not what was expected, or of which nothing came."""
        wanted = {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in self.expected.items()}
        if self.tied and EMBEDDING in wanted and HEAD.rpartition(".")[0] in self.modules:
            wanted[HEAD] = wanted[EMBEDDING]
        names = {name for name, _ in self.model.named_parameters()}
        wrong = sorted(names - wanted.keys())
        for name, checksums in wanted.items():
            found = self._live(name)
            # a vocabulary is padded at its end; those rows belong to no token
            padded = name in (EMBEDDING, HEAD) and found is not None and len(found) > len(checksums)
            if found is None or not torch.equal(found[: len(checksums)] if padded else found, checksums):
                wrong.append(name)
        return sorted(set(wrong))

    def _live(self, name: str) -> torch.Tensor | None:
        """Row checksums of what the kernels use for this parameter."""
        path, _, kind = name.rpartition(".")
        module = self.modules.get(path)
        if module is None:
            return None
        value = getattr(module, kind, None)
        if (
            kind == "weight"
            and hasattr(module, "cpu_linear")
            and (value is None or not value.numel() or path == "lm_head")
        ):
            return self._probed(module)
        if value is None:
            return None
        value = value.data.to(self.dtype)  # CPU kernels keep some biases in float32
        return row_checksums(value if value.dim() > 1 else value[:, None])

    def _probed(self, module: Any) -> torch.Tensor:
        """Row checksums of a packed matrix, column by column through the layer's own kernel."""
        width = getattr(module, "input_size_per_partition", None) or module.embedding_dim
        total = torch.zeros(0, dtype=torch.int64)
        for start in range(0, width, 256):
            count = min(256, width - start)
            one_hot = torch.zeros(count, width, dtype=self.dtype)
            one_hot[torch.arange(count), torch.arange(start, start + count)] = 1
            columns = module.quant_method.apply(module, one_hot, bias=None)
            part = row_checksums(columns.t().contiguous(), first=start)
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
        if hasattr(
            module, "input_is_parallel"
        ):  # split by columns; a bias is whole, and added by one worker alone
            width = shape[-1] // size
            return (every, slice(rank * width, (rank + 1) * width)) if len(shape) > 1 else (every, every)
        height = shape[0] // size
        return slice(rank * height, (rank + 1) * height), every


def row_checksums(matrix: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Σ_j bits(W_ij)·k_(first+j) modulo 2⁶⁴ for each row i: int64, on the CPU. −0 counts as 0, as kernels return it."""
    rows, width = matrix.shape
    index = torch.arange(first, first + width, dtype=torch.int64, device=matrix.device)
    factors = (index * 0x5851F42D4C957F2D + 0x14057B7EF767814F) | 1
    factors ^= factors >> 29
    bits = torch.int32 if matrix.element_size() == 4 else torch.int16
    step = max(1, PIECE // max(1, width))
    sums = [
        (((matrix[i : i + step] + 0.0).contiguous().view(bits)).to(torch.int64) * factors).sum(dim=1)
        for i in range(0, rows, step)
    ]
    return torch.cat(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)
