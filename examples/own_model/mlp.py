"""A language model without attention: each token is predicted from the eight before it."""

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Token ids of shape (batch, context) to logits of shape (batch, context, 256)."""

    def __init__(self, width: int, context: int, window: int = 8) -> None:
        super().__init__()
        self.window = window
        self.embedding = nn.Embedding(256, width)
        self.layers = nn.Sequential(
            nn.Linear(window * width, 4 * width), nn.GELU(), nn.Linear(4 * width, 256)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        # Position t sees t-7 ... t; before the start there are zeros.
        x = nn.functional.pad(x, (0, 0, self.window - 1, 0))
        x = x.unfold(1, self.window, 1).flatten(2)
        return self.layers(torch.relu(x) + x)
