"""The contracts room: what the members decided, on any EVM chain, and the ledger as seen from Python.

Sources, artifacts, client and embedded chain; nothing here knows the network, the arithmetic or a node.
"""
