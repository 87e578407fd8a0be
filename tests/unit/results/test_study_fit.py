"""A planted study from records to its law, its report, and train-and-serve on the command line."""

import json
import math

import numpy as np
import pytest

from llem.cli import main
from llem.cluster import CampaignFolder
from llem.pipeline import aggregate_campaign, load_rows
from llem.pipeline.serving import fit_study, study_variants

SIZES = {"small": 2e6, "medium": 2e7, "large": 2e8}
BATCHES = (1, 4, 16)
CYCLES = 2
TOKENS_IN, TOKENS_OUT = 16, 8
# Seconds of a forward pass: per pass, per parameter, per parameter and token.
PASS_S, PARAM_S, TOKEN_S = 0.02, 4e-10, 1e-11
WATTS = 200.0


def seconds(params, tokens):
    return PASS_S + PARAM_S * params + TOKEN_S * params * tokens


@pytest.fixture(scope="module")
def folder(plant, course, tmp_path_factory):
    """Every forward pass draws 200 W for as long as it takes; the host takes none between."""
    planted = plant(tmp_path_factory.mktemp("study") / "campaign")
    planted.site = {"device": {"peak_flops": 1e12, "name": "gpu"}}
    for name, params in SIZES.items():
        for batch in BATCHES:
            for cycle in range(CYCLES):
                its = course(
                    batches=2, batch=batch, tokens_in=TOKENS_IN, tokens_out=TOKENS_OUT, host_s=0.0,
                    prefill_s=seconds(params, batch * TOKENS_IN), decode_s=seconds(params, batch),
                    at_once=True, watts=dict.fromkeys(course().watts, WATTS),
                )  # fmt: skip
                run = f"{name[0]}{batch:02d}c{cycle}"
                planted.serving(run, its, deployment=f"{name}-{batch}", cycle=cycle,
                                options={"precision": "bf16"}, params=int(params),
                                params_nonembedding=int(params),
                                model={"name": name, "layers": 2, "heads": 4, "kv_heads": 2,
                                       "head_size": round(params**0.5 / 100),
                                       "flops_per_token_forward": 2 * params})  # fmt: skip
                planted.served_rank(run, its)
                planted.node(run, devices=[f"GPU-of-{run}"], power_w=its.power_w,
                             to_s=its.end_s + 0.5)  # fmt: skip
                planted.end(run, window_s=(0.0, its.end_s))
    plan = json.loads((planted.folder / "plan.json").read_text())
    plan |= {"campaign": {"name": "planted"}, "workload": "inference", "digest": "d", "llem": "0"}
    (planted.folder / "plan.json").write_text(json.dumps(plan))
    found = CampaignFolder(planted.folder)
    aggregate_campaign(found)
    return found


def test_the_law_of_a_study_s_records_is_the_one_planted(folder):
    fit = fit_study(folder, bootstrap=100)
    [variant] = fit["variants"]
    for quantity, watts in (("energy_j", WATTS), ("gpu_seconds", 1.0)):
        parts = variant["laws"][quantity]["parts"]
        assert [part["phase"] for part in parts] == ["prefill", "decode"]
        for part in parts:
            terms = {t["name"]: t["coefficient"] for t in part["terms"]}
            assert terms["pass"] == pytest.approx(PASS_S * watts, rel=5e-3)
            assert terms["weights"] == pytest.approx(PARAM_S * watts, rel=5e-3)
            assert terms["arithmetic"] == pytest.approx(TOKEN_S * watts, rel=1e-2)
    assert json.loads((folder.results / "fit.json").read_text()) == fit
    errors = variant["laws"]["energy_j"]["errors"]
    assert errors["params_left_out"]["law"] < 0.01 < errors["params_left_out"]["power_law"]


def test_runs_that_tell_nothing_are_left_out_by_name(folder):
    rows = load_rows(folder)
    low = rows.where("params<3e7")
    variants, left_out = study_variants(folder, where="params<3e7", bootstrap=0)
    assert sum(v.runs for v in variants) == len(low.rows) and not left_out


def run(capsys, *words):
    code = main([str(word) for word in words])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_llem_fit_tells_a_study_s_law_and_how_well_it_foretells(folder, capsys):
    code, out, err = run(capsys, "fit", folder.root, "--bootstrap", 50)
    assert code == 0 and "fit.json" in err
    assert "per value read in a pass" in out and "on sizes left out" in out
    code, out, _ = run(capsys, "fit", folder.root, "--bootstrap", 0, "--json")
    assert json.loads(out)["variants"][0]["runs"] == len(SIZES) * len(BATCHES) * CYCLES


@pytest.fixture
def losses(tmp_path):
    path = tmp_path / "losses.csv"
    random = np.random.default_rng(0)
    lines = ["params,tokens,loss,energy_j"]
    for n in np.geomspace(1e6, 1e8, 5):
        for d in np.geomspace(1e8, 1e10, 5):
            loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * math.exp(random.normal(0, 0.002))
            lines.append(f"{n:.0f},{d:.0f},{loss},{1e3 + 1e-6 * d + 1e-12 * 6 * n * d}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_llem_fit_answers_train_and_serve(folder, losses, capsys):
    given = ("fit", losses, "--bootstrap", 60, "--serve", folder.root, "--target-loss", 3.4)
    code, out, _ = run(capsys, *given, "--served-tokens", "1T")
    assert code == 0 and "train to a loss of 3.4 and serve 1 T tokens" in out
    assert "together" in out and "is saved" in out
    code, out, _ = run(capsys, *given, "--served-tokens", "1e12", "--json", "--batch", 16,
                       "--prompt-tokens", 16, "--answer-tokens", 8)  # fmt: skip
    [answer] = json.loads(out)["train_and_serve"]
    low, high = answer["ci"]["params"]
    assert low < answer["params"] < high
    j = (
        WATTS / 16 * (PASS_S * 8 + PARAM_S * answer["params"] * 8)
        + WATTS * 23 * TOKEN_S * (answer["params"])
    )
    assert answer["j_per_token"] == pytest.approx(j / 8, rel=5e-3)
    assert answer["serving_j"] == pytest.approx(1e12 * j / 8, rel=5e-3)
    assert answer["total_j"] <= answer["alone"]["total_j"]


def test_every_fault_of_a_question_is_told(folder, losses, capsys):
    code, _, err = run(capsys, "fit", losses, "--serve", folder.root, "--batch", 4)
    assert code == 2
    assert "--served-tokens" in err and "--target-loss" in err and "--answer-tokens" in err
    code, _, err = run(capsys, "fit", losses, "--served-tokens", "1e9", "--target-loss", "3")
    assert code == 2 and err.count("goes with --serve") == 2


def test_the_report_of_a_study_stands_alone(folder, capsys):
    pytest.importorskip("matplotlib")
    fit_study(folder, bootstrap=50)
    code, out, _ = run(capsys, "report", folder.root)
    page = (folder.results / "report.html").read_text()
    assert code == 0 and out.strip().endswith("report.html")
    assert "<h2>Deployments</h2>" in page and "What serving costs" in page
    assert page.count("data:image/svg+xml") == 4 and "http://" not in page.replace(
        "http://www.w3.org", ""
    )
    assert all(run_id in page for run_id in ("s01c0", "l16c1"))
    small = page.index(">small<")
    assert page.index("<td>1</td>", small) < page.index("<td>4</td>", small)
    plots = {path.name for path in (folder.results / "plots").iterdir()}
    assert plots == {"pareto.png", "serving-law.png"}


def test_names_of_users_are_escaped_in_the_report(plant, course, tmp_path):
    planted = plant(tmp_path / "campaign")
    planted.site = {"device": {"peak_flops": 1e12, "name": "gpu"}}
    planted.served(course=course(), options={"attention": "<script>alert(1)</script>"})
    plan = json.loads((planted.folder / "plan.json").read_text())
    plan |= {"campaign": {"name": "<b>x</b>"}, "workload": "inference"}
    (planted.folder / "plan.json").write_text(json.dumps(plan))
    from llem.pipeline import report_campaign

    folder = CampaignFolder(planted.folder)
    aggregate_campaign(folder)
    page = report_campaign(folder, fit_reason="too few").read_text()
    assert "<script>alert" not in page and "<b>x</b>" not in page
    assert "No law: too few" in page
