"""Stores that take line protocol: influx (VictoriaMetrics, InfluxDB 2) and files."""
