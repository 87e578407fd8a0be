"""A Hugging Face GPT-2 from a config, on the bytes of Python's own library.

pip install 'llem[train,plot]' transformers
python find_optimal_huggingface.py
"""

import sys
import sysconfig
from pathlib import Path

import numpy as np
from transformers import GPT2Config, GPT2LMHeadModel

import llem

CONTEXT = 64


def gpt2(n_embd: int) -> GPT2LMHeadModel:
    """A config is no number: a function makes the model of a size."""
    config = GPT2Config(
        vocab_size=256, n_positions=CONTEXT, n_embd=n_embd, n_layer=2, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def text() -> np.ndarray:
    folder = Path(sysconfig.get_path("stdlib"))
    return np.frombuffer(b"".join(p.read_bytes() for p in sorted(folder.glob("*.py"))), np.uint8)


if __name__ == "__main__":
    result = llem.find_optimal(
        model=gpt2,
        size="n_embd",
        dataset=text,  # token ids: cut into windows, the loss is the next token's cross-entropy
        context=CONTEXT,
        budget=sys.argv[1] if len(sys.argv) > 1 else "1e12 FLOP",
        out="gpt2",
    )
    print(result)
    print(result.table())
    result.plot("gpt2.png")
