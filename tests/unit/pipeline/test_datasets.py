"""A campaign's data: what a sidecar says is taken from it, and what contradicts it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import llem
from llem.campaign import Campaign, campaign_from
from llem.campaign.data.prepared import index_of
from llem.errors import InputError
from llem.pipeline import resolve_data

TEXTS = [f"document {i} of some words" * (1 + i % 7) for i in range(100)]


@pytest.fixture
def prepared(tmp_path: Path) -> Any:
    """Prepares a file by name; keywords are those of prepare_data."""

    def make(name: str, **options: Any) -> Any:
        folder = tmp_path / f"{name}-texts"
        folder.mkdir()
        for i, text in enumerate(TEXTS):
            (folder / f"{i}.txt").write_text(text + name)
        return llem.prepare_data(folder, out=tmp_path / name, **{"held_out": "20%", **options})

    return make


def campaign(data: Any, **more: Any) -> Campaign:
    return campaign_from({"name": "c", "target": "1e13 FLOP", "budget": "1e12 FLOP", "data": data,
                          **more})  # fmt: skip


def faults(asked: Campaign, base: Path) -> list[str]:
    with pytest.raises(InputError) as error:
        resolve_data(asked, base, base=base)
    return [str(fault) for fault in error.value.faults]


def test_the_path_is_enough(tmp_path: Path, prepared: Any) -> None:
    made = prepared("de.bin", dtype="uint16")
    data, found = resolve_data(campaign({"path": "de.bin"}), tmp_path, base=tmp_path)
    assert data == made.token_data((tmp_path / "de.bin").resolve())
    assert (data.dtype, data.evaluation_tokens) == ("uint16", made.evaluation_tokens)
    assert found.model.vocabulary == 256


def test_the_vocabulary_is_the_files_unless_a_larger_one_is_given(
    tmp_path: Path, prepared: Any
) -> None:
    prepared("de.bin")
    path = tmp_path / "de.bin.json"
    path.write_text(path.read_text().replace('"vocabulary": 256', '"vocabulary": 50257'))
    _, found = resolve_data(campaign({"path": "de.bin"}), tmp_path, base=tmp_path)
    assert found.model.vocabulary == 50257
    larger = campaign({"path": "de.bin"}, model={"vocabulary": 50304})
    assert resolve_data(larger, tmp_path, base=tmp_path)[1].model.vocabulary == 50304
    smaller = campaign({"path": "de.bin"}, model={"vocabulary": 256})
    told = faults(smaller, tmp_path)
    assert told[0].startswith("model.vocabulary: 256 is less than the 50257 ids of the data")


def test_what_contradicts_the_sidecar_is_told_all_at_once(tmp_path: Path, prepared: Any) -> None:
    made = prepared("de.bin")
    told = faults(campaign({"path": "de.bin", "dtype": "uint32", "evaluation_tokens": 5}), tmp_path)
    hint = "(leave it out, or prepare again)"
    was = "de.bin was prepared with"
    assert told == [
        f"data.dtype: uint32 is given, {was} uint8 {hint}",
        f"data.evaluation_tokens: 5 is given, {was} {made.evaluation_tokens} {hint}",
    ]
    (tmp_path / "de.bin").write_bytes(b"x" * made.tokens)
    told = faults(campaign({"path": "de.bin"}), tmp_path)
    assert "data: " in told[0] and "it changed after `llem data prepare`" in told[0]


def test_a_mixture_is_resolved_file_by_file(tmp_path: Path, prepared: Any) -> None:
    made = [prepared("a.bin"), prepared("b.bin", dtype="uint16")]
    (tmp_path / "text").write_text("some text, read as bytes")
    parts = [{"path": "a.bin", "weight": 3}, {"path": "b.bin", "weight": 0.5},
             {"path": "text", "weight": 0.5, "evaluation_tokens": 8}]  # fmt: skip
    data, _ = resolve_data(campaign({"mixture": parts}), tmp_path, base=tmp_path)
    assert [part.weight for part in data.parts] == [6, 1, 1]
    assert [part.data.dtype for part in data.parts] == ["uint8", "uint16", "uint8"]
    assert data.evaluation_tokens == sum(one.evaluation_tokens for one in made) + 8


def test_every_file_of_a_mixture_tells_its_own_faults(tmp_path: Path, prepared: Any) -> None:
    prepared("a.bin")
    prepared("b.bin")
    path = tmp_path / "b.bin.json"
    path.write_text(path.read_text().replace('"name": "bytes"', '"name": "other"'))
    parts = [{"path": "a.bin", "weight": 3, "dtype": "uint16"}, {"path": "b.bin", "weight": 1},
             {"path": "gone.bin", "weight": 1}]  # fmt: skip
    told = faults(campaign({"mixture": parts}), tmp_path)
    assert [text.partition(": ")[0] for text in told] == [
        "data.mixture.0.dtype", "data.mixture.2", "data.mixture.1.path",
    ]  # fmt: skip
    assert "its tokenizer is other, that of the first bytes" in told[2]


def test_documents_need_the_index(tmp_path: Path, prepared: Any) -> None:
    prepared("a.bin")
    asked = campaign({"path": "a.bin", "packing": "documents"})
    assert resolve_data(asked, tmp_path, base=tmp_path)[0].packing == "documents"
    index_of(tmp_path / "a.bin").unlink()
    assert faults(asked, tmp_path)[0].startswith("data.packing: ")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"path": "a", "builtin": "python-sources"}, "give `path` or `builtin`, not both"),
        ({"path": "a", "mixture": [{"path": "a", "weight": 1}] * 2}, "`path` or `mixture`"),
        ({"mixture": [{"path": "a", "weight": 1}]}, "at least 2"),
        ({"mixture": [{"path": "a", "weight": 0}] * 2}, "0 is not above 0"),
        ({"mixture": [{"path": "a", "weight": 1}] * 2, "dtype": "uint8"}, "go with each file"),
        ({"packing": "documents"}, "goes with what `llem data prepare` made"),
        ({"path": "a", "packing": "document"}, "did you mean 'documents'?"),
    ],
)
def test_what_cannot_be_meant_is_refused(data: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        campaign(data)


def test_a_plan_says_what_is_read_and_how_often(tmp_path: Path, prepared: Any, capsys: Any) -> None:
    from llem.cli._show import plan_tables

    prepared("a.bin")
    prepared("b.bin")
    parts = [{"path": "a.bin", "weight": 3}, {"path": "b.bin", "weight": 1}]
    asked = campaign({"mixture": parts}, model={"context": 32}, training={"precision": "fp32"})
    planned = llem.plan_campaign(asked, out=tmp_path / "c", base=tmp_path)
    totals = planned.plan.totals
    assert totals["runs_repeating"] == totals["runs"] > 0
    assert any("more than once: up to" in text for text in planned.plan.warnings)
    plan_tables(planned.plan)
    told = capsys.readouterr().out
    assert "data:" in told and "0.75 x a.bin" in told and "read tokens again" in told
    assert planned.folder.load_plan().runs == planned.plan.runs
