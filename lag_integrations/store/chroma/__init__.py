"""Access to Chroma: an embedded database that processes share, or a server."""
