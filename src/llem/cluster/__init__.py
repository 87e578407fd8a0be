"""What acts on a cluster: rendering, submitting, watching; SLURM and the local executor."""

from llem.cluster.disk.files import finite_or_none, write_json, write_text
from llem.cluster.disk.folder import PATIENCE_S, CampaignFolder
from llem.cluster.disk.ledger import Ledger, Submitted
from llem.cluster.local import LocalOutcome, run_locally
from llem.cluster.render import render_files
from llem.cluster.scheduler.causes import Cause
from llem.cluster.scheduler.slurm import ask_limits
from llem.cluster.state.notify import Notifier
from llem.cluster.state.state import CampaignState, RunState, campaign_state
from llem.cluster.state.summary import Summary, summarise
from llem.cluster.state.watch import wait
from llem.cluster.submit import Submission, cancel, resubmit, submit, submit_and_wait

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
