"""SQL over stored rollouts: DuckDB reads the Parquet files through pyarrow, and nothing else on this machine."""

from __future__ import annotations

import pyarrow as pa

from coterie.errors import RunError, install_command
from coterie.experience.stored import Stored

SHUT = (
    "SET enable_external_access = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",
    "SET lock_configuration = true",
)
"""Said once the views exist: from then on no statement can open a file, a socket, an extension, or these doors."""


def query(stored: Stored, sql: str) -> pa.Table:
    """The answer of one SELECT over the views `rollouts` and `prompts`.

    Raises:
        RunError: DuckDB is not installed, the text is not one SELECT, or DuckDB refuses it.
    """
    try:
        import duckdb
    except ImportError as error:
        raise RunError(
            f"--sql needs DuckDB, which is not installed ({error}): {install_command('experience')}; the filters, --by "
            "and --export work without it"
        ) from error
    with duckdb.connect(":memory:") as connection:
        connection.register("rollouts", stored.rollouts())
        connection.register("prompts", stored.prompts)
        try:
            for statement in SHUT:
                connection.execute(statement)
            statements = connection.extract_statements(sql)
            kinds = [one.type for one in statements]
            if kinds != [duckdb.StatementType.SELECT]:
                said = ", ".join(kind.name for kind in kinds) or "nothing"
                raise RunError(f"--sql takes one SELECT over `rollouts` and `prompts`; this is {said}")
            return connection.sql(sql).to_arrow_table()
        except (duckdb.Error, pa.ArrowException, OSError, UnicodeError) as error:
            raise RunError(f"DuckDB refuses the query: {error}") from error
