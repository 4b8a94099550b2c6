"""Waits until the migration job has made the tables: a server that finds none would make them as well."""

import os
import time

import sqlalchemy


def has_tables(address: str) -> bool:
    """Whether a database is there and knows the version of its tables."""
    engine = sqlalchemy.create_engine(address, connect_args={"connect_timeout": 5})
    try:
        return any(
            name.startswith("alembic_version") for name in sqlalchemy.inspect(engine).get_table_names()
        )
    except sqlalchemy.exc.OperationalError:
        return False
    finally:
        engine.dispose()


for name in ("DATABASE_URI", "AUTH_DATABASE_URI"):
    while not has_tables(os.environ[name]):
        time.sleep(2)
