"""Text to token files: read, tokenise, split, hash. Knows nothing of runs or trainings.

Public: `prepare_data`, `Progress` (prepare), `sha256_of`. What a token file and its sidecar are is
`llem.campaign.data.prepared`'s to know, for plans and ranks read them too.
"""

from llem.data.prepare import Progress, prepare_data, sha256_of

__all__ = ["Progress", "prepare_data", "sha256_of"]
