"""One run that tests change."""

from llem.campaign import Decoder, Layout, Predicted, Recipe, Run, TokenData

RUN = Run(
    model=Decoder(layers=2, width=32, heads=2, mlp_width=88, vocabulary=256, context=64),
    tokens=64 * 1024,
    steps=64,
    seed=0,
    recipe=Recipe(batch_tokens=1024, learning_rate=0.01, warmup_steps=6),
    data=TokenData(path="a.bin", dtype="uint8", tokens=10**6, evaluation_tokens=4096,
                   fingerprint="ab"),
    layout=Layout(micro_batch=16),
    predicted=Predicted(duration_s=1, gpu_hours=1, energy_j=1, memory_bytes=1),
)  # fmt: skip
