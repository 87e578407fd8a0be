"""The data of a campaign: token files, what was prepared, a user's own samples."""
