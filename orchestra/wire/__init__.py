"""HTTP/1.1 on h11 over any trio stream. Knows no routes."""
