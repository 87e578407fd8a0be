"""The reference model: a Llama-style decoder (Touvron et al. 2023, arXiv 2302.13971).

RMSNorm before each sublayer, rotary embedding, causal attention, SwiGLU, no biases; the output
layer is the token embedding again unless the architecture unties them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llem.campaign import Architecture, CustomModel
from llem.campaign import Decoder as Shape
from llem.errors import Fault, InputError
from llem.training.naming import load_object

# Heads at which muP's attention is the standard one.
MUP_HEAD_SIZE = 64


class Attention(nn.Module):  # type: ignore[misc]
    """Causal self-attention over (batch, time, width); queries, keys and values in one product."""

    def __init__(self, shape: Shape, *, mup: bool) -> None:
        super().__init__()
        self.heads = shape.heads
        # 1 / d where widths are to be alike; None is 1 / sqrt(d), the same at heads of 64.
        self.scale = MUP_HEAD_SIZE**0.5 / shape.head_size if mup else None
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3 * self.heads, width // self.heads)
        qk, v = qkv.split((2 * self.heads, self.heads), dim=2)
        q, k = _rotate(qk, cos, sin).chunk(2, dim=2)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True,
            scale=self.scale,
        )  # fmt: skip
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))


class SwiGLU(nn.Module):  # type: ignore[misc]
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.up = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.down = nn.Linear(shape.mlp_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape, *, mup: bool) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.attention = Attention(shape, mup=mup)
        self.mlp_norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.mlp = SwiGLU(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):  # type: ignore[misc]
    """Token ids of shape (batch, time <= context) to logits of shape (batch, time, vocabulary).

    With `activation_checkpointing` the backward pass computes each block again from its input.
    With a `base_width` the parametrisation is muP, equal to the standard one at that width.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        activation_checkpointing: bool = False,
        base_width: int = 0,
    ) -> None:
        super().__init__()
        self.width = shape.width
        self.base_width = base_width
        self.activation_checkpointing = activation_checkpointing
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape, mup=base_width > 0) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.output = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied_embeddings:
            self.output.weight = self.embedding.weight
        cos, sin = _rotary(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise(shape)

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        cos, sin = self.cos[:time], self.sin[:time]
        x = self.embedding(tokens)
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            if again:
                # Blocks draw no random numbers, so there is no generator to keep.
                x = checkpoint(block, x, cos, sin, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin)
        x = self.norm(x)
        if self.base_width:
            x = x * (self.base_width / self.width)
        return self.output(x)

    def _initialise(self, shape: Shape) -> None:
        """Normal, standard deviation sqrt(2 / (5 width)); what writes to the residual stream less.

        The width rule is SmallInit (Nguyen & Salazar 2019, arXiv 1910.05895), .02 at width 1000;
        the factor 1 / sqrt(2 layers) for the two residual projections of each block is GPT-2's
        (Radford et al. 2019, section 2.3). muP (arXiv 2203.03466, table 8) has the same rule for
        the blocks; embedding and output layer are as at the base width, whatever the width.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            table = name.startswith(("embedding", "output"))
            width = self.base_width if self.base_width and table else shape.width
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            scale = 1 / math.sqrt(2 * shape.layers) if residual else 1.0
            nn.init.normal_(parameter, std=math.sqrt(2 / (5 * width)) * scale)


def _rotary(shape: Shape) -> tuple[Tensor, Tensor]:
    """(cos, cos) and (-sin, sin) of (time, 1, head_size) (Su et al. 2021, arXiv 2104.09864)."""
    half = torch.arange(shape.head_size // 2, dtype=torch.float64)
    frequencies = shape.rope_theta ** (-half / (shape.head_size // 2))
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float64), frequencies)
    cos, sin = angles[:, None, :].cos(), angles[:, None, :].sin()
    return torch.cat((cos, cos), dim=-1).float(), torch.cat((-sin, sin), dim=-1).float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_size / 2) of x: (batch, time, heads, head_size)."""
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((b, a), dim=-1), sin).to(x.dtype)


def build_model(
    architecture: Architecture,
    *,
    seed: int,
    activation_checkpointing: bool = False,
    base_width: int = 0,
) -> nn.Module:
    """The model on the CPU in fp32, its weights drawn by `seed` alone; muP with a `base_width`.

    Raises InputError where the architecture cannot be built, or has not the planned parameters,
    or where a user's own class is to be checkpointed, whose blocks nobody but its author knows.
    """
    torch.manual_seed(seed)
    if isinstance(architecture, Shape):
        model: nn.Module = Decoder(
            _checked(architecture),
            activation_checkpointing=activation_checkpointing,
            base_width=base_width,
        )
    elif activation_checkpointing:
        text = "a model class of your own does its own activation checkpointing"
        raise InputError("model", [Fault("layout.activation_checkpointing", text)])
    else:
        model = _custom(architecture)
    found = count_params(model)
    if found != architecture.params:
        raise InputError(
            "model", [Fault("params", f"{found} parameters built, {architecture.params} planned")]
        )
    return model


def count_params(model: nn.Module) -> int:
    """Trainable parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _checked(shape: Shape) -> Shape:
    if shape.width % shape.heads:
        raise InputError("model", [f"width {shape.width} is no multiple of {shape.heads} heads"])
    if shape.head_size % 2:
        raise InputError("model", [f"head size {shape.head_size} is odd: rotary needs pairs"])
    return shape


def load_class(class_path: str) -> type[nn.Module]:
    """The class named 'package.module:Class'; the campaign's own `code/` is searched first.

    Raises InputError that says which part of the name does not exist.
    """
    found = load_object(class_path, key="class", what="a model class")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        module_name, _, class_name = class_path.partition(":")
        text = (
            f"module {module_name!r} has something other than a torch.nn.Module as {class_name!r}"
        )
        raise InputError("model", [Fault("class", text)])
    return found


def _custom(architecture: CustomModel) -> nn.Module:
    cls = load_class(architecture.class_path)
    arguments: dict[str, Any] = {architecture.size: architecture.value, **architecture.arguments}
    try:
        return cls(**arguments)
    except Exception as error:
        said = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise InputError(
            "model",
            [Fault("class", f"{architecture.class_path}({said}): {type(error).__name__}: {error}")],
        ) from error
