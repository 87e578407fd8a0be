"""What acts on a cluster: rendering, submitting, watching; SLURM and the local executor."""

from llem.cluster.files import finite_or_none, write_json, write_text
from llem.cluster.folder import CampaignFolder
from llem.cluster.ledger import Ledger, Submitted
from llem.cluster.local import LocalOutcome, run_locally
from llem.cluster.render import render_files
from llem.cluster.slurm import ask_limits
from llem.cluster.state import CampaignState, RunState, campaign_state, submitted_jobs
from llem.cluster.submit import Submission, cancel, resubmit, submit, submit_and_wait, wait

__all__ = [
    "CampaignFolder",
    "CampaignState",
    "Ledger",
    "LocalOutcome",
    "RunState",
    "Submission",
    "Submitted",
    "ask_limits",
    "campaign_state",
    "cancel",
    "finite_or_none",
    "render_files",
    "resubmit",
    "run_locally",
    "submit",
    "submit_and_wait",
    "submitted_jobs",
    "wait",
    "write_json",
    "write_text",
]
