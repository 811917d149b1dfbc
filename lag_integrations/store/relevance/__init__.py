"""How likely a log fits a request, for the embedder at hand."""
