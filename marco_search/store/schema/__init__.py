"""The tables as typed models: the source that migrations are compared with."""

from marco_search.store.schema.auditors import AuditorModel
from marco_search.store.schema.base import Base
from marco_search.store.schema.chain import ArchiveModel, ChainLockModel, ChainModel, ProofModel
from marco_search.store.schema.jobs import AttemptModel, JobModel
from marco_search.store.schema.trail import AnswerModel, AuditModel, NodeModel, RolloutModel

__all__ = [
    "AnswerModel",
    "ArchiveModel",
    "AttemptModel",
    "AuditModel",
    "AuditorModel",
    "Base",
    "ChainLockModel",
    "ChainModel",
    "JobModel",
    "NodeModel",
    "ProofModel",
    "RolloutModel",
]
