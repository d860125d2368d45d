"""Journals: what a process did, one JSON object a line, in files of the offline store: reads, predictions.

`journals/<name>/<day>/<first>-<last>-<writer>-<number>.jsonl`, the day and the two instants (UTC microseconds) being those of the file's
entries. A file appears whole, with `create`, and never changes. Its first line says what was dropped since the file before; then
comes an entry a line. Who wants to be rid of old entries deletes days.
(`topic` writes the same entries to a topic instead.)
"""

from tidemill.journals.background import Counts
from tidemill.journals.reader import DamagedFileError, JournalFile, Lost, entries, journal_files, lost
from tidemill.journals.values import exact, plain
from tidemill.journals.writer import Journal

__all__ = ["Counts", "DamagedFileError", "Journal", "JournalFile", "Lost", "entries", "exact", "journal_files", "lost", "plain"]
