"""A small vision transformer on the digits that ship with scikit-learn: how wide should it be?

pip install 'llem[train,plot]' scikit-learn
python find_optimal_vit.py
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import llem


class ViT(nn.Module):
    """Images of (batch, 8, 8) to logits of ten digits: patches of 2 x 2, two blocks."""

    def __init__(self, width: int, heads: int = 4, depth: int = 2):
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.places = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width,
            heads,
            2 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        x = self.patches(images[:, None]).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


def digits():
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8) / 16
    return images, torch.tensor(labels)


if __name__ == "__main__":
    result = llem.find_optimal(
        model=ViT,
        size="width",  # widths that 4 heads do not divide are passed over, and said
        dataset=digits,
        loss_fn=F.cross_entropy,
        evaluation=0.2,
        budget=sys.argv[1] if len(sys.argv) > 1 else "6e10 FLOP",
        batch=32,
        out="vit",
    )
    print(result)
    print(result.table())
    result.plot("vit.png")
