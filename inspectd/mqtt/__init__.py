"""The station's side of MQTT."""
