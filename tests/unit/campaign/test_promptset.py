"""What prompts turn out to be: how many, how long, and named by their content."""

import json
import shutil
from pathlib import Path

import pytest

from llem.campaign.study.promptset import prompts_of
from llem.campaign.study.study import PromptChoice
from llem.errors import InputError

SAVED = Path(__file__).parent / "captured" / "saved"
ARROW = "data-00000-of-00001.arrow"


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


def test_a_saved_data_set_is_counted_by_its_files(tmp_path):
    # Three texts that `datasets` 5.2 saved: their dataset_info.json tells of no rows.
    prompts = found(SAVED.parent, dataset="saved", output_tokens=8)

    size = (SAVED / ARROW).stat().st_size
    assert (prompts.count, prompts.mean_input_tokens) == (3, pytest.approx(size / 3 / 4))


def test_of_a_split_its_own_rows_count_and_not_those_that_its_description_adds(tmp_path):
    shutil.copytree(SAVED, tmp_path / "set" / "train")
    info = {"splits": {"train": {"num_examples": 3}, "test": {"num_examples": 900}}}
    (tmp_path / "set" / "train" / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')

    whole, split = (found(tmp_path, dataset=d, output_tokens=8) for d in ("set", "set/train"))

    assert whole.count == split.count == 3
    assert whole.identity() == split.identity()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("dataset_dict.json", '{"splits": ["train", "test"]}', r"holds the splits train, test \("),
        ("state.json", '{"_data_files": [], "_indices_files": [1]}', "indices that choose from"),
        ("state.json", "{", "state.json is not JSON"),
        ("state.json", "{}", "does not name its files"),
        ("state.json", '{"_data_files": []}', "holds no prompts"),
        ("state.json", '{"_data_files": [{"filename": "no.arrow"}]}', "no.arrow cannot be read"),
        (ARROW, "", "is not a whole Arrow stream"),
        (ARROW, "x" * 999, "is not a whole Arrow stream"),
    ],
)
def test_a_saved_data_set_that_cannot_be_read_whole_is_told(tmp_path, file, content, words):
    shutil.copytree(SAVED, tmp_path / "set")
    (tmp_path / "set" / file).write_text(content)
    with pytest.raises(InputError, match=words):
        found(tmp_path, dataset="set", output_tokens=1)


@pytest.mark.parametrize("left", [9, 100, 300, 430])
def test_a_file_that_was_cut_off_is_told(tmp_path, left):
    shutil.copytree(SAVED, tmp_path / "set")
    (tmp_path / "set" / ARROW).write_bytes((SAVED / ARROW).read_bytes()[:left])
    with pytest.raises(InputError, match="is not a whole Arrow stream"):
        found(tmp_path, dataset="set", output_tokens=1)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"jsonl": "no.jsonl", "output_tokens": 1}, "cannot be read"),
        ({"jsonl": "a.jsonl", "output_tokens": 1, "field": "txt"}, "line 1: no JSON object with"),
        ({"jsonl": "a.jsonl", "output_tokens": 1, "count": 4}, "4 prompts, and there are 3"),
        ({"dataset": ".", "output_tokens": 1}, "is not a data set that save_to_disk wrote"),
    ],
)
def test_what_is_no_set_of_prompts_is_told(texts, choice, words):
    with pytest.raises(InputError, match=words):
        found(texts, **choice)
