"""What computes the model: engines, devices and backends."""
