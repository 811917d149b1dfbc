"""What a memory recalls, without a model: queries, and the log that fits each of them."""
