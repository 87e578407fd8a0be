"""A campaign on disk: its folder, plan, ledger, attempts and ends."""
