"""How a campaign stands: state, summary, logs, waiting and telling."""
