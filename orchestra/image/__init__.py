"""Images: references, digests, content store, layers, archives, shipping."""
