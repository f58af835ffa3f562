"""The teacher: asking it, what it costs, the ledger of its replies, and which scripts are fit for training."""
