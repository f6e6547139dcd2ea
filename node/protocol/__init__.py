"""The round protocol as pure functions and one state machine: no I/O, clock, keys or randomness in here."""
