"""What `kvlog eval --dataset bfcl` runs: an agent with tools, on tasks of several turns."""
