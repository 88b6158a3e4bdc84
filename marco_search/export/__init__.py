"""What is stored, as files and traces: JSON Lines, Parquet, OpenTelemetry; and archives."""
