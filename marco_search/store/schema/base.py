"""Base of all models: names of constraints, and the column types they share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

# A constraint needs a name that a later migration can find it by.
NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

NOW = text("now()")
JobId = Annotated[UUID, mapped_column(Uuid, primary_key=True)]
JsonObject = dict[str, Any]


class Base(DeclarativeBase):
    """All tables of marco-search."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012  # the name and type are SQLAlchemy's
        str: Text,
        int: Integer,
        float: Double,
        datetime: DateTime(timezone=True),
        JsonObject: JSONB,
    }


def of_attempt() -> ForeignKeyConstraint:
    """A record belongs to the attempt that wrote it: none can be written without a claim."""
    return ForeignKeyConstraint(
        ["job_id", "generation"], ["attempts.job_id", "attempts.generation"]
    )


def created_at() -> Any:
    """The column `created_at`."""
    return mapped_column(server_default=NOW, comment="When the row was written")


def generation() -> Any:
    """The column `generation` of a record."""
    return mapped_column(BigInteger, comment="Lease generation of the attempt that wrote it")


def by_month(comment: str) -> dict[str, Any]:
    """The options of a table that is partitioned by the month in the job's id."""
    return {"comment": comment, "postgresql_partition_by": "RANGE (job_id)"}


def one_of(column: str, values: list[str]) -> str:
    """The SQL condition that `column` has one of `values`."""
    quoted = ", ".join(f"'{v}'" for v in values)
    return f"{column} IN ({quoted})"
