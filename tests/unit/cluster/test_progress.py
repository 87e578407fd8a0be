"""How far an attempt is, in its log and in a file beside its records."""

import json
import math

from llem.cluster.job.progress import ProgressFile, line
from llem.training import Progress

AT = Progress(step=70, steps=1024, start_step=0, loss=2.31449, tokens_per_s=24_812.3, tokens=71_680)


def test_lines_of_a_log_have_their_columns_below_each_other():
    later = Progress(
        step=1024, steps=1024, start_step=0, loss=10.1, tokens_per_s=123.0, tokens=1_048_576
    )
    assert line(AT) == "step   70/1024   7 %  loss  2.3145  24.8 k tokens/s  left    39.4 s"
    assert line(later) == "step 1024/1024 100 %  loss 10.1000     123 tokens/s  left       0 s"


def test_mfu_and_energy_are_told_where_they_are_known():
    known = Progress(**{**vars(AT), "mfu": 0.3125, "energy_j": 1234.5})
    assert line(known).endswith("MFU  31.2 %  rank 0's device 1.23 kJ")


def test_the_file_holds_what_was_told_last_and_null_for_what_is_not_known(tmp_path):
    told = ProgressFile("0123456789ab", tmp_path, log=print)
    told.on_step(AT)
    found = json.loads((tmp_path / "progress.json").read_text())
    assert found["step"] == 70
    assert found["energy_j"] is None
    assert told.last is not None and math.isnan(told.last.energy_j)


def test_a_folder_that_is_gone_ends_no_training(tmp_path):
    ProgressFile("0123456789ab", tmp_path / "gone", log=print).on_step(AT)
