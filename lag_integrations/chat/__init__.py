"""One call of a chat model, without a framework."""
