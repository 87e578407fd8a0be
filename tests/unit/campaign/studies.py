"""A small study for tests, and what is read of one."""

from llem.campaign.load import campaign_from

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 176,
    "vocab_size": 256,
    "max_position_embeddings": 512,
}
STUDY = {
    "name": "serving",
    "workload": "inference",
    "models": {"tiny": {"config": TINY}},
    "prompts": {"synthetic": {"input_tokens": 32, "output_tokens": 16, "count": 8}},
}


def study_of(**changed):
    """A study with some of its keys changed."""
    return campaign_from({**STUDY, **changed})
