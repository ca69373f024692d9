"""The bus: one Protocol, MQTT 5 and in-memory."""
