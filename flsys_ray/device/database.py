"""The phone's local database: one SQLite file, readable by its owner only.

Everything that a phone must remember over a kill is here: identity, consent, assignments and finished deltas, the
examples, controls, residuals and personal parameters. Raw data never leave it: the code that talks to the network
(`client`, `download`) is given no database.

A transaction is durable when it returns (WAL, `synchronous=FULL`); deleted content is overwritten (`secure_delete`).
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flsys_ray.errors import Conflict

FORMAT = 4

# Since format 2.
_PERSONAL = """
CREATE TABLE personal (
    model TEXT PRIMARY KEY,
    version INTEGER NOT NULL, weights_sha256 TEXT NOT NULL, program_sha256 TEXT NOT NULL,  -- compared with this one
    parameters BLOB,                         -- safetensors; NULL: the shared version is at least as good
    personal_correct INTEGER, shared_correct INTEGER, held_out INTEGER NOT NULL
) WITHOUT ROWID;
"""

# Since format 3: the phone's own controls (safetensors), and what one becomes once an assignment's update is counted.
_CONTROLS = """
CREATE TABLE controls (model TEXT PRIMARY KEY, control BLOB NOT NULL) WITHOUT ROWID;
ALTER TABLE assignments ADD COLUMN control BLOB;
"""

# Since format 4: what the last counted update of a lossy compression left out (safetensors), kept as controls are.
_RESIDUALS = """
CREATE TABLE residuals (model TEXT PRIMARY KEY, residual BLOB NOT NULL) WITHOUT ROWID;
ALTER TABLE assignments ADD COLUMN residual BLOB;
"""

_SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE models (
    model TEXT PRIMARY KEY,
    consent INTEGER,                         -- NULL: never asked
    eligibility TEXT,                        -- JSON, from the newest check-in
    version INTEGER, weights_sha256 TEXT, program_sha256 TEXT, refreshed_at REAL NOT NULL DEFAULT 0,
    trainings INTEGER NOT NULL DEFAULT 0, last_trained_at REAL, last_trained_id INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE assignments (
    assignment_id TEXT PRIMARY KEY, model TEXT NOT NULL, state TEXT NOT NULL,
    message TEXT,                            -- JSON, with its token; gone when settled
    received_at REAL NOT NULL, deadline_at REAL NOT NULL,
    starts INTEGER NOT NULL DEFAULT 0,       -- how often training was begun
    delta BLOB, evaluation TEXT, reason TEXT, settled_at REAL, detail TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE blocks (
    model TEXT NOT NULL, session TEXT NOT NULL, block INTEGER NOT NULL, held_out INTEGER NOT NULL,
    PRIMARY KEY (model, session, block)
) WITHOUT ROWID;
CREATE TABLE examples (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL, x BLOB NOT NULL, dtype TEXT NOT NULL, shape TEXT NOT NULL, y INTEGER, label TEXT,
    created_at REAL NOT NULL, start_s REAL, session TEXT NOT NULL, held_out INTEGER, bytes INTEGER NOT NULL
);
CREATE INDEX examples_by_model ON examples (model, held_out, id);
CREATE TABLE totals (only INTEGER PRIMARY KEY CHECK (only = 1), bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (1, 0);
CREATE TRIGGER example_added AFTER INSERT ON examples BEGIN UPDATE totals SET bytes = bytes + NEW.bytes; END;
CREATE TRIGGER example_removed AFTER DELETE ON examples BEGIN UPDATE totals SET bytes = bytes - OLD.bytes; END;
"""

Value = str | int | float | bytes | None
Row = tuple[Value, ...]


class Database:
    """One open database file. Safe to use from several threads of one process. Raises `Conflict` for a newer format."""

    def __init__(self, path: Path) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        os.chmod(path, 0o600)
        self._lock = threading.RLock()
        self._depth = 0
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
        try:
            self._open()
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "temp_store=MEMORY"):
            self._connection.execute(f"PRAGMA {pragma}")
        found = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if found > FORMAT:
            raise Conflict(f"the phone's database has format {found}, this program reads up to {FORMAT}: update it")
        if found < FORMAT:
            script = "".join((_SCHEMA, _PERSONAL, _CONTROLS, _RESIDUALS)[found:])
            self._connection.executescript(f"BEGIN IMMEDIATE;{script}PRAGMA user_version={FORMAT};COMMIT;")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and durable at the end. Nested transactions belong to the outermost."""
        with self._lock:
            if self._depth:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
            except BaseException:
                self._depth = 0
                self._connection.execute("ROLLBACK")
                raise
            self._depth = 0
            self._connection.execute("COMMIT")

    def rows(self, query: str, values: Sequence[Value] = ()) -> list[Row]:
        """Return all rows of a query."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[Value] = ()) -> Row | None:
        """Return the first row of a query, if there is one."""
        found = self.rows(query, values)
        return found[0] if found else None

    def write(self, statement: str, values: Sequence[Value] = ()) -> int:
        """Run one statement in a transaction of its own or in the open one; return how many rows it changed."""
        with self.transaction():
            return self._connection.execute(statement, values).rowcount

    def setting(self, key: str) -> Value:
        """Return one setting, None if it is not there."""
        found = self.row("SELECT value FROM settings WHERE key = ?", (key,))
        return found[0] if found else None

    def set_settings(self, values: Mapping[str, Value]) -> None:
        """Store settings together; None removes one."""
        with self.transaction():
            for key, value in values.items():
                if value is None:
                    self.write("DELETE FROM settings WHERE key = ?", (key,))
                else:
                    self.write("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value))

    def shrink(self) -> None:
        """Give freed pages back to the file system and empty the write-ahead log."""
        with self._lock:
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Close the file; what is not committed is gone."""
        with self._lock:
            self._connection.close()
