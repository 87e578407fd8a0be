"""The shape of a model, and what follows from it by arithmetic alone: parameters and FLOPs.

The reference family is a Llama-style decoder: RMSNorm, rotary embedding, SwiGLU, no biases.
Nothing here needs torch, so that a login node can count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A decoder-only transformer of the `llama` family.

    `width` is the size of the residual stream, `mlp_width` that of the SwiGLU hidden layer,
    `context` the sequence length in tokens.
    """

    layers: int
    width: int
    heads: int
    mlp_width: int
    vocabulary: int
    context: int
    tied_embeddings: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    family: str = "llama"

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def params_nonembedding(self) -> int:
        """Parameters of the blocks and the last norm: neither embedding nor output layer."""
        attention = 4 * self.width * self.width
        mlp = 3 * self.width * self.mlp_width
        norms = 2 * self.width
        return self.layers * (attention + mlp + norms) + self.width

    @property
    def params(self) -> int:
        """All parameters; tied embeddings are counted once."""
        tables = 1 if self.tied_embeddings else 2
        return self.params_nonembedding + tables * self.vocabulary * self.width

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs per token: 3 x forward, a multiply-add counted as two.

        In: matrix products of the blocks, attention over the whole context (as torch's counter
        counts it: the causal mask saves nothing), and the output layer. Out: embedding look-ups,
        which multiply nothing, norms and other work by the element. The convention of
        arXiv 2203.15556, appendix F, without its embedding term.
        """
        return 3 * (self.layers * self._block_flops + 2 * self.width * self.vocabulary)

    @property
    def recomputed_flops_per_token(self) -> int:
        """What activation checkpointing computes once more: every block's forward, not the output.

        But for the last product of each, whose result no gradient needs: torch stops before it.
        """
        return self.layers * (self._block_flops - 2 * self.width * self.mlp_width)

    @property
    def _block_flops(self) -> int:
        products = 2 * (4 * self.width * self.width + 3 * self.width * self.mlp_width)
        return products + 2 * 2 * self.context * self.width

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def identity(self) -> dict[str, Any]:
        """What of it changes a run's result."""
        return self.to_dict()


@dataclass(frozen=True, kw_only=True)
class CustomModel:
    """A user's own model class, named by import path and built as `cls(**{size: value}, ...)`.

    On a token file it is called with token ids of shape (batch, context) and returns logits of
    shape (batch, context, vocabulary); on a data set of samples it is called as `loss` says (see
    `llem.training.samples.losses`), and `context` is how many tokens a sample has (1: D counts
    samples). `params` is counted when the run is planned. `flops_each` are the training FLOPs of
    one token (or sample) where they were counted; else they are 6 per parameter. `source` is a hash
    of the code where it is shipped with the campaign, empty where the class comes from an installed
    package.
    """

    class_path: str
    size: str
    value: int
    params: int
    vocabulary: int
    context: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    loss: str = ""
    flops_each: float = 0.0
    family: str = "custom"

    @property
    def params_nonembedding(self) -> int:
        return self.params

    @property
    def flops_per_token(self) -> float:
        return self.flops_each or 6 * self.params

    @property
    def recomputed_flops_per_token(self) -> int:
        return 0

    def to_dict(self) -> dict[str, Any]:
        """As in plan.json; what says nothing is left out."""
        values = {**vars(self), "arguments": dict(self.arguments)}
        return {k: v for k, v in values.items() if v or k not in ("loss", "flops_each")}

    def identity(self) -> dict[str, Any]:
        """What of it changes a run's result: how FLOPs are counted does not."""
        return {k: v for k, v in self.to_dict().items() if k != "flops_each"}


Architecture = Decoder | CustomModel


def architecture_from_dict(values: Mapping[str, Any]) -> Architecture:
    """Inverse of `to_dict`."""
    return CustomModel(**values) if values["family"] == "custom" else Decoder(**values)
