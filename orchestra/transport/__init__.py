"""How a trio stream reaches an agent: ssh, unix, memory."""
