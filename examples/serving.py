"""What a batch saves: one deployment measured, then a study of three batch sizes.

    python examples/serving.py [OUT]

Random weights of a small model on this machine; needs `pip install 'llem[serve]'`.
"""

import sys
from pathlib import Path

import llem

MODEL = {
    "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 352, "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip


def main(out: str = "serving-example") -> None:
    one = llem.run_experiment(
        model=MODEL,
        options={"batch_size": 4},
        prompts={"builtin": "instructions", "output_tokens": 16, "count": 16},
        cycles=2,
        out=Path(out) / "one",
    )
    print(one)

    study = llem.run_study(
        model=MODEL,
        prompts={"synthetic": {"input_tokens": 32, "output_tokens": 16, "count": 16}},
        sweep={"grid": {"options.batch_size": [1, 4, 16]}},
        cycles=2,
        order="latin-square",
        out=Path(out) / "batches",
    )
    print(study.table(by="options.batch_size"))
    print(study.compare(by="options.batch_size"))
    study.to_json(Path(out) / "study.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
