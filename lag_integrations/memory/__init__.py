"""`KVLogMemory` without a framework: what is captured, encoded and recalled."""
