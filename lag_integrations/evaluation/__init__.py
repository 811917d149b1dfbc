"""What `kvlog eval` runs: accuracy with and without logs, and what a store recalls."""
