"""Which auditor may see which tenant."""

from __future__ import annotations

from sqlalchemy.orm import Mapped, mapped_column

from marco_search.store.schema.base import Base


class AuditorModel(Base):
    """One tenant that one auditor may see. Written by the owner only."""

    __tablename__ = "auditors"

    role_name: Mapped[str] = mapped_column(
        primary_key=True, comment="The role that the auditor logs in as"
    )
    tenant: Mapped[str] = mapped_column(
        primary_key=True, comment="A tenant whose jobs it sees; it sees no others"
    )

    __table_args__ = ({"comment": "Which auditor sees which tenant's jobs through the views"},)
