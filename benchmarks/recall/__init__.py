"""What is recalled, without a model, over public data and runs of our own."""
