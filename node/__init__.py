"""The node room: one member's peer, from its keys and configuration to the round and the command line."""
