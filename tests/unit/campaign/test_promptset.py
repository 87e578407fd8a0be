"""What prompts turn out to be: how many, how long, and named by their content."""

import json

import pytest

from llem.campaign.promptset import prompts_of
from llem.campaign.study import PromptChoice
from llem.errors import InputError


def found(base, **choice):
    return prompts_of(PromptChoice.model_validate(choice), base=base)


@pytest.fixture
def texts(tmp_path):
    lines = [{"text": "a" * 40}, {"text": "b" * 80}, {"text": "c" * 120}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_synthetic_prompts_are_what_they_say(tmp_path):
    prompts = found(tmp_path, synthetic={"input_tokens": "1k", "output_tokens": 8, "count": 3})

    assert (prompts.count, prompts.input_tokens, prompts.output_tokens) == (3, 1000, 8)


def test_texts_are_counted_and_their_length_is_guessed(texts):
    prompts = found(texts, jsonl="a.jsonl", output_tokens=8)

    assert (prompts.count, prompts.mean_input_tokens) == (3, 20.0)


def test_the_first_so_many_are_taken(texts):
    prompts = found(texts, jsonl="a.jsonl", output_tokens=8, count=2)

    assert (prompts.count, prompts.mean_input_tokens) == (2, 15.0)


def test_a_line_may_hold_ids(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": [1, 2, 3]}\n')

    assert found(tmp_path, jsonl="a.jsonl", output_tokens=8).mean_input_tokens == 3


def test_the_content_is_named_and_not_the_place(texts):
    (texts / "b.jsonl").write_text((texts / "a.jsonl").read_text())
    one, same = (found(texts, jsonl=name, output_tokens=8) for name in ("a.jsonl", "b.jsonl"))
    (texts / "b.jsonl").write_text((texts / "a.jsonl").read_text().replace("a", "x", 1))
    other = found(texts, jsonl="b.jsonl", output_tokens=8)

    assert one.identity() == same.identity() != other.identity()


def test_the_built_in_set_is_there(tmp_path):
    prompts = found(tmp_path, builtin="instructions", output_tokens=8)

    assert prompts.count > 10
    assert prompts.mean_input_tokens > 1


def test_a_saved_data_set_is_counted_by_what_it_says(tmp_path):
    (tmp_path / "data.arrow").write_bytes(b"x" * 800)
    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "ab"}
    (tmp_path / "state.json").write_text(json.dumps(state))
    info = {"splits": {"train": {"num_examples": 10}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))

    prompts = found(tmp_path, dataset=".", output_tokens=8)

    assert (prompts.count, prompts.mean_input_tokens) == (10, 20.0)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"jsonl": "no.jsonl", "output_tokens": 1}, "cannot be read"),
        ({"jsonl": "a.jsonl", "output_tokens": 1, "field": "txt"}, "line 1: no JSON object with"),
        ({"jsonl": "a.jsonl", "output_tokens": 1, "count": 4}, "4 prompts, and there are 3"),
        ({"dataset": ".", "output_tokens": 1}, "not a data set that save_to_disk wrote"),
    ],
)
def test_what_is_no_set_of_prompts_is_told(texts, choice, words):
    with pytest.raises(InputError, match=words):
        found(texts, **choice)
