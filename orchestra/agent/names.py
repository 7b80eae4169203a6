"""Names for containers that were given none: adjective_surname, unique on the node.

The lists are ours; the surnames are people who made computing, networks and containers of goods.
"""

from __future__ import annotations

import random
from collections.abc import Container

ADJECTIVES = """
able amber azure bold brave breezy bright brisk calm candid cheerful clever copper coral cosmic
crisp curious daring deft eager early earnest easy epic fair fearless fleet fresh gentle gifted
golden happy hardy honest humble jolly keen kind lively loyal lucid lucky mellow merry mighty
nimble noble patient placid plucky polite proud quick quiet radiant ready robust rosy sage
serene sharp silver sincere smart snug solid spry steady sturdy subtle sunny swift tidy trusty
upbeat vivid warm wise witty zesty
"""
SURNAMES = """
allen babbage backus baran berners boole borg brooks cerf chomsky church clarke codd conway cray
curry dahl diffie dijkstra dolby easley engelbart erlang estrin floyd gosling goldberg gray
hamming hamilton hellman hoare holberton hopper ichbiah iverson jacobson johnson joy kahn kay
keller kernighan kildall kilby kleinrock knuth lamport lamarr liskov lovelace mauchly mccarthy
mclean merkle milner minsky moore naur newell noyce nyquist papert pascal perlman postel ritchie
rivest sammet shannon simon stallman stroustrup sutherland tanenbaum tarjan thompson torvalds
turing wilkes wirth zuse
"""


def generate(taken: Container[str], choice: random.Random | None = None) -> str:
    """Return a name that is not in `taken`; a number follows where all plain ones clash."""
    rng = choice or random.SystemRandom()
    adjectives, surnames = ADJECTIVES.split(), SURNAMES.split()
    for attempt in range(1000):
        name = f"{rng.choice(adjectives)}_{rng.choice(surnames)}"
        if attempt >= 6:
            name += str(rng.randrange(10 ** (1 + attempt // 10)))
        if name not in taken:
            return name
    raise RuntimeError("no free container name found")
