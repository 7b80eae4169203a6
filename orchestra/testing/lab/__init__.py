"""A cluster of namespace hosts on one machine, each with a real sshd: to try things and to test."""
