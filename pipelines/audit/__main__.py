"""Command line of the audit: python -m pipelines.audit --dataset mnist."""

from pipelines.audit.config import AuditConfig
from pipelines.cli import measurement

DESCRIPTION = "Whether to believe look-ahead on your own network."

if __name__ == "__main__":
    measurement(AuditConfig, "pipelines.audit", DESCRIPTION)
