"""One node's network: render (pure), apply, resolver."""
