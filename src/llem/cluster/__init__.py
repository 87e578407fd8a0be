"""What acts on a cluster: rendering, submitting, watching; SLURM and the local executor."""

from llem.cluster.causes import Cause
from llem.cluster.files import finite_or_none, write_json, write_text
from llem.cluster.folder import PATIENCE_S, CampaignFolder
from llem.cluster.ledger import Ledger, Submitted
from llem.cluster.local import LocalOutcome, run_locally
from llem.cluster.notify import Notifier
from llem.cluster.render import render_files
from llem.cluster.slurm import ask_limits
from llem.cluster.state import CampaignState, RunState, campaign_state
from llem.cluster.submit import Submission, cancel, resubmit, submit, submit_and_wait
from llem.cluster.summary import Summary, summarise
from llem.cluster.watch import wait

__all__ = [
    "PATIENCE_S",
    "CampaignFolder",
    "CampaignState",
    "Cause",
    "Ledger",
    "LocalOutcome",
    "Notifier",
    "RunState",
    "Submission",
    "Submitted",
    "Summary",
    "ask_limits",
    "campaign_state",
    "cancel",
    "finite_or_none",
    "render_files",
    "resubmit",
    "run_locally",
    "submit",
    "submit_and_wait",
    "summarise",
    "wait",
    "write_json",
    "write_text",
]
