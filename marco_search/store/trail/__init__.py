"""The audit trail: rounds appended and read back."""
