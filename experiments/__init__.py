"""The experiments room: attacks on a federation and what the rules make of them. Imports node and below."""
