"""The privacy room: what is hidden from whom, and how. Bytes and keys in, bytes and keys out.

Nothing here knows the network, the chain or a round's state.
"""
