"""The p2p room: libp2p host and its gate, gossip, and blobs named by CID.

Bytes between members; nothing here knows what a message means, the chain, or a round.
"""
