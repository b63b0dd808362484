"""What the gateway remembers, in one SQLite file: which objects wait, and what was answered. UIDs only.

SQLite writes each change whole or not at all, also where the process or the machine dies.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .orthanc import Away

SCHEMA = """
CREATE TABLE IF NOT EXISTS place (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), since INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS queue (instance TEXT PRIMARY KEY, series TEXT, study TEXT,
    failures INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS answers (image TEXT, frame INTEGER, study TEXT NOT NULL, instance TEXT NOT NULL,
    outcome TEXT NOT NULL, suspicion REAL, suspicious INTEGER, unsure INTEGER, ended REAL NOT NULL,
    PRIMARY KEY (image, frame));
CREATE TABLE IF NOT EXISTS changed_studies (study TEXT PRIMARY KEY);
CREATE INDEX IF NOT EXISTS queue_due ON queue (due);
CREATE INDEX IF NOT EXISTS queue_series ON queue (series);
CREATE INDEX IF NOT EXISTS answers_ended ON answers (ended);
CREATE INDEX IF NOT EXISTS answers_study ON answers (study);
"""
DAY = 24 * 3600


class Waiting(NamedTuple):
    """An object that waits, by Orthanc's identifier, and how often it has failed."""

    instance: str
    failures: int


class State:
    """The file. Times are seconds since 1970.

    Args:
        path: of the file, which is begun where it is missing.

    Raises:
        ValueError: it is something else, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.connection = sqlite3.connect(path)
            self.connection.executescript(SCHEMA)
            (found,) = self.connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":  # a page that nobody reads for a while
                raise sqlite3.DatabaseError("database disk image is malformed")
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: not opened ({error}); make room, or move it away") from None
        except sqlite3.DatabaseError as error:
            raise self.damaged(error) from None

    def damaged(self, error: sqlite3.DatabaseError) -> ValueError:
        """What to say of a file that SQLite does not take."""
        return ValueError(
            f"{self.path}: not what the gateway remembers ({error}); move it away, the gateway then begins at "
            "Orthanc's first object, and stores nothing twice"
        )

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A change that is made whole or not at all.

        Raises:
            Away: no room.
        """
        try:
            with self.connection:
                yield self.connection
        except sqlite3.OperationalError as error:
            raise Away(f"{self.path}: not written ({error}); make room") from None

    def since(self) -> int:
        """The number of the last change whose objects wait, or have been answered."""
        found = self.connection.execute("SELECT since FROM place").fetchone()
        return found[0] if found else 0

    def enqueue(self, instances: Iterable[str], since: int) -> None:
        """Let objects wait, and remember the change up to which this has been done."""
        with self._changing() as connection:
            connection.executemany("INSERT OR IGNORE INTO queue (instance) VALUES (?)", [[i] for i in instances])
            connection.execute("REPLACE INTO place VALUES (1, ?)", [since])

    def next(self) -> Waiting | None:
        """The object whose turn it is, if any: those that have not been tried come first."""
        query = "SELECT instance, failures FROM queue WHERE due <= ? ORDER BY due, rowid LIMIT 1"
        found = self.connection.execute(query, [time.time()]).fetchone()
        return Waiting(*found) if found else None

    def drop(self, waiting: Waiting) -> None:
        """Let an object wait no longer, of which nothing is to be kept."""
        with self._changing() as connection:
            connection.execute("DELETE FROM queue WHERE instance = ?", [waiting.instance])

    def finish(self, waiting: Waiting, study: str, rows: Iterable[dict]) -> None:
        """Keep what became of an object, which waits no longer.

        Args:
            waiting: the object.
            study: Orthanc's identifier; empty where it was never told.
            rows: one for each frame, with the columns ``image``, ``frame``, ``study``, ``outcome``, and those of
                ``suspicion``, ``suspicious`` and ``unsure`` that it has.
        """
        columns = ("image", "frame", "study", "outcome", "suspicion", "suspicious", "unsure")
        with self._changing() as connection:
            for row in rows:
                values = [*map(row.get, columns), waiting.instance, time.time()]
                connection.execute(
                    f"REPLACE INTO answers ({', '.join(columns)}, instance, ended) "
                    f"VALUES ({', '.join('?' * len(values))})",
                    values,
                )
            if study:
                connection.execute("INSERT OR IGNORE INTO changed_studies VALUES (?)", [study])
            connection.execute("DELETE FROM queue WHERE instance = ?", [waiting.instance])

    def postpone(self, waiting: Waiting, seconds: float, failed: bool = False) -> None:
        """Let an object wait behind the others."""
        with self._changing() as connection:
            connection.execute(
                "UPDATE queue SET due = ?, failures = failures + ? WHERE instance = ?",
                [time.time() + seconds, int(failed), waiting.instance],
            )

    def await_series(self, waiting: Waiting, series: str, study: str, seconds: float) -> None:
        """Let an object, and all that is known of its series, wait for the rest of the series."""
        with self._changing() as connection:
            connection.execute(
                "UPDATE queue SET series = ?, study = ? WHERE instance = ?", [series, study, waiting.instance]
            )
            due = time.time() + seconds
            connection.execute("UPDATE queue SET due = MAX(due, ?) WHERE series = ?", [due, series])

    def failed(self) -> list[str]:
        """The objects that were given up."""
        return [i for (i,) in self.connection.execute("SELECT DISTINCT instance FROM answers WHERE outcome = 'failed'")]

    def finished_studies(self) -> list[str]:
        """Orthanc's identifiers of studies with new answers, of which no object waits."""
        rows = self.connection.execute("SELECT study FROM changed_studies EXCEPT SELECT study FROM queue")
        return [study for (study,) in rows]

    def close_study(self, study: str) -> None:
        """Remember that a study's line is written."""
        with self._changing() as connection:
            connection.execute("DELETE FROM changed_studies WHERE study = ?", [study])

    def study(self, uid: str) -> dict:
        """The answers of a study: how many, and the most suspicious one."""
        counts = self._counts("study = ?", uid)
        found = self.connection.execute(
            "SELECT image, frame, suspicion FROM answers WHERE study = ? AND outcome = 'answered' "
            "ORDER BY suspicion DESC, image, frame LIMIT 1",
            [uid],
        ).fetchone()
        return counts | (dict(zip(("most_suspicious", "frame", "suspicion"), found)) if found else {})

    def last_day(self) -> dict:
        """The answers of the last 24 hours."""
        return self._counts("ended > ?", time.time() - DAY)

    def _counts(self, where: str, value: object) -> dict:
        names = ("images", "answered", "refused", "failed", "suspicious", "unsure")
        sums = ", ".join(f"COALESCE(SUM(outcome = '{name}'), 0)" for name in names[1:4])
        sums += ", COALESCE(SUM(suspicious), 0), COALESCE(SUM(unsure), 0)"
        query = f"SELECT COUNT(*), {sums} FROM answers WHERE {where}"
        return dict(zip(names, self.connection.execute(query, [value]).fetchone()))

    def queue_length(self) -> int:
        """The number of objects that wait."""
        return self.connection.execute("SELECT COUNT(*) FROM queue").fetchone()[0]
