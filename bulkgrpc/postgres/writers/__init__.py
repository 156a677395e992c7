"""Ways of writing rows into a dataset's table, and the choice among them.

Each way has `write(connection, rows, owner) -> Written`: owner is the number of the job of each row. All run in the
caller's transaction; what they raise rolls back to before them.

    copy.py      COPY BINARY itself
    direct.py    straight COPY: all rows, none of whose keys may be there
    staging.py   the session's staging tables; which keys the table has
    ignore.py    straight COPY of the rows whose keys are new; a key that is there is left alone
    update.py    by staging; the last record of a key wins
    reject.py    by staging; a key that is there is a rejection
    constraints.py  which rows break a check constraint
    around.py    around the rows that the table refuses
    new.py       only the rows whose records' bytes are not known yet
    table.py     the choice: straight COPY while it goes well, the dataset's policy otherwise
"""
