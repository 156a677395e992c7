"""Writers of rows into a dataset's table, and the choice among them.

Each writer has `write(connection, rows, job) -> Written`: job is the number of each row's job. All run in the caller's
transaction; the effects of one that raises are rolled back by a savepoint.

    copy.py         COPY BINARY itself
    direct.py       direct COPY: all rows, none of whose keys may be in the table; policy append has no other way
    staging.py      the session's staging tables; which keys the table has
    ignore.py       direct COPY of the rows whose keys are new
    update.py       by staging; the last record of a key wins
    reject.py       by staging; a record whose key is in the table is rejected
    conflict.py     what an INSERT does with keys that the table has
    triggered.py    by direct COPY or by staging, into a table whose triggers may skip rows
    savepoint.py    a write that can be rolled back alone
    row_errors.py   which errors are about a row
    constraints.py  finds the rows that break check and not-null constraints
    isolate.py      writes all rows but those that PostgreSQL rejects, whatever the reason
    remember.py     only the rows whose records' bytes are not known
    table.py        the choice: direct COPY while it succeeds; else rows that break constraints first, and by policy
"""
