"""PostgreSQL: migrations, statements, the ledger, jobs, rejections, the dataset registry and the writers."""
