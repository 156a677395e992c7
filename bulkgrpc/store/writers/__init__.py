"""Ways of writing rows into a dataset's table, and the choice among them.

Each way has `write(connection, rows, owner)`: owner is the number of the job of each row; it returns how many rows each
job has written.
"""
