"""What agent runs said and did, and what of it is searched."""
