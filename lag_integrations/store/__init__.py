"""The log store: the ledger is the truth; segments and the Chroma index are derived from it."""
