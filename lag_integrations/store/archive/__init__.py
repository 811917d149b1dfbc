"""One namespace as one portable file, to carry elsewhere.

It is a zip file. Nothing in it is ever used as a path:

- ``manifest.json``: ``format`` is ``lag-archive``, ``version`` is 2; ``namespace``, ``created``
  (ISO 8601), ``logs`` and ``segments`` (their numbers), ``sha256`` (of the next two, uncompressed,
  by name), ``signature``;
- ``logs.jsonl``: one log a line, ``{"trace": {…}, "captured_at": …, "times_seen": …, …,
  "source": …}``;
- ``segments.jsonl``, if there are segments: one a line, ``{"log_id": …, "fingerprint": …,
  "selection": …, "codec": …, "bytes": …, "sha256": …}``. The file of the first line is
  ``segments/00000000.safetensors``, and so on. Log ids are those of the archive's namespace.

Version 1 had no hashes and no signature, and is still read. Embeddings are not in: they are derived
from the traces, with whatever embedder the store has.

**Trust.** The signature is the HMAC-SHA256, in hexadecimal, over the rest of the manifest as JSON
with sorted keys and without spaces. The key is the store's own, unless the caller gives one. An
archive is trusted if its signature fits the key given at its import or, if none is given, the
store's own. Anybody may have written one that is not trusted, and a segment can say what its trace
does not say. Of such an archive

- segments are left out; they are made again from the traces;
- lessons are left out, which might say what no run did; `learn` makes them again;
- ``times_seen`` is 1, the other counters are 0: they keep logs from eviction;
- ``helped_by`` is left out, since verdicts count for the logs that it names; and so is reserved
  metadata: a ``verdict`` outlives judges, and ``lag_place`` would make a log an item of a LangGraph
  store. The outcome stays;
- reserved metadata that only restricts stays: ``lag_recall`` false, ``lag_outdated``,
  ``lag_quarantine``, ``lag_scope``;
- a line of more than some hundred thousand JSON values is refused.

Of any archive, a time that lies in the future is now, and a lesson is left out unless all that it
was made of is in the store.

**Limits.** Everything is read as a stream, and hashed before it is used: a line of ``logs.jsonl``
can be as long as the ledger's longest trace, a segment as long as its line says, at most 4 GiB.
There are no more lines and files than the manifest says, and 250,000 segments at most. Logs are
added in pages of 16 MiB, in which a JSON value counts 64 bytes more than its text, so that an
import takes memory for a page or for the longest line, whatever the archive holds.
"""

from __future__ import annotations

from lag_integrations.store.archive.format import ArchiveResult, Progress
from lag_integrations.store.archive.reading import check_archive, import_archive
from lag_integrations.store.archive.writing import export_archive

__all__ = ["ArchiveResult", "Progress", "check_archive", "export_archive", "import_archive"]
