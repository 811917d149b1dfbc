"""Coverage-guided fuzzing of what comes from outside.

Each module is a target. ``opened()`` gives the function that is fuzzed: of bytes, it raises if they
show a mistake. ``seeds()`` gives inputs to begin with, made by the package's own code. ``WORDS``
are put into inputs, so that they need not be found byte by byte. What was found is kept in
``findings/TARGET``, and tried by the tests (``test_findings.py``).
"""

TARGETS = ("archives", "filters", "segments", "tool_calls", "traces")
