"""The cluster: store, observe loop, apply loop, events, node bootstrap over SSH."""
