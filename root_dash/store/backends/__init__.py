"""SQLite and PostgreSQL: where a database is, how it is opened, what its errors mean."""
