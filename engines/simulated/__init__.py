"""A simulated engine: right in its timing, not in its words.

``model`` is the arithmetic of an engine's steps and memory, without a clock; ``engine`` runs it in
real time behind the same interface as a real engine; ``text`` invents the answers; ``faults``
breaks things on demand.
"""
