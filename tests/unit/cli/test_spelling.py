"""What the commands print of one campaign, read for the spelling of its numbers."""

from __future__ import annotations

import contextlib
import html
import io
import json
import re

import pytest

from llem.cli import main

# What none of them may print, and how it is spelt instead (`llem._numerals`).
WRONG = {
    "a share without a space: 95 %": r"\d%",
    "Python's exponent: 1e22": r"\de\+\d",
    "GPU-hours behind a number: 12 GPUh": r"\d (GPU-h|device-h|GPU h|h of)",
    "a billion or kilo in capitals: 1.2 G, 3 k": r"\d (B|K)\b(?! memory)(?!,? of)",
    "joules of a kilowatt-hour and more: 12.3 kWh": r"\d (GJ|TJ)\b",
    "compute with a prefix: 4.3e19 FLOP": r"\d [kMGTPEZ]FLOP\b",
    "not known: –": r"\bn/a\b|\bnan\b",
    "a narrow space between thousands: 12,345": "\u202f",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The text of every command and page of a campaign that is planned, played and fitted."""
    at = tmp_path_factory.mktemp("spelling")
    out: dict[str, str] = {}

    def call(name: str, *words: str) -> None:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            status = main([name, *words])
        assert status == 0, text.getvalue()
        out[" ".join((name, *words))] = text.getvalue()

    def page(path) -> None:
        text = re.sub(r"<(style|svg|script).*?</\1>", " ", path.read_text(), flags=re.DOTALL)
        out[path.name] = html.unescape(re.sub(r"<[^>]*>", " ", text))

    (at / "campaign.yaml").write_text(
        "name: spelling\nbudget: 30 GPUh\ntarget: 1e22 FLOP\nsite: juwels-booster\n"
        "data: {path: corpus.bin, evaluation_tokens: 1M}\n"
    )
    with (at / "corpus.bin").open("wb") as file:
        file.truncate(8_000_000_000)
    campaign, played = str(at / "campaign.yaml"), str(at / "played")
    call("plan", campaign, "--runs", "20", "--out", str(at / "planned"))
    page(at / "planned" / "plan.html")
    call("status", str(at / "planned"))
    call("rehearse", campaign, "--runs", "20", "--instant", "--out", played)
    page(at / "played" / "results" / "report.html")
    call("status", played, "--runs")
    call("fit", played, "--target", "1e22", "--target", "5 MWh", "--bootstrap", "50")
    runs = json.loads((at / "played" / "plan.json").read_text())["runs"]
    first, second = (run["run_id"] for run in runs[:2])
    call("results", "list", played)
    call("results", "compare", played, first, second)
    # `results show` stands beside: it prints each value as it is stored, too.
    return out


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG, ids=lambda text: text.partition(":")[0])
def test_every_command_and_page_spells_numbers_in_one_way(told, wrong):
    found = [
        f"{name}: {match[0]!r} in {text[max(0, match.start() - 40) : match.end() + 20]!r}"
        for name, text in told.items()
        for match in re.finditer(WRONG[wrong], text)
    ]
    assert not found, f"{wrong}\n" + "\n".join(found)
