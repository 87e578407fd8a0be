"""The record of a rank that served a model: other tables, the same file, reader and seal."""

import h5py
import numpy as np
import pytest

from llem.records import (
    FORWARDS,
    Phase,
    RecordError,
    RequestStatus,
    check_seal,
    rank_writer,
    read_rank,
    seal,
)
from llem.records.schema import RANK_TABLES

META = {"run_id": "a", "rank": 0, "workload": "inference", "deployment_id": "b", "cycle": 2}


def served(path, *, forwards=100):
    writer = rank_writer(path, meta=META)
    for i in range(forwards):
        phase = Phase.PREFILL if i == 0 else Phase.DECODE
        row = (i, 0, 10 + i, 11 + i, 4, 8, 4, 8 + i, np.nan, 7.5, int(phase), 4, 32)
        writer.append("forwards", row)
    writer.append("requests", (0, 3, 0, 8, forwards, 5, 9, 11, 110, int(RequestStatus.FINISHED)))
    writer.append("tokens", (0, 0, 11))
    writer.append("spans", (0, 1, 9, np.nan, np.nan, int(Phase.LOAD)))
    return writer


def test_a_served_record_reads_back_with_its_own_tables_and_no_steps(tmp_path):
    path = tmp_path / "rank-00000.h5"
    served(path).close()
    record = read_rank(path)
    assert record.closed and record.workload == "inference" and not record.problems
    assert record.forwards["forward"].tolist() == list(range(100))
    assert record.forwards["phase"].tolist() == [Phase.PREFILL] + [Phase.DECODE] * 99
    assert record.requests["t_last_ns"].tolist() == [110]
    assert (len(record.tokens), len(record.spans)) == (1, 1)
    assert (len(record.steps), len(record.evals)) == (0, 0)


def test_columns_of_a_served_record_are_those_of_its_forwards(tmp_path):
    path = tmp_path / "rank-00000.h5"
    served(path).close()
    record = read_rank(path, columns=("t1_ns", "tokens_out"))
    assert record.forwards["t1_ns"].tolist() == list(range(11, 111))
    assert record.forwards["tokens_out"].sum() == 400


def test_columns_that_another_version_did_not_write_are_a_problem_and_no_crash(tmp_path):
    path = tmp_path / "rank-00000.h5"
    served(path).close()
    with h5py.File(path, "r+") as file:
        rows = file["forwards"][()]
        del file["forwards"]
        file["forwards"] = rows[[n for n in rows.dtype.names if n != "live"]]
    record = read_rank(path, columns=("live", "context"))
    assert len(record.forwards) == 0
    assert [p for p in record.problems if "no column live: another version" in p]


def test_a_training_record_has_no_tables_of_a_served_one(tmp_path):
    path = tmp_path / "rank-00000.h5"
    rank_writer(path, meta={"run_id": "a"}).close()
    record = read_rank(path)
    assert record.workload == "training" and not record.problems
    assert len(record.requests) == len(record.forwards) == len(record.tokens) == 0


def test_what_a_killed_server_flushed_is_read_and_sealed(tmp_path):
    path = tmp_path / "rank-00000.h5"
    writer = served(path)
    writer.flush()
    writer.leave()
    before = read_rank(path)
    assert not before.closed and len(before.forwards) == 100
    seal(path)
    after = read_rank(path)
    assert after.forwards.tobytes() == before.forwards.tobytes()
    assert after.requests.tobytes() == before.requests.tobytes()
    assert check_seal(path).fresh is False


@pytest.mark.parametrize("keep", [100, 2_000, 20_000, 100_000, -1])
def test_a_served_record_that_was_cut_off_tells_what_is_lost(tmp_path, keep):
    path = tmp_path / "rank-00000.h5"
    served(path, forwards=5000).close()
    with path.open("r+b") as file:
        file.truncate(keep if keep >= 0 else path.stat().st_size + keep)
    try:
        record = read_rank(path)
    except RecordError:
        return
    known = np.zeros(5000, FORWARDS)
    known["t0_ns"] = 10 + np.arange(5000)
    assert np.isin(record.forwards["t0_ns"], known["t0_ns"]).all()
    assert any("rows are lost" in p or "not readable" in p or "cut off" in p
               for p in record.problems)  # fmt: skip


def test_every_row_of_every_table_has_a_time_by_which_holes_are_told():
    for tables in RANK_TABLES.values():
        for name, table in tables.items():
            assert [c for c in table.names if c.startswith("t")], name
