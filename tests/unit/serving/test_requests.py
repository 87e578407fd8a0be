"""Prompts and arrivals: the same for every rank, and of what was asked alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from deployments import serving

from llem.campaign import Arrival, Prompts
from llem.errors import InputError
from llem.serving.requests import BUILTIN, Bytes, arrival_times, make_requests, token_ids

SAVED = Path(__file__).parents[1] / "campaign" / "captured" / "saved"


class Words:
    """A tokenizer of the test: a token is the length of a word."""

    name = "words"

    def encode(self, text):
        return [len(word) for word in text.split()]


def prompts(**values):
    return Prompts(**{"kind": "jsonl", "count": 4, "output_tokens": 3, **values})


def ids(asked, vocabulary=320):
    return token_ids(asked, vocabulary=vocabulary, tokenizer=Words)


def test_synthetic_prompts_have_the_asked_length_and_are_the_same_again():
    asked = prompts(kind="synthetic", input_tokens=11, count=5, seed=3)
    found = ids(asked, 50)
    assert [len(p) for p in found] == [11] * 5 and found == ids(asked, 50)
    assert all(0 <= token < 50 for p in found for token in p) and found[0] != found[1]
    assert found != ids(prompts(kind="synthetic", input_tokens=11, count=5, seed=4), 50)


def test_jsonl_holds_texts_or_token_ids_under_a_key(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"q": "a bb ccc"}\n\n{"q": [7, 8]}\n"dd e"\n')
    assert ids(prompts(path=str(path), field="q")) == [[1, 2, 3], [7, 8], [2, 1]]


def test_texts_are_cut_or_repeated_to_a_length_that_is_asked_for(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a bb ccc"}\n')
    assert ids(prompts(path=str(path), input_tokens=2)) == [[1, 2]]
    assert ids(prompts(path=str(path), input_tokens=5)) == [[1, 2, 3, 1, 2]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"text": "a"}\n{"other": "b"}\n', "line 2: text: is not there (there are: other)"),
        ("{not json\n", "line 1: no JSON"),
        ('{"text": 5}\n', "is neither a text nor a list of token ids"),
        ('{"text": [1, 999]}\n', "token 999 is outside the vocabulary of 320"),
        ('{"text": ""}\n', "prompt 0 is empty"),
        ("", "there are no prompts in it"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named_by_its_line(tmp_path, text, said):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        ids(prompts(path=str(path)))
    assert said in str(error.value)


def test_a_data_set_on_disk_is_read_from_its_arrow_files(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = pa.table({"text": ["a bb", "ccc"], "n": [1, 2]})
    for i in range(2):
        path = str(tmp_path / f"data-{i}.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    names = [{"filename": f"data-{i}.arrow"} for i in range(2)]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": names}))
    asked = prompts(kind="dataset", path=str(tmp_path))
    assert ids(asked) == [[1, 2], [3], [1, 2], [3]]
    with pytest.raises(InputError, match="no column 'prompt'"):
        ids(prompts(kind="dataset", path=str(tmp_path), field="prompt"))


def test_a_folder_of_one_split_is_read_and_of_several_one_must_be_named(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    shutil.copytree(SAVED, tmp_path / "set" / "train")
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    asked = prompts(kind="dataset", path=str(tmp_path / "set"))
    assert ids(asked) == [[1, 2], [3], [2, 1]]
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"holds the splits train, test .*set/train"):
        ids(asked)


def test_rows_that_were_not_chosen_are_never_asked(tmp_path):
    shutil.copytree(SAVED, tmp_path / "set")
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    chosen = {**state, "_indices_files": [{"filename": "indices.arrow"}]}
    (tmp_path / "set" / "state.json").write_text(json.dumps(chosen))
    with pytest.raises(InputError, match=r"indices that choose .*flatten_indices"):
        ids(prompts(kind="dataset", path=str(tmp_path / "set")))


def test_every_built_in_prompt_is_a_different_text():
    for path in BUILTIN.glob("*.jsonl"):
        texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        assert len(set(texts)) == len(texts) >= 60
    found = ids(prompts(kind="builtin", name="instructions", count=100))
    assert len(found) == 60


def test_a_model_without_a_tokenizer_reads_bytes_where_its_vocabulary_has_room():
    assert Bytes(256).encode("aü") == [97, 195, 188]
    with pytest.raises(InputError, match="too small"):
        Bytes(255)


def test_arrivals_keep_their_rate_and_are_of_the_seed():
    assert arrival_times(Arrival(), 3, seed=0).tolist() == [0, 0, 0]
    fixed = arrival_times(Arrival(kind="fixed", rate=4.0), 5, seed=0)
    assert fixed.tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    poisson = Arrival(kind="poisson", rate=4.0)
    times = arrival_times(poisson, 20_000, seed=1)
    gaps = np.diff(times, prepend=0.0)
    # Exponential: the mean and the standard deviation are both 1 / rate (here within 4 sigma).
    assert abs(gaps.mean() - 0.25) < 4 * 0.25 / 20_000**0.5
    assert abs(gaps.std() - 0.25) < 4 * 0.25 * (2 / 20_000) ** 0.5
    assert (times == arrival_times(poisson, 20_000, seed=1)).all()
    assert (times != arrival_times(poisson, 20_000, seed=2)).all()


def test_requests_repeat_the_prompts_where_these_are_fewer(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a bb"}\n{"text": "ccc"}\n')
    asked = {"kind": "jsonl", "path": str(path), "count": 5, "input_tokens": None}
    found = make_requests(serving(prompts=asked), Words)
    assert [(r.number, r.prompt) for r in found] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]


def test_what_is_longer_than_the_context_is_refused():
    with pytest.raises(InputError, match=r"500 tokens and 13 more are beyond .* 512"):
        make_requests(serving(prompts={"input_tokens": 500, "output_tokens": 13}), Words)
    assert make_requests(serving(prompts={"input_tokens": 500, "output_tokens": 12}), Words)
