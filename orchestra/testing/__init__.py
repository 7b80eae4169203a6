"""Shipped fakes and the lab: a cluster of namespace hosts on one machine."""
