"""What concerns the process and the machine, not the model's mathematics."""
