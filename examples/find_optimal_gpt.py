"""A small GPT of one's own on text: how wide, on how many tokens?

pip install 'llem[train,plot]'
python find_optimal_gpt.py
"""

import sys
import sysconfig
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import llem

CONTEXT = 64


class GPT(nn.Module):
    """Token ids of (batch, time) to logits of (batch, time, 256): two blocks, heads of 8."""

    def __init__(self, width: int):
        super().__init__()
        self.tokens = nn.Embedding(256, width)
        self.places = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256))

    def forward(self, ids):
        x = self.tokens(ids) + self.places[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        if width % 8:
            raise ValueError("heads are of 8")
        self.heads = width // 8
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, 8)).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


def text() -> np.ndarray:
    """The Python standard library's own sources, as bytes."""
    folder = Path(sysconfig.get_path("stdlib"))
    return np.frombuffer(b"".join(p.read_bytes() for p in sorted(folder.glob("*.py"))), np.uint8)


if __name__ == "__main__":
    result = llem.find_optimal(
        model=GPT,
        size="width",
        dataset=text,
        context=CONTEXT,
        budget=sys.argv[1] if len(sys.argv) > 1 else "1e12 FLOP",
        target="1e14 FLOP",
        out="gpt",
    )
    print(result)
    print(result.table())
    result.plot("gpt.png")
